"""What a detector finds at each threshold: precision over recall, F1 over threshold, and what is taken for what.

All are counted on COCO's matches: best score first, each object once, and what matches an object to ignore counts
neither way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.evaluation.coco import coco_pair, evaluate_pair, restricted
from mmfuse.evaluation.significance import Matches, Ranking
from mmfuse.sample import Detections

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

THRESHOLD = 0.3
"""The threshold of a class for which none was chosen."""

STEPS = np.linspace(0, 1, 101)
"""The recalls at which precision is read, and the thresholds at which F1 is counted."""


@dataclass(frozen=True)
class ClassCurve:
    """Precision over recall and F1 over threshold, 101 values in [0, 1] each, to four places.

    `precision50` and `precision` are COCO's interpolated precision at recall 0, 0.01 … 1, at IoU 0.5 and as the mean
    over IoU 0.50 to 0.95; their means are AP50 and AP. `f1` is that of the detections of a score of at least 0, 0.01 …
    1, at IoU 0.5.
    """

    precision50: tuple[float, ...]
    precision: tuple[float, ...]
    f1: tuple[float, ...]


@dataclass(frozen=True)
class Confusion:
    """What was taken for what at IoU 0.5, among detections of at least their class's score in `thresholds`.

    `counts` (K+1, K+1) has a row for each class of objects and a column for each class of detections, background last:
    its column counts objects that weren't found, its row detections of nothing. `chosen_on` is the split that the
    thresholds were chosen on, None where none was and all are `THRESHOLD`.

    Detections find objects of their own class first, as AP counts it; of what is left, best score first, one that
    overlaps an object of another class is taken for it.
    """

    classes: tuple[str, ...]
    thresholds: dict[str, float]
    chosen_on: str | None
    counts: tuple[tuple[int, ...], ...]

    def precision(self, name: str) -> float | None:
        """Returns which share of the detections of a class find an object of it, None if there are none."""
        k = self.classes.index(name)
        return _share(self.counts[k][k], sum(row[k] for row in self.counts))

    def recall(self, name: str) -> float | None:
        """Returns which share of the objects of a class are found, None if there are none."""
        k = self.classes.index(name)
        return _share(self.counts[k][k], sum(self.counts[k]))

    def f1(self, name: str) -> float | None:
        """Returns the harmonic mean of precision and recall of a class, None where it has no object."""
        k = self.classes.index(name)
        objects, found = sum(self.counts[k]), sum(row[k] for row in self.counts)
        return _share(2 * self.counts[k][k], objects + found) if objects else None


@dataclass(frozen=True)
class Curves:
    """The curves of a detector: `overall` is the mean over the classes that have objects, others have None."""

    overall: ClassCurve
    per_class: dict[str, ClassCurve | None]
    confusion: Confusion


def curves(matches: Matches, confusion: Confusion) -> Curves:
    """Returns the curves of what was matched on images with an object of at least one class."""
    found = {
        name: np.vstack((precision_of(ranking), f1_of(ranking, STEPS)))
        for name, ranking in zip(confusion.classes, matches.rankings, strict=True)
        if ranking.objects.any()
    }
    return Curves(
        overall=_curve(np.mean(list(found.values()), axis=0)),
        per_class={name: _curve(found[name]) if name in found else None for name in confusion.classes},
        confusion=confusion,
    )


def best_thresholds(matches: Matches, classes: Sequence[str]) -> dict[str, float]:
    """Returns the threshold at which F1 at IoU 0.5 is highest for each class that is found at all.

    It lies halfway between the lowest score that it lets pass and the next below, or zero; of several the highest is
    taken.
    """
    best = {}
    for name, ranking in zip(classes, matches.rankings, strict=True):
        scores = np.unique(ranking.score)[::-1]
        f1 = f1_of(ranking, scores)
        if f1.any():
            place = f1.argmax()
            best[name] = float((scores[place] + np.append(scores, 0)[place + 1]) / 2)
    return best


def precision_of(ranking: Ranking) -> np.ndarray:
    """Returns COCO's interpolated precision (2, 101) at recall 0, 0.01 … 1: at IoU 0.5, and the mean over all IoU.

    It is the highest precision at that recall or a higher one, 0 where none is reached.
    """
    counted = ~ranking.ignored
    found = (ranking.hit & counted).cumsum(axis=1)
    precision = found / np.maximum(counted.cumsum(axis=1), 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / ranking.objects.sum()
    read = [np.append(e, 0)[np.searchsorted(r, STEPS)] for e, r in zip(envelope, recall, strict=True)]
    return np.stack((read[0], np.mean(read, axis=0)))


def f1_of(ranking: Ranking, thresholds: np.ndarray) -> np.ndarray:
    """Returns F1 (R,) at IoU 0.5 of the detections of a score of at least each threshold (R,); 0 without objects."""
    counted = ~ranking.ignored[0]
    passed = np.searchsorted(-ranking.score, -thresholds, side="right")
    found, of = (np.append(0, x.cumsum())[passed] for x in (ranking.hit[0] & counted, counted))
    return 2 * found / np.maximum(of + ranking.objects.sum(), 1)


def confusion(
    records: Sequence[Record],
    detections: Mapping[int, Detections],
    classes: Sequence[str],
    thresholds: Mapping[str, float],
    chosen_on: str | None,
) -> Confusion:
    """Counts what is taken for what at IoU 0.5; see `Confusion`. A class without an entry has `THRESHOLD`.

    Raises:
        UserError: a box isn't finite; a label or an image id is unknown.
    """
    limits = {name: thresholds.get(name, THRESHOLD) for name in classes}
    image_ids = [r.image_id for r in records]
    truth, found = coco_pair(records, detections, classes)
    least = [limits[name] for name in classes]
    passed = [a["id"] for a in found.dataset["annotations"] if a["score"] >= least[a["category_id"] - 1]]
    label_of, label_of_found = (
        np.array([-1, *(a["category_id"] - 1 for a in coco.dataset["annotations"])]) for coco in (truth, found)
    )
    own = _paired(evaluate_pair(truth, restricted(found, passed), image_ids, sizes=False))
    left = restricted(truth, own.lost), restricted(found, own.false)
    other = _paired(evaluate_pair(*left, image_ids, sizes=False, by_class=False))
    rows = np.concatenate((own.objects, other.objects, other.lost, np.zeros_like(other.false)))
    columns = np.concatenate((own.found, other.found, np.zeros_like(other.lost), other.false))
    counts = np.zeros((len(classes) + 1, len(classes) + 1), int)
    np.add.at(counts, (label_of[rows], label_of_found[columns]), 1)
    return Confusion(tuple(classes), limits, chosen_on, tuple(tuple(row) for row in counts.tolist()))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Ids of annotations: `objects` (P,) and the detections `found` (P,) that find them; of the rest `lost` objects and
    `false` detections.
    """

    objects: np.ndarray
    found: np.ndarray
    lost: np.ndarray
    false: np.ndarray


def _paired(evaluation: "COCOeval") -> _Pairs:
    """Returns what was matched at IoU 0.5, without what is ignored."""
    parts = []
    for image in evaluation.evalImgs:
        if image is None:
            continue
        found, objects = np.array(image["dtIds"], int), np.array(image["gtIds"], int)
        match, counted = image["dtMatches"][0].astype(int), image["dtIgnore"][0] == 0
        hit, lost = counted & (match > 0), (image["gtMatches"][0] == 0) & (image["gtIgnore"] == 0)
        parts.append((match[hit], found[hit], objects[lost], found[counted & (match == 0)]))
    none = (np.zeros(0, int),) * 4
    return _Pairs(*(np.concatenate(ids) for ids in zip(none, *parts, strict=True)))


def _curve(values: np.ndarray) -> ClassCurve:
    return ClassCurve(*(tuple(row) for row in values.round(4).tolist()))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
