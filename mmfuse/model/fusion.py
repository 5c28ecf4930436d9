"""How maps of one shape are merged, whatever scale or modality they come from: one class for each fusion.

A fusion is a `Merge` that says by `normalise` what its weights are worth, and its name in `FUSIONS`. Where others may
start from it, it says its `factors`; where it may start from others, `from_factors` says how.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.presence import Presence, Rows

EPSILON = 1e-4


class Merge(nn.Module):
    """A weighted sum of `count` inputs.

    Absent inputs can't change the result, whatever they hold: a missing one is None in the list, one that is missing
    in some images isn't in its `rows`, and the weights of the others are normalised again, per image. `gain`
    multiplies the result: 1, but where weights that it started from add up to something else.
    """

    weight: Tensor
    gain: Tensor
    learned = True
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
        """Returns the weights (…, n, 1 or W) of merges of n inputs, given what these count for: `present` (…, n, 1),
        0 to 1.
        """
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Returns numbers (n,), not negative, and their divisor (): what inputs that are all there are multiplied by.

        None where it depends on image or channel or can be negative, so that no other fusion can start from it. `gain`
        isn't in it.
        """
        return None

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights and gain with which inputs are multiplied by `numbers` (n,) over `divisor` ().

        Raises:
            UserError: there are none.
        """
        raise UserError(f"fusion: {type(self).__name__} can't start from another one's weights; start it afresh")

    def faint(self, weights: Tensor, share: float) -> float:
        """Returns the weight of an input that is to get about `share` of what the largest of `weights` gets."""
        return share

    def starting_from(self, other: "Merge", alike: Sequence[int | None], new_share: float) -> dict[str, Tensor]:
        """Returns the tensors, by name, with which it multiplies its inputs as another merge does.

        Input i is like the other's input `alike[i]`, or like none: then it starts with about `new_share` of the largest
        share.

        Raises:
            UserError: it can't start from the other.
        """
        weights, gain = other.weight.detach(), other.gain.new_ones(())
        if type(self) is not type(other):
            factors = other.factors()
            if factors is None:
                raise UserError(f"fusion: {type(self).__name__} can't start from {type(other).__name__}; use the same")
            weights, gain = self.from_factors(*factors)
        new = self.faint(weights, new_share)
        rows = [torch.full_like(weights[0], new) if i is None else weights[i] for i in alike]
        return {"weight": torch.stack(rows), "gain": gain * other.gain}

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
        """Returns what inputs count for (B or 1, count): 0 where absent, 1 where there, less where not believed."""
        if all(own.everything for own in rows):
            return self.weight.new_ones(1, self.count)
        shares = torch.broadcast_tensors(*(own.share(self.weight.device) for own in rows))
        return torch.stack(shares, 1).to(self.weight.dtype)

    def shares(self) -> Tensor:
        """Returns the share of each input (count,) when all are present, adding up to 1."""
        weights = self.weights([None] * self.count, torch.ones(1, self.count, device=self.weight.device)).abs()
        weights = weights.flatten(2).mean((0, 2))
        return (weights / weights.sum()).detach()


class Sum(Merge):
    """The plain sum; of fewer inputs it is scaled to keep its magnitude."""

    learned = False

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        there = weight * present
        return there * (weight.sum(-2, keepdim=True) / there.sum(-2, keepdim=True))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.weight.new_ones(())

    def starting_from(self, other: Merge, alike: Sequence[int | None], new_share: float) -> dict[str, Tensor]:
        return {"gain": other.gain * other.count / len(alike)}


class Fast(Merge):
    """Fast normalized fusion: `relu(w_i) / (eps + sum relu(w_j))` (EfficientDet, section 3.3)."""

    rectified = True

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        weight = weight.relu() * present
        return weight / (EPSILON + weight.sum(-2, keepdim=True))

    def factors(self) -> tuple[Tensor, Tensor] | None:
        weight = self.weight.detach().relu()
        return weight, EPSILON + weight.sum()

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        return numbers, (EPSILON + numbers.sum()) / divisor


class Softmax(Merge):
    """Softmax over the inputs that are present."""

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        return (weight + present.log()).softmax(-2)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight.detach().softmax(0), self.weight.new_ones(())

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        factors = numbers / divisor
        return factors.clamp(min=1e-9).log(), factors.sum()

    def faint(self, weights: Tensor, share: float) -> float:
        return float(weights.max()) + math.log(share)


class Unbounded(Merge):
    """A weight for each input, not normalised, so not normalised again when one is absent."""

    @staticmethod
    def normalise(weight: Tensor, present: Tensor) -> Tensor:
        return weight * present

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        return numbers / divisor, numbers.new_ones(())


class Channel(Fast):
    """Fast normalized fusion with a weight for each channel."""

    per_channel = True

    def factors(self) -> None:
        return None

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        weights, gain = super().from_factors(numbers, divisor)
        return weights[:, None].expand(-1, self.width), gain


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

    def factors(self) -> None:
        return None

    def from_factors(self, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        weights, gain = super().from_factors(numbers, divisor)
        return weights * 2, gain  # a fresh gate is half open

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
    "sum": Sum,
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


class MergeWeights(nn.Module):
    """The weights of all merges of a pyramid, normalised at once: a node takes its own from them.

    `merged` are for each node the places of the inputs that its merge adds, `read` the modalities that each of its
    inputs depends on. The inputs of all nodes make a table (nodes, n), where n is the most that a node has; a place
    that no merge adds stands for the last weight, 0.
    """

    _edges: Tensor
    _merged: Tensor
    _group_of: Tensor

    def __init__(
        self, merges: Sequence[Merge], merged: Sequence[Sequence[int]], read: Sequence[Sequence[frozenset[str]]]
    ) -> None:
        super().__init__()
        self.merges = tuple(merges)
        self._groups = sorted({group for groups in read for group in groups}, key=sorted)
        last = sum(merge.count for merge in merges)
        edges = torch.full((len(read), max(map(len, read))), last)
        group_of, first = torch.zeros_like(edges), 0
        for index, (places, groups) in enumerate(zip(merged, read, strict=True)):
            group_of[index, : len(groups)] = torch.tensor([self._groups.index(group) for group in groups])
            edges[index, list(places)] = torch.arange(first, first + len(places))
            first += len(places)
        self.register_buffer("_edges", edges, persistent=False)
        self.register_buffer("_group_of", group_of, persistent=False)
        self.register_buffer("_merged", (edges < last).float()[None, :, :, None], persistent=False)

    def forward(self, presence: Presence, dtype: torch.dtype) -> list[list[Tensor]] | None:
        """Returns for each node the weights of its inputs, each (B or 1, 1 or W, 1, 1).

        None where images change them.
        """
        if self.merges[0].by_image:
            return None
        weights = getattr(self, _constant_of(presence.there), None) if presence.plain else None
        if weights is None:
            weights = self._normalised(presence)
        flat = weights.to(dtype).flatten(1, 2).unbind(1)
        most = self._edges.shape[1]
        return [list(flat[first : first + most]) for first in range(0, len(flat), most)]

    def _normalised(self, presence: Presence) -> Tensor:
        """Returns weights (B or 1, nodes, n, 1 or W, 1, 1) of inputs that are there.

        A node without any counts as whole, since it doesn't run or nobody reads what it makes.
        """
        merges = self.merges
        kind, last = type(merges[0]), merges[0].weight
        weight = torch.cat([*(merge.weight for merge in merges), last.new_zeros(1, *last.shape[1:])])[self._edges]
        present = self._merged
        if not all(rows.everything for rows in presence.rows.values()):
            shares = [presence.any(group).share(present.device) for group in self._groups]
            there = torch.stack(torch.broadcast_tensors(*shares), 1)[:, self._group_of]
            masked = present * there[..., None]
            present = torch.where(masked.any(2, keepdim=True), masked, present)
        gain = torch.stack([merge.gain for merge in merges]).view(-1, 1, 1, 1, 1)
        return kind.normalise(weight.view(1, *self._edges.shape, -1), present)[..., None, None] * gain

    def freeze(self, modalities: Sequence[str]) -> None:
        """Keeps the weights for every set of modalities that can be there; they must not change any more."""
        if self.merges[0].by_image:
            return
        for count in range(1, len(modalities) + 1):
            for there in combinations(modalities, count):
                weights = self._normalised(Presence({m: Rows(1, m in there) for m in modalities})).detach()
                self.register_buffer(_constant_of(there), weights, persistent=False)


def _constant_of(modalities: Iterable[str]) -> str:
    return "+".join(("weights", *sorted(modalities)))
