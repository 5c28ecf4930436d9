"""A full training step, from raw images to averaged weights, relative to effdet's `DetBenchTrain`.

Both sides normalise raw images, assign targets, run forward and backward with drop path, clip gradients, and step the
same AdamW and the same average of weights. Losses of the first steps are compared before anything is timed. Memory is
measured for each side in a process of its own.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate, chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.drawing import draw_objects
from benchmarks.reference import DetBenchTrain, pair
from benchmarks.results import Bar, Row, count_rows, time_rows
from benchmarks.side_by_side import LAYOUTS, device, fastest, side_by_side
from mmfuse.model.detector import Detector
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.average import Average
from mmfuse.training.branches import StepLoss
from mmfuse.training.optim import build_optimizer

Step = Callable[[], Tensor]
"""Trains once and returns the losses (3,): total, class, box."""

BARS = {"mmfuse": Bar(0.8, 0.65)}
MEMORY = {"peak of tensors": {"mmfuse": Bar(0.8, 0.6)}}


def measure(
    rounds: int = 9, size: str = "d0", side: int = 512, batch: int = 4, classes: int = 90, objects: int = 20
) -> list[Row]:
    """Times the step of effdet, ours and ours again, and measures the peaks of their memory."""
    problem = (size, side, batch, classes, objects)
    candidates = {name: {layout: make(*problem, layout) for layout in LAYOUTS} for name, make in MAKERS.items()}
    check(candidates)
    layouts = {name: fastest(ways) for name, ways in candidates.items()}
    chosen = {name: candidates[name][layout] for name, layout in layouts.items()}
    peaks = {
        measure: {name: in_own_process(peak, name, *problem, layouts[name]) / 2**20 for name in chosen}
        for measure, peak in {"peak of tensors": tensor_peak, "peak of the process": resident_peak}.items()
    }
    chosen["mmfuse again"], layouts["mmfuse again"] = chosen["mmfuse"], layouts["mmfuse"]
    times = time_rows(side_by_side(chosen, rounds), BARS, layouts=layouts)
    memory = [count_rows(measure, "MiB", found, MEMORY.get(measure, {})) for measure, found in peaks.items()]
    return [*times, *chain.from_iterable(memory)]


def theirs(size: str, side: int, batch: int, classes: int, objects: int, layout: str) -> Step:
    """Returns effdet's step."""
    images, targets = _batch(side, batch, classes, objects)
    bench = DetBenchTrain(pair(size, side, classes)[0]).to(device()).to(memory_format=LAYOUTS[layout]).train()
    mean, std = (x.to(device()) for x in _STATISTICS)
    given = {"bbox": torch.stack(targets.boxes)[..., [1, 0, 3, 2]], "cls": torch.stack(targets.labels) + 1}

    def losses() -> dict[str, Tensor]:
        x = images.float().sub_(mean).div_(std).contiguous(memory_format=LAYOUTS[layout])
        found = bench(x, given)
        return {"total": found["loss"], "class": found["class_loss"], "box": found["box_loss"]}

    return _step(bench.model, losses, batch)


def ours(size: str, side: int, batch: int, classes: int, objects: int, layout: str) -> Step:
    """Returns our step, made of the parts that `mmfuse.training.loop` makes it of."""
    images, targets = _batch(side, batch, classes, objects)
    detector = pair(size, side, classes)[1].to(device()).to(memory_format=LAYOUTS[layout]).train()
    model, present = StepLoss(detector, TrainRecipe()), {"rgb": torch.ones(batch, dtype=torch.bool)}

    def losses() -> dict[str, Tensor]:
        normalised = detector.normalise({"rgb": images})
        x = {m: x.contiguous(memory_format=LAYOUTS[layout]) for m, x in normalised.items()}
        return model(x, present, targets)

    return _step(detector, losses, batch)


MAKERS = {"effdet": theirs, "mmfuse": ours}
_STATISTICS = (
    torch.tensor([123.675, 116.28, 103.53])[:, None, None],
    torch.tensor([58.395, 57.12, 57.375])[:, None, None],
)


def _batch(side: int, batch: int, classes: int, objects: int) -> tuple[Tensor, Targets]:
    """Returns raw images (B, 3, side, side) and their objects."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    boxes, labels = draw_objects(batch, objects, side, classes, generator)
    return images.to(device()), Targets(list(boxes.clamp(0, side)), list(labels)).to(device())


def _step(network: nn.Module, losses: Callable[[], Mapping[str, Tensor]], batch: int) -> Step:
    recipe = TrainRecipe(batch_size=batch)
    optimizer = build_optimizer(network, recipe)
    ours = isinstance(network, Detector)
    ema = (Average if ours else partial(ModelEmaV3, use_warmup=True))(network, recipe.ema_decay)
    step = 0

    def run() -> Tensor:
        nonlocal step
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            found = losses()
        optimizer.zero_grad(set_to_none=True)
        found["total"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
        ema.update(network, step)
        step += 1
        return torch.stack([found[name].detach() for name in ("total", "class", "box")])

    return run


def check(candidates: Mapping[str, Mapping[str, Step]], steps: int = 2) -> None:
    """Trains all sides for some steps from the same seed and compares their losses with effdet's.

    Raises:
        AssertionError: they differ.
    """
    for number in range(steps):
        expected = None
        for name, ways in candidates.items():
            for layout, step in ways.items():
                torch.manual_seed(number)
                found = step()
                expected = found if expected is None else expected
                torch.testing.assert_close(
                    found, expected, rtol=1e-3, atol=0,
                    msg=partial("{}: {}".format, f"{name}, {layout}, step {number}"),
                )  # fmt: skip


def in_own_process(function: Callable[..., int], *arguments: object) -> int:
    """Calls a function in a fresh process with as many threads as this one."""
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        return pool.submit(function, *arguments).result()


def tensor_peak(name: str, *problem: Any) -> int:
    """Returns the largest bytes of tensors that live at once in a few steps of a side.

    Weights, gradients, the optimizer's state and the average count, and so does what backward needs: the allocator says
    what it gives and takes back.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as listener:
        _few_steps(name, *problem)
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    assert listener.profiler is not None
    events = [event for event in listener.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def resident_peak(name: str, *problem: Any) -> int:
    """Returns the most bytes of main memory that this process, Python and libraries included, ever held (Linux)."""
    _few_steps(name, *problem)
    return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])


def _few_steps(name: str, *problem: Any) -> None:
    step = MAKERS[name](*problem)
    for _ in range(3):
        step()
