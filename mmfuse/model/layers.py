"""The layers that backbones, pyramid, alignment and heads are made of, how they begin, and how norms are folded.

timm, and torchvision with it, is imported when a network is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Exact(nn.Module):
    """A module whose own buffers stay float32, whatever type it is cast to: what measures pixels is not rounded."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: x for name, x in self.named_buffers(recurse=False) if x.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            if (now := self.get_buffer(name)).dtype != before.dtype:
                setattr(self, name, before.to(now.device))
        return self


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Returns the batch norm of pyramid and heads (google/automl: epsilon 1e-3, momentum 0.01)."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def norm_silu(width: int) -> nn.BatchNorm2d:
    """Returns the batch norm of pyramid and heads that ends in SiLU."""
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(width, eps=1e-3, momentum=0.01, act_layer=nn.SiLU)


class Separable(nn.Module):
    """A depthwise 3x3 convolution, without bias, and a pointwise one."""

    def __init__(self, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Foldable(nn.Module, ABC):
    """A part with batch norms that can be folded into the convolutions before them, for inference."""

    @abstractmethod
    def fold(self) -> None:
        """Folds every batch norm, in place, whose input is what one convolution gives, and nobody else reads."""


class ConvNorm(Foldable):
    """A part in which the batch norm `norm` reads what `conv` gives."""

    conv: nn.Module
    norm: nn.Module

    def fold(self) -> None:
        conv = self.conv.pointwise if isinstance(self.conv, Separable) else self.conv
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm = folded(conv, self.norm)


def folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Changes a convolution to do what `norm` does, and returns what is left of it: its activation, if any."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    activation = getattr(norm, "act", None)  # timm's BatchNormAct2d
    return activation if isinstance(activation, nn.Module) else nn.Identity()


class Lateral(ConvNorm):
    """A 1x1 convolution and batch norm that bring a feature map to the pyramid's width, without activation."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=bias)
        self.norm = batch_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class GateUnit(ConvNorm):
    """Turns the map that gates into a scale for each place and channel: convolution, batch norm, ReLU.

    It runs at the gating map's own level, and what it makes is resampled (G-FRNet, CVPR 2017, with the separable
    convolution of the other nodes; there the gated map passes a convolution and ReLU too, here it stays as it is).
    """

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.conv = Separable(width, width, bias)
        self.norm = batch_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def initialise(module: nn.Module) -> None:
    """Draws every convolution under `module` from a normal distribution of variance 1 / fan-in; biases are 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_in = part.in_channels // part.groups * part.kernel_size[0] * part.kernel_size[1]
            nn.init.normal_(part.weight, std=fan_in**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
