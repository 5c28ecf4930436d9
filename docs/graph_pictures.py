"""Pictures of pyramid graphs: a row for each level, edges to the right or to a neighbour above or below."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse.model.graphs import DEEPEST
from mmfuse.model.nodes import Feature, Gate, Graph, Node, modalities_of, outputs_of
from mmfuse.report.figures import new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FINER, COARSER, LEVEL, GATE = "#1f6fc4", "#d9640a", "#555555", "#8a2da8"
FEATURE, MODALITIES = "#dddddd", ("#a9dcb4", "#f6bdb1", "#bccbf2", "#f3dc93")
INK, PALE = "#333333", "#bbbbbb"
RADIUS, CLEARANCE = 0.17, 0.07
BENDS = (0.0, *(side * step / 8 for step in range(1, 13) for side in (1, -1)))
INCHES, DOTS_PER_INCH = 0.6, 150

Mark = int | tuple[int, Feature]
"""A node, by its index, or a feature, with how often it was drawn before."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """A graph of a picture. What reads features from a node of `again` on reads marks that are drawn anew before it."""

    graph: Graph
    title: str = ""
    again: tuple[int, ...] = ()

    @property
    def modalities(self) -> list[str]:
        """The modalities that the graph reads."""
        return sorted({s.modality for node in self.graph for s in node.inputs if isinstance(s, Feature)})

    @property
    def sources(self) -> list[list[Mark]]:
        """The marks that each node reads, in the order of its inputs."""
        times = [sum(start <= index for start in self.again) for index in range(len(self.graph))]
        return [
            [(time, source) if isinstance(source, Feature) else source for source in node.inputs]
            for time, node in zip(times, self.graph, strict=True)
        ]


@dataclass(frozen=True)
class Edge:
    """The input at a place of a node, and the points (n, 2) of its line."""

    source: Mark
    node: int
    place: int
    line: np.ndarray


def placed(panel: Panel) -> dict[Mark, Point]:
    """Returns where each mark lies, x to the right and y to coarser levels, with 1 between rows; unread features too.

    A node lies right of its sources, or above or below one that is its neighbour; an output as far right as what reads
    it allows. What depends on a part of the modalities lies in a lane of its own.
    """
    graph, modalities, levels = panel.graph, panel.modalities, list(outputs_of(panel.graph))
    lanes = [_lane(reached, modalities) for reached in modalities_of(graph)]

    def gap(source: Mark, node: int) -> int:
        if isinstance(source, int) and lanes[source] == lanes[node]:
            return int(abs(graph[source].level - graph[node].level) != 1)
        return 1

    columns: dict[Mark, int] = {(0, Feature(m, level)): 0 for m in modalities for level in levels}
    start, taken = 0, set()
    for node, sources in enumerate(panel.sources):
        start = max(columns.values()) + 1 if node in panel.again else start
        columns |= {mark: start for mark in sources if mark not in columns}
        column = max(columns[mark] + gap(mark, node) for mark in sources)
        while (column, graph[node].level, lanes[node]) in taken:
            column += 1
        taken.add((column, graph[node].level, lanes[node]))
        columns[node] = column
    last = max(columns.values())
    for node in sorted(outputs_of(graph).values(), reverse=True):
        readers = [reader for reader, sources in enumerate(panel.sources) if node in sources]
        free = (last, graph[node].level, lanes[node]) not in taken
        if free and all(columns[reader] - gap(node, reader) >= last for reader in readers):
            columns[node] = last

    steepest = max(
        abs(_level(graph, mark) - graph[node].level) / (columns[node] - columns[mark])
        for node, sources in enumerate(panel.sources)
        for mark in sources
        if columns[node] > columns[mark]
    )
    extra = len(modalities) - 1
    width, height = max(1.0, steepest / 2) + 0.3 * extra, 1 + 0.45 * extra
    marks = {}
    for mark, column in columns.items():
        lane = lanes[mark] if isinstance(mark, int) else _lane([mark[1].modality], modalities)
        marks[mark] = (column * width + 0.3 * lane, levels.index(_level(graph, mark)) * height - 0.6 * lane)
    return marks


def _lane(reached: Collection[str], modalities: Sequence[str]) -> float:
    """Returns the mean place of some modalities, counted from the middle."""
    return sum(modalities.index(m) for m in reached) / len(reached) - (len(modalities) - 1) / 2


def _level(graph: Graph, mark: Mark) -> int:
    return graph[mark].level if isinstance(mark, int) else mark[1].level


def routed(panel: Panel, marks: Mapping[Mark, Point]) -> list[Edge]:
    """Returns the edges between placed marks, short ones first: straight, or bent to keep off other marks and lines."""
    ends = [(mark, node, place) for node, sources in enumerate(panel.sources) for place, mark in enumerate(sources)]
    ends.sort(key=lambda end: float(np.hypot(*np.subtract(marks[end[1]], marks[end[0]]))))
    edges: list[Edge] = []
    for mark, node, place in ends:
        foreign = np.array([point for other, point in marks.items() if other not in (mark, node)]).reshape(-1, 2)
        drawn = np.concatenate([np.zeros((0, 2)), *(edge.line for edge in edges)])
        lines = [_line(marks[mark], marks[node], bend) for bend in BENDS]
        edges.append(Edge(mark, node, place, min(lines, key=lambda line: _cost(line, foreign, drawn))))
    return edges


def _line(start: Point, end: Point, bend: float) -> np.ndarray:
    """Returns points (n, 2) between the rims of two marks; the line's middle lies three quarters of `bend` aside."""
    a, b = np.array(start), np.array(end)
    along = b - a
    aside = np.array([-along[1], along[0]]) / np.hypot(*along) * bend
    t = np.linspace(0, 1, 60)[:, None]
    by_start, by_end = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)
    curve = (1 - t) ** 3 * a + by_start * (a + 0.15 * along + aside) + by_end * (b - 0.15 * along + aside) + t**3 * b
    return curve[_distances(curve, np.array([a, b])) >= RADIUS]


def _cost(line: np.ndarray, foreign: np.ndarray, drawn: np.ndarray) -> float:
    """Returns a line's length, more where it comes near the centres of foreign marks or runs along other lines."""
    length = float(np.hypot(*np.diff(line, axis=0).T).sum())
    inner = line[_distances(line, line[[0, -1]]) > 0.4]
    touching = int((_distances(line, foreign) < RADIUS + CLEARANCE).sum())
    return length + touching + 0.05 * int((_distances(inner, drawn) < 0.06).sum())


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns for each point (n, 2) how far the nearest of `others` (m, 2) is."""
    apart = points[:, None] - others[None]
    return np.hypot(apart[..., 0], apart[..., 1]).min(1, initial=np.inf)


def pyramid_picture(panels: Sequence[Panel], path: Path) -> None:
    """Writes graphs side by side at one scale; nodes bear their index. `pyramid_legend` says what the marks mean."""
    drawings, x = [], 0.0
    for panel in panels:
        own = placed(panel)
        margin = x + 0.75 - min(at[0] for at in own.values())
        marks = {mark: (at[0] + margin, at[1]) for mark, at in own.items()}
        drawings.append((panel, marks, routed(panel, marks)))
        x = max(at[0] for at in marks.values()) + 0.3
    heights = np.concatenate([[y - 0.19, y + 0.19] for _, marks, _ in drawings for _, y in marks.values()])
    heights = np.concatenate([heights, *(edge.line[:, 1] for *_, edges in drawings for edge in edges)])
    names, titled = panels[0].modalities, any(panel.title for panel in panels)
    top, bottom = heights.max() + 0.1 + 0.35 * titled, heights.min() - 0.1 - 0.45 * (len(names) > 1)
    figure, ax = _canvas((0, x), (bottom, top))
    for panel, marks, edges in drawings:
        _draw(ax, panel, marks, edges)
        middle = (min(at[0] for at in marks.values()) + max(at[0] for at in marks.values())) / 2
        ax.text(middle, top - 0.08, panel.title, ha="center", va="top", fontsize=9)
    for number, name in enumerate(names if len(names) > 1 else ()):
        _square(ax, 0.75 + 1.6 * number, bottom + 0.22, _colour(name, names))
        ax.text(1.0 + 1.6 * number, bottom + 0.22, name, va="center", fontsize=8)
    write(figure, path, DOTS_PER_INCH)


def pyramid_legend(path: Path) -> None:
    """Writes what the marks of `pyramid_picture` mean."""
    finer, same, coarser = (Feature("", level) for level in (3, 4, 5))
    figure, ax = _canvas((0, 9.4), (0, 2.6))
    places = [(x, 2.35 - 0.42 * row) for x in (0.5, 4.7) for row in range(6)]
    squares = ((True, False), (True, True), (False, False))
    for (read, pooled), (x, y) in zip(squares, places, strict=False):
        _square(ax, x, y, FEATURE, pooled, read)
    for output, (x, y) in zip((False, True), places[3:], strict=False):
        _circle(ax, x, y, "0", output)
    attention = Node(4, (same, same), Gate("attention", (0,), (1,)))
    unit = Node(4, (same, same), Gate("unit", (0,), (1,)))
    arrows = [(Node(4, (source,)), 0, source.level) for source in (same, coarser, finer)]
    arrows += [(Node(4, (coarser,), transfer=True), 0, 5), (attention, 1, 4), (attention, 0, 4), (unit, 0, 4)]
    for (node, place, level), (x, y) in zip(arrows, places[5:], strict=True):
        _arrow(ax, node, place, level, np.linspace((x - 0.4, y), (x + 0.4, y), 60))
    texts = (
        "a feature of the backbone",
        "a feature that is pooled",
        "a feature that isn't read",
        "a node, its index",
        "an output",
        "at the node's level",
        "to a finer level, nearest",
        "to a coarser level, by max-pooling",
        "by scale transfer",
        "is scaled before the merge",
        "scales by its maximum, and is merged",
        "scales by a convolution, isn't merged",
    )
    for text, (x, y) in zip(texts, places, strict=True):
        ax.text(x + 0.55, y, text, va="center", fontsize=8)
    write(figure, path, DOTS_PER_INCH)


def _canvas(across: Point, upright: Point) -> tuple["Figure", "Axes"]:
    figure = new_figure((across[1] - across[0]) * INCHES, (upright[1] - upright[0]) * INCHES, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=across, ylim=upright)
    ax.set_axis_off()
    return figure, ax


def _draw(ax: "Axes", panel: Panel, marks: Mapping[Mark, Point], edges: Sequence[Edge]) -> None:
    outputs, names = outputs_of(panel.graph), panel.modalities
    read = {edge.source for edge in edges}
    for edge in edges:
        _arrow(ax, panel.graph[edge.node], edge.place, _level(panel.graph, edge.source), edge.line)
    for mark, (x, y) in marks.items():
        if isinstance(mark, int):
            _circle(ax, x, y, str(mark), mark in outputs.values())
        else:
            _square(ax, x, y, _colour(mark[1].modality, names), mark[1].level > DEEPEST, mark in read)
    for level in outputs:
        x, y = np.mean([marks[0, Feature(m, level)] for m in names], axis=0)
        ax.text(x - 0.35 - 0.15 * (len(names) - 1), y, f"P{level}", ha="right", va="center", fontsize=8)


def _colour(modality: str, modalities: Sequence[str]) -> str:
    return MODALITIES[modalities.index(modality) % len(MODALITIES)] if len(modalities) > 1 else FEATURE


def _arrow(ax: "Axes", node: Node, place: int, level: int, line: np.ndarray) -> None:
    """Draws the input at a place of a node, which comes from a level."""
    from matplotlib.patches import Polygon

    gating = node.gate is not None and place in node.gate.by
    colour = GATE if gating else FINER if level > node.level else COARSER if level < node.level else LEVEL
    style: Any = "-" if not gating else (0, (4, 1.5)) if place in node.merged else (0, (1.2, 1.2))
    end = line[-1]
    to_end = np.hypot(*(line - end).T)
    body = line[to_end >= 0.1]
    along = (end - body[-1]) / np.hypot(*(end - body[-1]))
    aside = 0.065 * np.array([-along[1], along[0]])
    if node.transfer:
        ax.plot(*body.T, color=colour, linewidth=4, solid_capstyle="butt", zorder=1, snap=False)
        ax.plot(*body.T, color="white", linewidth=1.8, solid_capstyle="butt", zorder=1, snap=False)
    else:
        ax.plot(*body.T, color=colour, linewidth=1.2, linestyle=style, zorder=1, snap=False)
    head = [end, end - 0.15 * along + aside, end - 0.15 * along - aside]
    ax.add_patch(Polygon(head, color=colour, linewidth=0, zorder=2))
    if node.gate is not None and place in node.gate.scaled:
        x, y = line[to_end >= 0.36][-1]
        ax.plot(x, y, "o", color="white", markeredgecolor=GATE, markersize=7, markeredgewidth=1.1, zorder=3)
        ax.plot(x, y, "x", color=GATE, markersize=3.6, markeredgewidth=1.1, zorder=4)


def _circle(ax: "Axes", x: float, y: float, label: str, output: bool) -> None:
    from matplotlib.patches import Circle

    fill, ink = (INK, "white") if output else ("white", INK)
    ax.add_patch(Circle((x, y), RADIUS, facecolor=fill, edgecolor=INK, linewidth=1.2, zorder=5))
    ax.text(x, y - 0.01, label, ha="center", va="center", fontsize=6.5, color=ink, zorder=6)


def _square(ax: "Axes", x: float, y: float, colour: str, pooled: bool = False, read: bool = True) -> None:
    from matplotlib.patches import Rectangle

    fill, rim, style = colour if read else "white", INK if read else PALE, (0, (2, 1)) if pooled else "-"
    side = 1.6 * RADIUS
    corner = (x - side / 2, y - side / 2)
    ax.add_patch(Rectangle(corner, side, side, facecolor=fill, edgecolor=rim, linestyle=style, linewidth=1, zorder=5))
