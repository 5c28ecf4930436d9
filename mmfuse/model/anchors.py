"""The anchors of every place of every level."""

import torch
from torch import Tensor

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
