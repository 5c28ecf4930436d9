"""How maps of one shape are merged, whatever scale or modality they come from: the plain sum and the default."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfuse.model.presence import Rows

EPSILON = 1e-4


class Merge(nn.Module):
    """The plain sum of `count` inputs, and the frame of the weighted ones.

    Absent inputs can't change the result, whatever they hold: a missing one is None in the list, one that is missing
    in some images isn't in its `rows`, and the weights of the others are normalised again, per image. `gain`
    multiplies the result: 1, but where imported weights add up to something else (`effdet_weights.import_effdet`).
    """

    weight: Tensor
    gain: Tensor
    learned = False
    per_channel = False
    rectified = False
    """Whether ReLU shuts the edge of a negative weight, for good since it gets no gradient then."""
    by_image = False
    """Whether images change the weights, so that they can't be found before (`normalise` alone doesn't say them)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.width = width
        weight = torch.ones((count, width) if self.per_channel else (count,))
        if self.learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("gain", torch.ones(()))

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        """Returns the weights (…, n, 1 or W) of merges of n inputs, given `present` (…, n, 1) as 0 or 1.

        A sum of fewer inputs is scaled to keep its magnitude.
        """
        there = weight * present
        return there * (weight.sum(-2, keepdim=True) / there.sum(-2, keepdim=True))

    def weights(self, inputs: Sequence[Tensor | None], present: Tensor) -> Tensor:
        """Returns the weight of each input, broadcastable to (B, count, W, h, w), given `present` (B or 1, count)."""
        weight = self.weight.view(self.count, -1)
        return (self.normalise(weight, present[..., None]) * self.gain)[..., None, None]

    def forward(
        self,
        inputs: Sequence[Tensor | None],
        rows: Sequence[Rows] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Merges maps (B, W, h, w), None where absent in the whole batch; `rows` are the images that have each input.

        By default these are all that are given. `weights` are those of each input, broadcastable to its map, found by
        `self.weights` if None.
        """
        given = next(x for x in inputs if x is not None)
        rows = rows or [Rows(len(given), x is not None) for x in inputs]
        if weights is None:
            weights = self.weights(inputs, self._present(rows)).to(given.dtype).unbind(1)
        total: Tensor | None = None
        for x, weight, own in zip(inputs, weights, rows, strict=True):
            if x is None or own.nothing:
                continue
            x = own.keep(x)
            total = x * weight if total is None else torch.addcmul(total, x, weight)
        assert total is not None
        return total

    def _present(self, rows: Sequence[Rows]) -> Tensor:
        """Returns which inputs are there (B or 1, count), as 0 or 1."""
        if all(own.everything for own in rows):
            return self.weight.new_ones(1, self.count)
        masks = torch.broadcast_tensors(*(own.on(self.weight.device) for own in rows))
        return torch.stack(masks, 1).to(self.weight.dtype)

    def shares(self) -> Tensor:
        """Returns the share of each input (count,) when all are present, adding up to 1."""
        weights = self.weights([None] * self.count, torch.ones(1, self.count, device=self.weight.device)).abs()
        weights = weights.flatten(2).mean((0, 2))
        return (weights / weights.sum()).detach()


class Fast(Merge):
    """Fast normalized fusion: `relu(w_i) / (eps + sum relu(w_j))` (EfficientDet, section 3.3)."""

    learned = True
    rectified = True

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        weight = weight.relu() * present
        return weight / (EPSILON + weight.sum(-2, keepdim=True))
