"""Finds images of one split that look like one of another."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_NEAR = 2
_PLAIN = 6
_ROWS = 1024


def difference_hash(image: Tensor) -> np.ndarray:
    """Returns 64 bits of how an image (C, H, W) looks: where its grey, shrunk to 8 x 9, falls from left to right."""
    grey = image.to(torch.float32).mean(0)[None, None].nan_to_num(0, 0, 0)
    shrunk = F.interpolate(grey, (8, 9), mode="area")[0, 0]
    return (shrunk[:, 1:] < shrunk[:, :-1]).flatten().numpy()


def look_alikes(looks: dict[str, list[tuple[Path, np.ndarray]]]) -> Iterable[str]:
    """Yields, for each image, the one in an earlier split that looks most like it, if it does.

    Hashes of plain images, nearly all zeros or ones, say nothing.
    """
    told = {
        split: [(path, bits) for path, bits in found if _PLAIN <= bits.sum() <= bits.size - _PLAIN]
        for split, found in looks.items()
    }
    signs = {
        split: np.array([bits for _, bits in found], np.float32).reshape(-1, 64) * 2 - 1
        for split, found in told.items()
    }
    for (split, found), (other, others) in combinations(told.items(), 2):
        for start in range(0, len(others), _ROWS) if found else ():
            agreed = signs[other][start : start + _ROWS] @ signs[split].T
            nearest = agreed.argmax(1)
            for row in np.flatnonzero((64 - agreed.max(1)) / 2 <= _NEAR):
                path, twin = others[start + row][0], found[nearest[row]][0]
                yield f"{path}: in {other}, looks like {twin} in {split}; keep views of one scene in one split"
