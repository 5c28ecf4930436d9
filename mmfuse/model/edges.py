"""The weights that a merge starts with to multiply its inputs as another one does, whatever the fusion of both."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfuse.model.merge import EPSILON

FORMS = ("fast", "softmax", "sum")
"""Fusions whose weights any other fusion can start from."""


def starting_weights(
    weights: Tensor, form: str, fusion: str, alike: Sequence[int | None], new_share: float
) -> tuple[Tensor, Tensor]:
    """Returns the weights of a merge of `fusion`, and its gain, with which it multiplies inputs as another does.

    The other has `weights` (n,), or (n, W) for "channel", of a `form`: one of `FORMS`, or `fusion` itself. Input i of
    the merge is like its input `alike[i]`, or like none: then it starts with about `new_share` of the largest share.
    """
    gain = torch.ones(())
    if form != fusion:
        shares = weights.relu() / (EPSILON + weights.relu().sum())
        factors = {"sum": weights, "softmax": weights.softmax(0), "fast": shares}[form]
        if fusion == "sum":
            gain = gain * len(weights) / len(alike)
        elif fusion == "unbounded":
            weights = factors
        elif fusion == "softmax":
            weights, gain = factors.clamp(min=1e-9).log(), factors.sum()
        elif form != "fast":
            weights, gain = factors, factors.sum() + EPSILON
        if fusion.startswith("gated"):
            weights = weights * 2  # a fresh gate is half open
    elif fusion == "sum":
        gain = gain * len(weights) / len(alike)
    new = float(weights.max()) + math.log(new_share) if fusion == "softmax" else new_share
    rows = [torch.full_like(weights[0], new) if i is None else weights[i] for i in alike]
    return torch.stack(rows), gain
