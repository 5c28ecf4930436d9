"""All levels of a pyramid on one canvas, so that a convolution that they share runs once."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing:
    """Where the levels lie: the finest at the left, beside it the others one below the other, a place apart.

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
