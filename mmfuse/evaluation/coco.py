"""COCO average precision of detections: overall, by size, per class and per condition.

Scored by faster-coco-eval where it is installed (the extra `fast`), else by pycocotools: the figures are the same.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse.data.annotations.coco import coco_ground_truth
from mmfuse.data.annotations.records import Record, conditions_of
from mmfuse.errors import UserError
from mmfuse.evaluation.arrays import paired
from mmfuse.sample import Detections

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Scores:
    """COCO's twelve figures in [0, 1] and what they were counted on; None where there is no object to find.

    `ap` is the mean over IoU 0.50 to 0.95 in steps of 0.05 and over the classes that have objects; sizes are those of
    COCO (small below 32² pixels, large from 96²), of an object by its `Record.area`. `per_condition` maps a tag to the
    `ap`, `ap50`, `images` and `boxes` of its images alone. `boxes` leaves out those to ignore.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, float | None]
    per_condition: dict[str, dict[str, float | int | None]]
    images: int
    boxes: int


def coco_scores(records: Sequence[Record], detections: Mapping[int, Detections], classes: Sequence[str]) -> Scores:
    """Scores `detections`, by image id and in original pixels, against the objects of `records`.

    An image without an entry counts as one in which nothing was found.

    Raises:
        UserError: no record has an object; a box isn't finite; a label or an image id is unknown.
    """
    if _count_boxes(records) == 0:
        raise UserError(f"the {len(records)} images to score hold no object of {', '.join(classes)}; use another split")
    truth, found = coco_pair(records, detections, classes)
    evaluation = _summary(truth, found, records)
    figures: dict[str, Any] = {
        f.name: _defined(value) for f, value in zip(fields(Scores), evaluation.stats, strict=False)
    }
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    conditions = conditions_of(records)
    return Scores(
        **figures,
        per_class={name: _defined(precision[:, :, k].mean()) for k, name in enumerate(classes)},
        per_condition={c: _condition(truth, found, [r for r in records if r.condition == c]) for c in conditions},
        images=len(records),
        boxes=_count_boxes(records),
    )


def coco_pair(
    records: Sequence[Record], detections: Mapping[int, Detections], classes: Sequence[str]
) -> "tuple[COCO, COCO]":
    """Returns ground truth and detections as pycocotools holds them; category ids are label + 1.

    Raises:
        UserError: a box isn't finite; a label or an image id is unknown.
    """
    pairs = paired(records, detections, classes)
    truth = coco_ground_truth(records, classes)
    annotations: list[dict[str, Any]] = []
    for record, found in pairs:
        columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        for (x1, y1, x2, y2), score, label in zip(*columns, strict=True):
            w, h = x2 - x1, y2 - y1
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads 0 as "not matched"
                    "image_id": record.image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return _indexed(truth), _indexed({**truth, "annotations": annotations})


def restricted(coco: "COCO", ids: Sequence[int] | np.ndarray) -> "COCO":
    """Returns the same images with the annotations of these ids alone, which keep them."""
    return _indexed({**coco.dataset, "annotations": [coco.anns[int(i)] for i in ids]})


def evaluation_type(sizes: bool) -> "type[COCOeval]":
    """Returns what matches and counts; imported only here, so that a detector runs and trains where neither is.

    Without `sizes` it is pycocotools': its `evalImgs` says what was matched, which faster-coco-eval keeps to itself.
    """
    from pycocotools.cocoeval import COCOeval

    if sizes:
        with contextlib.suppress(ImportError):
            from faster_coco_eval import COCOeval_faster

            return COCOeval_faster
    return COCOeval


def evaluate_pair(
    truth: "COCO", found: "COCO", image_ids: Sequence[int], *, sizes: bool = True, by_class: bool = True
) -> "COCOeval":
    """Matches detections with objects on some images; without `sizes` on all areas together only.

    Where not `by_class`, objects are found by detections of any class, of which all count.
    """
    evaluation = evaluation_type(sizes)(truth, found, "bbox")
    evaluation.params.imgIds = sorted(image_ids)
    if not sizes:
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [MAX_DETECTIONS]
    if not by_class:
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [len(found.anns) + 1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


def _summary(truth: "COCO", found: "COCO", records: Sequence[Record]) -> "COCOeval":
    evaluation = evaluate_pair(truth, found, [r.image_id for r in records])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _condition(truth: "COCO", found: "COCO", records: Sequence[Record]) -> dict[str, float | int | None]:
    ap, ap50 = (_defined(value) for value in _summary(truth, found, records).stats[:2])
    return {"ap": ap, "ap50": ap50, "images": len(records), "boxes": _count_boxes(records)}


def _indexed(dataset: dict[str, Any]) -> "COCO":
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _defined(value: float) -> float | None:
    """Returns None for pycocotools' -1: no object to find."""
    return float(value) if value >= 0 else None


def _count_boxes(records: Sequence[Record]) -> int:
    return int(sum((~r.ignore).sum() for r in records))
