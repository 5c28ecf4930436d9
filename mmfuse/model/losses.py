"""Matching of objects to anchors, and the detection loss, batched over images."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmfuse import boxes as box_maths
from mmfuse.sample import Targets

ALPHA, GAMMA, DELTA, BOX_WEIGHT, MATCH_IOU = 0.25, 1.5, 0.1, 50.0, 0.5
_PAIRS_AT_ONCE = 2**22


def match(boxes: Tensor, valid: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns an object to every anchor: `boxes` (B, N, 4), `valid` (B, N) bool, `anchors` (A, 4).

    Returns the index of the object with the largest overlap (B, A), and whether the anchor is positive (B, A): the
    overlap is at least 0.5, or no other anchor overlaps the object more, in which case the anchor belongs to that
    object, the first one where several ask for it (google/automl, argmax matcher with forced matches). Anchors are
    taken in chunks, so memory doesn't grow with their number times that of the objects.
    """
    batch, count = valid.shape
    if count == 0:
        empty = torch.zeros(batch, len(anchors), dtype=torch.int64, device=boxes.device)
        return empty, empty.bool()
    chunk = max(1, _PAIRS_AT_ONCE // (batch * count))
    best_overlap, best_object = [], []
    forced_overlap = boxes.new_full((batch, count), -1.0)
    forced_anchor = torch.zeros(batch, count, dtype=torch.int64, device=boxes.device)
    for start in range(0, len(anchors), chunk):
        overlap = box_maths.iou(anchors[None, start : start + chunk, None], boxes[:, None]).masked_fill(
            ~valid[:, None], -1.0
        )
        values, objects = overlap.max(2)
        best_overlap.append(values)
        best_object.append(objects)
        values, places = overlap.max(1)
        better = values > forced_overlap
        forced_overlap = torch.where(better, values, forced_overlap)
        forced_anchor = torch.where(better, places + start, forced_anchor)
    matched, positive = torch.cat(best_object, 1), torch.cat(best_overlap, 1) >= MATCH_IOU
    numbers = torch.arange(count, device=boxes.device).expand(batch, count)
    owner = torch.full((batch, len(anchors) + 1), count, dtype=torch.int64, device=boxes.device)
    owner.scatter_reduce_(1, forced_anchor.masked_fill(~valid, len(anchors)), numbers, "amin")
    owner = owner[:, :-1]
    forced = owner < count
    return torch.where(forced, owner, matched), positive | forced


def _focal_negative(logits: Tensor) -> Tensor:
    return (1 - ALPHA) * logits.sigmoid().pow(GAMMA) * F.softplus(logits)


def _focal_positive(logits: Tensor) -> Tensor:
    return ALPHA * (-logits).sigmoid().pow(GAMMA) * F.softplus(-logits)


def detection_loss(class_logits: Tensor, box_codes: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Returns the focal loss "class", the Huber loss "box" and "total", their sum with the box loss weighted by 50.

    `class_logits` is (B, A, K), `box_codes` (B, A, 4), `anchors` (A, 4). The focal loss (alpha 0.25, gamma 1.5) is over
    all anchors, the Huber loss (delta 0.1) over positive ones; both are divided by the positives of all processes
    plus 1, the box loss by 4 more (EfficientDet, section 5.1; google/automl). Each process's share is scaled so that
    the mean over processes, which DistributedDataParallel takes, is the loss of the whole batch.
    """
    logits, codes = class_logits.float(), box_codes.float()
    boxes = pad_sequence(targets.boxes, batch_first=True).to(anchors.dtype)
    labels = pad_sequence(targets.labels, batch_first=True, padding_value=-1)
    with torch.no_grad():
        matched, positive = match(boxes, labels >= 0, anchors)
        weight = positive.to(logits.dtype)
        normaliser = weight.sum() + 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world = torch.distributed.get_world_size()
            normaliser = normaliser - 1
            torch.distributed.all_reduce(normaliser)
            normaliser = (normaliser + 1) / world
    class_loss = _focal_negative(logits).sum()
    box_loss = (codes * 0).sum() if labels.shape[1] == 0 else codes.new_zeros(())
    if labels.shape[1]:
        at_label = logits.gather(2, labels.gather(1, matched).clamp(min=0)[..., None])[..., 0]
        class_loss = class_loss + ((_focal_positive(at_label) - _focal_negative(at_label)) * weight).sum()
        wanted = box_maths.encode(boxes.gather(1, matched[..., None].expand(-1, -1, 4)), anchors)
        distance = F.huber_loss(codes, wanted, reduction="none", delta=DELTA)
        box_loss = torch.where(positive[..., None], distance, 0).sum()
    class_loss, box_loss = class_loss / normaliser, box_loss / (normaliser * 4)
    return {"class": class_loss, "box": box_loss, "total": class_loss + BOX_WEIGHT * box_loss}
