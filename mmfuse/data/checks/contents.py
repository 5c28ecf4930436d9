"""What the images of a sensor hold: pixel types, range, what isn't measured, and whether that can be right."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from mmfuse.sensor import Sensor

_LEAST_WITHIN = 0.05
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
        self.pixels = self.valid = self.within = 0
        self.medians: list[float] = []

    def add(self, path: Path, image: Tensor) -> None:
        """Takes an image (C, H, W), or points (N, 3)."""
        self.files[str(image.dtype).removeprefix("torch.")].append(path)
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
        self.valid += sum(values.size for values in channels)
        extremes = [(float(values.min()), float(values.max())) for values in channels if values.size]
        if not extremes:
            self.blank.append(path)
            return
        if all(low == high for low, high in extremes):
            self.constant.append(path)
        self.low = min(self.low, *(low for low, _ in extremes))
        self.high = max(self.high, *(high for _, high in extremes))

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

    @property
    def all_blank(self) -> bool:
        """Whether no image measures anything."""
        return 0 < len(self.blank) == sum(len(files) for files in self.files.values())


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
