"""Batch norms whose statistics are those of all processes that train together, on any device and for any share."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def share_norms(net: nn.Module) -> None:
    """Makes the batch norms of a network shared ones; they stay the same objects, with the same tensors.

    Every process has to run them, and their backward passes, in the same order; one may do so on no image at all.
    torch's own `SyncBatchNorm` is for CUDA alone, and fails on no image where the types of maps and weights differ.
    """
    for module in net.modules():
        if isinstance(module, BatchNormAct2d):
            module.__class__ = SharedNormAct
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.__class__ = SharedNorm


class SharedNorm(nn.BatchNorm2d):
    """A batch norm that in training normalises by mean and variance of the maps of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if self.training else super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes maps of any number of sides."""


class SharedNormAct(BatchNormAct2d):
    """A `SharedNorm` that ends in an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x))) if self.training else super().forward(x)


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    normalised: Tensor = _Shared.apply(x, norm.weight, norm.bias, norm)
    return normalised


class _Shared(torch.autograd.Function):
    """Of C channels each process says mean, variance and number of places, then in the backward pass two sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: nn.BatchNorm2d) -> Tensor:
        places = x.numel() // x.shape[1]
        own = torch.cat([*_moments(x), torch.full((1,), places, dtype=torch.float32, device=x.device)])
        all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, own)
        means, variances, counts = torch.stack(all_of_them).split((x.shape[1], x.shape[1], 1), 1)
        total = counts.sum()
        shares = counts / total.clamp(min=1)
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        _remember(norm, mean, variance, total)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = norm.eps
        return F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps) if places else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        rates = torch.zeros(2, x.shape[1], device=x.device)  # of the weight and the bias
        if x.numel():
            found = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, ctx.eps, (False, True, True)
            )
            rates = torch.stack(found[1:]).float()
        sums = rates.clone()
        dist.all_reduce(sums)
        slope, level = sums / total.clamp(min=1)
        scale = (variance + ctx.eps).rsqrt()
        by_gradient = scale if weight is None else scale * weight
        by_x = -by_gradient * scale * slope
        rest = -by_gradient * level - by_x * mean
        sides = (1, -1, *(1,) * (x.ndim - 2))
        of_x = (gradient * by_gradient.view(sides)).addcmul_(x, by_x.view(sides)).add_(rest.view(sides)).to(x.dtype)
        return (of_x, *(None, None), None) if weight is None else (of_x, *rates.to(weight.dtype), None)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance (C,) of each channel, 0 of no image, in float32."""
    if not x.numel():
        nothing = torch.zeros(x.shape[1], device=x.device)
        return nothing, nothing
    if x.is_cuda:
        mean, scale = torch.batch_norm_stats(x, 0.0)
        return mean, scale.pow(-2)
    variance, mean = torch.var_mean(x.float(), [side for side in range(x.ndim) if side != 1], correction=0)
    return mean, variance


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, total: Tensor) -> None:
    """Updates the running statistics, unless no process has an image."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    some = total > 0
    norm.num_batches_tracked.add_(some)
    share = 1 / norm.num_batches_tracked.clamp(min=1) if norm.momentum is None else norm.momentum
    share = some * share
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance * (total / (total - 1).clamp(min=1)), share)
