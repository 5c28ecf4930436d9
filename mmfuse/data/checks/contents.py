"""What the images of a sensor hold: pixel types, range, what isn't measured, and whether that can be right."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfuse.files import open_regular
from mmfuse.images.tiff import pages_of
from mmfuse.sensor import Sensor

_LEAST_WITHIN = 0.05
_GOOD_SHARE = 0.25
_TOO_LARGE = 1e9
_KELVIN = (1.0, 5000.0)
_METRES = 1e5
_COLOUR = 16
_SAME = 0.995
_LUMA = (0.299, 0.587, 0.114)
_UNITS = (0.001, 1.0, 1 / 5000, 1 / 256, 0.01, 0.0001)
"""Metres per count of depth files, the usual first."""


@dataclass
class SensorReport:
    """What the images of one sensor in a split hold.

    `types` counts images by pixel type. `range` is the lowest and the highest value, none where nothing is measured;
    `unit` is "m" for depth, "" for raw values. `invalid` is the share of pixels without a measurement (depth of
    0, or not finite). `blank` counts images without any measurement, `constant` those with one single value.
    """

    types: dict[str, int] = field(default_factory=dict)
    range: tuple[float, ...] = ()
    unit: str = ""
    invalid: float = 0.0
    blank: int = 0
    constant: int = 0

    def to_text(self) -> str:
        """Returns it in one line."""
        parts = [" and ".join(sorted(self.types))]
        if self.range:
            parts.append(f"{self.range[0]:g} to {self.range[1]:g} {self.unit}".strip())
        if self.invalid:
            parts.append(f"{self.invalid:.1%} invalid")
        return ", ".join(parts)


class Content:
    """Gathers what the images of one sensor hold."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.files: dict[str, list[Path]] = defaultdict(list)
        self.blank: list[Path] = []
        self.constant: list[Path] = []
        self.low, self.high = float("inf"), float("-inf")
        self.at_low = self.at_high = 0
        self.infinite: list[Path] = []
        self.coloured: list[Path] = []
        self.unnamed: dict[str, list[Path]] = defaultdict(list)
        self.pixels = self.valid = self.within = 0
        self.medians: list[float] = []

    def add(self, path: Path, image: Tensor, dtype: str = "") -> None:
        """Takes an image (C, H, W), or points (N, 3); `dtype` is that of its file where another one."""
        self.files[(dtype or str(image.dtype)).removeprefix("torch.")].append(path)
        if image.ndim == 2:
            distances = image.norm(dim=1).numpy()
            channels = [distances[np.isfinite(distances) & (distances > 0)]]
            self.pixels += len(distances)
        elif self.sensor.is_depth:
            metres, valid = (x.numpy() for x in self.sensor.metres(image))
            channels = [metres[valid > 0]]
            self.pixels += valid.size
            limits = (channels[0] >= self.sensor.near / 2) & (channels[0] <= self.sensor.far * 2)
            self.within += int(limits.sum())
            self.medians += [float(np.median(channels[0]))] if channels[0].size else []
        else:
            channels = [plane[np.isfinite(plane)] for plane in image.numpy()]
            self.pixels += image.numel()
            if image.is_floating_point() and image.isinf().any():
                self.infinite.append(path)
        self.valid += sum(values.size for values in channels)
        extremes = [(float(values.min()), float(values.max())) for values in channels if values.size]
        if not extremes:
            self.blank.append(path)
            return
        if all(low == high for low, high in extremes):
            self.constant.append(path)
        low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
        self.at_low = self.at_low * (self.low <= low) + _count(channels, low) * (low <= self.low)
        self.at_high = self.at_high * (self.high >= high) + _count(channels, high) * (high >= self.high)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def report(self) -> SensorReport:
        """Returns what was gathered."""
        return SensorReport(
            types={name: len(files) for name, files in self.files.items()},
            range=(self.low, self.high) if self.valid else (),
            unit="m" if self.sensor.is_depth else "",
            invalid=1 - self.valid / self.pixels if self.pixels else 0.0,
            blank=len(self.blank),
            constant=len(self.constant),
        )

    def errors(self) -> Iterable[str]:
        """Yields what makes the images useless: nothing is measured, or depth of a unit that can't be right."""
        if self.all_blank:
            yield f"no image measures anything: {len(self.blank)}, such as {self.blank[0]}; mend them or leave it out"
        if not self.medians or self.within >= _LEAST_WITHIN * self.valid:
            return
        sensor, median = self.sensor, float(np.median(self.medians))
        set_by = f"disparity: {list(sensor.disparity)}" if sensor.disparity else f"unit: {sensor.unit:g}"
        found = f"{set_by} makes the median {median:.5g} m, but near is {sensor.near:g} and far {sensor.far:g} m"
        ratios = {unit: unit / sensor.unit for unit in _UNITS if not sensor.disparity}
        likely = next((unit for unit, ratio in ratios.items() if sensor.near <= median * ratio <= sensor.far), None)
        if likely is None:
            yield f"{found}; mend one of them"
        else:
            yield f"{found}; is it {likely:g}, which makes it {median * ratios[likely]:.5g} m?"

    def warnings(self) -> Iterable[str]:
        """Yields what some images lack."""
        fix = "check the sensor, or leave these files out"
        if self.blank and not self.all_blank:
            yield f"images without any measurement: {len(self.blank)}, such as {self.blank[0]}; {fix}"
        if self.constant:
            yield f"images of one single value: {len(self.constant)}, such as {self.constant[0]}; {fix}"
        if self.infinite:
            yield f"images with infinite values: {len(self.infinite)}, such as {self.infinite[0]}; {fix}"
        if self.coloured:
            fix = "give the sensor 3 channels, or files of its own numbers: colours of a palette measure nothing"
            yield f"coloured images of one channel: {len(self.coloured)}, such as {self.coloured[0]}; {fix}"
        for text, files in self.unnamed.items():
            fix = f"add nodata: [{text}] to the card, or {text} counts as measured"
            yield f"images that say that {text} means not measured: {len(files)}, such as {files[0]}; {fix}"
        if self.valid and (problem := impossible(self.sensor, self.low, self.high)):
            yield f"{problem}; mend the files, the encoding or the unit"
        for name, value, count in (("lowest", self.low, self.at_low), ("highest", self.high, self.at_high)):
            if self.low < self.high and count >= _GOOD_SHARE * self.valid:
                share = f"{count / self.valid:.0%} of the pixels have the {name} value, {value:g}"
                yield f"{share}; is it a sensor at its limit, or what wasn't measured? Then name it in nodata"

    @property
    def all_blank(self) -> bool:
        """Whether no image measures anything."""
        return 0 < len(self.blank) == sum(len(files) for files in self.files.values())


def impossible(sensor: Sensor, low: float, high: float) -> str:
    """Returns why no sensor measures values from `low` to `high` (raw, or metres of depth); empty where one may."""
    found = f"values from {low:g} to {high:g}"
    if sensor.is_depth:
        return f"{found} m can't be a depth" if high > _METRES else ""
    if sensor.encoding == "celsius" and not _KELVIN[0] <= low * sensor.unit <= high * sensor.unit <= _KELVIN[1]:
        return f"{found} times the unit {sensor.unit:g} can't be kelvin"
    return f"{found} can't be measured" if max(-low, high) >= _TOO_LARGE else ""


def unnamed_nodata(path: Path, sensor: Sensor) -> str:
    """Returns the value that a TIFF says means "not measured" (GDAL's tag) and the sensor's `nodata` lacks, or nothing.

    NaN always means that, and so does 0 of depth.
    """
    with open_regular(path) as file:
        pages = pages_of(file)
    value = pages[0].nodata if pages else ""
    with suppress(ValueError):
        number = float(value)
        if number == number and number not in sensor.nodata and not (sensor.is_depth and number == 0):
            return value
    return ""


def is_coloured(path: Path) -> bool:
    """Whether an image file that can be read holds colours, not just grey in three channels."""
    with open_regular(path) as opened, Image.open(opened) as file:
        if file.mode in ("1", "L", "LA", "F", "I") or file.mode.startswith("I;16"):
            return False
        colours = np.asarray(file.convert("RGB")).astype(np.int16)
    return bool((np.ptp(colours, -1) > _COLOUR).mean() > 0.01)


def alike(images: Mapping[str, Tensor], files: Mapping[str, Path]) -> Iterable[tuple[str, str]]:
    """Yields the pairs of modalities that show one and the same image (C, H, W): the same file, or its grey."""
    greys = {m: _grey(image) for m, image in images.items()}
    for one, other in combinations(images, 2):
        if files[one].samefile(files[other]) or (
            greys[one].shape == greys[other].shape and abs(float((greys[one] * greys[other]).mean())) > _SAME
        ):
            yield one, other


def _grey(image: Tensor) -> np.ndarray:
    """Returns the grey of an image, of mean 0 and deviation 1; zeros where it is constant or isn't finite."""
    values = image.to(torch.float64).numpy()
    grey: np.ndarray = np.tensordot(_LUMA, values, 1) if len(values) == 3 else values.mean(0)
    if not np.isfinite(grey).all() or not (deviation := grey.std()) > 0:
        return np.zeros_like(grey)
    whole: np.ndarray = (grey - grey.mean()) / deviation
    return whole


def _count(channels: Sequence[np.ndarray], value: float) -> int:
    return sum(int((values == value).sum()) for values in channels)


def type_errors(modality: str, sensor: Sensor, contents: Sequence[Content]) -> Iterable[str]:
    """Yields the pixel types of a modality, over all splits, that aren't the card's or those of most images."""
    files: Mapping[str, list[Path]] = defaultdict(list)
    for content in contents:
        for name, paths in content.files.items():
            files[name] += paths
    most = max(files, key=lambda name: len(files[name]), default="")
    for name, paths in files.items():
        found = f"{modality}: images of {name}: {len(paths)}, such as {paths[0]}"
        if sensor.dtype and name != sensor.dtype:
            yield f"{found}, but the card's dtype is {sensor.dtype}; write them as {sensor.dtype} or mend the card"
        elif not sensor.dtype and name != most:
            yield f"{found}, but {len(files[most])} of {most}, such as {files[most][0]}; write all in one pixel type"
