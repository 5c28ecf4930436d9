"""Draws the objects of random images."""

import torch
from torch import Tensor


def draw_objects(
    batch: int, objects: int, side: int, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns boxes (B, N, 4) of many sizes, some of which reach out of the image, and labels (B, N)."""
    centre = torch.rand(batch, objects, 2, generator=generator) * side
    half = torch.exp(torch.rand(batch, objects, 2, generator=generator) * 4) * 2
    labels = torch.randint(classes, (batch, objects), generator=generator)
    return torch.cat((centre - half, centre + half), 2), labels
