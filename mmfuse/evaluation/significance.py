"""Whether one detector is better than another: a paired bootstrap over images of the difference in COCO AP.

Objects are matched once a detector; a round only changes how often each image counts, which reweighs the
precision-recall curve. The draws are the same for every detector, so a difference is a subtraction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation.coco import coco_pair, evaluate_pair
from mmfuse.sample import Detections

ROUNDS_AT_ONCE = 64

TOLERANCE = 0.01
"""One AP point: a detector isn't below another if it is sure to be less than this behind it."""


@dataclass(frozen=True)
class Difference:
    """AP of one detector less that of another, in AP units [-1, 1].

    `mean` is the difference on the images themselves, averaged over seeds; `low` and `high` bound the 95 % interval.
    """

    mean: float
    low: float
    high: float
    rounds: int

    @property
    def below(self) -> bool:
        """Whether the whole interval lies under zero."""
        return self.high < 0

    @property
    def judgement(self) -> Literal["below", "not below", "not shown"]:
        """Whether the one is below the other, "not below" being an interval that ends above -1 AP point."""
        if self.below:
            return "below"
        return "not below" if self.low > -TOLERANCE else "not shown"


@dataclass(frozen=True)
class Ranking:
    """The detections of one class over all images, best score first.

    `score` (D,) and `image` (D,) are each detection's score and place in the sorted image ids, `hit` (T, D) bool if
    it found an object at each IoU threshold, `ignored` (T, D) bool whether it counts neither way, `objects` (I,) the
    objects of each image.
    """

    score: np.ndarray
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

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.rankings[0].objects)

    def on(self, chosen: np.ndarray) -> "Matches":
        """Returns the matches of the images that are True in `chosen` (I,) bool alone."""
        place = chosen.cumsum() - 1
        rankings = []
        for ranking in self.rankings:
            kept = chosen[ranking.image]
            score, image = ranking.score[kept], place[ranking.image[kept]]
            hit, ignored = ranking.hit[:, kept], ranking.ignored[:, kept]
            rankings.append(Ranking(score, image, hit, ignored, ranking.objects[chosen]))
        return Matches(tuple(rankings), self.recalls)

    def false_detections(self, score: float = 0.3) -> float:
        """Returns how many detections an image of at least a `score` find no object at IoU 0.5."""
        false = (((r.score >= score) & ~r.hit[0]).sum() for r in self.rankings)
        return float(sum(false) / self.images)

    def errors(self, score: float = 0.3) -> np.ndarray:
        """Returns for each image (I,) its objects that no detection of at least a `score` finds at IoU 0.5, plus the
        detections of it that find none.
        """
        errors = np.zeros(self.images, int)
        for ranking in self.rankings:
            counted = (ranking.score >= score) & ~ranking.ignored[0]
            hits = np.bincount(ranking.image[counted & ranking.hit[0]], minlength=self.images)
            false = np.bincount(ranking.image[counted & ~ranking.hit[0]], minlength=self.images)
            errors += ranking.objects - hits + false
        return errors

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
                np.concatenate(score)[order],
                np.concatenate(image)[order],
                np.concatenate(hit, axis=1)[:, order],
                np.concatenate(ignored, axis=1)[:, order],
                objects,
            )
        )
    return Matches(tuple(rankings), evaluation.params.recThrs)


def resampled_ap(seeds: Sequence[Matches], rounds: int, seed: int = 0) -> np.ndarray:
    """Returns AP (rounds + 1,), averaged over training seeds: on the images themselves, then on each draw of them.

    `seeds` holds the matches of one detector for each training seed. A round draws as many images as there are, with
    replacement; `seed` decides which. A round that draws no object is NaN.
    """
    draws = _draws(seeds[0].images, rounds, seed)
    return np.concatenate([np.mean([m.average_precision(weights) for m in seeds], axis=0) for weights in draws])


def _draws(images: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each image counts, (R, I) for some rounds at a time: once, then as drawn."""
    yield np.ones((1, images), int)
    generator = np.random.default_rng(seed)
    for start in range(0, rounds, ROUNDS_AT_ONCE):
        yield generator.multinomial(images, np.full(images, 1 / images), size=min(ROUNDS_AT_ONCE, rounds - start))


def difference(ap: np.ndarray, other: np.ndarray) -> Difference:
    """Returns by how much one detector is ahead of another, from the `resampled_ap` of both on the same images.

    A round that draws no object is left out.

    Raises:
        UserError: the images, or all draws of them, hold no object.
    """
    apart = ap - other
    drawn = apart[1:][~np.isnan(apart[1:])]
    if np.isnan(apart[0]) or not len(drawn):
        raise UserError(f"bootstrap: {len(apart) - 1} rounds draw no object to find; use more rounds or another split")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Difference(float(apart[0]), float(low), float(high), len(apart) - 1)


def hardest(differences: Mapping[str, Difference]) -> str:
    """Returns the name of the rival that is hardest to beat: one that is ahead for sure, then by the lower bound."""
    return min(differences, key=lambda name: (not differences[name].below, differences[name].low))
