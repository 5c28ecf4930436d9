"""The layers that pyramid, alignment and heads are made of, and how they begin."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.norms import batch_norm


class Lateral(nn.Module):
    """A 1x1 convolution and batch norm that bring a feature map to the pyramid's width, without activation."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=bias)
        self.norm = batch_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Separable(nn.Module):
    """A depthwise 3x3 convolution, without bias, and a pointwise one."""

    def __init__(self, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class GateUnit(nn.Module):
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
