"""Agreement: whether sensors show the same scene, told by where and in which direction their images have edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.model.layers import Exact
from mmfuse.sample import to_device

EDGE = 0.5
"""Strength of an edge that counts by half, relative to the mean strength of its image's."""

RESOLUTION = 192
"""Height or width, whichever is larger, at which edges are looked for, at most; finer ones are blurred."""

CELLS = 8
"""Cells across the map of the edges that are usual at a place."""


class Agreement(Exact):
    """Sets the edges of M sensors beside one another; below `least` two of them don't show the same scene, from
    `clear` on they clearly do.

    Doubt looks at each sensor alone and finds nothing in a good image of the wrong thing: an old frame, another moment,
    a camera that was turned. But whatever sensors measure, objects end at the same places in all of them. So each image
    becomes a map of its edges, whose strength is normalised so that weak and strong ones count alike, as in the
    registration of images of different kinds (normalised gradient fields: Haber & Modersitzki, MICCAI 2006), less what
    is usual at each place of the rig's images (a road, a horizon) and the image's own mean. The agreement of two
    sensors is the correlation of their maps, from -1 to 1.

    A fresh one takes everything for the same scene.
    """

    usual: Tensor
    least: Tensor
    clear: Tensor

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        count = len(self.modalities)
        self.register_buffer("usual", torch.zeros(count, 3, CELLS, CELLS))
        self.register_buffer("least", torch.full((count, count), -torch.inf))
        self.register_buffer("clear", torch.full((count, count), -torch.inf))

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Returns the agreement (B, M, M) float32 of encoded images, NaN where one isn't given."""
        maps = [self._unusual(images[m], k) if m in images else None for k, m in enumerate(self.modalities)]
        given = next(iter(images.values()))
        unknown = torch.full((given.shape[0],), torch.nan, device=given.device)
        count = len(maps)
        pairs = [unknown] * count**2
        for i, one in enumerate(maps):
            for j, other in enumerate(maps[:i]):
                if one is not None and other is not None:
                    pairs[i * count + j] = pairs[j * count + i] = torch.einsum("bn,bn->b", one, other)
        return torch.stack(pairs, 1).view(-1, count, count)

    def witness(self, images: Mapping[str, Tensor], stuck: Mapping[str, Tensor]) -> "Witness":
        """Returns what is known of encoded images; `stuck` (B,) bool by modality is on any device, none if absent.

        What can't be compared counts as one scene.
        """
        values = self(images)
        fresh = torch.zeros(values.shape[0], dtype=torch.bool)
        again = torch.stack([stuck.get(m, fresh) for m in self.modalities], 1)
        return Witness(~(values < self.least), ~(values < self.clear), to_device(again, values.device))

    def _unusual(self, image: Tensor, number: int) -> Tensor:
        """Returns the edges (B, n) of images less what is usual, of length 1."""
        maps = edges(image)
        maps = maps - F.interpolate(self.usual[number, None], maps.shape[2:], mode="bilinear")
        maps = maps - maps.mean((2, 3), keepdim=True)
        return F.normalize(maps.flatten(1), eps=1e-6)


def edges(images: Tensor) -> Tensor:
    """Returns the edges (B, 3, h, w) float32 of images (B, C, H, W), at half their resolution or less.

    The first two channels are strength times cosine and sine of twice the angle, so that dark to bright is as bright to
    dark, the third is strength alone, below 1. All channels of an image count: it is the structure tensor of Di Zenzo
    (1986), divided by its trace.
    """
    with torch.autocast(images.device.type, enabled=False):
        small = _shrunk(images.float(), max(2, -(-max(images.shape[2:]) // RESOLUTION)))
        x, y = small[..., 2:] - small[..., :-2], small[..., 2:, :] - small[..., :-2, :]
        x = torch.add(x[..., :-2, :], x[..., 1:-1, :], alpha=2) + x[..., 2:, :]
        y = torch.add(y[..., :-2], y[..., 1:-1], alpha=2) + y[..., 2:]
        xx, yy, xy = ((a * b).sum(1) for a, b in ((x, x), (y, y), (x, y)))
        strength = xx + yy
        weak = (EDGE * strength.sqrt().mean((1, 2), keepdim=True)).square()
        return torch.stack((xx - yy, 2 * xy, strength), 1) / (strength + weak + 1e-12)[:, None]


def _shrunk(images: Tensor, times: int) -> Tensor:
    """Returns the sums of squares of so many pixels, as strengths are relative; avg_pool2d takes four times as long."""
    height, width = (side // times * times for side in images.shape[2:])
    rows = reduce(torch.add, (images[..., k:height:times, :width] for k in range(times)))
    return reduce(torch.add, (rows[..., k::times] for k in range(times)))


def usual_edges(images: Tensor) -> Tensor:
    """Returns the mean edges (B, 3, CELLS, CELLS) of images (B, C, H, W) in each part of them."""
    return F.adaptive_avg_pool2d(edges(images), CELLS)


def strangers(agrees: Tensor, compared: Tensor) -> Tensor:
    """Returns which sensors (B, M) bool agree with none of those that they are compared with, of which there is one at
    least; both are (B, M, M) bool.
    """
    return compared.any(2) & ~(compared & agrees).any(2)


@dataclass(frozen=True)
class Witness:
    """What is known of the sensors of a batch beside their features: which of them show the same scene, `agrees`
    (B, M, M) bool, and which do so `clearly`; and whose frame has been the very same for longer than is usual of it,
    `stuck` (B, M).
    """

    agrees: Tensor
    clearly: Tensor
    stuck: Tensor
