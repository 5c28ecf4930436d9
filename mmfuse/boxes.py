"""Box maths: overlap, clipping, and the box code of the detector. Boxes are xyxy float pixels."""

import math

import torch
from torch import Tensor

_LARGEST_LOG_RATIO = math.log(1000.0 / 16)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encodes `boxes` (..., 4) relative to `anchors` (..., 4): (..., 4) as dy/ha, dx/wa, log h/ha, log w/wa.

    The order is effdet's; there are no variance factors.
    """
    centre, size = _centre_form(boxes)
    anchor_centre, anchor_size = _centre_form(anchors)
    shift = (centre - anchor_centre) / anchor_size
    growth = (size.clamp(min=1e-8) / anchor_size).log()
    return torch.cat((shift.flip(-1), growth.flip(-1)), dim=-1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Inverts `encode`: `codes` (..., 4) and `anchors` (..., 4) give boxes (..., 4).

    A box is at most 62.5 times as wide or high as its anchor, so that no code overflows.
    """
    anchor_centre, anchor_size = _centre_form(anchors)
    codes = codes.flip(-1)
    size = codes[..., :2].clamp(max=_LARGEST_LOG_RATIO).exp() * anchor_size
    centre = codes[..., 2:] * anchor_size + anchor_centre
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def clip(boxes: Tensor, height: float | Tensor, width: float | Tensor) -> Tensor:
    """Moves the corners of `boxes` (..., 4) into the image; for images of several sizes give (B, 1, 1) tensors."""
    inside = boxes.clamp(min=0)
    return torch.stack((inside[..., 0::2].clamp(max=width), inside[..., 1::2].clamp(max=height)), dim=-1).flatten(-2)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Returns the overlap (...), intersection over union, of boxes `a` (..., 4) and `b` (..., 4), broadcast."""
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    shared = width * height
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return shared / (area_a + area_b - shared).clamp(min=1e-8)
