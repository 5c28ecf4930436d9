"""Checks a dataset before anything is trained on it: reads every file and reports all problems, not the first."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.cards import Card, load_card
from mmfuse.data.readers import scan_split
from mmfuse.data.records import Reading
from mmfuse.data.transforms import read_image, size_problem
from mmfuse.errors import UserError

_LINES_OF_A_KIND = 20
_NEAR = 2
_PLAIN = 6
_ROWS = 1024


@dataclass
class SplitReport:
    """What one split holds.

    `boxes` counts boxes by class, crowds included; `ignored` the crowds and ignore regions among them; `conditions`
    images by tag; `sizes` is the smallest and the largest image (width, height) by area; `absent` counts images without
    a sensor; `clipped` the boxes that reach more than a pixel out of their image, `left_out` those that the card drops.
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
    Warnings: boxes that reach out of their image or are left out, images without objects or without a sensor, classes
    without boxes, counts other than the published ones, an image twice in one split, images of two splits that look
    alike, no split named train or val.
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


def _check_images(card: Card, readings: dict[str, Reading], report: Report) -> None:
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    looks: dict[str, list[tuple[Path, np.ndarray]]] = {split: [] for split in readings}
    looked_at = card.labels.reference or next(iter(card.modalities))
    exact = set()
    records = [(split, record) for split, reading in readings.items() for record in reading.records]
    for split, record in tqdm(records, desc="reading images", unit="image"):
        images = {}
        for m, path in record.files.items():
            try:
                images[m] = read_image(path, card.modalities[m])
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except UserError as error:
                report.errors.append(str(error))
                continue
            other, twin = seen.setdefault((m, content), (split, path))
            if other != split:
                exact.add(path)
                report.errors.append(f"{path}: is in {split}, and the same image {twin} in {other}; keep one of them")
            elif (other, twin) != (split, path):
                report.warnings.append(f"{path}: is the same image as {twin}, both in {split}")
        if problem := size_problem(record, images):
            report.errors.append(problem)
        if looked_at in images and record.files[looked_at] not in exact:
            looks[split].append((record.files[looked_at], difference_hash(images[looked_at])))
    report.warnings += look_alikes(looks)


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
