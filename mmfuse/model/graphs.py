"""Pyramids as data: every published network of scales as a graph, for any levels and any modalities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.nodes import Feature, Gate, Graph, Node, Source

DEEPEST = 5
"""The coarsest level that a backbone makes (stride 32); features of coarser levels are pooled from it."""


Slot = tuple[Source, ...]
"""What an edge of the drawn pyramid stands for: one node, or the features of every modality at a level."""


class _Stream:
    """The graph under construction: what the next cell reads at each level, and the nodes so far."""

    def __init__(self, levels: Sequence[int], modalities: Sequence[str], nodes: list[Node], every: bool) -> None:
        self.levels = list(levels)
        self.features: dict[int, Slot] = {level: tuple(Feature(m, level) for m in modalities) for level in levels}
        self.current = dict(self.features)
        self.nodes = nodes
        self.every = every
        self.cell = 0

    @property
    def deepest(self) -> int:
        return min(DEEPEST, self.levels[-1])

    def merge(
        self,
        level: int,
        *inputs: Slot,
        gate: Literal["attention", "unit"] | None = None,
        transfer: bool = False,
    ) -> Slot:
        """Adds a node. With a `gate`, the first of `inputs` scales the second."""
        gating = None
        if gate:
            by, scaled = len(inputs[0]), len(inputs[1])
            gating = Gate(gate, tuple(range(by)), tuple(range(by, by + scaled)))
        self.nodes.append(Node(level, sum(inputs, ()), gating, transfer, self.cell))
        return (len(self.nodes) - 1,)

    def next_cell(self, made: dict[int, Slot]) -> None:
        """Makes `made` what the next cell reads, and each modality again where every cell reads them."""
        self.current = {level: made[level] + (self.features[level] if self.every else ()) for level in self.levels}
        self.cell += 1


Cell = Callable[[_Stream], dict[int, Slot]]
Stack = Callable[[_Stream, int], dict[int, Slot]]


def _top_down(stream: _Stream) -> dict[int, Slot]:
    """A node a level, from the coarsest to the finest."""
    coarser: Slot = ()
    out = {}
    for level in reversed(stream.levels):
        coarser = out[level] = stream.merge(level, stream.current[level], coarser)
    return out


def fpn(stream: _Stream) -> dict[int, Slot]:
    """Top-down pathway (FPN, arXiv 1612.03144)."""
    return _top_down(stream)


def panet(stream: _Stream) -> dict[int, Slot]:
    """Top-down, then bottom-up (PANet, arXiv 1803.01534)."""
    down = _top_down(stream)
    finer: Slot = ()
    out = {}
    for level in stream.levels:
        finer = out[level] = stream.merge(level, down[level], finer)
    return out


def _both_ways(stream: _Stream, skip: bool) -> dict[int, Slot]:
    finest, *inner, coarsest = stream.levels
    down = {coarsest: stream.current[coarsest]}
    for level in reversed(inner):
        down[level] = stream.merge(level, stream.current[level], down[level + 1])
    out = {finest: stream.merge(finest, stream.current[finest], down[finest + 1])}
    for level in inner:
        out[level] = stream.merge(level, stream.current[level] if skip else (), down[level], out[level - 1])
    out[coarsest] = stream.merge(coarsest, stream.current[coarsest], out[coarsest - 1])
    return out


def simplified_panet(stream: _Stream) -> dict[int, Slot]:
    """PANet without nodes of one input (EfficientDet, section 3.2)."""
    return _both_ways(stream, skip=False)


def bifpn(stream: _Stream) -> dict[int, Slot]:
    """Simplified PANet with an edge from the cell's input to its output (EfficientDet, section 3.2)."""
    return _both_ways(stream, skip=True)


def quad_fpn(stream: _Stream) -> dict[int, Slot]:
    """BiFPN and its mirror image, added (Quad-FPN, as effdet's `qufpn_fa` draws it)."""
    finest, *inner, coarsest = stream.levels
    current = stream.current
    down = {coarsest: current[coarsest]}
    for level in reversed([finest, *inner]):
        down[level] = stream.merge(level, current[level], down[level + 1])
    first = {finest: down[finest]}
    for level in inner:
        first[level] = stream.merge(level, current[level], down[level], first[level - 1])
    first[coarsest] = stream.merge(coarsest, current[coarsest], first[coarsest - 1])
    up = {finest: current[finest]}
    for level in [*inner, coarsest]:
        up[level] = stream.merge(level, current[level], up[level - 1])
    second = {coarsest: up[coarsest]}
    for level in reversed(inner):
        second[level] = stream.merge(level, current[level], up[level], second[level + 1])
    second[finest] = stream.merge(finest, current[finest], second[finest + 1])
    return {level: stream.merge(level, first[level], second[level]) for level in stream.levels}


def fully_connected(stream: _Stream) -> dict[int, Slot]:
    """Every level reads every level (EfficientDet, figure 2 of its first version)."""
    return {level: stream.merge(level, *stream.current.values()) for level in stream.levels}


_NAS_FPN = (
    (4, "attention", 1, 3),
    (4, "sum", 1, 5),
    (3, "sum", 0, 6),
    (4, "sum", 6, 7),
    (5, "attention", 7, 8),
    (7, "attention", 6, 9),
    (6, "attention", 9, 10),
)
_NAS_FPN_LEVELS = (3, 4, 5, 6, 7)
_NAS_FPN_INNER = 2
"""The first two merging cells aren't outputs."""


def nas_fpn(stream: _Stream) -> dict[int, Slot]:
    """The searched cell (NAS-FPN, arXiv 1904.07392, figure 5 and its code for levels 3 to 7).

    The coarser of two parents scales the other one. An output also adds what lies at its level and isn't read yet.
    With other levels than 3 to 7, what would lie above the coarsest lies at the coarsest, and each level that is
    coarser than 7 has a node that reads its input and the level below.
    """
    last = stream.levels[-1]
    slots = [(level, stream.current[min(level, last)]) for level in _NAS_FPN_LEVELS]
    read = {place for place, level in enumerate(_NAS_FPN_LEVELS) if level > last}
    out = {}
    for index, (level, kind, a, b) in enumerate(_NAS_FPN):
        first, second = (b, a) if kind == "attention" and slots[b][0] > slots[a][0] else (a, b)
        read |= {a, b}
        here = min(level, last)
        outer = index >= _NAS_FPN_INNER
        idle = [p for p, (at, _) in enumerate(slots) if outer and min(at, last) == here and p not in read]
        read |= set(idle)
        inputs = [slots[place][1] for place in (first, second, *idle)]
        made = stream.merge(here, *inputs, gate="attention" if kind == "attention" else None)
        slots.append((level, made))
        out[here] = made
    for level in stream.levels:
        if level > _NAS_FPN_LEVELS[-1]:
            out[level] = stream.merge(level, stream.current[level], out[level - 1])
    return out


def stdn(stream: _Stream) -> dict[int, Slot]:
    """Every level from the backbone's last map alone, by scale transfer (STDN, CVPR 2018)."""
    return {level: stream.merge(level, stream.current[stream.deepest], transfer=True) for level in stream.levels}


def gfrnet(stream: _Stream) -> dict[int, Slot]:
    """Top-down, where each level is scaled by a gate unit that reads the next coarser one (G-FRNet, CVPR 2017)."""
    *finer, coarsest = stream.levels
    out = {coarsest: stream.merge(coarsest, stream.current[coarsest])}
    for level in reversed(finer):
        out[level] = stream.merge(level, stream.current[level + 1], stream.current[level], out[level + 1], gate="unit")
    return out


def repeated(cell: Cell) -> Stack:
    """Returns the pyramid that stacks a cell as often as asked for."""

    def stack(stream: _Stream, depth: int) -> dict[int, Slot]:
        out = {}
        for _ in range(depth):
            out = cell(stream)
            stream.next_cell(out)
        return out

    return stack


def m2det(stream: _Stream, depth: int) -> dict[int, Slot]:
    """U-shapes one after another, each from a base feature and the one before it, added level by level.

    The base feature merges the backbone's finest and last map; a U-shape goes down to the coarsest level and up again;
    the next one starts from the base feature and the finest map of the last (M2Det, arXiv 1811.04533). Each is a cell,
    and so is what adds them.
    """
    finest, *coarser = stream.levels
    base = stream.merge(finest, stream.features[finest], stream.features[stream.deepest])
    start = base
    shapes: list[dict[int, Slot]] = []
    for index in range(depth):
        if index > 0:
            again = stream.features[finest] if stream.every else ()
            start = stream.merge(finest, base, shapes[-1][finest], again)
        down = {finest: start}
        for level in coarser:
            down[level] = stream.merge(level, down[level - 1])
        shape = {coarser[-1]: down[coarser[-1]]}
        for level in reversed([finest, *coarser[:-1]]):
            shape[level] = stream.merge(level, down[level], shape[level + 1])
        shapes.append(shape)
        stream.cell += 1
    return {level: stream.merge(level, *(shape[level] for shape in shapes)) for level in stream.levels}


PYRAMIDS: dict[str, Stack] = {
    **{
        cell.__name__: repeated(cell)
        for cell in (bifpn, fpn, panet, simplified_panet, fully_connected, nas_fpn, quad_fpn, stdn, gfrnet)
    },
    "m2det": m2det,
}


def stack_of(name: str) -> Stack:
    """Returns the pyramid of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PYRAMIDS:
        raise UserError(f"pyramid: {unknown_name(name, PYRAMIDS, 'pyramid')}")
    return PYRAMIDS[name]


def build(
    pyramid: Stack, levels: Sequence[int], modalities: Sequence[str], depth: int, placement: str = "first"
) -> Graph:
    """Stacks `depth` cells of a pyramid over the features of all modalities.

    In the first cell, whatever reads a level reads it from every modality. Deeper cells read the fused stream, and
    each modality again where `placement` is "every". Where it is "last", each modality has a pyramid of its own, and a
    node a level merges them, in a cell of their own after all others. Nodes that no output depends on are left out.
    """
    nodes: list[Node] = []
    if placement == "last" and len(modalities) > 1:
        streams = [_Stream(levels, [modality], nodes, every=False) for modality in modalities]
        own = [pyramid(stream, depth) for stream in streams]
        streams[0].cell = nodes[-1].cell + 1
        out = {level: streams[0].merge(level, *(slots[level] for slots in own)) for level in levels}
    else:
        out = pyramid(_Stream(levels, modalities, nodes, every=placement == "every"), depth)
    return _pruned(nodes, [index for slot in out.values() for index in slot if isinstance(index, int)])


def _pruned(nodes: Sequence[Node], wanted: Sequence[int]) -> Graph:
    """Returns the nodes that `wanted` ones depend on, renumbered."""
    needed, waiting = set(), list(wanted)
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += [source for source in nodes[index].inputs if isinstance(source, int)]
    place = {index: number for number, index in enumerate(sorted(needed))}
    renumbered = {i: tuple(place[s] if isinstance(s, int) else s for s in nodes[i].inputs) for i in place}
    return tuple(replace(nodes[index], inputs=inputs) for index, inputs in renumbered.items())
