"""What is measured of sensors on the training split: the type of their files, their range, and their statistics."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmfuse.data.annotations.records import Record, spread
from mmfuse.data.cache import CacheError, ImageCache, code_digest
from mmfuse.data.checks.contents import impossible
from mmfuse.data.parallel import each
from mmfuse.errors import UserError
from mmfuse.files import read_regular, write_whole
from mmfuse.images.decode import read_image
from mmfuse.recipes import DataRecipe
from mmfuse.sensor import Sensor

_MEASURED_IMAGES = 256
_MEASURED = ("dtype", "mean", "std", "seen", "gaps", "range")
SMALLEST_STD = 1e-6
_RANGE = (0.001, 0.999)
_VALUES_PER_IMAGE = 4096
_TYPED_FILES = 32
_DEFAULT = DataRecipe()


def measure(records: Sequence[Record], sensors: Mapping[str, Sensor], data: DataRecipe = _DEFAULT) -> dict[str, Sensor]:
    """Returns the sensors with the mean and standard deviation of their encoded channels over all measured pixels.

    Their `dtype` becomes that of their files, `seen` the 0.1 and 99.9 percentiles of the raw values of 32 files (of
    depth, the valid ones), `gaps` whether these have pixels that weren't measured, and the `range` of an "intensity"
    that is deeper than 8 bit and has none those of all images. At most 256 records are read, evenly spaced. A channel
    that never changes gets a deviation of 1e-6. Of `data` the cache counts, the workers, and what is to be done with
    images that can't be read. What was measured is kept beside the images of the cache, and found again where files,
    annotations, sensors and our code are the same.

    Raises:
        UserError: an image can't be read, files of a sensor differ in type, no record has a pixel of a sensor, or its
            values are impossible or not finite.
    """
    chosen = spread(records, _MEASURED_IMAGES)
    path = _folder(data) / f"{_key(chosen, sensors, data)}.json"
    found = _kept(path, sensors)
    if found is None:
        found = _measured(chosen, sensors, data)
        values = {m: {name: getattr(sensor, name) for name in _MEASURED} for m, sensor in found.items()}
        with suppress(UserError):  # it is measured again next time
            write_whole(path, json.dumps(values).encode())
    return found


def _folder(data: DataRecipe) -> Path:
    return ImageCache(data.cache).folder / "measured"


def _key(records: Sequence[Record], sensors: Mapping[str, Sensor], data: DataRecipe) -> str:
    """Returns a digest of all that counts: of files their names, sizes and times."""
    read = {file for record in records for m, file in record.files.items() if m in sensors}
    content = [
        code_digest(), Path(__file__).read_text(), data.on_bad_sample,
        {m: asdict(sensor) for m, sensor in sensors.items()},
        [[r.image_id, r.width, r.height, repr(r.calibration), repr(r.onto)] for r in records],
        [[m, str(file)] for r in records for m, file in r.files.items()],
        sorted((str(file), stat.st_mtime_ns, stat.st_size) for file in read if (stat := _stat(file))),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _kept(path: Path, sensors: Mapping[str, Sensor]) -> dict[str, Sensor] | None:
    """Returns what was measured before; None where nothing was, or the file is damaged."""
    try:
        values = json.loads(read_regular(path))
        return {m: replace(sensor, **{name: values[m][name] for name in _MEASURED}) for m, sensor in sensors.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _measured(chosen: Sequence[Record], sensors: Mapping[str, Sensor], data: DataRecipe) -> dict[str, Sensor]:
    typed = {m: _typed(m, sensor, chosen, data) for m, sensor in sensors.items()}
    if ranged := {m for m, s in typed.items() if s.encoding == "intensity" and s.dtype != "uint8" and not s.range}:
        values: dict[str, _Values] = {m: _Values() for m in ranged}
        needed = {m: sensor for m, sensor in typed.items() if m in ranged or sensor.is_depth}
        read = partial(ImageCache(data.cache).images, sensors=needed)
        for images in _each(read, chosen, data, "measuring ranges"):
            for m in ranged & set(images):
                values[m].add(images[m].numpy())
        typed |= {m: replace(typed[m], range=values[m].range(m)) for m in ranged}
    sums = {m: torch.zeros(3, sensor.encoded_channels, dtype=torch.float64) for m, sensor in typed.items()}
    add_up = partial(_sums, sensors=typed, cache=ImageCache(data.cache))
    for added in _each(add_up, chosen, data, "measuring sensors"):
        for m, own in added.items():
            sums[m] += own
    found = {}
    for m, sensor in typed.items():
        pixels, total, squares = sums[m]
        if not pixels.all() or (sensor.is_depth and not total[-1]):
            where = "" if sensor.register == "none" else " in the frame of the reference"
            raise UserError(f"{m}: no training image has a measured pixel{where}; leave it out, or mend files or card")
        mean = total / pixels
        std = (squares / pixels - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_STD)
        if not (mean.isfinite() & std.isfinite()).all():
            raise UserError(f"{m}: what it measures isn't finite; see mmfuse check, and mend its files or leave it out")
        found[m] = replace(sensor, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return found


def _sums(record: Record, sensors: Mapping[str, Sensor], cache: ImageCache) -> dict[str, Tensor]:
    """Returns of each sensor's encoded channels how many pixels are measured, their sum and that of their squares."""
    sums = {}
    for m, image in cache.images(record, sensors).items():
        encoded = sensors[m].encode(image[None])[0].flatten(1).double()
        sums[m] = torch.stack(((~encoded.isnan()).sum(1), encoded.nansum(1), encoded.square().nansum(1)))
    return sums


def _each(
    function: Callable[[Record], dict[str, Tensor]], records: Sequence[Record], data: DataRecipe, title: str
) -> Iterator[dict[str, Tensor]]:
    """Yields what a function gives for each record whose images can be read."""
    for found in each(function, records, data.workers, title):
        if not isinstance(found, UserError):
            yield found
        elif data.on_bad_sample == "error" or isinstance(found, CacheError):
            raise UserError(str(found))


def _typed(modality: str, sensor: Sensor, records: Sequence[Record], data: DataRecipe) -> Sensor:
    there = [record.files[modality] for record in records if modality in record.files]
    kind, values, gaps = "", _Values(), False
    for file in spread(there, _TYPED_FILES):
        try:
            raw = read_image(file, replace(sensor, dtype=kind or sensor.dtype))  # type: ignore[arg-type]
        except UserError:
            if data.on_bad_sample == "error":
                raise
            continue
        kind = kind or str(raw.dtype).removeprefix("torch.")
        if raw.ndim == 3:
            pixels = sensor.measured(raw).numpy()
            values.add(pixels[np.isfinite(pixels) & (pixels != 0)] if sensor.is_depth else pixels)
            gaps |= bool(np.isnan(pixels).any())
    if kind:
        seen = values.range(modality) if values.any else ()
        if seen and not sensor.is_depth and (problem := impossible(sensor, *seen)):
            raise UserError(f"{modality}: {problem}; mend the files, the encoding or the unit, or leave the sensor out")
        return replace(sensor, dtype=kind, seen=seen, gaps=gaps)  # type: ignore[arg-type]
    problem = "can be read of this modality" if there else "has this modality"
    raise UserError(f"{modality}: no training image {problem}; leave it out or add its files")


class _Values:
    """The distribution of a sensor's values: of 16-bit images all of them, of others a sample of each image."""

    def __init__(self) -> None:
        self.counts = np.zeros(2**16, np.int64)
        self.sample: list[np.ndarray] = []

    def add(self, image: np.ndarray) -> None:
        values = image.ravel()
        if values.dtype in (np.uint8, np.uint16):
            self.counts += np.bincount(values, minlength=2**16)
        else:
            values = values[:: max(1, len(values) // _VALUES_PER_IMAGE)]
            self.sample.append(values[np.isfinite(values)])

    @property
    def any(self) -> bool:
        """Whether there is a value."""
        return bool(self.counts.any()) or any(len(x) for x in self.sample)

    def range(self, modality: str) -> tuple[float, float]:
        values, counts = np.unique(np.concatenate(self.sample or [np.zeros(0, np.float32)]), return_counts=True)
        if self.counts.any():
            values, counts = np.arange(2**16), self.counts
        if not counts.sum():
            raise UserError(f"{modality}: no training image has a measured pixel; mend its files or leave it out")
        ranks = np.ceil(np.array(_RANGE) * counts.sum()) - 1
        low, high = values[np.searchsorted(counts.cumsum(), ranks, side="right")].tolist()
        return float(low), float(high if high > low else low + 1)
