"""How many training samples a second the loader gives, and its time relative to a PIL + transforms.v2 pipeline.

Pairs of JPEGs (640 x 512, quality 90: one in colour, one of a channel that is stored three times) become augmented
batches, in as many worker processes on either side.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.results import Row
from benchmarks.side_by_side import side_by_side
from mmfuse.data.annotations.cards import Card
from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import TrainLoader, train_loader
from mmfuse.recipes import DataRecipe
from mmfuse.sensor import Sensor

PLAIN = "PIL + transforms.v2"
_HEIGHT, _WIDTH = 512, 640
_SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}


def measure(rounds: int = 11, side: int = 512, batch_size: int = 16, workers: int = 2, images: int = 128) -> list[Row]:
    """Times an epoch of each loader: the plain one, the same without floats, ours, and ours from its cache.

    The cache is full when the timed rounds begin: what is timed is the second epoch and later ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = make_pairs(Path(folder), images)
        recipe = DataRecipe(workers=workers)
        plain = {as_float: plain_loader(records, recipe, side, batch_size, as_float) for as_float in (True, False)}
        straight = our_loader(records, recipe, side, batch_size)
        cached = our_loader(records, replace(recipe, cache=f"{folder}/cache"), side, batch_size)
        epochs = count()
        sides: dict[str, Callable[[], object]] = {
            PLAIN: lambda: _read(plain[True]),
            f"{PLAIN}, uint8": lambda: _read(plain[False]),
            "mmfuse": lambda: _read(straight.epoch(next(epochs))),
            "mmfuse, cached": lambda: _read(cached.epoch(next(epochs))),
        }
        samples = images // batch_size * batch_size
        return [
            Row("time", r.name, 1000 * samples / r.milliseconds, "samples / s", r.median, r.low, r.high)
            for r in side_by_side(sides, rounds)
        ]


def make_pairs(folder: Path, number: int) -> list[Record]:
    """Writes pairs of pictures with detail at all scales, as nature has it, and sharp edges; returns their records."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(number):
        picture = _picture(rng)
        files = {m: folder / f"{index}_{m}.jpg" for m in _SENSORS}
        Image.fromarray(picture).save(files["rgb"], quality=90)
        Image.fromarray(np.repeat(255 - picture[:, :, :1], 3, 2)).save(files["thermal"], quality=90)
        corners = rng.uniform((0, 0), (_WIDTH - 120, _HEIGHT - 120), (8, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(20, 120, (8, 2))), 1).astype(np.float32)
        records.append(Record(index, files, _WIDTH, _HEIGHT, boxes, np.zeros(8, np.int64), np.zeros(8, bool)))
    return records


def _picture(rng: np.random.Generator) -> np.ndarray:
    picture = np.full((_HEIGHT, _WIDTH, 3), 127.0)
    for octave in range(1, 8):
        shape = (2**octave, round(2**octave * _WIDTH / _HEIGHT), 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((_WIDTH, _HEIGHT), Image.BICUBIC)
        picture += (np.asarray(noise) - 127.5) * 1.6**-octave
    for x, y, width, height in rng.integers((0, 0, 20, 20), (_WIDTH, _HEIGHT, 160, 160), (12, 4)):
        picture[y : y + height, x : x + width] += rng.uniform(-60, 60, 3)
    return (picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


class _PlainPairs(Dataset[dict[str, Tensor]]):
    """Pairs as torchvision's documentation says to read and augment them."""

    def __init__(self, records: list[Record], recipe: DataRecipe, side: int, as_float: bool) -> None:
        self.records = records
        self.geometry = v2.Compose(
            [
                v2.ToImage(),
                v2.ScaleJitter((side, side), recipe.scale_jitter, antialias=True),
                v2.RandomCrop((side, side), pad_if_needed=True),
                v2.RandomHorizontalFlip(recipe.hflip),
                v2.SanitizeBoundingBoxes(min_size=2),
            ]
        )
        self.colour = v2.ColorJitter(*[recipe.color_jitter] * 3)
        self.finish = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True) if as_float else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        sample = {
            "rgb": Image.open(record.files["rgb"]).convert("RGB"),
            "thermal": Image.open(record.files["thermal"]).convert("L"),
            "boxes": tv_tensors.BoundingBoxes(record.boxes, format="XYXY", canvas_size=(record.height, record.width)),
            "labels": torch.from_numpy(record.labels),
        }
        sample = self.geometry(sample)
        sample["rgb"] = self.colour(sample["rgb"])
        return self.finish(sample) if self.finish else sample


def _stack(samples: list[dict[str, Tensor]]) -> dict[str, object]:
    images = {m: torch.utils.data.default_collate([sample[m] for sample in samples]) for m in _SENSORS}
    return images | {name: [sample[name] for sample in samples] for name in ("boxes", "labels")}


def plain_loader(
    records: list[Record], recipe: DataRecipe, side: int, batch_size: int, as_float: bool
) -> DataLoader[dict[str, Tensor]]:
    """Makes the loader that ours is measured against."""
    return DataLoader(
        _PlainPairs(records, recipe, side, as_float),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=recipe.workers or 0,
        collate_fn=_stack,
        persistent_workers=bool(recipe.workers),
    )


def our_loader(records: list[Record], recipe: DataRecipe, side: int, batch_size: int) -> TrainLoader:
    """Makes our loader of the same pairs."""
    here = Path()
    card = Card("pairs", here, "coco", _SENSORS, ("object",), {}, (), "", "", "", here)
    return train_loader(card, records, list(_SENSORS), (side, side), recipe, batch_size, seed=0)


def _read(batches: Iterable[object]) -> None:
    for _ in batches:
        pass
