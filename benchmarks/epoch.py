"""Where the time of a training epoch goes: data, steps, evaluation and checkpoints, as shares of the whole.

The embedded set is trained on, RGB and thermal, by `mmfuse.train` as it is. Its functions are timed from outside; what
a device still has to do counts where the host waits for it. The first epoch is left out: in it processes begin, memory
is claimed and images are read for the first time. A quarter as many images are evaluated as are trained on. The loss is
that of both sensors alone, and no doubt is fitted, which is done once a run.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.results import Row
from mmfuse.data.loader import TrainLoader
from mmfuse.embedded.dataset import generate
from mmfuse.errors import UserError
from mmfuse.evaluation import coco
from mmfuse.model import checkpoint
from mmfuse.recipes import DataRecipe, ModelRecipe, Recipe, TrainRecipe
from mmfuse.sample import Batch
from mmfuse.training import loop

DATA, STEPS, INFERENCE, SCORING, SAVING = "waiting for data", "steps", "inference", "scoring", "checkpoints"
REST, WHOLE = "rest", "epoch"


def measure(
    epochs: int = 4, size: str = "d0", side: int = 256, batch: int = 8, images: int = 64, workers: int = 1
) -> list[Row]:
    """Trains on the embedded set and returns the seconds of each part of an epoch, their ratios those to the whole.

    Raises:
        UserError: `epochs` is 1 or less.
    """
    if epochs < 2:
        raise UserError(f"epochs: {epochs} leaves none after the first, which isn't measured; use at least 2")
    with tempfile.TemporaryDirectory() as folder:
        card = generate(Path(folder) / "set", counts={"train": images, "val": max(1, images // 4), "test": 1}, seed=0)
        recipe = Recipe(
            "epoch",
            str(card),
            ("rgb", "thermal"),
            ModelRecipe(size=size),
            DataRecipe(input_size=(side, side), workers=workers),
            TrainRecipe(epochs=epochs, batch_size=batch, branch_losses=0),
            doubt="off",
        )
        seconds = parts(recipe, Path(folder) / "run")
    names = {SCORING: f"{SCORING}, {coco.evaluation_type(sizes=True).__module__.partition('.')[0]}"}
    return [
        Row("time", names.get(part, part), spent / (epochs - 1), "s", spent / seconds[WHOLE])
        for part, spent in seconds.items()
    ]


def parts(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Trains a recipe into a folder and returns the seconds of each part over all epochs but the first, and of `WHOLE`.

    All but `WHOLE` add up to it.
    """
    spent: dict[str, float] = defaultdict(float)
    train_epoch, epoch_batches = loop.Training._train_epoch, TrainLoader.epoch

    def train_epoch_apart(self: Any, epoch: int, *others: Any) -> dict[str, float]:
        if epoch == 1:
            spent.clear()
            spent[WHOLE] = -time.perf_counter()
        with timer(spent, STEPS):
            return train_epoch(self, epoch, *others)

    def batches_apart(self: TrainLoader, *others: Any) -> Iterator[Batch]:
        batches = epoch_batches(self, *others)
        while True:
            with timer(spent, DATA):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    with ExitStack() as patches:
        for owner, name, part in (
            (loop, "collect", INFERENCE),
            (loop, "coco_scores", SCORING),
            (checkpoint, "save_detector", SAVING),
            (loop.Training, "_save", SAVING),
        ):
            patches.enter_context(patch.object(owner, name, timed(spent, part, getattr(owner, name))))
        patches.enter_context(patch.object(loop.Training, "_train_epoch", train_epoch_apart))
        patches.enter_context(patch.object(TrainLoader, "epoch", batches_apart))
        loop.train(recipe, folder=folder)
    whole = spent[WHOLE] + time.perf_counter()
    spent[STEPS] -= spent[DATA]
    found = {part: spent[part] for part in (DATA, STEPS, INFERENCE, SCORING, SAVING)}
    return {**found, REST: whole - sum(found.values()), WHOLE: whole}


@contextmanager
def timer(spent: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds of a block to those of a part."""
    started = time.perf_counter()
    try:
        yield
    finally:
        spent[part] += time.perf_counter() - started


def timed(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its seconds added to those of a part."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with timer(spent, part):
            return function(*arguments, **options)

    return run
