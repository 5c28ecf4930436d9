"""Checks a dataset before anything is trained on it: reads every file and reports all problems, not the first."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmfuse.data.annotations.cards import Card, load_card
from mmfuse.data.annotations.readers import scan_split
from mmfuse.data.annotations.records import Reading, Record
from mmfuse.data.checks.contents import Content, SensorReport, alike, is_coloured, type_errors, unnamed_nodata
from mmfuse.data.checks.look_alikes import difference_hash, look_alikes
from mmfuse.data.checks.objects import objects, too_small
from mmfuse.data.samples import read_record, size_problem
from mmfuse.errors import UserError
from mmfuse.files import read_regular
from mmfuse.images.decode import read_image
from mmfuse.sensor import WHOLE_IMAGE

_LINES_OF_A_KIND = 20
_FAR_FROM_SHARE = 0.05
_FAR_FROM_SHARE = 0.05


@dataclass
class SplitReport:
    """What one split holds.

    `boxes` counts boxes by class, crowds included; `ignored` the crowds and ignore regions among them; `conditions`
    images by tag; `sizes` is the smallest and the largest image (width, height) by area; `absent` counts images without
    a sensor; `clipped` the boxes that reach more than a pixel out of their image, `left_out` those that the card drops.
    `sensors` has what the readable images of each sensor hold, `too_small` counts objects that training leaves out at
    the input size that was asked for. `drawn` is the share of train's images that it was to get and that it got, empty
    where it isn't such a share.
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
    too_small: int = 0
    drawn: tuple[float, ...] = ()


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
            crowds = f", {split.ignored} of them ignored" if split.ignored else ""
            lines.append(f"  {name}: {split.images} images, {sum(split.boxes.values())} boxes ({boxes}){crowds}")
            if split.drawn:
                lines.append(f"    drawn from train: {split.drawn[1]:.1%} of its images")
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


def check(card_path: str | Path, root: str | None = None, *, input_size: tuple[int, int] | None = None) -> Report:
    """Reads a card, its splits and every image; `root` takes the place of the card's own.

    With an `input_size` (H, W), objects are counted that are too small to be learnt at it.

    Errors: what `load_card` and `read_split` refuse; an image that is missing, unreadable, or of other channels or size
    than said; images of one pair that differ in size; a file, an image's content or a sequence in two splits; images of
    one sensor in several pixel types, or another than the card's `dtype`; a sensor that measures nothing in a whole
    split; a depth unit that leaves fewer than 5 % of a split's measured pixels between near / 2 and far * 2; the same
    files under two ids in one split; a split train or val without an object that counts.
    Warnings: boxes that reach out of their image, are left out or stand twice, images without objects or without a
    sensor, images without any measurement or of one single value, classes without boxes or of crowds alone,
    conditions that other splits have, shares of train that sequences make larger or smaller by more than 5 % of its
    images, objects too small for the input size, counts other than the published ones, sensors of one scene that
    show the same image, coloured files of a sensor of one channel, values that are infinite or impossible, an
    extreme value that fills a quarter of the pixels, a value that TIFFs say means "not measured" and the card
    doesn't, an image twice in one split, images of two splits that look alike, files whose numbers are those of
    other pairs of the split (as of pairs matched by the order of lines), no split named train or val.

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
        report.warnings += _object_warnings(card, split, readings[split].records)
        report.errors += _repeated_images(split, readings[split].records)
        if input_size:
            report.splits[split].too_small = too_small(readings[split].records, input_size)
            report.warnings += _size_warnings(split, report.splits[split], input_size)
        if split in ("train", "val") and not readings[split].errors and not objects(readings[split].records):
            purpose = "nothing can be learnt of it" if split == "train" else "no epoch can be best on it"
            report.errors.append(f"{split}: no object counts, so {purpose}; add some, or use another split")
    for split in ("train", "val"):
        if split not in card.splits:
            report.warnings.append(f"{card.path}: there is no split {split!r}, which training needs; add it")
    report.warnings += _condition_warnings(report.splits)
    report.warnings += _share_warnings(card, report.splits)
    _check_sequences(readings, report)
    for split, reading in readings.items():
        report.warnings += _order_warnings(card, split, reading)
    _check_images(card, readings, report)
    report.errors = list(dict.fromkeys(report.errors))  # shares of one file have its mistakes in common
    report.warnings = list(dict.fromkeys(report.warnings))
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
        what = "boxes without finite numbers or area, or outside their image"
        yield f"{split}: {what}: {found.left_out}; they are left out"
    for m, count in found.absent.items():
        if count:
            yield f"{split}: images without {m}: {count}; the card allows it"
    if found.empty:
        yield f"{split}: images without objects: {found.empty}; they are kept, as background"
    for name, count in found.boxes.items():
        if not count and found.images:
            yield f"{split}: the class {name!r} has no boxes; its accuracy can't be learnt or measured here"


def _size_warnings(split: str, found: SplitReport, size: tuple[int, int]) -> Iterable[str]:
    if found.too_small:
        count = f"{found.too_small} of {sum(found.boxes.values()) - found.ignored}"
        yield f"{split}: objects too small to be learnt at input size {list(size)}: {count}; use a larger one"


def _share_warnings(card: Card, splits: dict[str, SplitReport]) -> Iterable[str]:
    """Notes what each share came to, and yields those that sequences, which aren't parted, make another than asked."""
    shares = {split: rule.share for split, rule in card.splits.items() if rule.share is not None and split in splits}
    images = sum(splits[split].images for split in ("train", *shares) if split in splits)
    for split, share in shares.items() if images else ():
        found = splits[split].drawn = (share, splits[split].images / images)
        if abs(found[1] - share) > _FAR_FROM_SHARE:
            fix = "sequences and images stay whole; name the splits by files of their own, or change the share"
            yield f"{split}: {found[1]:.1%} of train's images in place of {share:.1%}: {fix}"


def _condition_warnings(splits: dict[str, SplitReport]) -> Iterable[str]:
    for split, found in splits.items():
        for condition in dict.fromkeys(c for other in splits.values() for c in other.conditions):
            if found.images and condition not in found.conditions:
                there = ", ".join(name for name, other in splits.items() if condition in other.conditions)
                yield f"{split}: no image has the condition {condition!r}, which {there} has; compare no figures of it"


def _count_warnings(card: Card, split: str, found: SplitReport) -> Iterable[str]:
    rule = card.splits[split]
    boxes = sum(found.boxes.values()) - found.ignored
    for what, count, published in (("images", found.images, rule.images), ("boxes", boxes, rule.boxes)):
        if published is not None and count != published:
            yield f"{split}: {count} {what}, but {published} are published; check the copy and the list"


def _object_warnings(card: Card, split: str, records: Sequence[Record]) -> Iterable[str]:
    """Yields classes that are nothing but crowds or ignore regions, and the boxes that stand twice in an image."""
    doubles, such_as = 0, 0
    counted = np.zeros(len(card.classes), int)
    ignored = np.zeros(len(card.classes), int)
    for record in records:
        np.add.at(ignored, record.labels[record.ignore], 1)
        kept = ~record.ignore
        np.add.at(counted, record.labels[kept], 1)
        rows = np.column_stack((record.labels[kept], record.boxes[kept]))
        if repeated := len(rows) - len(np.unique(rows, axis=0)):
            such_as = such_as if doubles else record.image_id
            doubles += repeated
    if doubles:
        found = f"{doubles}, such as in image {such_as}"
        yield f"{split}: boxes that stand twice in their image: {found}; remove the second"
    for name, count, left_out in zip(card.classes, counted, ignored, strict=True):
        if left_out and not count:
            fix = "it can't be learnt or measured here"
            yield f"{split}: all {left_out} boxes of the class {name!r} are crowds or ignore regions; {fix}"


def _repeated_images(split: str, records: Sequence[Record]) -> Iterable[str]:
    owners: dict[tuple[tuple[str, Path], ...], int] = {}
    for record in records:
        files = tuple(sorted(record.files.items()))
        other = owners.setdefault(files, record.image_id)
        if other != record.image_id:
            yield f"{files[0][1]}: is image {other} and image {record.image_id} of {split}; keep one of them"


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
    content_of = {split: {m: Content(sensor) for m, sensor in card.modalities.items()} for split in readings}
    exact = set()
    same: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    records = [(split, record) for split, reading in readings.items() for record in reading.records]
    for split, record in tqdm(records, desc="reading images", unit="image"):
        images, read = {}, {}
        for m, path in record.files.items():
            try:
                raw = read_image(path, replace(card.modalities[m], dtype=""))
                content = hashlib.sha256(read_regular(path)).hexdigest()
            except UserError as error:
                report.errors.append(str(error))
                continue
            image = raw if raw.ndim == 2 else card.modalities[m].measured(raw)
            content_of[split][m].add(path, image, str(raw.dtype))
            if image.ndim == 3:
                if value := unnamed_nodata(path, card.modalities[m]):
                    content_of[split][m].unnamed[value].append(path)
                read[m] = image
                if image.shape[0] == 1 and is_coloured(path):
                    content_of[split][m].coloured.append(path)
            if image.ndim == 3 and card.modalities[m].register == "none":
                images[m] = image
            other, twin = seen.setdefault((m, content), (split, path))
            if other != split:
                exact.add(path)
                report.errors.append(f"{path}: is in {split}, and the same image {twin} in {other}; keep one of them")
            elif (other, twin) != (split, path):
                report.warnings.append(f"{path}: is the same image as {twin}, both in {split}")
        for one, twin_of in alike(read, record.files):
            same[split, one, twin_of].append(record)
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
    for (split, one, twin_of), shared in same.items():
        first, count = shared[0].files, f"{len(shared)} of {report.splits[split].images}"
        pair = f"such as {first[one]} and {first[twin_of]}"
        report.warnings.append(
            f"{split}: {one} and {twin_of} are the same image: {count}, {pair}; give each its own files"
        )
    for m, sensor in card.modalities.items():
        report.errors += type_errors(m, sensor, [contents[m] for contents in content_of.values()])
    report.warnings += look_alikes(looks)


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
