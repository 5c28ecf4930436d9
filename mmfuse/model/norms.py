"""timm's batch norm with activation, and its squeeze and excite, with fewer maps kept or written in training."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.SiLU: (F.silu, torch.ops.aten.silu_backward),
    nn.Hardswish: (F.hardswish, torch.ops.aten.hardswish_backward),
}
"""Activations whose gradient needs what they read: the function, and its gradient."""


class NormAct(BatchNormAct2d):
    """timm's batch norm with activation; in training it normalises again in the backward pass what the activation
    read, rather than keeping it (Rota Bulò et al., In-Place Activated BatchNorm, CVPR 2018, its checkpointed form).

    A second gradient is an error. `torch.compile` gets timm's own, since it recomputes by itself; several processes
    have another, see `training.shared_norms`.
    """

    def forward(self, x: Tensor) -> Tensor:
        recomputed = (
            self.training
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and type(self.act) in _ACTIVATIONS
            and isinstance(self.drop, nn.Identity)
            and self.affine
            and self.track_running_stats
            and self.momentum is not None
            and x.numel() > x.shape[1]  # of one value there is no variance, which timm's refuses
        )
        if not recomputed:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return _Recomputed.apply(x, self.weight, self.bias, self)


class Excite(SqueezeExcite):
    """timm's squeeze and excite; in training the mean of a map is its sum over the number of its places.

    A mean's gradient is as large as the map, and lies in memory channel by channel whatever the map does, so that what
    it is added to is read across. That of a sum is one number for a whole channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        mean = x.sum((2, 3), keepdim=True, dtype=x.dtype) / (x.shape[2] * x.shape[3])
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))


def keep_less(net: nn.Module) -> None:
    """Makes batch norms with activation `NormAct` and squeeze and excite `Excite`, in place; parameters stay."""
    for module in net.modules():
        if type(module) is BatchNormAct2d:
            module.__class__ = NormAct
        elif type(module) is SqueezeExcite:
            module.__class__ = Excite


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: NormAct) -> Tensor:
        statistics = (norm.running_mean, norm.running_var, True, norm.momentum, norm.eps, torch.backends.cudnn.enabled)
        normalised, mean, scale, reserve, ctx.backend = torch.ops.aten._batch_norm_impl_index(
            x, weight, bias, *statistics
        )
        ctx.save_for_backward(x, weight, bias, mean, scale, reserve)
        ctx.eps, (activate, ctx.slope) = norm.eps, _ACTIVATIONS[type(norm.act)]
        return activate(normalised, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale, reserve = ctx.saved_tensors
        normalised = F.batch_norm(x, mean, scale.pow(-2) - ctx.eps, weight, bias, eps=ctx.eps)
        gradient = ctx.slope(gradient, normalised)
        del normalised
        found = torch.ops.aten._batch_norm_impl_index_backward(
            ctx.backend, x, gradient, weight, None, None, mean, scale, True, ctx.eps, ctx.needs_input_grad[:3], reserve
        )
        return (*found, None)
