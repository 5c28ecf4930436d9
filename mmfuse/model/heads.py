"""The class and box heads, and the anchors that they predict for: one set of convolutions for all levels, a batch
norm for each level.

In eval mode all levels lie on one canvas, so that a convolution that they share runs once.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.layers import Separable, initialise, norm_silu

OCTAVES = 3
SHAPES = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
"""Width and height factors, which google/automl writes as literals."""

PER_PLACE = OCTAVES * len(SHAPES)


def anchors(height: int, width: int, levels: tuple[int, ...], scale: float, device: torch.device) -> Tensor:
    """Returns the anchors (A, 4) xyxy of an input of that size, which is a multiple of the coarsest stride.

    Levels from the finest, places row by row, at each place the octaves and in each the shapes: index
    `octave * 3 + shape`. The side is `scale * stride * 2^(octave / 3)` (google/automl, anchors.py).
    """
    octaves = torch.arange(OCTAVES, dtype=torch.float64).div(OCTAVES).exp2()
    half = (octaves[:, None, None] * torch.tensor(SHAPES, dtype=torch.float64)).reshape(-1, 2) * scale / 2
    parts = []
    for level in levels:
        stride = 2**level
        y = torch.arange(height // stride, dtype=torch.float64).add(0.5) * stride
        x = torch.arange(width // stride, dtype=torch.float64).add(0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((grid_x, grid_y), -1).reshape(-1, 1, 2)
        parts.append(torch.cat((centres - half * stride, centres + half * stride), -1).reshape(-1, 4))
    return torch.cat(parts).to(device, torch.float32)


def grids(height: int, width: int, levels: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the (rows, columns) of places of each level for an input of that size."""
    return [(height // 2**level, width // 2**level) for level in levels]


class Packing:
    """Where levels lie on a canvas: the finest at the left, beside it the others one below the other, a place apart.

    `places` (P,) are the places of the canvas that hold levels, finest first and row by row; `level_of` (h w,) is the
    number of the level that a place of the canvas holds, or that of the levels where it holds none.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> None:
        self.sizes = list(sizes)
        (first_height, first_width), *others = self.sizes
        *tops, below = accumulate((height + 1 for height, _ in others), initial=0)
        self.corners = [(0, 0), *((top, first_width + 1) for top in tops)]
        self.height = max(first_height, below)
        self.width = first_width + (1 + max(width for _, width in others) if others else 0)
        numbers = torch.arange(self.height * self.width, device=device).view(self.height, self.width)
        self.level_of = torch.full_like(numbers, len(self.sizes))
        for level, part in enumerate(self._parts(self.level_of)):
            part.fill_(level)
        self.level_of = self.level_of.flatten()
        self.places = torch.cat([part.flatten() for part in self._parts(numbers)])

    def _parts(self, canvas: Tensor) -> list[Tensor]:
        corners = zip(self.corners, self.sizes, strict=True)
        return [canvas[y : y + height, x : x + width] for (y, x), (height, width) in corners]

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """Turns maps (B, W, h, w) into a canvas (B, W, height, width), 0 between them."""
        finest, *others = levels
        if not others:
            return finest
        column = self.width - finest.shape[3] - 1
        parts = [F.pad(x, (0, column - x.shape[3], 0, 1)) for x in others]
        beside = torch.cat(parts, 2)
        beside = F.pad(beside, (0, 0, 0, self.height - beside.shape[2]))
        return torch.cat((F.pad(finest, (0, 1, 0, self.height - finest.shape[2])), beside), 3)

    def rows(self, canvas: Tensor) -> Tensor:
        """Returns (B, P, W): what a canvas (B, W, height, width) holds at `places`."""
        return canvas.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, self.places)

    def spread(self, values: Tensor) -> Tensor:
        """Turns the `values` (…, levels, W) of levels into those of places (…, W, height, width), 0 between levels."""
        padded = F.pad(values, (0, 0, 0, 1)).index_select(-2, self.level_of)
        return padded.unflatten(-2, (self.height, self.width)).movedim(-1, -3)


class Head(nn.Module):
    """Predicts `values` numbers for each of `anchors` anchors at every place of every level."""

    def __init__(self, width: int, depth: int, levels: int, anchors: int, values: int, *, prior: float, bias: bool):
        super().__init__()
        self.values = values
        self.convs = nn.ModuleList(Separable(width, width, bias) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(norm_silu(width) for _ in range(levels)) for _ in range(depth))
        self.predict = Separable(width, anchors * values, bias=True)
        initialise(self)
        assert self.predict.pointwise.bias is not None
        nn.init.constant_(self.predict.pointwise.bias, prior)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Turns maps (B, W, h, w), finest first, into (B, A, values), places row by row and the anchors of a place
        together.
        """
        rows = []
        for level, x in enumerate(levels):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = norms[level](conv(x))  # type: ignore[index]
            rows.append(self.predict.depthwise(x).permute(0, 2, 3, 1).flatten(1, 2))
        return self._predictions(torch.cat(rows, 1))

    def packed(self, canvas: Tensor, packing: Packing, norms: tuple[Tensor, Tensor]) -> Tensor:
        """Returns what `forward` does in eval mode, of all levels at once: a canvas (B, W, h, w) of `packing`.

        `norms` are those of `norms_of_places`.
        """
        for conv, scale, shift in zip(self.convs, *norms, strict=True):
            canvas = F.silu(torch.addcmul(shift, conv(canvas), scale), inplace=not canvas.requires_grad)
        return self._predictions(packing.rows(self.predict.depthwise(canvas)))

    def _predictions(self, rows: Tensor) -> Tensor:
        """Turns the (B, P, W) of all places into (B, A, values)."""
        last = self.predict.pointwise
        count = rows.shape[1] * last.out_channels // self.values
        return F.linear(rows, last.weight.flatten(1), last.bias).view(rows.shape[0], count, self.values)


class Heads:
    """Several heads, which read the same levels.

    In eval mode they keep where the levels of each input size lie, and once frozen what their norms do there.
    """

    def __init__(self, *heads: Head) -> None:
        self.heads = heads
        self.frozen = False
        self._packings: dict[tuple[Any, ...], Packing] = {}
        self._norms: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Turns maps (B, W, h, w), finest first, into the (B, A, values) of each head."""
        if self.heads[0].training:
            return [head(levels) for head in self.heads]
        finest = levels[0]
        key = (finest.shape[2:], finest.device, finest.dtype)
        if key not in self._packings:
            self._packings[key] = Packing([(x.shape[2], x.shape[3]) for x in levels], finest.device)
        packing = self._packings[key]
        norms = self._norms.get(key) or norms_of_places(self.heads, packing, finest.dtype)
        if self.frozen:
            self._norms[key] = norms
        canvas = packing.pack(levels)
        return [head.packed(canvas, packing, own) for head, own in zip(self.heads, norms, strict=True)]


def norms_of_places(heads: Sequence[Head], packing: Packing, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Returns for each head what its norms do in eval mode: scale and shift (layers, W, h, w) of a canvas's places.

    Both are 0 between the levels, so nothing passes from one to another.
    """
    norms = [part for head in heads for part in head.norms.modules() if isinstance(part, nn.BatchNorm2d)]
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (torch.stack([getattr(norm, name) for norm in norms]) for name in names)
    scale = weight * (variance + norms[0].eps).rsqrt()
    shift = torch.addcmul(bias, mean, scale, value=-1)
    values = torch.stack((scale, shift)).to(dtype).view(2, len(heads), -1, len(packing.sizes), weight.shape[1])
    scales, shifts = packing.spread(values).unbind()
    return list(zip(scales.unbind(), shifts.unbind(), strict=True))
