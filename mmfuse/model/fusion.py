"""Weighted merges of feature maps that have one shape, whatever scale or modality they come from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfuse.errors import UserError, unknown_name

EPSILON = 1e-4


class Merge(nn.Module):
    """The plain sum of `count` inputs, and the frame of the weighted ones.

    Absent inputs can't change the result, whatever they hold: a missing one is None in the list, one that is missing
    in some images is False in `present`, and the weights of the others are normalised again, per image. `gain`
    multiplies the result: 1, but where imported weights add up to something else (`weights.import_effdet`).
    """

    gain: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.width = width
        self.register_buffer("gain", torch.ones(()))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        """Returns the weight of each input, broadcastable to (B, count, W), given `present` (B or 1, count) as 0 or 1.

        A sum of fewer inputs is scaled to keep its magnitude.
        """
        return (present * (self.count / present.sum(1, keepdim=True)))[..., None]

    def forward(self, inputs: Sequence[Tensor | None], present: Tensor | None = None) -> Tensor:
        """Merges maps (B, W, h, w), None where absent in the whole batch, under a mask `present` (B, count) or None."""
        given = [x for x in inputs if x is not None]
        mask = given[0].new_tensor([[x is not None for x in inputs]], dtype=torch.float32)
        if present is not None:
            mask = mask * present.to(given[0].device)
        weights = (self.weights(inputs, mask) * self.gain).to(given[0].dtype)
        total: Tensor | None = None
        for index, x in enumerate(inputs):
            if x is None:
                continue
            if present is not None and not bool(present[:, index].all()):
                x = torch.where(mask[:, index, None, None, None] > 0, x, 0)
            weight = weights[:, index]
            term = x * weight[..., None, None] if weight.numel() > 1 else x * weight.view(())
            total = term if total is None else total + term
        assert total is not None
        return total

    def shares(self) -> Tensor:
        """Returns the share of each input (count,) when all are present, adding up to 1."""
        weights = self.weights([None] * self.count, torch.ones(1, self.count, device=self._device())).abs().mean((0, 2))
        return (weights / weights.sum()).detach()

    def _device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class Fast(Merge):
    """Fast normalized fusion: `relu(w_i) / (eps + sum relu(w_j))` (EfficientDet, section 3.3)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.weight = nn.Parameter(torch.ones(count))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        weights = self.weight.relu() * present
        return (weights / (EPSILON + weights.sum(1, keepdim=True)))[..., None]


class Softmax(Fast):
    """Softmax over the inputs that are present."""

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        return self.weight.masked_fill(present == 0, -torch.inf).softmax(1)[..., None]


class Unbounded(Fast):
    """A weight for each input, not normalised, so not normalised again when one is absent."""

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        return (self.weight * present)[..., None]


class Channel(Merge):
    """Fast normalized fusion with a weight for each channel."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.weight = nn.Parameter(torch.ones(count, width))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        weights = self.weight.relu() * present[..., None]
        return weights / (EPSILON + weights.sum(1, keepdim=True))


class Gated(Fast):
    """Fast normalized fusion of weights that each image scales by a reliability in (0, 1).

    The reliability of an input is a logistic function of its channel means: a gate unit (G-FRNet, CVPR 2017).
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        gates = [nn.Linear(width, 1) for _ in range(count)]
        for gate in gates:
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        self.gates = nn.ModuleList(gates)

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        half = present.new_full((1, 1), 0.5)
        gates = [
            half if x is None else gate(torch.where(mask[:, None] > 0, x.mean((2, 3)), 0)).sigmoid()
            for x, gate, mask in zip(inputs, self.gates, present.unbind(1), strict=True)
        ]
        batch = max(len(g) for g in gates)
        weights = self.weight.relu() * present * torch.cat([g.expand(batch, 1) for g in gates], 1)
        return (weights / (EPSILON + weights.sum(1, keepdim=True)))[..., None]


FUSIONS: dict[str, type[Merge]] = {
    "fast": Fast,
    "softmax": Softmax,
    "unbounded": Unbounded,
    "sum": Merge,
    "channel": Channel,
    "gated": Gated,
}


def merge_type(name: str) -> type[Merge]:
    """Returns the merge of that name.

    Raises:
        UserError: there is none.
    """
    if name not in FUSIONS:
        raise UserError(f"fusion: {unknown_name(name, FUSIONS, 'fusion')}")
    return FUSIONS[name]
