"""Hard suppression on CUDA as one kernel, a program for each image: the host neither waits nor starts a round."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _KEPT = 64, 32
"""Candidates, and boxes kept before, that are set beside one another at once: more of them, and registers spill."""


@torch.library.custom_op("mmfuse::kept_places", mutates_args=())
def kept_places(boxes: Tensor, above: Tensor, labels: Tensor, most: int, iou_threshold: float) -> Tensor:
    """Does what `postprocess.settled` does, with `boxes` (B, N, 4) float64, for the `most` best: (B, min(most, N))."""
    batch, count = labels.shape
    most = min(most, count)
    places = torch.full((batch, most), count, dtype=torch.int64, device=boxes.device)
    if places.numel():
        _suppress[(batch,)](
            boxes.contiguous(),
            above.contiguous(),
            labels.contiguous(),
            places,
            count,
            most,
            torch.full((1,), iou_threshold, dtype=torch.float64, device=boxes.device),
            BLOCK=_BLOCK,
            KEPT=_KEPT,
            num_warps=8,
            enable_fp_fusion=False,  # overlaps are those of `boxes.iou`, to the last bit
        )
    return places


@kept_places.register_fake
def _(boxes: Tensor, above: Tensor, labels: Tensor, most: int, iou_threshold: float) -> Tensor:
    return labels.new_empty((labels.shape[0], min(most, labels.shape[1])))


@triton.jit
def _overlap(x1, y1, x2, y2, ox1, oy1, ox2, oy2):  # type: ignore[no-untyped-def]
    width = tl.maximum(tl.minimum(x2, ox2) - tl.maximum(x1, ox1), 0.0)
    height = tl.maximum(tl.minimum(y2, oy2) - tl.maximum(y1, oy1), 0.0)
    shared = width * height
    union = (x2 - x1) * (y2 - y1) + (ox2 - ox1) * (oy2 - oy1) - shared
    return shared / tl.maximum(union, 1e-8)


@triton.jit
def _suppress(boxes, above, labels, places, count, most, threshold, BLOCK: tl.constexpr, KEPT: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    boxes += image * count * 4
    above += image * count
    labels += image * count
    places += image * most
    limit = tl.load(threshold)
    inner = tl.arange(0, BLOCK)
    better = inner[None, :] < inner[:, None]
    slots = tl.arange(0, KEPT)
    start = 0
    found = 0
    while (start < count) & (found < most):
        own = start + inner
        here = own < count
        left = (tl.load(above + own, mask=here, other=0) != 0).to(tl.int32)
        any_left = tl.max(left, 0)
        label = tl.load(labels + own, mask=here, other=-1)
        x1 = tl.load(boxes + own * 4, mask=here, other=0.0)
        y1 = tl.load(boxes + own * 4 + 1, mask=here, other=0.0)
        x2 = tl.load(boxes + own * 4 + 2, mask=here, other=0.0)
        y2 = tl.load(boxes + own * 4 + 3, mask=here, other=0.0)
        first = 0
        while first < found:  # what was kept before
            slot = first + slots
            filled = slot < found
            place = tl.load(places + slot, mask=filled, other=0)
            kept_label = tl.load(labels + place, mask=filled, other=-1)
            over = _overlap(
                x1[:, None],
                y1[:, None],
                x2[:, None],
                y2[:, None],
                tl.load(boxes + place * 4, mask=filled, other=0.0)[None, :],
                tl.load(boxes + place * 4 + 1, mask=filled, other=0.0)[None, :],
                tl.load(boxes + place * 4 + 2, mask=filled, other=0.0)[None, :],
                tl.load(boxes + place * 4 + 3, mask=filled, other=0.0)[None, :],
            )
            struck = (over > limit) & (label[:, None] == kept_label[None, :]) & filled[None, :]
            left = tl.where(tl.max(struck.to(tl.int32), 1) > 0, 0, left)
            first += KEPT
        over = _overlap(
            x1[:, None], y1[:, None], x2[:, None], y2[:, None], x1[None, :], y1[None, :], x2[None, :], y2[None, :]
        )
        by = ((over > limit) & (label[:, None] == label[None, :]) & better).to(tl.int32)
        kept = left
        changed = 1
        while changed > 0:  # each pass settles one more of those that suppress each other in a row
            now = tl.where(tl.max(by * kept[None, :], 1) > 0, 0, left)
            changed = tl.max((now != kept).to(tl.int32), 0)
            kept = now
        rank = found + tl.cumsum(kept, 0) - 1
        tl.store(places + rank, own.to(tl.int64), mask=(kept > 0) & (rank < most))
        found += tl.sum(kept, 0)
        start = tl.where(any_left > 0, start + BLOCK, count)  # best first: none of the rest is above either
        tl.debug_barrier()  # what one thread kept, all read
