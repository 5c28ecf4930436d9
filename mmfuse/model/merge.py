"""How maps of one shape are merged, whatever scale or modality they come from: the plain sum and the default."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPSILON = 1e-4


class Merge(nn.Module):
    """The plain sum of `count` inputs, and the frame of the weighted ones.

    Absent inputs can't change the result, whatever they hold: a missing one is None in the list, one that is missing
    in some images is False in `present`, and the weights of the others are normalised again, per image. `gain`
    multiplies the result: 1, but where imported weights add up to something else (`weights.import_effdet`).
    """

    gain: Tensor
    rectified = False
    """Whether ReLU shuts the edge of a negative weight, for good since it gets no gradient then."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.width = width
        self.register_buffer("gain", torch.ones(()))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        """Returns the weight of each input, broadcastable to (B, count, W) or (B, count, W, h, w), given `present`
        (B or 1, count) as 0 or 1.

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
            if weight.numel() == 1:
                weight = weight.view(())
            elif weight.ndim == 2:
                weight = weight[..., None, None]
            term = x * weight
            total = term if total is None else total + term
        assert total is not None
        return total

    def shares(self) -> Tensor:
        """Returns the share of each input (count,) when all are present, adding up to 1."""
        weights = self.weights([None] * self.count, torch.ones(1, self.count, device=self._device())).abs()
        weights = weights.flatten(2).mean((0, 2))
        return (weights / weights.sum()).detach()

    def _device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class Fast(Merge):
    """Fast normalized fusion: `relu(w_i) / (eps + sum relu(w_j))` (EfficientDet, section 3.3)."""

    rectified = True

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.weight = nn.Parameter(torch.ones(count))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        weights = self.weight.relu() * present
        return (weights / (EPSILON + weights.sum(1, keepdim=True)))[..., None]
