"""The focal loss on CUDA: a kernel that reads the logits and adds up their loss, and one that writes their gradient."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096
"""Logits of one program."""


@triton.jit
def _logits(pointer, labels, count, classes: tl.constexpr, block: tl.constexpr):
    """Reads a block of logits, those of wanted classes negated; also their places, what is in them, and who is wanted.

    Places are divided by the number of classes in 32 bit, from the block's first row on.
    """
    start = tl.program_id(0).to(tl.int64) * block
    row = start // classes
    within = (start - row * classes).to(tl.int32) + tl.arange(0, block)
    places = start + tl.arange(0, block)
    inside = places < count
    wanted = tl.load(labels + row + within // classes, mask=inside, other=-1) == within % classes
    x = tl.load(pointer + places, mask=inside, other=0.0).to(tl.float32)
    return tl.where(wanted, -x, x), places, inside, wanted


@triton.jit
def _parts(x):
    """Returns sigmoid(x), sigmoid(-x) and softplus(x), each exact relative to its own size.

    log(1 + e) is 2 artanh(e / (2 + e)), whose series needs eight terms since e is 1 at most.
    """
    e = tl.exp(-tl.abs(x))
    p = tl.where(x >= 0, 1.0, e) / (1.0 + e)
    q = tl.where(x >= 0, e, 1.0) / (1.0 + e)
    s = e / (2.0 + e)
    t = s * s
    series = 1 / 13 + t * (1 / 15)
    series = 1 / 9 + t * (1 / 11 + t * series)
    series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * series)))
    return p, q, tl.where(x > 0, x, 0.0) + 2 * s * series


@triton.jit
def _sum_losses(pointer, labels, sums, count, odds, classes: tl.constexpr, block: tl.constexpr):
    x, _, inside, wanted = _logits(pointer, labels, count, classes, block)
    p, _, softplus = _parts(x)
    loss = p * tl.sqrt(p) * softplus * tl.where(wanted, odds, 1.0)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), 0))


@triton.jit
def _write_gradient(pointer, labels, scale, gradient, count, odds, classes: tl.constexpr, block: tl.constexpr):
    x, places, inside, wanted = _logits(pointer, labels, count, classes, block)
    p, q, softplus = _parts(x)
    slope = p * tl.sqrt(p) * (1.5 * q * softplus + p) * tl.where(wanted, -odds, 1.0)
    tl.store(gradient + places, (slope * tl.load(scale)).to(gradient.dtype.element_ty), mask=inside)


class FocalSum(torch.autograd.Function):
    """The sum over `logits` (B, A, K) of p^1.5 softplus(x), p the sigmoid of x, and for a class that is wanted `odds`
    times the same of -x; `labels` (B, A) int64 has that class, -1 for none.

    Computed in float32. The gradient is found from the logits when it is asked for, in their own type.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, odds: float) -> Tensor:
        logits, labels = logits.contiguous(), labels.contiguous()
        ctx.save_for_backward(logits, labels)
        ctx.odds = odds
        sums = torch.empty(triton.cdiv(logits.numel(), BLOCK), dtype=torch.float32, device=logits.device)
        with torch.cuda.device_of(logits):
            _sum_losses[(len(sums),)](logits, labels, sums, logits.numel(), odds, logits.shape[2], BLOCK)
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient, programs = torch.empty_like(logits), triton.cdiv(logits.numel(), BLOCK)
        sizes = logits.numel(), ctx.odds, logits.shape[2], BLOCK
        with torch.cuda.device_of(logits):
            _write_gradient[(programs,)](logits, labels, scale, gradient, *sizes)
        return gradient, None, None
