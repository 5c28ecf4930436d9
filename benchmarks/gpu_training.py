"""How fast training is on one GPU, in bf16: `python -m benchmarks.gpu_training`, which takes less than 10 minutes.

A step is forward, loss, backward, clipping, AdamW and the average of weights, on images that lie on the device,
normalised and channels last; ours eager and compiled, and effdet's `DetBenchTrain` the same two ways, in turn, where it
is installed. Losses of the first step are compared before anything is timed, and what differs isn't. Without a GPU,
`--small` runs the same code on the processor.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.drawing import draw_objects
from benchmarks.gpu_inference import CLASSES, Notes, kernels, models, parse, report, save, settle
from benchmarks.results import Row
from benchmarks.side_by_side import device, side_by_side
from mmfuse.errors import UserError
from mmfuse.model.detector import FusionDetector
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.optim import build_optimizer

Losses = Callable[[], Tensor]
"""Returns the loss of the batch, which has gradients."""

OBJECTS = 20
"""In each image."""


def measure(
    small: bool = False, minutes: float = 7.0, size: str = "d0", side: int = 512, batch: int = 64
) -> tuple[list[Row], list[str]]:
    """Times the steps of all sides, and the memory of each; none is compiled after `minutes`."""
    notes = Notes(time.monotonic() + 60 * minutes)
    torch._dynamo.reset()
    images, targets = problem(side, batch)
    steps: dict[str, Callable[[], Tensor]] = {}
    made = sides(size, side, images, targets, notes, compiled=not small)
    first: list[Tensor] = []
    for name, (network, losses) in tqdm(made.items(), desc="first steps", unit="side"):
        step = train_step(network, losses, batch)

        def compared(step: Callable[[], Tensor] = step) -> None:
            first.append(step())
            torch.testing.assert_close(first[-1], first[0], rtol=0.1, atol=0)  # compiled code draws other drop paths

        if not ("compiled" in name and notes.late(name)) and notes.attempt(name, lambda run=compared: run):  # type: ignore[misc]
            steps[name] = step
    if not steps:
        raise UserError(f"device: nothing runs here; {'; '.join(notes.lines)}")
    passes = 1 if small else 5
    repeated = {name: lambda step=step: [step() for _ in range(passes)] for name, step in steps.items()}
    rows = []
    for found in side_by_side(repeated, 2 if small else 7, warm_up=1):
        speed = 1000 * batch * passes / found.milliseconds
        rows.append(Row("full step", found.name, speed, "img/s", found.median, found.low, found.high))
    if device().type == "cuda":
        for name, step in steps.items():
            rows.append(Row("memory an image", name, peak(made[name][0], step) / batch / 2**20, "MiB"))
            number, seconds = kernels(step)
            rows += [Row("kernels", name, number, "kernels"), Row("busy", name, 1000 * seconds, "ms")]
    return rows, notes.lines


def problem(side: int, batch: int) -> tuple[Tensor, Targets]:
    """Returns normalised images (B, 3, side, side) and their objects."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device(), memory_format=torch.channels_last)
    boxes, labels = draw_objects(batch, OBJECTS, side, CLASSES, generator)
    return images, Targets(list(boxes.clamp(0, side)), list(labels)).to(device())


def sides(
    size: str, side: int, images: Tensor, targets: Targets, notes: Notes, *, compiled: bool
) -> dict[str, tuple[nn.Module, Losses]]:
    """Returns each side's network and loss, by name, effdet's first; all have the same weights, each its own."""
    boxes = torch.stack(targets.boxes)[..., [1, 0, 3, 2]]
    given = {"bbox": boxes, "cls": torch.stack(targets.labels) + 1}
    found: dict[str, tuple[nn.Module, Losses]] = {}
    for name in ("eager", "compiled") if compiled else ("eager",):
        reference, detector = models(size, side, 1, notes)
        if reference is not None:
            found[f"effdet, {name}"] = reference, _their_loss(reference, images, given, name == "compiled")
        found[f"mmfuse, {name}"] = detector, _our_loss(detector, images, targets, name == "compiled")
    return dict(sorted(found.items(), key=lambda item: item[0] == "effdet, compiled"))


def _their_loss(network: nn.Module, images: Tensor, targets: Mapping[str, Tensor], compiled: bool) -> Losses:
    from benchmarks.reference import DetBenchTrain

    bench = DetBenchTrain(network).to(device()).train()
    run = torch.compile(bench, dynamic=False) if compiled else bench
    return lambda: run(images, targets)["loss"]


def _our_loss(detector: FusionDetector, images: Tensor, targets: Targets, compiled: bool) -> Losses:
    detector.train().anchors((images.shape[2], images.shape[3]))
    (modality,) = detector.modalities

    def total(images: Tensor, targets: Targets) -> Tensor:
        return detector.loss(detector({modality: images}), targets)["total"]

    run = torch.compile(total, fullgraph=True, dynamic=False) if compiled else total
    return lambda: run(images, targets)


def train_step(network: nn.Module, losses: Losses, batch: int) -> Callable[[], Tensor]:
    """Returns what trains a network once on its loss and gives that loss; the first one draws from the same seed."""
    recipe = TrainRecipe(batch_size=batch, optimizer="adamw")
    optimizer = build_optimizer(network, recipe)
    ema = ModelEmaV3(network, recipe.ema_decay, use_warmup=True)
    step = 0

    def run() -> Tensor:
        nonlocal step
        if step == 0:
            torch.manual_seed(0)
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            loss = losses()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
        ema.update(network, step)
        step += 1
        return loss.detach()

    return run


def peak(network: nn.Module, step: Callable[[], Tensor]) -> int:
    """Returns the most bytes that a step holds beside what stays: weights, the optimizer's state and the average."""
    network.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table and writes the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_training", description=__doc__)
    parser.add_argument("--size", default="d0", help="one of effdet's, for effdet beside it (default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="pixels of the square images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    options: Mapping[str, Any] = parse(parser, arguments)
    own = {k: v for k, v in options.items() if k != "results"}
    settle("small" in own)
    rows, notes = measure(**own)
    print(report(save("gpu_training", own, rows, notes, options["results"])))


if __name__ == "__main__":
    main()
