"""Checks a dataset before anything is trained on it: reads every file and reports all problems, not the first."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from mmfuse.data.cards import Card, load_card
from mmfuse.data.readers import Reading, Record, scan_split
from mmfuse.data.transforms import read_image, size_problem
from mmfuse.errors import UserError

_LINES_OF_A_KIND = 20


@dataclass
class SplitReport:
    """What one split holds.

    `boxes` counts boxes by class, crowds included; `conditions` images by tag; `sizes` is the smallest and the largest
    image (width, height) by area; `clipped` counts the boxes that reach more than a pixel out of their image.
    """

    images: int = 0
    empty: int = 0
    boxes: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, int] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()
    clipped: int = 0


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
    than said; images of one pair that differ in size; a file, an image's content or a sequence in two splits.
    Warnings: boxes that reach out of their image, images without objects, classes without boxes, an image twice in one
    split, no split named train or val.
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
            report.errors.append(str(error))
            continue
        report.errors += readings[split].errors
        report.splits[split] = _count(card, readings[split])
        report.warnings += _split_warnings(split, report.splits[split])
    for split in ("train", "val"):
        if split not in card.splits:
            report.warnings.append(f"{card.path}: there is no split {split!r}, which training needs; add it")
    _check_sequences(readings, report)
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
    )


def _split_warnings(split: str, found: SplitReport) -> Iterable[str]:
    if found.clipped:
        yield f"{split}: boxes that reach more than a pixel out of their image: {found.clipped}; they are clipped to it"
    if found.empty:
        yield f"{split}: images without objects: {found.empty}; they are kept, as background"
    for name, count in found.boxes.items():
        if not count and found.images:
            yield f"{split}: the class {name!r} has no boxes; its accuracy can't be learnt or measured here"


def _check_sequences(readings: dict[str, Reading], report: Report) -> None:
    owners: dict[str, str] = {}
    for split, reading in readings.items():
        for sequence in dict.fromkeys(r.sequence for r in reading.records if r.sequence is not None):
            other = owners.setdefault(sequence, split)
            if other != split:
                report.errors.append(f"the sequence {sequence!r} is in {other} and in {split}; keep it in one of them")


def _check_images(card: Card, readings: dict[str, Reading], report: Report) -> None:
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    records = [(split, record) for split, reading in readings.items() for record in reading.records]
    for split, record in tqdm(records, desc="reading images", unit="image"):
        report.errors += _image_problems(card, record)
        for m, path in record.files.items():
            try:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                continue
            other, twin = seen.setdefault((m, content), (split, path))
            if other != split:
                report.errors.append(f"{path}: is in {split}, and the same image {twin} in {other}; keep one of them")
            elif (other, twin) != (split, path):
                report.warnings.append(f"{path}: is the same image as {twin}, both in {split}")


def _image_problems(card: Card, record: Record) -> Iterable[str]:
    images = {}
    for m, path in record.files.items():
        try:
            images[m] = read_image(path, card.modalities[m])
        except UserError as error:
            yield str(error)
    problem = size_problem(record, images)
    if problem:
        yield problem
