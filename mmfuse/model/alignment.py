"""Learned alignment: samples the features of modalities where another one, the reference, sees the same."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.layers import ConvNorm, Lateral, Separable, batch_norm, initialise
from mmfuse.model.nodes import Feature, Graph, outputs_of
from mmfuse.model.presence import Presence, Rows


class OffsetNet(ConvNorm):
    """Tells from a map and the reference's where to sample the map; at first at each place itself."""

    def __init__(self, channels: int, reference_channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.own = Lateral(channels, width, bias)
        self.reference = Lateral(reference_channels, width, bias)
        self.conv = Separable(2 * width, width, bias)
        self.norm = batch_norm(width)
        self.offsets = nn.Conv2d(width, 2, 3, padding=1)
        initialise(self)
        nn.init.zeros_(self.offsets.weight)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Turns maps (B, C, h, w) into offsets (B, 2, h, w): dy, dx in cells."""
        both = torch.cat((self.own(x), self.reference(reference)), 1)
        return self.offsets(F.silu(self.norm(self.conv(both))))


class Alignment(nn.Module):
    """Aligns the backbones' features of all modalities with those of one, the `reference`, level by level.

    After deformable convolutions (Dai et al., arXiv 1703.06211; Zhu et al., arXiv 1811.11168) with one offset a place,
    which is predicted from both modalities and not bounded, as there. `channels` gives for each modality the width of
    its features, finest first, which start at the graph's finest level; maps that the graph doesn't read stay as they
    are. A fresh one changes nothing.
    """

    def __init__(
        self, reference: str, graph: Graph, channels: Mapping[str, Sequence[int]], width: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.reference = reference
        finest, deepest = min(outputs_of(graph)), len(channels[reference]) - 1
        levels = {source.level for node in graph for source in node.inputs if isinstance(source, Feature)}
        read = sorted({min(level - finest, deepest) for level in levels})
        self.nets = nn.ModuleDict(
            {
                m: nn.ModuleDict({str(i): OffsetNet(own[i], channels[reference][i], width, bias) for i in read})
                for m, own in channels.items()
                if m != reference
            }
        )

    def forward(self, features: Mapping[str, Sequence[Tensor]], presence: Presence) -> dict[str, Sequence[Tensor]]:
        """Returns features as `Pyramid` takes them, aligned in the images that have modality and reference."""
        aligned = dict(features)
        for modality in self.nets:
            both = presence.rows[modality] & presence.rows[self.reference]
            if not both.nothing:
                aligned[modality] = self._aligned(modality, features, both)
        return aligned

    def _aligned(self, modality: str, features: Mapping[str, Sequence[Tensor]], both: Rows) -> list[Tensor]:
        maps, references = list(features[modality]), features[self.reference]
        nets = self.nets[modality]
        assert isinstance(nets, nn.ModuleDict)
        for place, net in nets.items():
            x = maps[int(place)]
            made = both.run(lambda x, reference, net=net: sample(x, net(x, reference)), x, references[int(place)])
            maps[int(place)] = both.keep(made, x)
        return maps


def sample(x: Tensor, offsets: Tensor) -> Tensor:
    """Reads a map (B, C, h, w) at offsets (B, 2, h, w) from each place, dy and dx in cells, bilinearly; 0 outside.

    The identity is one kernel, not one a channel, because torchvision runs kernel by kernel. It also reads memory that
    isn't its own at an offset that isn't a number, so there the result is NaN without it.
    """
    from torchvision.ops import deform_conv2d

    identity = torch.eye(x.shape[1], device=x.device)[:, :, None, None]
    made = deform_conv2d(x.float(), offsets.float().nan_to_num(), identity)
    return made.masked_fill(offsets.isnan().any(1, keepdim=True), torch.nan).to(x.dtype)
