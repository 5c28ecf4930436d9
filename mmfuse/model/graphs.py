"""Pyramids as data: which features and nodes each node of a pyramid merges.

A graph is a tuple of nodes in the order in which they run. The last node of each level is the pyramid's output there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """A modality's own feature map at a level, before any fusion."""

    modality: str
    level: int


Source = Feature | int
"""What a node reads: a modality's feature or an earlier node, by its index."""


@dataclass(frozen=True)
class Node:
    """One merge: resamples its inputs to `level` and adds them by weight."""

    level: int
    inputs: tuple[Source, ...]


Graph = tuple[Node, ...]
Cell = Callable[["_Stream"], None]


class _Stream:
    """The graph under construction: what the current cell reads at each level, and what it has built so far."""

    def __init__(self, levels: Sequence[int], modalities: Sequence[str]) -> None:
        self.levels = list(levels)
        self.features = {level: tuple(Feature(m, level) for m in modalities) for level in levels}
        self.current: dict[int, tuple[Source, ...]] = dict(self.features)
        self.nodes: list[Node] = []

    def merge(self, level: int, *inputs: tuple[Source, ...]) -> tuple[Source, ...]:
        self.nodes.append(Node(level, sum(inputs, ())))
        return (len(self.nodes) - 1,)


def _top_down(stream: _Stream) -> dict[int, tuple[Source, ...]]:
    """A node a level, from the coarsest to the finest."""
    below: tuple[Source, ...] = ()
    out = {}
    for level in reversed(stream.levels):
        below = out[level] = stream.merge(level, stream.current[level], below)
    return out


def fpn(stream: _Stream) -> None:
    """Top-down pathway (FPN, arXiv 1612.03144)."""
    stream.current = dict(_top_down(stream))


def panet(stream: _Stream) -> None:
    """Top-down, then bottom-up (PANet, arXiv 1803.01534)."""
    down = _top_down(stream)
    above: tuple[Source, ...] = ()
    for level in stream.levels:
        above = stream.current[level] = stream.merge(level, down[level], above)


def bifpn(stream: _Stream) -> None:
    """Both ways, without nodes of one input, with an edge from the cell's input (EfficientDet, section 3.2)."""
    finest, *inner, coarsest = stream.levels
    down = {coarsest: stream.current[coarsest]}
    for level in reversed(inner):
        down[level] = stream.merge(level, stream.current[level], down[level + 1])
    out = {finest: stream.merge(finest, stream.current[finest], down[finest + 1])}
    for level in inner:
        out[level] = stream.merge(level, stream.current[level], down[level], out[level - 1])
    out[coarsest] = stream.merge(coarsest, stream.current[coarsest], out[coarsest - 1])
    stream.current = out


PYRAMIDS: dict[str, Cell] = {"bifpn": bifpn, "fpn": fpn, "panet": panet}


def build(
    cell: Cell, levels: Sequence[int], modalities: Sequence[str], depth: int, modality_inputs: str = "first"
) -> Graph:
    """Stacks `depth` cells over the features of all modalities.

    In the first cell, whatever reads a level reads it from every modality. Deeper cells read the fused stream, and
    each modality again where `modality_inputs` is "every".
    """
    stream = _Stream(levels, modalities)
    for index in range(depth):
        if index > 0 and modality_inputs == "every":
            stream.current = {level: fused + stream.features[level] for level, fused in stream.current.items()}
        cell(stream)
    return tuple(stream.nodes)


def outputs(graph: Graph) -> dict[int, int]:
    """Returns for each level, finest first, the index of the node that is the pyramid's output there."""
    return dict(sorted({node.level: index for index, node in enumerate(graph)}.items()))
