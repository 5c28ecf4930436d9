"""Matching of objects to anchors, and the detection loss, batched over images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfuse import boxes as box_maths
from mmfuse.model.kernels import kernels_run
from mmfuse.sample import Targets, to_device

ALPHA, GAMMA, DELTA, BOX_WEIGHT, MATCH_IOU = 0.25, 1.5, 0.1, 50.0, 0.5
_IN_CACHE, _IN_MEMORY = 2**15, 2**24


def _at_once(x: Tensor) -> int:
    """Numbers to work on at once: what one core does without waiting for others, or what keeps an accelerator busy."""
    return _IN_CACHE if x.device.type == "cpu" else _IN_MEMORY


def match(
    boxes: Tensor, valid: Tensor, anchors: Tensor, grids: Sequence[tuple[int, int]] | None = None
) -> tuple[Tensor, Tensor]:
    """Assigns an object to every anchor: `boxes` (B, N, 4), `valid` (B, N) bool, `anchors` (A, 4); N is 1 or more.

    Returns the index of the object with the largest overlap (B, A), and whether the anchor is positive (B, A): the
    overlap is at least 0.5, or no other anchor overlaps the object more, in which case the anchor belongs to that
    object, the first one where several ask for it (google/automl, argmax matcher with forced matches). Anchors are
    taken in blocks, so memory doesn't grow with their number times that of the objects. `grids`, (rows, columns) of
    each level of `anchors`, saves work: all of a row begin and end at the same y, and all of a column at the same x.
    """
    batch, count = valid.shape
    left, top, right, bottom = boxes.masked_fill(~valid[..., None], 0)[:, :, None, None, None].unbind(-1)
    object_area = (right - left) * (bottom - top)
    best_overlap, best_object, forced_overlap, forced_anchor = [], [], [], []
    start, most = 0, max(1, _at_once(boxes) // (batch * count))
    for level in _levels(anchors, grids, most):
        x1, y1, x2, y2 = level.unbind(-1)
        across = _inside(x1[:1], x2[:1], left, right)
        down = _inside(y1[:, :1], y2[:, :1], top, bottom)
        rows = max(1, most // x1[0].numel())
        for area, part in zip(((x2 - x1) * (y2 - y1)).split(rows), down.split(rows, dim=2), strict=True):
            shared = part * across
            union = (area + object_area).sub_(shared)
            overlap = shared.div_(union).flatten(2)
            values, objects = overlap.max(1)
            best_overlap.append(values)
            best_object.append(objects)
            values, places = overlap.max(2)
            forced_overlap.append(values)
            forced_anchor.append(places + start)
            start += overlap.shape[2]
    matched, positive = torch.cat(best_object, 1), torch.cat(best_overlap, 1) >= MATCH_IOU
    block = torch.stack(forced_overlap).max(0, keepdim=True).indices
    anchor = torch.stack(forced_anchor).gather(0, block)[0].masked_fill(~valid, len(anchors))
    numbers = torch.arange(count, device=boxes.device).expand(batch, count)
    owner = torch.full((batch, len(anchors) + 1), count, dtype=torch.int64, device=boxes.device)
    owner.scatter_reduce_(1, anchor, numbers, "amin")
    owner = owner[:, :-1]
    forced = owner < count
    return torch.where(forced, owner, matched), positive | forced


def _levels(anchors: Tensor, grids: Sequence[tuple[int, int]] | None, most: int) -> Sequence[Tensor]:
    """Returns levels (rows, columns, places, 4); without grids `most` anchors are the places of a level of one cell."""
    if grids is None:
        return anchors[None, None].split(most, dim=2)
    places = len(anchors) // sum(rows * columns for rows, columns in grids)
    parts = anchors.split([rows * columns * places for rows, columns in grids])
    return [part.view(*grid, places, 4) for part, grid in zip(parts, grids, strict=True)]


def _inside(start: Tensor, end: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns how much of the way from `start` to `end` lies between `low` and `high`."""
    return end.clamp(low, high).sub_(start.clamp(low, high))


def _focal(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns 1.5 times p^1.5 softplus(x), where p is sigmoid(x), and the derivative of the latter."""
    p = x.sigmoid()
    power = p.sqrt().mul_(p)  # p^GAMMA, seven times as fast as pow
    loss = torch.addcmul(x.new_zeros(()), power, F.softplus(x), value=GAMMA)
    return loss, torch.lerp(loss, power, p, out=out)


def per_process(count: Tensor) -> Tensor:
    """Returns what a process divides its loss by, given the `count` () of all that it finds: 1 more than those of all
    processes, over the number of these, so that the mean over processes is the loss of the whole batch.
    """
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return (count + 1) / processes


class _FocalSum(torch.autograd.Function):
    """The focal loss of `logits` (B, A, K) summed, over 1 - alpha; `label` (B, A, 1) is wanted where `positive`.

    The loss of a class that isn't wanted is p^1.5 softplus(x), that of a wanted one the same of -x. Loss and gradient
    are found in one pass over parts that stay in the cache. The gradient is scaled where it lies, so it can be asked
    for once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, positive: Tensor) -> Tensor:
        ctx.dtype = logits.dtype
        gradient = torch.empty(logits.shape, dtype=torch.promote_types(ctx.dtype, torch.float32), device=logits.device)
        total = gradient.new_zeros(())
        parts = (x.reshape(-1).split(_at_once(x)) for x in (logits, gradient))
        for part, slope in zip(*parts, strict=True):
            total += _focal(part.to(gradient.dtype), out=slope)[0].sum()
        at_label = logits.gather(2, label).to(gradient.dtype)
        (unwanted, falling), (wanted, rising) = _focal(at_label), _focal(-at_label)
        odds = ALPHA / (1 - ALPHA)
        total += torch.where(positive, odds * wanted - unwanted, 0).sum()
        ctx.save_for_backward(gradient.scatter_(2, label, torch.where(positive, -odds * rising, falling)))
        return total / GAMMA

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale).to(ctx.dtype), None, None


def _focal_sum(logits: Tensor, label: Tensor, positive: Tensor) -> Tensor:
    """Returns the focal loss of `logits` (B, A, K) summed, over 1 - alpha; `label` (B, A) is wanted where `positive`.

    On CUDA it takes one kernel, and one for the gradient, where Triton can make them, else many.
    """
    if logits.is_cuda and logits.dtype != torch.float64 and not torch.compiler.is_compiling() and kernels_run():
        from mmfuse.model.focal_kernels import FocalSum

        return FocalSum.apply(logits, torch.where(positive, label, -1), ALPHA / (1 - ALPHA))
    return _FocalSum.apply(logits, label[..., None], positive[..., None])


def _padded(targets: Targets) -> tuple[Tensor, Tensor]:
    """Returns boxes (B, N, 4) and labels (B, N), filled up to the most that an image has, 1 at least, with label -1.

    As many calls for any number of images: each would be a kernel, for a few numbers.
    """
    counts = torch.tensor([len(x) for x in targets.labels], device="cpu")
    places, ends = torch.arange(max(1, *(len(x) for x in targets.labels)), device="cpu"), counts.cumsum(0)
    rows = torch.where(places < counts[:, None], (ends - counts)[:, None] + places, ends[-1])
    rows = to_device(rows.flatten(), targets.boxes[0].device)
    boxes, labels = torch.cat(targets.boxes), torch.cat(targets.labels)
    boxes, labels = F.pad(boxes, (0, 0, 0, 1))[rows], F.pad(labels, (0, 1), value=-1)[rows]
    return boxes.view(len(counts), -1, 4), labels.view(len(counts), -1)


def detection_loss(
    class_logits: Tensor,
    box_codes: Tensor,
    anchors: Tensor,
    targets: Targets,
    grids: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """Returns the focal loss "class", the Huber loss "box" and "total", their sum with the box loss weighted by 50.

    `class_logits` is (B, A, K), `box_codes` (B, A, 4), `anchors` (A, 4); see `match` for `grids`. The focal loss (alpha
    0.25, gamma 1.5) is over all anchors, the Huber loss (delta 0.1) over positive ones; both are divided by the
    positives of all processes plus 1, the box loss by 4 more (EfficientDet, section 5.1; google/automl). Each process's
    share is scaled so that the mean over processes, which DistributedDataParallel takes, is the loss of the whole
    batch; that of no image is 0. Its gradient can be asked for once.
    """
    if not targets.boxes:  # no image here
        per_process(anchors.new_zeros(()))
        nothing = {"class": class_logits.sum(), "box": box_codes.sum()}
        return nothing | {"total": nothing["class"] + nothing["box"]}
    with torch.no_grad():
        boxes, labels = _padded(targets)
        boxes = boxes.to(anchors.dtype)
        matched, positive = match(boxes, labels >= 0, anchors, grids)
        normaliser = per_process(positive.sum(dtype=torch.float32))
        label = labels.gather(1, matched).clamp(min=0)
        wanted = box_maths.encode(boxes.gather(1, matched[..., None].expand(-1, -1, 4)), anchors)
    class_loss = _focal_sum(class_logits, label, positive) * (1 - ALPHA) / normaliser
    distance = F.huber_loss(box_codes.float(), wanted, reduction="none", delta=DELTA)
    box_loss = torch.where(positive[..., None], distance, 0).sum() / (normaliser * 4)
    return {"class": class_loss, "box": box_loss, "total": class_loss + BOX_WEIGHT * box_loss}
