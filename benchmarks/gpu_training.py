"""How fast training is on one GPU, in bf16; takes less than 10 minutes.

A step is forward, loss, backward, clipping, AdamW and the average of weights; ours eager and as `train.compile` does
it, the network compiled and the loss not, and effdet's `DetBenchTrain` eager and compiled, in turn. Losses of the first
step are compared before anything is timed, and what differs isn't. See `benchmarks.gpu` for what the sides are;
`--small` needs no GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.drawing import draw_objects
from benchmarks.gpu import CLASSES, Notes, kernels, models, repeated, settle
from benchmarks.results import Row
from benchmarks.side_by_side import device, side_by_side
from mmfuse.errors import UserError
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.average import Average
from mmfuse.training.branches import StepLoss
from mmfuse.training.optim import build_optimizer

Losses = Callable[[], Tensor]
"""Returns the loss of the batch, which has gradients."""

OBJECTS = 20
"""In each image."""


def measure(
    small: bool = False, minutes: float = 7.0, only: str = "", size: str = "d0", side: int = 512, batch: int = 64
) -> Iterator[Row | str]:
    """Times the steps of the eager sides, then of all, with the memory of each; none is compiled after `minutes`.

    Sides are those whose names begin with `only`. Yields rows as they are found, and notes on what is left out.

    Raises:
        UserError: no side has such a name or runs here, or there is no CUDA device, and not `small`.
    """
    if not any(f"{who}, {way}".startswith(only) for who in ("effdet", "mmfuse") for way in ("eager", "compiled")):
        raise UserError(f"only: {only!r} begins no side; use the beginning of one, such as 'mmfuse, compiled'")
    settle(small)
    notes = Notes(minutes)
    torch._dynamo.reset()
    images, targets = problem(side, batch)
    steps: dict[str, Callable[[], Tensor]] = {}
    first: list[Tensor] = []
    for way in ("eager",) if small else ("eager", "compiled"):
        made = {
            name: one for name, one in sides(size, side, images, targets, notes, way).items() if name.startswith(only)
        }
        before = len(steps)
        for name, (network, losses) in tqdm(made.items(), desc=f"first steps, {way}", unit="side"):
            step = train_step(network, losses, batch)

            def compared(step: Callable[[], Tensor] = step) -> None:
                first.append(step())
                torch.testing.assert_close(first[-1], first[0], rtol=0.1, atol=0)  # effdet compiled draws otherwise
                step()  # ours is compiled after the first

            if not (way == "compiled" and notes.late(name)) and notes.attempt(name, lambda run=compared: run):  # type: ignore[misc]
                steps[name] = step
        if made and not steps:
            raise UserError(f"device: nothing runs here; {'; '.join(notes.lines)}")
        if len(steps) > before:
            passes = 1 if small else 5
            again = {name: repeated(step, passes) for name, step in steps.items()}
            for found in side_by_side(again, 2 if small else 7, warm_up=1):
                speed = 1000 * batch * passes / found.milliseconds
                yield Row("full step", found.name, speed, "img/s", found.median, found.low, found.high)
        if device().type == "cuda":
            for name in [name for name in made if name in steps]:
                yield Row("memory an image", name, peak(made[name][0], steps[name]) / batch / 2**20, "MiB")
                number, seconds = kernels(steps[name])
                yield Row("kernels", name, number, "kernels")
                yield Row("busy", name, 1000 * seconds, "ms")
        yield from notes.taken()


def problem(side: int, batch: int) -> tuple[Tensor, Targets]:
    """Returns normalised images (B, 3, side, side) and their objects."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device(), memory_format=torch.channels_last)
    boxes, labels = draw_objects(batch, OBJECTS, side, CLASSES, generator)
    return images, Targets(list(boxes.clamp(0, side)), list(labels)).to(device())


def sides(
    size: str, side: int, images: Tensor, targets: Targets, notes: Notes, way: str
) -> dict[str, tuple[nn.Module, Losses]]:
    """Returns each side's network and loss, by name: effdet's and ours, "eager" or "compiled".

    All have the same weights, each its own. Ours come first where compiling takes minutes: effdet's is left out sooner.
    """
    boxes = torch.stack(targets.boxes)[..., [1, 0, 3, 2]]
    given = {"bbox": boxes, "cls": torch.stack(targets.labels) + 1}
    reference, detector = models(size, side, 1, notes)
    found: dict[str, tuple[nn.Module, Losses]] = {}
    if reference is not None:
        found[f"effdet, {way}"] = reference, _their_loss(reference, images, given, way == "compiled")
    found[f"mmfuse, {way}"] = detector, _our_loss(detector, images, targets, way == "compiled")
    return dict(reversed(found.items())) if way == "compiled" else found


def _their_loss(network: nn.Module, images: Tensor, targets: Mapping[str, Tensor], compiled: bool) -> Losses:
    from benchmarks.reference import DetBenchTrain

    bench = DetBenchTrain(network).to(device()).train()
    run = torch.compile(bench, dynamic=False) if compiled else bench
    return lambda: run(images, targets)["loss"]


def _our_loss(detector: FusionDetector, images: Tensor, targets: Targets, compiled: bool) -> Losses:
    (modality,) = detector.modalities
    model = StepLoss(detector.train(), TrainRecipe(compile=compiled))
    present = {modality: torch.ones(len(images), dtype=torch.bool)}
    return lambda: model({modality: images}, present, targets)["total"]


def train_step(network: nn.Module, losses: Losses, batch: int) -> Callable[[], Tensor]:
    """Returns what trains a network once on its loss and gives that loss; the first one draws from the same seed."""
    recipe = TrainRecipe(batch_size=batch, optimizer="adamw")
    optimizer = build_optimizer(network, recipe)
    ours = isinstance(network, Detector)
    ema = (Average if ours else partial(ModelEmaV3, use_warmup=True))(network, recipe.ema_decay)
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
