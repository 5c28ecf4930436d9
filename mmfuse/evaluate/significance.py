"""Whether one detector is better than another: a paired bootstrap over images of the difference in COCO AP.

Objects are matched once; a round only changes how often each image counts, which reweighs the precision-recall curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from mmfuse.data.readers import Record
from mmfuse.errors import UserError
from mmfuse.evaluate.coco import coco_pair, evaluate_pair
from mmfuse.sample import Detections

ROUNDS_AT_ONCE = 64


@dataclass(frozen=True)
class Difference:
    """AP of one detector less that of another, in AP units [-1, 1].

    `mean` is the difference on the images themselves, averaged over seeds; `low` and `high` bound the 95 % interval.
    """

    mean: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, float | int]:
        """Returns plain values for JSON; `Difference(**values)` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class Ranking:
    """The detections of one class over all images, best score first.

    `image` (D,) is each detection's place in the sorted image ids, `hit` (T, D) bool whether it found an object at each
    IoU threshold, `ignored` (T, D) bool whether it counts neither way, `objects` (I,) the objects of each image.
    """

    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """Returns COCO's AP (R,) with each image counted `weights` (R, I) times; NaN where no object is drawn.

        `recalls` are the recall thresholds at which the precision is read, ascending.
        """
        objects = weights @ self.objects
        drawn = weights[:, self.image]
        ranked = drawn.cumsum(axis=1)
        total = np.zeros(len(weights))
        for hit, ignored in zip(self.hit, self.ignored, strict=True):
            places = np.flatnonzero(hit & ~ignored)
            if not len(places):
                continue
            counted = ranked[:, places]
            if ignored.any():
                counted = counted - (drawn * ignored).cumsum(axis=1)[:, places]
            found = drawn[:, places].cumsum(axis=1)
            precision = found / np.maximum(counted, 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(recalls, found / np.maximum(objects, 1)[:, None], side="right")
            total += (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
        ap = total / (len(self.hit) * len(recalls))
        return np.where(objects > 0, ap, np.nan)


@dataclass(frozen=True)
class Matches:
    """One detector's detections, matched with the objects of I images: a ranking per class."""

    rankings: tuple[Ranking, ...]
    recalls: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns COCO's AP (R,), over the classes that are drawn, with each image counted `weights` (R, I) times.

        It is NaN in a round that draws no object at all.
        """
        ap = np.stack([ranking.average_precision(weights, self.recalls) for ranking in self.rankings])
        drawn = (~np.isnan(ap)).sum(axis=0)
        return np.where(drawn > 0, np.nansum(ap, axis=0) / np.maximum(drawn, 1), np.nan)


def match(records: Sequence[Record], detections: Mapping[int, Detections], classes: Sequence[str]) -> Matches:
    """Matches `detections`, by image id and in original pixels, with the objects of `records`, images by ascending id.

    Raises:
        UserError: a box isn't finite; a label or an image id is unknown.
    """
    evaluation = evaluate_pair(*coco_pair(records, detections, classes), [r.image_id for r in records], sizes=False)
    thresholds, images = len(evaluation.params.iouThrs), len(records)
    rankings = []
    for k in range(len(classes)):
        image, score = [np.zeros(0, int)], [np.zeros(0)]
        hit, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
        objects = np.zeros(images, int)
        for i, matched in enumerate(evaluation.evalImgs[k * images : (k + 1) * images]):
            if matched is None:
                continue
            image.append(np.full(len(matched["dtScores"]), i))
            score.append(np.asarray(matched["dtScores"], float))
            hit.append(np.asarray(matched["dtMatches"]) > 0)
            ignored.append(np.asarray(matched["dtIgnore"]) > 0)
            objects[i] = (np.asarray(matched["gtIgnore"]) == 0).sum()
        order = np.argsort(-np.concatenate(score), kind="stable")
        rankings.append(
            Ranking(
                np.concatenate(image)[order],
                np.concatenate(hit, axis=1)[:, order],
                np.concatenate(ignored, axis=1)[:, order],
                objects,
            )
        )
    return Matches(tuple(rankings), evaluation.params.recThrs)


def paired_bootstrap(
    records: Sequence[Record],
    detections_a: Sequence[Mapping[int, Detections]],
    detections_b: Sequence[Mapping[int, Detections]],
    classes: Sequence[str],
    rounds: int = 1000,
    seed: int = 0,
) -> Difference:
    """Resamples the images with replacement and takes AP of a less AP of b on each draw, both averaged over seeds.

    `detections_a` and `detections_b` hold one mapping from image id to detections (original pixels) for each training
    seed. A round that draws no object is left out.

    Raises:
        UserError: nothing to compare: no seeds, no rounds, or images without any object.
    """
    if not detections_a or not detections_b or rounds < 1:
        given = f"{len(detections_a)} and {len(detections_b)} seeds, {rounds} rounds"
        raise UserError(f"bootstrap: {given}; give at least one of each")
    images = len(records)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / max(images, 1)), size=rounds)
    weights = np.concatenate((np.ones((1, images), int), draws))
    progress = tqdm(total=len(detections_a) + len(detections_b), desc="bootstrap", unit="model", leave=False)
    with progress:
        sides = []
        for detections in (detections_a, detections_b):
            seeds = []
            for one in detections:
                matches = match(records, one, classes)
                chunks = range(0, len(weights), ROUNDS_AT_ONCE)
                seeds.append(
                    np.concatenate([matches.average_precision(weights[i : i + ROUNDS_AT_ONCE]) for i in chunks])
                )
                progress.update()
            sides.append(np.mean(seeds, axis=0))
    difference = sides[0] - sides[1]
    drawn = difference[1:][~np.isnan(difference[1:])]
    if np.isnan(difference[0]) or not len(drawn):
        raise UserError(f"bootstrap: {images} images hold too few objects of {', '.join(classes)}; use another split")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Difference(float(difference[0]), float(low), float(high), rounds)
