"""The compound scaling rule: one number, phi, sets the width, depth and resolution of a detector."""

import math
import re
from dataclasses import dataclass

from mmfuse.errors import UserError


@dataclass(frozen=True)
class Size:
    """One member of the family; `width` and `pyramid_depth` are those of the BiFPN (EfficientDet, table 1)."""

    name: str
    resolution: int
    backbone: str
    width: int
    pyramid_depth: int
    head_depth: int
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    anchor_scale: float = 4.0
    fusion: str = "fast"

    @property
    def coarsest_stride(self) -> int:
        """Pixels between two cells of the coarsest level; input heights and widths are its multiples."""
        return 2 ** self.levels[-1]

    def input_size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """Returns the height and width that a detector sees: those that are wanted, or the size's own, square.

        Raises:
            UserError: they aren't multiples of the coarsest stride.
        """
        height, width = wanted or (self.resolution, self.resolution)
        stride = self.coarsest_stride
        if height <= 0 or width <= 0 or height % stride or width % stride:
            raise UserError(f"input_size: [{height}, {width}] doesn't fit; use positive multiples of {stride}")
        return height, width


PUBLISHED = {
    size.name: size
    for size in (
        Size("d0", 512, "b0", 64, 3, 3),
        Size("d1", 640, "b1", 88, 4, 3),
        Size("d2", 768, "b2", 112, 5, 3),
        Size("d3", 896, "b3", 160, 6, 4),
        Size("d4", 1024, "b4", 224, 7, 4),
        Size("d5", 1280, "b5", 288, 7, 4),
        Size("d6", 1280, "b6", 384, 8, 5, fusion="sum"),
        Size("d7", 1536, "b6", 384, 8, 5, anchor_scale=5.0, fusion="sum"),
        Size("d7x", 1536, "b7", 384, 8, 5, levels=(3, 4, 5, 6, 7, 8), fusion="sum"),
    )
}
"""The published family, a literal because it deviates from the rule (EfficientDet, table 1; google/automl)."""

_SMALL_BACKBONES = {-1: "lcnet_100", -2: "lcnet_075"}


def rule(phi: float) -> Size:
    """Returns the size that the compound rule gives for any `phi`, negative and fractional ones included.

    Width `64 * 1.35^phi` (to a multiple of 8), depth `3 + phi` and `3 + floor(phi / 3)` (at least 1), resolution
    `512 + 128 * phi` (to a multiple of 128, at least 128), EfficientDet section 4. Below zero the backbones are
    PP-LCNets, made for CPUs (arXiv 2109.15099), and the coarsest level is the one that still has four cells a side,
    as D0's has: an anchor of a coarser one would be larger than the image.
    """
    nearest = math.floor(phi + 0.5)
    resolution = max(128, 128 * math.floor(4.5 + phi))
    return Size(
        name=f"d{phi:g}",
        resolution=resolution,
        backbone=f"b{min(nearest, 7)}" if nearest >= 0 else _SMALL_BACKBONES.get(nearest, "lcnet_050"),
        width=max(8, 8 * math.floor(64 * 1.35**phi / 8 + 0.5)),
        pyramid_depth=max(1, math.floor(3.5 + phi)),
        head_depth=max(1, 3 + math.floor(phi / 3)),
        levels=tuple(range(3, min(7, int(math.log2(resolution / 4))) + 1)),
    )


def size(name: str) -> Size:
    """Returns the published size of that name, or the rule's for another "d<number>" such as "d-2" or "d0.5".

    Raises:
        UserError: the name is neither.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if re.fullmatch(r"d-?\d{1,2}(\.\d+)?", name):
        phi = float(name[1:]) + 0.0  # no negative zero
        return PUBLISHED.get(f"d{phi:g}") or rule(phi)
    raise UserError(f"size: {name!r} is not a size; use one of {', '.join(PUBLISHED)}, or d<number> such as d-2")
