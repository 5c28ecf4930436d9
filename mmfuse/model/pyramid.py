"""The one module that runs any pyramid graph over the features of any modalities."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.fusion import Merge, MergeWeights
from mmfuse.model.layers import ConvNorm, GateUnit, Lateral, Separable, batch_norm
from mmfuse.model.nodes import Feature, Graph, Node, Source, modalities_of, outputs_of
from mmfuse.model.presence import Presence, Rows


class PyramidNode(ConvNorm):
    """Merges resampled inputs, then SiLU, separable convolution and batch norm.

    `channels` are those of each input, `shifts` how far each must be resampled, by 2^shift (positive: to a coarser
    level). Inputs of another width than the pyramid's have a lateral.
    """

    def __init__(
        self,
        node: Node,
        channels: Sequence[int],
        shifts: Sequence[int],
        width: int,
        merge: type[Merge],
        *,
        same: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.same = same
        self.merged, self.gate, self.transfer, self.shifts = list(node.merged), node.gate, node.transfer, tuple(shifts)
        if node.transfer:
            channels = [-(-c // 4**-shift) if shift < 0 else c for c, shift in zip(channels, shifts, strict=True)]
        self.laterals = nn.ModuleDict(
            {str(place): Lateral(c, width, bias) for place, c in enumerate(channels) if c != width}
        )
        self.merge = merge(len(self.merged), width)
        self.conv = Separable(width, width, bias)
        self.norm = batch_norm(width)
        if node.gate and node.gate.kind == "unit":
            self.unit = GateUnit(width, bias)

    def forward(
        self,
        inputs: Sequence[Tensor | None],
        rows: Sequence[Rows],
        weights: Sequence[Tensor] | None,
    ) -> Tensor:
        """Merges `inputs` (B, C, h, w), None where absent in the whole batch; `rows` are the images that have each.

        `weights` are those of each input, None for a merge that finds them itself; see `Merge`.
        """
        maps = [self._resampled(place, x, rows[place]) for place, x in enumerate(inputs)]
        if self.gate:
            scale = self._scale(maps, rows)
            for place in self.gate.scaled:
                x = maps[place]
                maps[place] = None if x is None else x * scale
        theirs = None if weights is None else [weights[place] for place in self.merged]
        merged = self.merge([maps[place] for place in self.merged], [rows[place] for place in self.merged], theirs)
        return self.norm(self.conv(F.silu(merged, inplace=not self.training)))

    def _resampled(self, place: int, x: Tensor | None, rows: Rows) -> Tensor | None:
        if x is None:
            return None
        shift = self.shifts[place] if place in self.merged else 0
        if self.transfer and shift < 0:
            x = pixels_from_channels(x, 2**-shift)
        if str(place) in self.laterals:
            x = rows.run(self.laterals[str(place)], x)
        if self.transfer:
            return F.avg_pool2d(x, 2**shift) if shift > 0 else x
        return resample(x, shift, self.same)

    def _scale(self, maps: Sequence[Tensor | None], rows: Sequence[Rows]) -> Tensor:
        """Returns what the gate multiplies by: (B, W, 1, 1) or (B, W, h, w); absent maps don't count."""
        assert self.gate is not None
        by = [(x, rows[place]) for place in self.gate.by if (x := maps[place]) is not None]
        if self.gate.kind == "attention":
            largest = [own.keep(x.amax((2, 3), keepdim=True), -torch.inf) for x, own in by]
            return torch.stack(largest).amax(0).sigmoid()
        total = torch.stack([own.keep(x) for x, own in by]).sum(0)
        count = torch.stack(torch.broadcast_tensors(*(own.on(total.device) for _, own in by))).sum(0).clamp(min=1)
        return resample(self.unit(total / count[:, None, None, None]), self.shifts[self.gate.by[0]], self.same)


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
        self.channels = {m: tuple(widths) for m, widths in channels.items()}
        self.levels = list(outputs_of(graph))
        self.reached = modalities_of(graph)
        finest = self.levels[0]
        own = {m: dict(enumerate(widths, finest)) for m, widths in channels.items()}
        read = {source for node in graph for source in node.inputs if isinstance(source, Feature)}
        pooled = {source.modality for source in read if source.level not in own[source.modality]}
        self.extend = nn.ModuleDict({m: Lateral(channels[m][-1], width, bias) for m in channels if m in pooled})

        def channels_of(source: Source) -> int:
            return own[source.modality].get(source.level, width) if isinstance(source, Feature) else width

        self.nodes = nn.ModuleList(
            PyramidNode(
                node,
                [channels_of(source) for source in node.inputs],
                [node.level - self._level(source) for source in node.inputs],
                width,
                merge,
                same=same,
                bias=bias,
            )
            for node in graph
        )
        last_use = {source: index for index, node in enumerate(graph) for source in node.inputs}
        self._last_use = {i: last_use[i] for i in range(len(graph)) if i in last_use}
        self._read = [[self._modalities(source) for source in node.inputs] for node in graph]
        self.weights = MergeWeights(self.merges, [node.merged for node in graph], self._read)

    def forward(self, features: Mapping[str, Sequence[Tensor]], presence: Presence) -> list[Tensor]:
        """Fuses the features of the modalities that are there.

        `features` maps a modality to its maps (B, C, h, w), finest first; one that is absent in the whole batch needs
        no entry. Returns a map (B, W, h, w) for each level, finest first.
        """
        known: dict[Source, Tensor] = {}
        for modality in presence.there:
            maps = features[modality]
            known.update({Feature(modality, level): x for level, x in zip(self.levels, maps, strict=False)})
            if modality in self.extend:
                x = presence.rows[modality].run(self.extend[modality], maps[-1])
                for level in self.levels[len(maps) :]:
                    x = known[Feature(modality, level)] = resample(x, 1, self.same)
        weights = self.weights(presence, next(iter(known.values())).dtype)
        kept = outputs_of(self.graph)
        for index, node in enumerate(self.graph):
            if not presence.any(self.reached[index]).nothing:
                known[index] = self._run(index, known, presence, None if weights is None else weights[index])
            for source in node.inputs:
                if isinstance(source, int) and self._last_use[source] == index and kept[self._level(source)] != source:
                    known.pop(source, None)
        return [known[index] for index in kept.values()]

    def _run(
        self, index: int, known: Mapping[Source, Tensor], presence: Presence, weights: Sequence[Tensor] | None
    ) -> Tensor:
        """Runs a node on the images that have something of what it reads."""
        images, node = presence.any(self.reached[index]), self.nodes[index]
        rows = [presence.within(group, self.reached[index]) for group in self._read[index]]
        theirs = None if weights is None else [images.take(x) for x in weights[: len(rows)]]
        inputs = [known.get(source) for source in self.graph[index].inputs]
        made: Tensor = images.run(lambda *maps: node(maps, rows, theirs), *inputs)
        return made

    def freeze(self) -> None:
        """Keeps the weights of merges for every set of modalities that can be there; they must not change any more."""
        self.weights.freeze(tuple(self.channels))

    def _modalities(self, source: Source) -> frozenset[str]:
        return frozenset({source.modality}) if isinstance(source, Feature) else self.reached[source]

    def _level(self, source: Source) -> int:
        return source.level if isinstance(source, Feature) else self.graph[source].level

    @property
    def merges(self) -> list[Merge]:
        """The merge of each node of the graph."""
        return [part.merge for part in self.nodes if isinstance(part, PyramidNode)]

    def modality_shares(self) -> dict[str, dict[int, float]]:
        """Returns each modality's share of the pyramid's outputs, modality by level; a level adds up to 1.

        See `propagated`. Weights that the images change count as they are with every gate alike.
        """
        shares = propagated(self.graph, [merge.shares() for merge in self.merges], list(self.channels))
        outputs = outputs_of(self.graph).items()
        return {m: {level: float(shares[node][i]) for level, node in outputs} for i, m in enumerate(self.channels)}


def propagated(graph: Graph, weights: Sequence[Tensor], modalities: Sequence[str]) -> list[Tensor]:
    """Returns the share (…, M) that each modality has of each node, given the `weights` (…, n) of its merged inputs.

    That is the sum over these inputs of weight times the modality's share of the input, of which a modality's own
    feature is its own alone. The shares of a node add up to 1, or to 0 where all weights are 0: such a node shows
    nothing, and doesn't count where it is read. What is done to an input before the merge (laterals, gates) doesn't
    count.
    """
    alone = dict(zip(modalities, torch.eye(len(modalities)), strict=True))
    shares: list[Tensor] = []
    for node, given in zip(graph, weights, strict=True):
        sources = [node.inputs[place] for place in node.merged]
        of = [alone[source.modality] if isinstance(source, Feature) else shares[source] for source in sources]
        parts = zip(given.cpu().nan_to_num().unbind(-1), of, strict=True)
        found = torch.stack([weight[..., None] * share for weight, share in parts]).sum(0)
        shares.append(found / found.sum(-1, keepdim=True).clamp(min=1e-12))
    return shares


def pixels_from_channels(x: Tensor, factor: int) -> Tensor:
    """Turns (B, C, h, w) into (B, ceil(C / factor^2), factor h, factor w): STDN's scale-transfer layer."""
    return F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % factor**2)), factor)


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
