"""How fast `mmfuse train` is from JPEG pairs, beside its step and what the cores can decode, and when it takes a step.

The command runs in a process of its own, from its start; what it does is timed there from outside. A step alone is that
of the same process, on one batch again and again. Decoding is what all cores do at most, the loader is that of the
training by itself. Files are read for the second time where it counts, so from memory.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu import Notes
from benchmarks.loader import make_pairs
from benchmarks.results import Row
from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import train_loader
from mmfuse.data.samples import read_record
from mmfuse.errors import UserError
from mmfuse.recipes import load_recipe
from mmfuse.run import Run, input_size
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import save_yaml

ROOT = Path(__file__).parent.parent
DRAWN = 64
"""Pairs that are drawn; others are copies of their files."""

CASES = {
    "rgb": ["modalities=[rgb]"],
    "rgb, compiled": ["modalities=[rgb]", "train.compile=true"],
    "rgb and thermal": [],
    "rgb and thermal, compiled": ["train.compile=true"],
}
"""Changes to the recipe; two modalities have the loss of each alone, as by default."""


def measure(
    small: bool = False,
    minutes: float = 7.0,
    only: str = "",
    size: str = "d0",
    side: int = 512,
    batch: int = 64,
    images: int = 1280,
) -> Iterator[Row | str]:
    """Trains three epochs of `images` pairs in each case whose name begins with `only`; none begins after `minutes`.

    Yields rows as they are found, and notes on what is left out.

    Raises:
        UserError: no case has such a name, there is no CUDA device, and not `small`, or a training fails.
    """
    if not small and not torch.cuda.is_available():
        raise UserError("device: no CUDA device was found; run it on one, or give --small")
    if small:
        size, side, batch, images = "d-4", 96, 2, 4
    chosen = {name: changes for name, changes in CASES.items() if name.startswith(only)}
    if not chosen:
        raise UserError(f"only: {only!r} begins no case; use the beginning of one, such as 'rgb and thermal'")
    notes = Notes(minutes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, size, side, batch, images)
        for number, (case, changes) in enumerate(chosen.items()):
            if small and "compiled" in case:
                yield f"{case}: left out, it takes minutes to compile"
            elif not notes.late(case):
                yield from rows_of(case, recipe, [*changes, "train.epochs=3"], folder / str(number))
                yield from notes.taken()
        yield from notes.taken()


def write_recipe(folder: Path, size: str, side: int, batch: int, images: int) -> Path:
    """Draws `images` pairs, a sixteenth of them again for validation, and returns a recipe that trains on them."""
    drawn = make_pairs(folder, min(DRAWN, images))
    for split, number in (("train", images), ("val", max(1, images // 16))):
        listed, objects = [], []
        for index in range(number):
            record = drawn[index % len(drawn)]
            files = {m: f"{split}/{index}_{m}.jpg" for m in record.files}
            for m, file in files.items():
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copy(record.files[m], folder / file)
            listed.append({"id": index, "width": record.width, "height": record.height, "modalities": files})
            for x1, y1, x2, y2 in record.boxes.tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                objects.append({"id": len(objects), "image_id": index, "category_id": 1, "bbox": box})
        truth = {"images": listed, "annotations": objects, "categories": [{"id": 1, "name": "object"}]}
        (folder / f"{split}.json").write_text(json.dumps(truth))
    modalities = {"rgb": {"channels": 3}, "thermal": {"channels": 1}}
    splits = {split: f"{split}.json" for split in ("train", "val")}
    card = {"name": "pairs", "root": ".", "reader": "coco", "modalities": modalities, "classes": ["object"]}
    save_yaml(folder / "card.yaml", card | {"splits": splits, "source": "drawn"})
    recipe: dict[str, Any] = {"card": "card.yaml", "modalities": list(modalities), "model": {"size": size}}
    recipe |= {"data": {"input_size": [side, side]}, "train": {"batch_size": batch}, "doubt": "off"}
    save_yaml(folder / "recipe.yaml", recipe)
    return folder / "recipe.yaml"


def rows_of(case: str, path: Path, changes: list[str], out: Path) -> list[Row]:
    """Trains a case and returns what was timed; ratios are to the speed of a step alone."""
    recipe = load_recipe(path, changes)
    train, times = (
        [sys.executable, "-c", "from benchmarks.timed_train import timed; timed()"],
        out.with_suffix(".json"),
    )
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.time()
    done = subprocess.run(  # noqa: S603
        [*train, str(times), "train", str(path), *changes, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(
            f"{case}: {done.stderr.strip().splitlines()[-1][:200] if done.stderr else 'the training failed'}"
        )
    found = json.loads(times.read_text())
    batch = recipe.train.batch_size
    images = found["steps"] * batch
    step = batch / found["step"]
    epochs = [end - begin for begin, end in found["epochs"]]
    loading, decoding = loaded(path, changes), decoded(path, changes)
    speeds = {
        "step alone": step,
        "second epoch": images / epochs[1],
        "third epoch": images / epochs[2],
        "loader alone": loading,
        f"decoding alone, {cores()} cores": decoding,
    }
    rows = [Row(f"{case}: images", name, speed, "img/s", step / speed) for name, speed in speeds.items()]
    rows.append(Row(f"{case}: start", "first step done", found["first"] - started, "s"))
    rows.append(Row(f"{case}: start", "first epoch", epochs[0], "s"))
    waiting = Run(out).metrics[-1].get("waiting")
    if waiting is not None:
        rows.append(Row(f"{case}: waiting for data", "third epoch", 100 * waiting, "%"))
    return rows


def loaded(path: Path, changes: list[str]) -> float:
    """Returns the images a second that the training's loader gives by itself, in its second epoch."""
    recipe = load_recipe(path, changes)
    card = card_of(recipe)
    records, size = read_split(card, "train"), input_size(recipe)
    loader = train_loader(card, records, recipe.modalities, size, recipe.data, recipe.train.batch_size, 0)
    for _ in loader.epoch(0):
        pass
    started = time.perf_counter()
    number = sum(len(batch) for batch in loader.epoch(1))
    return number / (time.perf_counter() - started)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class _Files(Dataset[int]):
    def __init__(self, records: list[Record], sensors: dict[str, Sensor]) -> None:
        self.records = records
        self.sensors = sensors

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        return len(read_record(self.records[index], self.sensors))


def decoded(path: Path, changes: list[str]) -> float:
    """Returns the images (of all sensors) a second that as many processes as there are cores read and decode."""
    recipe = load_recipe(path, changes)
    card = card_of(recipe)
    files = _Files(read_split(card, "train"), {m: card.modalities[m] for m in recipe.modalities})
    loader = DataLoader(files, 8, num_workers=cores(), persistent_workers=True)
    for _ in loader:
        pass
    started = time.perf_counter()
    for _ in loader:
        pass
    return len(files) / (time.perf_counter() - started)
