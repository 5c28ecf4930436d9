"""The one module that runs any pyramid graph over the features of any modalities."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model import graphs
from mmfuse.model.fusion import Merge
from mmfuse.model.graphs import Feature, Graph, Source


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


class PyramidNode(nn.Module):
    """Merges resampled inputs, then SiLU, separable convolution and batch norm."""

    def __init__(self, laterals: Mapping[int, int], merge: Merge, width: int, bias: bool) -> None:
        super().__init__()
        self.laterals = nn.ModuleDict({str(i): Lateral(channels, width, bias) for i, channels in laterals.items()})
        self.merge = merge
        self.conv = Separable(width, width, bias)
        self.norm = batch_norm(width)

    def forward(
        self, inputs: Sequence[Tensor | None], shifts: Sequence[int], same: bool, mask: Tensor | None
    ) -> Tensor:
        """Merges `inputs`, each resampled by 2^shift (positive: to a coarser level)."""
        resampled = [
            None if x is None else resample(self.laterals[str(i)](x) if str(i) in self.laterals else x, shift, same)
            for i, (x, shift) in enumerate(zip(inputs, shifts, strict=True))
        ]
        return self.norm(self.conv(F.silu(self.merge(resampled, mask))))


class Pyramid(nn.Module):
    """A pyramid graph with its weights.

    `channels` gives for each modality the width of its backbone's features, finest first, which start at the graph's
    finest level. Levels that a backbone lacks are made by a lateral and max-pooling, for each modality.
    """

    def __init__(
        self,
        graph: Graph,
        channels: Mapping[str, Sequence[int]],
        width: int,
        merge: type[Merge],
        *,
        same: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.width = width
        self.same = same
        self.levels = list(graphs.outputs(graph))
        finest = self.levels[0]
        own = {m: dict(enumerate(widths, finest)) for m, widths in channels.items()}
        self.extend = nn.ModuleDict(
            {m: Lateral(widths[-1], width, bias) for m, widths in channels.items() if len(widths) < len(self.levels)}
        )
        nodes = []
        for node in graph:
            laterals = {
                index: own[source.modality][source.level]
                for index, source in enumerate(node.inputs)
                if isinstance(source, Feature) and own[source.modality].get(source.level, width) != width
            }
            nodes.append(PyramidNode(laterals, merge(len(node.inputs), width), width, bias))
        self.nodes = nn.ModuleList(nodes)
        last_use = {source: index for index, node in enumerate(graph) for source in node.inputs}
        self._last_use = {i: last_use[i] for i in range(len(graph)) if i in last_use}

    def forward(
        self, features: Mapping[str, Sequence[Tensor]], present: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """Fuses the features of the modalities that are there.

        `features` maps a modality to its maps (B, C, h, w), finest first; one that is absent in the whole batch has no
        entry. `present` maps a modality to (B,) bool. Returns a map (B, W, h, w) for each level, finest first.
        """
        known: dict[Source, Tensor] = {}
        for modality, maps in features.items():
            known.update({Feature(modality, level): x for level, x in zip(self.levels, maps, strict=False)})
            x = maps[-1]
            for index, level in enumerate(self.levels[len(maps) :]):
                x = resample(self.extend[modality](x) if index == 0 else x, 1, self.same)
                known[Feature(modality, level)] = x
        kept = graphs.outputs(self.graph)
        for index, (node, module) in enumerate(zip(self.graph, self.nodes, strict=True)):
            inputs = [known.get(source) for source in node.inputs]
            shifts = [node.level - self._level(source) for source in node.inputs]
            known[index] = module(inputs, shifts, self.same, _mask(node.inputs, present))
            for source in node.inputs:
                if isinstance(source, int) and self._last_use[source] == index and kept[self._level(source)] != source:
                    known.pop(source, None)
        return [known[index] for index in kept.values()]

    def _level(self, source: Source) -> int:
        return source.level if isinstance(source, Feature) else self.graph[source].level

    def modality_shares(self) -> dict[str, dict[int, float]]:
        """Returns each modality's share at each feature level, over all nodes that read it; a level adds up to 1."""
        sums: dict[int, dict[str, float]] = {level: {} for level in self.levels}
        for node, module in zip(self.graph, self.nodes, strict=True):
            assert isinstance(module, PyramidNode)
            for source, share in zip(node.inputs, module.merge.shares().tolist(), strict=True):
                if isinstance(source, Feature):
                    at_level = sums[source.level]
                    at_level[source.modality] = at_level.get(source.modality, 0.0) + share
        modalities = list(sums[self.levels[0]])
        return {m: {level: s[m] / max(sum(s.values()), 1e-12) for level, s in sums.items()} for m in modalities}


def _mask(inputs: Sequence[Source], present: Mapping[str, Tensor] | None) -> Tensor | None:
    """Returns (B, n) bool for the inputs of a node, or None where none of them can be absent."""
    if present is None or not any(isinstance(source, Feature) for source in inputs):
        return None
    always = torch.ones_like(next(iter(present.values())))
    return torch.stack([present[s.modality] if isinstance(s, Feature) else always for s in inputs], 1)


def resample(x: Tensor, shift: int, same: bool) -> Tensor:
    """Resamples by 2^shift: max-pooling with kernel stride + 1 to a coarser level, nearest to a finer one.

    `same` pads like TensorFlow (one row and column at the end, which is what rounding up gives), else symmetrically.
    """
    if shift == 0:
        return x
    if shift < 0:
        return F.interpolate(x, scale_factor=float(2**-shift), mode="nearest")
    stride = 2**shift
    if same:
        return F.max_pool2d(x, stride + 1, stride, ceil_mode=True)
    return F.max_pool2d(x, stride + 1, stride, padding=stride // 2)


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Returns the batch norm of pyramid and heads (google/automl: epsilon 1e-3, momentum 0.01)."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def initialise(module: nn.Module) -> None:
    """Draws every convolution under `module` from a normal distribution of variance 1 / fan-in; biases are 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_in = part.in_channels // part.groups * part.kernel_size[0] * part.kernel_size[1]
            nn.init.normal_(part.weight, std=fan_in**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
