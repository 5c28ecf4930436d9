"""What a pyramid graph is made of: features, nodes and gates.

A graph is a tuple of nodes in the order in which they run. The last node of each level is the pyramid's output there.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Feature:
    """A modality's own feature map at a level, before any fusion."""

    modality: str
    level: int


Source = Feature | int
"""What a node reads: a modality's feature or an earlier node, by its index."""


@dataclass(frozen=True)
class Gate:
    """Inputs at the places `by` scale those at the places `scaled` before the merge.

    "attention": by the logistic function of their largest value over all places, a number a channel; they are merged
    too (NAS-FPN, arXiv 1904.07392, global pooling). "unit": by what a convolution makes of them, place by place; they
    aren't merged themselves (G-FRNet, CVPR 2017, gate unit).
    """

    kind: Literal["attention", "unit"]
    by: tuple[int, ...]
    scaled: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One merge: resamples its inputs to `level` and adds them by weight.

    `transfer` resamples by scale transfer: channels become pixels on the way up, pixels are averaged on the way down
    (STDN, CVPR 2018, section 3.2); otherwise nearest and max-pooling. `cell` counts from 0 and says where the node was
    drawn, not what it does: nodes that differ in it alone are equal.
    """

    level: int
    inputs: tuple[Source, ...]
    gate: Gate | None = None
    transfer: bool = False
    cell: int = field(default=0, compare=False)

    @property
    def merged(self) -> tuple[int, ...]:
        """The places of the inputs that are added: all but those that only scale others."""
        aside = self.gate.by if self.gate and self.gate.kind == "unit" else ()
        return tuple(place for place in range(len(self.inputs)) if place not in aside)


Graph = tuple[Node, ...]


def outputs_of(graph: Graph) -> dict[int, int]:
    """Returns for each level, finest first, the index of the node that is the pyramid's output there."""
    return dict(sorted({node.level: index for index, node in enumerate(graph)}.items()))


def modalities_of(graph: Graph) -> tuple[frozenset[str], ...]:
    """Returns for each node the modalities that it depends on."""
    reached: list[frozenset[str]] = []
    for node in graph:
        sources = (frozenset({s.modality}) if isinstance(s, Feature) else reached[s] for s in node.inputs)
        reached.append(frozenset().union(*sources))
    return tuple(reached)
