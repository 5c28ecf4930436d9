"""Checks a dataset before anything is trained on it: reads every file and reports all problems, not the first."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.cards import Card, load_card
from mmfuse.data.images import read_image, read_record, size_problem
from mmfuse.data.readers import scan_split
from mmfuse.data.records import Reading, Record
from mmfuse.errors import UserError
from mmfuse.sensor import WHOLE_IMAGE, Sensor

_LINES_OF_A_KIND = 20
_NEAR = 2
_PLAIN = 6
_ROWS = 1024
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


@dataclass
class SplitReport:
    """What one split holds.

    `boxes` counts boxes by class, crowds included; `ignored` the crowds and ignore regions among them; `conditions`
    images by tag; `sizes` is the smallest and the largest image (width, height) by area; `absent` counts images without
    a sensor; `clipped` the boxes that reach more than a pixel out of their image, `left_out` those that the card drops.
    `sensors` has what the readable images of each sensor hold.
    """

    images: int = 0
    empty: int = 0
    boxes: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, int] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()
    clipped: int = 0
    left_out: int = 0
    ignored: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    sensors: dict[str, SensorReport] = field(default_factory=dict)


@dataclass
class Report:
    """What a dataset holds and what is wrong with it; errors would stop or spoil a training, warnings would not."""

    card: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """Returns the report as lines: the splits, then at most 20 warnings and 20 errors, then the verdict."""
        lines = [self.card]
        for name, split in self.splits.items():
            boxes = ", ".join(f"{n} {c}" for c, n in split.boxes.items())
            lines.append(f"  {name}: {split.images} images, {sum(split.boxes.values())} boxes ({boxes})")
            if split.sizes:
                lines.append(f"    sizes: {' to '.join(f'{w} x {h}' for w, h in dict.fromkeys(split.sizes))}")
            lines += [f"    {m}: {sensor.to_text()}" for m, sensor in split.sensors.items() if sensor.types]
            if split.conditions:
                lines.append(f"    conditions: {', '.join(f'{n} {c}' for c, n in split.conditions.items())}")
        for kind, found in (("warning", self.warnings), ("error", self.errors)):
            lines += [f"  {kind}: {line}" for line in found[:_LINES_OF_A_KIND]]
            if len(found) > _LINES_OF_A_KIND:
                lines.append(f"  ... and {len(found) - _LINES_OF_A_KIND} more {kind}s")
        lines.append(f"errors: {len(self.errors)}, warnings: {len(self.warnings)}")
        return "\n".join(lines)


def check(card_path: str | Path, root: str | None = None) -> Report:
    """Reads a card, its splits and every image; `root` takes the place of the card's own.

    Errors: what `load_card` and `read_split` refuse; an image that is missing, unreadable, or of other channels or size
    than said; images of one pair that differ in size; a file, an image's content or a sequence in two splits; images of
    one sensor in several pixel types, or another than the card's `dtype`; a sensor that measures nothing in a whole
    split; a depth unit that leaves fewer than 5 % of a split's measured pixels between near / 2 and far * 2.
    Warnings: boxes that reach out of their image or are left out, images without objects or without a sensor, images
    without any measurement or of one single value, classes without boxes, counts other than the published ones, an
    image twice in one split, images of two splits that look alike, files whose numbers are those of other pairs of the
    split (as of pairs matched by the order of lines), no split named train or val.

    Boxes that are clipped or left out, and images that are blank, constant or lack a sensor, are counted in the report.
    Point clouds are read and must not be empty; their unit, size and looks aren't checked.
    """
    report = Report(str(card_path))
    try:
        card = load_card(card_path, root)
    except UserError as error:
        report.errors.append(str(error))
        return report
    report.card = f"{card.name} ({card.path})"
    readings: dict[str, Reading] = {}
    for split in card.splits:
        try:
            readings[split] = scan_split(card, split)
        except UserError as error:
            if str(error) not in report.errors:
                report.errors.append(str(error))
            continue
        report.errors += readings[split].errors
        report.splits[split] = _count(card, readings[split])
        report.warnings += readings[split].warnings
        report.warnings += _split_warnings(split, report.splits[split])
        report.warnings += _count_warnings(card, split, report.splits[split])
    for split in ("train", "val"):
        if split not in card.splits:
            report.warnings.append(f"{card.path}: there is no split {split!r}, which training needs; add it")
    _check_sequences(readings, report)
    for split, reading in readings.items():
        report.warnings += _order_warnings(card, split, reading)
    _check_images(card, readings, report)
    return report


def _count(card: Card, reading: Reading) -> SplitReport:
    records = reading.records
    labels = Counter(label for record in records for label in record.labels.tolist())
    sizes = sorted({(r.width, r.height) for r in records}, key=lambda size: (size[0] * size[1], size))
    return SplitReport(
        images=len(records),
        empty=sum(len(record.boxes) == 0 for record in records),
        boxes={name: labels[i] for i, name in enumerate(card.classes)},
        conditions=dict(Counter(r.condition for r in records if r.condition is not None)),
        sizes=(sizes[0], sizes[-1]) if sizes else (),
        clipped=reading.clipped,
        left_out=reading.left_out,
        ignored=sum(int(record.ignore.sum()) for record in records),
        absent={m: sum(m not in record.files for record in records) for m in card.modalities},
    )


def _split_warnings(split: str, found: SplitReport) -> Iterable[str]:
    if found.clipped:
        yield f"{split}: boxes that reach more than a pixel out of their image: {found.clipped}; they are clipped to it"
    if found.left_out:
        yield f"{split}: boxes without area or outside their image: {found.left_out}; they are left out"
    for m, count in found.absent.items():
        if count:
            yield f"{split}: images without {m}: {count}; the card allows it"
    if found.empty:
        yield f"{split}: images without objects: {found.empty}; they are kept, as background"
    for name, count in found.boxes.items():
        if not count and found.images:
            yield f"{split}: the class {name!r} has no boxes; its accuracy can't be learnt or measured here"


def _count_warnings(card: Card, split: str, found: SplitReport) -> Iterable[str]:
    rule = card.splits[split]
    boxes = sum(found.boxes.values()) - found.ignored
    for what, count, published in (("images", found.images, rule.images), ("boxes", boxes, rule.boxes)):
        if published is not None and count != published:
            yield f"{split}: {count} {what}, but {published} are published; check the copy and the list"


def _check_sequences(readings: dict[str, Reading], report: Report) -> None:
    owners: dict[str, str] = {}
    for split, reading in readings.items():
        for sequence in dict.fromkeys(r.sequence for r in reading.records if r.sequence is not None):
            other = owners.setdefault(sequence, split)
            if other != split:
                report.errors.append(f"the sequence {sequence!r} is in {other} and in {split}; keep it in one of them")


def _order_warnings(card: Card, split: str, reading: Reading) -> Iterable[str]:
    """Yields a line for each sensor whose files have the same numbers as the reference's, but not in the same pairs."""
    for m in card.modalities:
        pairs = [
            (r.files[card.reference], r.files[m]) for r in reading.records if {card.reference, m} <= r.files.keys()
        ]
        if not pairs:
            continue
        ours, theirs = (_numbers([path.stem for path in files]) for files in zip(*pairs, strict=True))
        swapped = [pair for pair, a, b in zip(pairs, ours, theirs, strict=True) if a != b]
        if swapped and sorted(ours) == sorted(theirs):
            one, other = swapped[0]
            count, fix = f"{len(swapped)} of {len(pairs)}", "match pairs by their names, not by the order of lines"
            yield f"{split}: {m}: {count} pairs differ in number, such as {one} and {other}; {fix}"


def _numbers(stems: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the numbers in each file name, save those that are the same in all."""
    found = [[int(digits) for digits in re.findall("[0-9]+", stem)] for stem in stems]
    varying = [i for i, column in enumerate(zip(*found, strict=False)) if len(set(column)) > 1]
    return [tuple(numbers[i] for i in varying) for numbers in found]


def _check_images(card: Card, readings: dict[str, Reading], report: Report) -> None:
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    looks: dict[str, list[tuple[Path, np.ndarray]]] = {split: [] for split in readings}
    content_of = {split: {m: _Content(sensor) for m, sensor in card.modalities.items()} for split in readings}
    exact = set()
    records = [(split, record) for split, reading in readings.items() for record in reading.records]
    for split, record in tqdm(records, desc="reading images", unit="image"):
        images = {}
        for m, path in record.files.items():
            try:
                image = read_image(path, replace(card.modalities[m], dtype=""))
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except UserError as error:
                report.errors.append(str(error))
                continue
            content_of[split][m].add(path, image)
            if image.ndim == 3 and card.modalities[m].register == "none":
                images[m] = image
            other, twin = seen.setdefault((m, content), (split, path))
            if other != split:
                exact.add(path)
                report.errors.append(f"{path}: is in {split}, and the same image {twin} in {other}; keep one of them")
            elif (other, twin) != (split, path):
                report.warnings.append(f"{path}: is the same image as {twin}, both in {split}")
        if problem := size_problem(record, images):
            report.errors.append(problem)
        if card.reference in images and record.files[card.reference] not in exact:
            looks[split].append((record.files[card.reference], difference_hash(images[card.reference])))
    for split, reading in readings.items():
        report.errors += (f"{split}: {e}" for e in _preparing_errors(card, reading.records) if e not in report.errors)
    for split, contents in content_of.items():
        report.splits[split].sensors = {m: found.report() for m, found in contents.items()}
        for m, found in contents.items():
            report.errors += (f"{split}: {m}: {problem}" for problem in found.errors())
            report.warnings += (f"{split}: {m}: {problem}" for problem in found.warnings())
    for m, sensor in card.modalities.items():
        report.errors += _type_errors(m, sensor, [contents[m] for contents in content_of.values()])
    report.warnings += look_alikes(looks)


class _Content:
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
        return SensorReport(
            types={name: len(files) for name, files in self.files.items()},
            range=(self.low, self.high) if self.valid else (),
            unit="m" if self.sensor.is_depth else "",
            invalid=1 - self.valid / self.pixels if self.pixels else 0.0,
            blank=len(self.blank),
            constant=len(self.constant),
        )

    def errors(self) -> Iterable[str]:
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
        fix = "check the sensor, or leave these files out"
        if self.blank and not self.all_blank:
            yield f"images without any measurement: {len(self.blank)}, such as {self.blank[0]}; {fix}"
        if self.constant:
            yield f"images of one single value: {len(self.constant)}, such as {self.constant[0]}; {fix}"

    @property
    def all_blank(self) -> bool:
        return 0 < len(self.blank) == sum(len(files) for files in self.files.values())


def _type_errors(modality: str, sensor: Sensor, contents: Sequence[_Content]) -> Iterable[str]:
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


def _preparing_errors(card: Card, records: list[Record]) -> Iterable[str]:
    """Yields why the first scene of a split can't be prepared, such as calibration that is lacking or far off."""
    special = {m for m, s in card.modalities.items() if s.register != "none" or s.encoding in WHOLE_IMAGE}
    for record in records:
        if special & record.files.keys():
            try:
                images = read_record(record, card.modalities)
            except UserError as error:
                yield str(error)
                return
            for m, image in images.items():
                sensor = card.modalities[m]
                seen = sensor.metres(image)[1] if len(image) == 1 and sensor.is_depth else ~image.isnan()
                if sensor.register != "none" and not seen.any():
                    fix = "check register, homography and calibration (poses are metres, sensor to rig)"
                    yield f"{record.files[m]}: nothing of it lies in the frame of {card.reference}; {fix}"
            return


def difference_hash(image: Tensor) -> np.ndarray:
    """Returns 64 bits of how an image (C, H, W) looks: where its grey, shrunk to 8 x 9, falls from left to right."""
    grey = image.to(torch.float32).mean(0)[None, None].nan_to_num(0, 0, 0)
    shrunk = F.interpolate(grey, (8, 9), mode="area")[0, 0]
    return (shrunk[:, 1:] < shrunk[:, :-1]).flatten().numpy()


def look_alikes(looks: dict[str, list[tuple[Path, np.ndarray]]]) -> Iterable[str]:
    """Yields, for each image, the one in an earlier split that looks most like it, if it does.

    Hashes of plain images, nearly all zeros or ones, say nothing.
    """
    told = {
        split: [(path, bits) for path, bits in found if _PLAIN <= bits.sum() <= bits.size - _PLAIN]
        for split, found in looks.items()
    }
    signs = {
        split: np.array([bits for _, bits in found], np.float32).reshape(-1, 64) * 2 - 1
        for split, found in told.items()
    }
    for (split, found), (other, others) in combinations(told.items(), 2):
        for start in range(0, len(others), _ROWS) if found else ():
            agreed = signs[other][start : start + _ROWS] @ signs[split].T
            nearest = agreed.argmax(1)
            for row in np.flatnonzero((64 - agreed.max(1)) / 2 <= _NEAR):
                path, twin = others[start + row][0], found[nearest[row]][0]
                yield f"{path}: in {other}, looks like {twin} in {split}; keep views of one scene in one split"
