"""The other ways to weigh what is merged, and the names of all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.merge import EPSILON, Fast, Merge


class Softmax(Fast):
    """Softmax over the inputs that are present."""

    rectified = False

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        return weight.masked_fill(present == 0, -torch.inf).softmax(-2)


class Unbounded(Fast):
    """A weight for each input, not normalised, so not normalised again when one is absent."""

    rectified = False

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        return weight * present


class Channel(Fast):
    """Fast normalized fusion with a weight for each channel."""

    per_channel = True


class Gated(Fast):
    """Fast normalized fusion of weights that each image scales by a reliability in (0, 1).

    The reliability of an input is a logistic function of its channel means: a gate unit (G-FRNet, CVPR 2017).
    """

    by_image = True

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        gates = [nn.Linear(width, 1) for _ in range(count)]
        for gate in gates:
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        self.gates = nn.ModuleList(gates)

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        half = present.new_full((1, 1, 1, 1), 0.5)
        reliabilities = [
            half if x is None else self._reliability(gate, x, there[:, None, None, None] > 0)
            for x, gate, there in zip(inputs, self.gates, present.unbind(1), strict=True)
        ]
        weights = self.weight.relu() * present
        scaled = weights[..., None, None] * torch.cat(torch.broadcast_tensors(*reliabilities), 1)
        return (scaled / (EPSILON + scaled.sum(1, keepdim=True)) * self.gain)[:, :, None]

    def _reliability(self, gate: nn.Module, x: Tensor, there: Tensor) -> Tensor:
        """Returns (B, 1, 1, 1), or (B, 1, h, w), given which images `x` is there in (B or 1, 1, 1, 1)."""
        means = torch.where(there, x.mean((2, 3), keepdim=True), 0)
        return gate(means.flatten(1))[..., None, None].sigmoid()


class GatedSpatial(Gated):
    """Fast normalized fusion of weights that each place scales by a reliability: the same, of its own channels."""

    def _reliability(self, gate: nn.Module, x: Tensor, there: Tensor) -> Tensor:
        places = torch.where(there, x, 0).permute(0, 2, 3, 1)
        return gate(places).permute(0, 3, 1, 2).sigmoid()


FUSIONS: dict[str, type[Merge]] = {
    "fast": Fast,
    "softmax": Softmax,
    "unbounded": Unbounded,
    "sum": Merge,
    "channel": Channel,
    "gated": Gated,
    "gated_spatial": GatedSpatial,
}


def merge_type(name: str) -> type[Merge]:
    """Returns the merge of that name.

    Raises:
        UserError: there is none.
    """
    if name not in FUSIONS:
        raise UserError(f"fusion: {unknown_name(name, FUSIONS, 'fusion')}")
    return FUSIONS[name]
