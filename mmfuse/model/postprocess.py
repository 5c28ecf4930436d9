"""Which of the many candidate boxes are detections: non-maximum suppression, hard or soft, for all images at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from mmfuse import boxes as box_maths
from mmfuse.boxes import iou
from mmfuse.sample import Detections

SIGMA, SOFT_THRESHOLD = 0.5, 0.001


@dataclass(frozen=True)
class Selection:
    """How detections are chosen from candidates: the best `candidates` pairs of anchor and class of an image.

    Then suppression within each class, of what overlaps a better box by more than `iou_threshold`; or, where `soft`,
    Soft-NMS: its score is multiplied by exp(-iou^2 / 0.5) instead (arXiv 1704.04503, gaussian), and what falls to 0.001
    is dropped. Then the best `max_detections` with a score above `score_threshold`.
    """

    score_threshold: float = 0.0
    iou_threshold: float = 0.5
    max_detections: int = 100
    candidates: int = 5000
    soft: bool = False


DEFAULT = Selection()


def decode(
    class_logits: Tensor, box_codes: Tensor, anchors: Tensor, size: tuple[int, int], selection: Selection
) -> list[Detections]:
    """Turns `class_logits` (B, A, K) and `box_codes` (B, A, 4) of `anchors` (A, 4) into detections clipped to `size`
    (H, W) (google/automl, postprocess.py).
    """
    logits, places, labels = best_pairs(class_logits, selection.candidates)
    codes = box_codes.gather(1, places[..., None].expand(-1, -1, 4)).float()
    boxes = box_maths.clip(box_maths.decode(codes, anchors[places]), *size)
    return select(boxes, logits.sigmoid(), labels, selection)


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the `count` largest of `logits` (B, A, K), best first, and their anchors and classes: all (B, count).

    Their anchors are among the `count` whose best class is largest, so that only the classes of these are sorted.
    """
    batch, anchors, classes = logits.shape
    best = logits.amax(2).topk(min(count, anchors), dim=1, sorted=False).indices
    rows = logits[torch.arange(batch, device=logits.device)[:, None], best].float().flatten(1)
    values, pairs = rows.topk(min(count, rows.shape[1]), dim=1)
    return values, best.gather(1, pairs // classes), pairs % classes


def select(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> list[Detections]:
    """Chooses the detections of each image from `boxes` (B, N, 4), `scores` and `labels` (B, N), best first."""
    if selection.soft:
        scores, kept = soften(boxes, scores, labels, selection)
    else:
        kept = suppress(boxes, scores, labels, selection)
    image = kept // max(labels.shape[1], 1)
    counts = image.bincount(minlength=len(boxes))
    rank = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[image]
    kept = kept[rank < selection.max_detections]
    found = counts.clamp(max=selection.max_detections).tolist()
    columns = (values.flatten(0, 1)[kept].split(found) for values in (boxes, scores, labels))
    return [Detections(b, s, c) for b, s, c in zip(*columns, strict=True)]


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> Tensor:
    """Returns the flat indices of what hard suppression keeps, image by image, best first.

    What is kept depends on better candidates alone, so a prefix that yields enough boxes in every image settles it, and
    longer ones are tried only when it doesn't.
    """
    batch, count = scores.shape
    image = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count)
    group = image * (labels.max() + 1 if labels.numel() else 1) + labels
    apart = boxes.double() + (group * (boxes.max().ceil() + 1 if boxes.numel() else 1)).double()[..., None]
    above = scores > selection.score_threshold
    prefix = min(count, 5 * selection.max_detections)
    while True:
        rows = (image * count + torch.arange(count, device=boxes.device))[:, :prefix][above[:, :prefix]]
        kept = rows[nms(apart.flatten(0, 1)[rows], scores.flatten().double()[rows], selection.iou_threshold)]
        if prefix == count or int((kept // count).bincount(minlength=batch).min()) >= selection.max_detections:
            return kept.sort().values
        prefix = min(count, 4 * prefix)


def soften(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Returns the scores (B, N) after Soft-NMS, and the flat indices of what it keeps, image by image, best first.

    Each round takes the best box that is left in every image and lowers those of its class, so as many rounds as
    detections are wanted are enough.
    """
    batch, count = scores.shape
    least = max(selection.score_threshold, SOFT_THRESHOLD)
    left, softened, taken = scores.clone(), scores.clone(), []
    rows = torch.arange(batch, device=boxes.device)
    for _ in range(min(count, selection.max_detections)):
        score, place = left.max(1)
        taken.append(torch.where(score > least, rows * count + place, -1))
        softened[rows, place] = score
        overlap = iou(boxes, boxes[rows, place][:, None])
        same = labels == labels[rows, place][:, None]
        left = left * torch.where(same, torch.exp(-overlap.square() / SIGMA), 1.0)
        left[rows, place] = -torch.inf
    kept = torch.stack(taken, 1).flatten() if taken else rows.new_zeros(0)
    return softened, kept[kept >= 0]
