"""Log-average miss rate of pedestrian detectors (MR-2), as on KAIST: overall and per condition, and its curve.

Dollár et al., "Pedestrian detection: an evaluation of the state of the art" (PAMI 2012); the setups are those of Hwang
et al., "Multispectral pedestrian detection" (CVPR 2015).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.arrays import overlaps, paired
from mmfuse.sample import Detections

IOU = 0.5
FPPI_POINTS = np.logspace(-2, 0, 9)
LOWEST = 1e-10


@dataclass(frozen=True)
class Setup:
    """Which people count; all others are regions to ignore.

    `heights` is the range of the box's height in pixels and `occlusion` the levels (0 none, 1 partial, 2 heavy), both
    inclusive; the whole box lies `margin` pixels inside the image, which is x 5…635 and y 5…507 on KAIST's 640 x 512.
    """

    name: str
    heights: tuple[float, float]
    occlusion: tuple[int, ...]
    margin: float = 5

    def counts(self, boxes: np.ndarray, occlusion: np.ndarray, width: int, height: int) -> np.ndarray:
        """Returns (N,) bool: who counts of the xyxy `boxes` (N, 4), of the levels `occlusion` (N,), in one image."""
        low, high = self.heights
        tall = boxes[:, 3] - boxes[:, 1]
        end = np.array([width, height]) - self.margin
        inside = (boxes[:, :2] >= self.margin).all(axis=1) & (boxes[:, 2:] <= end).all(axis=1)
        return (tall >= low) & (tall <= high) & np.isin(occlusion, self.occlusion) & inside


REASONABLE = Setup("reasonable", (55, math.inf), (0, 1))
ALL = Setup("all", (20, math.inf), (0, 1, 2))


@dataclass(frozen=True)
class MissRates:
    """Log-average miss rates in [0, 1], lower is better, and what they were counted on.

    `per_condition` maps a tag to the `miss_rate` (None where nobody counts), `images` and `boxes` of its images alone.
    `boxes` are the people that count in `setup`.
    """

    setup: str
    miss_rate: float
    per_condition: dict[str, dict[str, float | int | None]]
    images: int
    boxes: int


@dataclass(frozen=True, eq=False)
class Curve:
    """Miss rate against false positives per image, as the threshold falls to the score of each of D detections.

    `fppi` (D,) rises and `miss_rate` (D,) in [0, 1] falls; detections on ignored regions have no point. `images` and
    `boxes` are what was counted.
    """

    fppi: np.ndarray
    miss_rate: np.ndarray
    images: int
    boxes: int

    def log_average(self) -> float:
        """Returns the geometric mean of the miss rates at nine FPPI from 0.01 to 1, evenly spaced in their logarithm.

        At each it is the miss rate at the largest FPPI up to there, 1 if there is none, and at least 1e-10.
        """
        reached = np.searchsorted(self.fppi, FPPI_POINTS, side="right")
        sampled = np.concatenate(([1.0], self.miss_rate))[reached]
        return float(np.exp(np.log(np.maximum(sampled, LOWEST)).mean()))


def miss_rates(
    records: Sequence[Record],
    detections: Mapping[int, Detections],
    classes: Sequence[str],
    setup: Setup = REASONABLE,
    *,
    target: str = "person",
) -> MissRates:
    """Scores the `target` class of `detections`, by image id and in original pixels, against that of `records`.

    Detections find objects at IoU 0.5, best score first, each object once. What is left and lies by half of its own
    area on an ignored object (`Record.ignore`: people, person?, cyclist; and who doesn't count in `setup`) counts
    neither way. Who has no level of occlusion isn't occluded. False positives are divided by all images. Equal scores
    are ranked by image id.

    Raises:
        UserError: nobody counts; the target isn't a class; a box isn't finite; a label or an image id is unknown.
    """
    judged = _judge(records, detections, classes, setup, target)
    whole = _overall(judged, setup, target)
    conditions = sorted({j.condition for j in judged if j.condition is not None})
    return MissRates(
        setup=setup.name,
        miss_rate=whole.log_average(),
        per_condition={c: _condition([j for j in judged if j.condition == c]) for c in conditions},
        images=whole.images,
        boxes=whole.boxes,
    )


@dataclass(frozen=True, eq=False)
class _Judged:
    """One image: `scores` (D,) of the detections that count, best first, `hit` (D,) bool and the objects to find."""

    condition: str | None
    scores: np.ndarray
    hit: np.ndarray
    objects: int


def _judge(
    records: Sequence[Record],
    detections: Mapping[int, Detections],
    classes: Sequence[str],
    setup: Setup,
    target: str,
) -> list[_Judged]:
    if target not in classes:
        raise UserError(f"target: {unknown_name(target, classes, 'class to score')}")
    label = list(classes).index(target)
    judged = []
    for record, found in paired(records, detections, classes):
        mine = record.labels == label
        boxes = record.boxes[mine].astype(float)
        occlusion = np.zeros(len(boxes), int) if record.occlusion is None else record.occlusion[mine].clip(min=0)
        ignored = record.ignore[mine] | ~setup.counts(boxes, occlusion, record.width, record.height)
        chosen = found.labels == label
        scores = found.scores[chosen]
        hit, counted = _match(found.boxes[chosen], boxes, ignored)
        judged.append(_Judged(record.condition, scores[counted], hit[counted], int((~ignored).sum())))
    return judged


def _match(found: np.ndarray, boxes: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether each detection (D, 4), best first, finds an object of its own, and whether it counts."""
    overlap = overlaps(found, boxes, over_found=ignored)
    on_object, on_ignored = overlap[:, ~ignored], overlap[:, ignored]
    hit = np.zeros(len(found), bool)
    for row in np.flatnonzero((on_object >= IOU).any(axis=1)):
        best = on_object[row].argmax()
        if on_object[row, best] >= IOU:
            hit[row] = True
            on_object[:, best] = 0
    return hit, hit | ~(on_ignored >= IOU).any(axis=1)


def _curve(judged: Sequence[_Judged]) -> Curve:
    scores = np.concatenate([np.zeros(0), *(j.scores for j in judged)])
    hit = np.concatenate([np.zeros(0, bool), *(j.hit for j in judged)])
    order = np.argsort(-scores, kind="stable")
    objects = sum(j.objects for j in judged)
    return Curve(
        fppi=(~hit[order]).cumsum() / max(len(judged), 1),
        miss_rate=1 - hit[order].cumsum() / max(objects, 1),
        images=len(judged),
        boxes=objects,
    )


def _overall(judged: Sequence[_Judged], setup: Setup, target: str) -> Curve:
    curve = _curve(judged)
    if not curve.boxes:
        raise UserError(
            f"the {curve.images} images to score hold no {target} that counts as {setup.name}; use another split"
        )
    return curve


def _condition(judged: Sequence[_Judged]) -> dict[str, float | int | None]:
    curve = _curve(judged)
    return {
        "miss_rate": curve.log_average() if curve.boxes else None,
        "images": curve.images,
        "boxes": curve.boxes,
    }
