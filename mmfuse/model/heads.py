"""The class and box heads: one set of convolutions for all levels, a batch norm for each level."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.layers import Separable, initialise
from mmfuse.model.norms import norm_silu
from mmfuse.model.packing import Packing

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


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
        return F.linear(rows, last.weight.flatten(1), last.bias).view(len(rows), -1, self.values)


def norms_of_places(heads: Sequence[Head], packing: Packing, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Returns for each head what its norms do in eval mode: scale and shift (layers, W, h, w) of a canvas's places.

    Both are 0 between the levels, so nothing passes from one to another.
    """
    norms = [part for head in heads for part in head.norms.modules() if isinstance(part, NORMS)]
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (torch.stack([getattr(norm, name) for norm in norms]) for name in names)
    scale = weight * (variance + norms[0].eps).rsqrt()
    shift = torch.addcmul(bias, mean, scale, value=-1)
    values = torch.stack((scale, shift)).to(dtype).view(2, len(heads), -1, len(packing.sizes), weight.shape[1])
    scales, shifts = packing.spread(values).unbind()
    return list(zip(scales.unbind(), shifts.unbind(), strict=True))
