"""The class and box heads: one set of convolutions for all levels, a batch norm for each level."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.pyramid import Separable, batch_norm, initialise


class Head(nn.Module):
    """Predicts `values` numbers for each of `anchors` anchors at every place of every level."""

    def __init__(self, width: int, depth: int, levels: int, anchors: int, values: int, *, prior: float, bias: bool):
        super().__init__()
        self.values = values
        self.convs = nn.ModuleList(Separable(width, width, bias) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(levels)) for _ in range(depth))
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
                x = F.silu(norms[level](conv(x)))  # type: ignore[index]
            rows.append(self.predict(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values))
        return torch.cat(rows, 1)
