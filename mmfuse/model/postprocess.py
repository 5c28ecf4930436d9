"""Which of the many candidate boxes are detections: non-maximum suppression, hard or soft, for all images at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse import boxes as box_maths
from mmfuse.boxes import iou
from mmfuse.model.kernels import kernels_run
from mmfuse.sample import Detections, to_device

SIGMA, SOFT_THRESHOLD = 0.5, 0.001
_BLOCK = 256
State = TypeVar("State", bound=tuple[Tensor, ...])

Extent = tuple[float | Tensor, float | Tensor]
"""Height and width of all images, or (B, 1, 1) tensors of each."""


@dataclass(frozen=True)
class Selection:
    """How detections are chosen from candidates: the best `candidates` pairs of anchor and class of an image.

    Then suppression within each class, of what overlaps a better box by more than `iou_threshold`; or, where `soft`,
    Soft-NMS: its score is multiplied by exp(-iou^2 / 0.5) instead (arXiv 1704.04503, gaussian), and what falls to 0.001
    is dropped. Then the best `max_detections` with a score above `threshold`.
    """

    threshold: float = 0.0
    iou_threshold: float = 0.5
    max_detections: int = 100
    candidates: int = 5000
    soft: bool = False

    def settle(self, boxes: Tensor, above: Tensor, labels: Tensor) -> Tensor:
        """Does hard suppression in shapes that don't depend on what is found, see `settled`; on CUDA as one kernel."""
        compiling = torch.compiler.is_dynamo_compiling()  # to it all may be exported, and Triton is there
        if boxes.is_cuda and (compiling or (not torch.compiler.is_exporting() and kernels_run())):
            from mmfuse.model.suppression_kernels import kept_places

            return kept_places(boxes, above, labels, self.max_detections, self.iou_threshold)
        return settled(boxes, above, labels, self)


DEFAULT = Selection()


def decode(
    class_logits: Tensor, box_codes: Tensor, anchors: Tensor, size: Extent, selection: Selection
) -> list[Detections]:
    """Turns `class_logits` (B, A, K) and `box_codes` (B, A, 4) of `anchors` (A, 4) into detections clipped to `size`
    (google/automl, postprocess.py).

    The host waits once for a CUDA device.
    """
    return select(*_candidates(class_logits, box_codes, anchors, size, selection), selection)


def decode_padded(
    class_logits: Tensor, box_codes: Tensor, anchors: Tensor, size: Extent, selection: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """Does what `decode` does in shapes that don't depend on what is found, for a compiled or captured graph.

    Returns `boxes` (B, D, 4), `scores` (B, D) and `labels` (B, D), best first, where D is `max_detections`. What isn't
    a detection has box 0, score 0 and label -1. The host never waits for a CUDA device.
    """
    return select_padded(*_candidates(class_logits, box_codes, anchors, size, selection), selection)


def _candidates(
    class_logits: Tensor, box_codes: Tensor, anchors: Tensor, size: Extent, selection: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the clipped boxes (B, N, 4), scores and labels (B, N) of the best pairs of anchor and class."""
    logits, places, labels = best_pairs(class_logits, selection.candidates)
    codes = box_codes.gather(1, places[..., None].expand(-1, -1, 4)).float()
    boxes = box_maths.clip(box_maths.decode(codes, anchors[places]), *size)
    return boxes, logits.sigmoid(), labels


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
    if selection.soft or boxes.is_cuda:
        padded = select_padded(boxes, scores, labels, selection)
        found = (padded[2] >= 0).sum(1).tolist()
        return [Detections(b[:n], s[:n], c[:n]) for b, s, c, n in zip(*padded, found, strict=True)]
    kept = suppress(boxes, scores, labels, selection)
    image = kept // max(labels.shape[1], 1)
    counts = image.bincount(minlength=len(boxes))
    rank = torch.arange(len(kept)) - (counts.cumsum(0) - counts)[image]
    kept = to_device(kept[rank < selection.max_detections], boxes.device)
    found = counts.clamp(max=selection.max_detections).tolist()
    columns = (values.flatten(0, 1)[kept].split(found) for values in (boxes, scores, labels))
    return [Detections(b, s, c) for b, s, c in zip(*columns, strict=True)]


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> Tensor:
    """Returns the flat indices of what hard suppression keeps, image by image, best first, on the host.

    What is kept depends on better candidates alone, so a prefix that yields enough boxes in every image settles it, and
    longer ones are tried only when it doesn't.
    """
    from torchvision.ops import nms

    batch, count = scores.shape
    image = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count)
    group = image * (labels.max() + 1 if labels.numel() else 1) + labels
    apart = boxes.double() + (group * (boxes.max().ceil() + 1 if boxes.numel() else 1)).double()[..., None]
    above = scores > selection.threshold
    prefix = min(count, 5 * selection.max_detections)
    while True:
        rows = (image * count + torch.arange(count, device=boxes.device))[:, :prefix][above[:, :prefix]]
        kept = rows[nms(apart.flatten(0, 1)[rows], scores.flatten().double()[rows], selection.iou_threshold)].cpu()
        if prefix == count or int((kept // count).bincount(minlength=batch).min()) >= selection.max_detections:
            return kept.sort().values
        prefix = min(count, 4 * prefix)


def select_padded(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses like `select`, from the same, in shapes that don't depend on what is found; see `decode_padded`."""
    places, found = (soft_nms if selection.soft else hard_nms)(boxes, scores, labels, selection)
    there = found > (max(selection.threshold, SOFT_THRESHOLD) if selection.soft else selection.threshold)
    chosen = torch.where(there[..., None], boxes.gather(1, places[..., None].expand(-1, -1, 4)), 0.0)
    chosen_labels = torch.where(there, labels.gather(1, places), -1)
    lacking = selection.max_detections - places.shape[1]
    return (
        F.pad(chosen, (0, 0, 0, lacking)),
        F.pad(torch.where(there, found, 0.0), (0, lacking)),
        F.pad(chosen_labels, (0, lacking), value=-1),
    )


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Returns the places (B, n) of what Soft-NMS takes of `boxes` (B, N, 4) in n rounds, `max_detections` or N if less,
    and their lowered scores (B, n), of which -inf says that nothing was left.
    """
    number = torch.arange(scores.shape[1], device=boxes.device)
    places, taken, left = [labels[:, :0]], [scores[:, :0]], scores
    for _ in range(min(scores.shape[1], selection.max_detections)):
        place, score, left = _take(left, boxes, labels, number)
        places.append(place)
        taken.append(score)
    return torch.cat(places, 1), torch.cat(taken, 1)


@torch.compiler.nested_compile_region  # traced once, not once a round
def _take(left: Tensor, boxes: Tensor, labels: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the best box that is left in every image, the first of several.

    Returns its place and score (B, 1), and what is left of the scores `left` (B, N): those of its class fall softly, by
    how far they overlap it, and its own to -inf. `number` is (N,).
    """
    score, place = left.max(1, keepdim=True)
    overlap = iou(boxes, boxes.gather(1, place[..., None].expand(-1, -1, 4)))
    lowered = left * torch.exp(-overlap.square() / SIGMA)
    left = torch.where(labels == labels.gather(1, place), lowered, left)
    return place, score, left.masked_fill(number == place, -torch.inf)


def hard_nms(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Returns the places of what hard suppression takes, in double precision as `suppress` does, and their scores."""
    places = selection.settle(boxes.double(), scores > selection.threshold, labels)
    taken = F.pad(scores, (0, 1), value=-torch.inf).gather(1, places)
    return places.clamp(max=max(scores.shape[1] - 1, 0)), taken


def settled(boxes: Tensor, above: Tensor, labels: Tensor, selection: Selection) -> Tensor:
    """Returns the places (B, n) of what hard suppression keeps of those `above` (B, N), best first: `max_detections`,
    or N if less. A place N says that nothing is left.

    Candidates are settled `_BLOCK` at a time, for all images at once, until enough are kept. Of a block, those fall
    that overlap what was kept before. In the others' first pass all are kept; in each further one, those that no better
    one suppresses of what the pass before kept. So the p-th pass is right wherever no more than p of them suppress each
    other in a row, and all is right once a pass changes nothing: never more passes than candidates, mostly under ten.
    """
    batch, count = labels.shape
    most = min(selection.max_detections, count)
    if most == 0:
        return labels[:, :0]
    size = min(_BLOCK, count)
    inner = torch.arange(size, device=boxes.device)
    better = inner[:, None] < inner
    lacking = -count % size + 1
    boxes, labels = F.pad(boxes, (0, 0, 0, lacking)), F.pad(labels, (0, lacking), value=-1)
    above = F.pad(above, (0, lacking))
    end = above.sum(1).max()

    def suppressing(ours: Tensor, theirs: Tensor) -> Tensor:
        """Returns which boxes at places (B, n) overlap which of those at (B, m) too much: (B, n, m)."""
        own, other = (boxes.gather(1, x[..., None].expand(-1, -1, 4)) for x in (ours, theirs))
        alike = labels.gather(1, ours)[:, :, None] == labels.gather(1, theirs)[:, None]
        return alike & (iou(own[:, :, None], other[:, None]) > selection.iou_threshold)

    def lacks(start: Tensor, _: Tensor, found: Tensor) -> Tensor:
        return (start < end) & (found < most).any()

    def block(start: Tensor, places: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = (start + inner).expand(batch, size)
        left = above.gather(1, own) & ~suppressing(places[:, :most], own).any(1)
        by = suppressing(own, own) & better

        def unsettled(kept: Tensor, before: Tensor) -> Tensor:
            return (kept != before).any()

        def once(kept: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            return left & ~(by & kept[:, :, None]).any(1), kept.clone()

        kept = _while(unsettled, once, (left.clone(), torch.zeros_like(left)))[0]
        rank = found[:, None] + kept.cumsum(1) - 1
        rank = torch.where(kept & (rank < most), rank, most)
        return start + size, places.scatter(1, rank, own), found + kept.sum(1)

    nothing = labels.new_full((batch, most + 1), count)
    return _while(lacks, block, (end.new_zeros(()), nothing, labels.new_zeros(batch)))[1][:, :most]


def _while(going_on: Callable[..., Tensor], step: Callable[..., State], state: State) -> State:
    """Takes steps while asked to; in a traced graph that is one operator."""
    if torch.compiler.is_compiling():
        return torch.while_loop(going_on, step, state)
    while bool(going_on(*state)):
        state = step(*state)
    return state
