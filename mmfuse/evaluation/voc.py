"""PASCAL VOC average precision at IoU 0.5, by 11 points (2007) or by area (2010 on): overall, per class and condition.

Everingham et al., "The PASCAL visual object classes challenge: a retrospective" (IJCV 2015), and the rules of its
development kit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.arrays import Found, overlaps, paired
from mmfuse.sample import Detections

IOU = 0.5
METHODS = ("area", "11-point")


@dataclass(frozen=True)
class VocScores:
    """VOC's average precision at IoU 0.5 in [0, 1] and what it was counted on; None where there is no object to find.

    `ap50` is the mean over the classes that have objects. `per_condition` maps a tag to the `ap50`, `images` and
    `boxes` of its images alone. `boxes` leaves out those to ignore. `method` is "area" or "11-point".
    """

    method: str
    ap50: float
    per_class: dict[str, float | None]
    per_condition: dict[str, dict[str, float | int | None]]
    images: int
    boxes: int


def voc_scores(
    records: Sequence[Record], detections: Mapping[int, Detections], classes: Sequence[str], method: str = "area"
) -> VocScores:
    """Scores `detections`, by image id and in original pixels, against the objects of `records`.

    A detection belongs to the object of its class that it overlaps most; from IoU 0.5 on the best scored one finds it
    and the others are false positives. One that belongs to an object to ignore (`Record.ignore`: VOC's `difficult`)
    counts neither way. "area" is the area below the envelope of precision over recall, "11-point" the mean of the
    envelope at recall 0, 0.1 … 1. Equal scores are ranked by image id.

    Raises:
        UserError: no record has an object; the method, a label or an image id is unknown; a box isn't finite.
    """
    if method not in METHODS:
        raise UserError(f"method: {unknown_name(method, METHODS, 'VOC average precision')}")
    ranking = _rank(paired(records, detections, classes), len(classes))
    every = np.ones(len(records), bool)
    per_class = ranking.average_precision(every, method)
    mean = _mean(per_class)
    if mean is None:
        raise UserError(f"the {len(records)} images to score hold no object of {', '.join(classes)}; use another split")
    per_condition: dict[str, dict[str, float | int | None]] = {}
    for condition in sorted({c for c in ranking.conditions if c is not None}):
        images = np.array([c == condition for c in ranking.conditions])
        per_condition[condition] = {
            "ap50": _mean(ranking.average_precision(images, method)),
            "images": int(images.sum()),
            "boxes": int(ranking.objects[images].sum()),
        }
    return VocScores(
        method=method,
        ap50=mean,
        per_class=dict(zip(classes, per_class, strict=True)),
        per_condition=per_condition,
        images=len(records),
        boxes=int(ranking.objects.sum()),
    )


@dataclass(frozen=True, eq=False)
class _Ranking:
    """The detections of all images that count, best first, with the condition and the objects of each image.

    `image` (D,) is each detection's place among the I images, `label` (D,) its class, `hit` (D,) bool whether it finds
    an object; `objects` (I, K) is how many each image holds of each class.
    """

    image: np.ndarray
    label: np.ndarray
    hit: np.ndarray
    objects: np.ndarray
    conditions: list[str | None]

    def average_precision(self, images: np.ndarray, method: str) -> list[float | None]:
        """Returns the average precision of each class on some `images` (I,) bool, None for one without objects."""
        chosen = images[self.image]
        objects = self.objects[images].sum(axis=0)
        return [_average_precision(self.hit[chosen & (self.label == k)], n, method) for k, n in enumerate(objects)]


def _rank(pairs: Sequence[tuple[Record, Found]], classes: int) -> _Ranking:
    image, label, score, hit = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)], [np.zeros(0, bool)]
    objects = np.zeros((len(pairs), classes), int)
    for i, (record, found) in enumerate(pairs):
        found_object, counted = _match(found, record)
        objects[i] = np.bincount(record.labels[~record.ignore], minlength=classes)
        image.append(np.full(int(counted.sum()), i))
        label.append(found.labels[counted])
        score.append(found.scores[counted])
        hit.append(found_object[counted])
    order = np.argsort(-np.concatenate(score), kind="stable")
    return _Ranking(
        np.concatenate(image)[order],
        np.concatenate(label)[order],
        np.concatenate(hit)[order],
        objects,
        [record.condition for record, _ in pairs],
    )


def _match(found: Found, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether each detection, best first, is the first to find its object, and whether it counts."""
    hit = np.zeros(len(found.scores), bool)
    if not len(record.boxes):
        return hit, ~hit
    overlap = np.where(found.labels[:, None] == record.labels, overlaps(found.boxes, record.boxes), 0)
    owner = overlap.argmax(axis=1)
    near = np.flatnonzero(overlap.max(axis=1) >= IOU)
    _, first = np.unique(owner[near], return_index=True)
    hit[near[first]] = True
    ignored = np.zeros(len(hit), bool)
    ignored[near] = record.ignore[owner[near]]
    return hit & ~ignored, ~ignored


def _average_precision(hit: np.ndarray, objects: int, method: str) -> float | None:
    if not objects:
        return None
    found = hit.cumsum()
    precision = found / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "area":
        return float(envelope[hit].sum() / objects)
    places = np.searchsorted(found / objects, np.arange(11) / 10)
    return float(np.append(envelope, 0)[places].mean())


def _mean(per_class: Sequence[float | None]) -> float | None:
    known = [ap for ap in per_class if ap is not None]
    return float(np.mean(known)) if known else None
