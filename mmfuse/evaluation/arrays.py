"""Objects and detections of each image as checked numpy arrays, and how they overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.sample import Detections


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one image, best first: `boxes` (D, 4) float64 xyxy, `scores` (D,) float64, `labels` (D,)."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def paired(
    records: Sequence[Record], detections: Mapping[int, Detections], classes: Sequence[str]
) -> list[tuple[Record, Found]]:
    """Returns the records by ascending image id, each with what was found in it; no entry means nothing.

    Detections of equal score keep their order.

    Raises:
        UserError: a box or a score isn't finite; a label or an image id is unknown.
    """
    unknown = set(detections) - {r.image_id for r in records}
    if unknown:
        raise UserError(f"image {min(unknown)}: has detections but isn't among those to score; use its own split")
    pairs = []
    for record in sorted(records, key=lambda r: r.image_id):
        where = f"image {record.image_id}"
        if not np.isfinite(record.boxes).all():
            raise UserError(f"{where}: a ground-truth box isn't finite; mend or remove its annotation")
        found = detections.get(record.image_id, Detections.empty())
        boxes = found.boxes.detach().cpu().double().numpy()
        scores = found.scores.detach().cpu().double().numpy()
        labels = found.labels.detach().cpu().numpy()
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise UserError(f"{where}: a detection isn't finite; the detector has diverged, lower train.lr")
        strange = labels[(labels < 0) | (labels >= len(classes))]
        if len(strange):
            raise UserError(f"{where}: label {strange[0]} is none of {len(classes)} classes; use the same card")
        order = np.argsort(-scores, kind="stable")
        pairs.append((record, Found(boxes[order], scores[order], labels[order])))
    return pairs


def overlaps(found: np.ndarray, boxes: np.ndarray, over_found: np.ndarray | bool = False) -> np.ndarray:
    """Returns (D, N): intersection over union of the xyxy boxes `found` (D, 4) and `boxes` (N, 4).

    Where `over_found` (N,) is True the intersection is divided by the area of the found box alone, so that a detection
    anywhere in a large region overlaps it fully. A box without area overlaps nothing.
    """
    from pycocotools import mask

    if not (len(found) and len(boxes)):
        return np.zeros((len(found), len(boxes)))
    ours, theirs = (
        np.concatenate((b[:, :2], b[:, 2:] - b[:, :2]), 1) for b in (found.astype(float), boxes.astype(float))
    )
    return np.asarray(mask.iou(ours, theirs, np.broadcast_to(over_found, len(boxes)).astype(np.uint8)))
