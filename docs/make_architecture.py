"""Draws the rooms of architecture.md from the imports of the code: .venv/bin/python docs/make_architecture.py.

A folder of the package is a room, and so are the files beside the folders, by what they import and what imports them.
"""

import ast
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any

from mmfuse.files import write_whole
from mmfuse.report.figures import new_figure
from mmfuse.report.tables import markdown_table

PACKAGE = Path(__file__).parents[1] / "mmfuse"
PAGE = Path(__file__).with_name("architecture.md")
PICTURE = PAGE.parent / "pictures" / "rooms.png"

PLAIN, LIBRARY, COMMANDS = "plain values", "import mmfuse", "command line"
JOBS = {
    PLAIN: "Values, and the one way to do a small thing.",
    LIBRARY: "The public names.",
    COMMANDS: "Thin verbs, one for each public function.",
}
COLOURS = ("#e9ecef", "#d8ead3", "#fbe6c8", "#f7d6cd", "#e4d9f0", "#cfe3f5", "#dde1e6", "#d3ece8")
"""Of the floors, from the lowest."""
INK, FAINT, ARROW = "#22303c", "#5c6b78", "#8795a1"
FLOOR, GAP, LINE, CHARACTER = 1.4, 0.3, 0.165, 0.066
DOTS_PER_INCH = 150

Edges = frozenset[tuple[str, str]]
"""Pairs (what imports, what is imported)."""


@dataclass(frozen=True)
class Room:
    """Some files of the package: what they are there for, and the files or folders that are named in the picture."""

    name: str
    job: str
    parts: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The text of its box, below the name."""
        wide = 110 if self.name == PLAIN else 34
        return [line for text in (self.job, ", ".join(self.parts)) if text for line in _wrapped(text, wide)]

    @property
    def width(self) -> float:
        """Inches of its box."""
        return 0.36 + CHARACTER * max(1.3 * len(self.name), *(len(line) for line in self.lines))

    @property
    def height(self) -> float:
        """Inches of its box."""
        return 0.44 + LINE * len(self.lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Returns as few lines as the width allows, as even as their number allows."""
    fewest = len(wrap(text, width))
    return next(lines for narrow in range(1, width + 1) if len(lines := wrap(text, narrow)) == fewest)


def modules() -> dict[str, Path]:
    """Returns the files of the package by the dotted name of their module, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path, names: Iterable[str]) -> set[str]:
    """Returns those modules of `names` that a file imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.removeprefix("mmfuse.") for name in found} & set(names)


@cache
def house() -> tuple[dict[str, Room], Edges]:
    """Returns the rooms by name, and which imports which."""
    paths = modules()
    reads = {name: imports(path, paths) for name, path in paths.items()}
    files = {name for name in paths if (PACKAGE / f"{name}.py").exists()} - {"__init__", "__main__"}
    plain = set(files)
    while outside := {name for name in plain if reads[name] - plain}:
        plain -= outside
    folders = {name.partition(".")[0] for name in paths} - files - {"__init__", "__main__"}
    shared = {name for name in files - plain if any(name in reads[m] for m in paths if m.partition(".")[0] in folders)}
    rooms = {name: Room(f"{name}.py", _job(paths[name])) for name in sorted(shared)}
    for name in sorted(folders):
        inner = sorted(path.name for path in (PACKAGE / name).iterdir() if (path / "__init__.py").exists())
        rooms[name] = Room(f"{name}/", _job(paths[name]), tuple(f"{part}/" for part in inner))
    for name, own in {PLAIN: plain, LIBRARY: set(), COMMANDS: set()}.items():
        rooms[name] = Room(name, JOBS[name], tuple(sorted(own)))

    def room(module: str) -> str:
        if (first := module.partition(".")[0]) in rooms:
            return first
        return PLAIN if first in plain else LIBRARY if first == "__init__" else COMMANDS

    return rooms, frozenset(
        (room(module), room(read)) for module, others in reads.items() for read in others if room(module) != room(read)
    )


def _job(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def floors(edges: Edges) -> dict[str, int]:
    """Returns the floor of each room: one above the highest of those that it imports.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    found: dict[str, int] = {}
    waiting = {name for edge in edges for name in edge}
    while waiting:
        ready = {name for name in waiting if all(read in found for by, read in edges if by == name)}
        if not ready:
            raise ValueError(f"imports: {', '.join(sorted(waiting))} are in a circle; move what both need below them")
        found |= {n: 1 + max((found[read] for by, read in edges if by == n), default=-1) for n in ready}
        waiting -= ready
    return found


def needed(edges: Edges) -> Edges:
    """Returns the edges without those that follow from others: from a room to what another of its imports reaches."""

    def reached(name: str) -> set[str]:
        below = {read for by, read in edges if by == name}
        return below | {far for read in below for far in reached(read)}

    return frozenset(
        (by, read)
        for by, read in edges
        if not any(read in reached(other) for start, other in edges if start == by and other != read)
    )


def table() -> str:
    """Returns the rooms from the highest floor to the lowest, with their jobs and all that they import."""
    rooms, edges = house()
    levels = floors(edges)
    rows = []
    for name in sorted(rooms, key=lambda name: (-levels[name], name)):
        reads = sorted((read for by, read in edges if by == name), key=lambda read: (-levels[read], read))
        rows.append(
            (name, " ".join(filter(None, (rooms[name].job, ", ".join(rooms[name].parts)))), ", ".join(reads) or None)
        )
    return markdown_table(("room", "what it is there for", "imports"), rows, numbers_from=3)


def filled(page: str) -> str:
    """Returns the page with the table of rooms between its markers."""
    page, found = re.subn("(?s)<!-- rooms -->.*?<!-- end -->", f"<!-- rooms -->\n\n{table()}\n<!-- end -->", page)
    if found != 1:
        raise ValueError(f"{PAGE.name}: has {found} places <!-- rooms --> … <!-- end -->; needs one")
    return page


def placed(rooms: Mapping[str, Room], edges: Edges) -> tuple[dict[Any, float], list[list[Any]], dict[str, int]]:
    """Returns the middle of each room across, the order on each floor, and the floors.

    Where an edge passes a floor, the floor has a place for it: a tuple of the edge and the floor.
    """
    levels = floors(edges)
    rows: list[list[Any]] = [
        sorted(n for n in rooms if levels[n] == level) for level in range(max(levels.values()) + 1)
    ]
    links: dict[Any, list[Any]] = {name: [] for name in rooms}
    for edge in sorted(edges):
        way = path_of(edge, levels)
        for place in way[1:-1]:
            rows[place[1]].append(place)
        for a, b in pairwise(way):
            links.setdefault(a, []).append(b)
            links.setdefault(b, []).append(a)
    width = {name: rooms[name].width if name in rooms else 0.3 for name in links}
    x: dict[Any, float] = {}
    for row in rows:
        x |= _apart(row, dict.fromkeys(row, 0.0), width)
    for _ in range(60):
        for number, row in enumerate(rows):
            wanted = {
                name: _mean([x[m] for m in links[name] for _ in range(6 if {type(name), type(m)} == {tuple} else 1)], 0)
                for name in row
            }
            rows[number] = sorted(row, key=lambda name: (wanted[name], str(name)))
            x |= _apart(rows[number], wanted, width)
    return x, rows, levels


def path_of(edge: tuple[str, str], levels: Mapping[str, int]) -> list[Any]:
    """Returns the places that an edge passes, from what imports to what is imported."""
    by, read = edge
    return [by, *((edge, level) for level in range(levels[by] - 1, levels[read], -1)), read]


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _apart(order: Iterable[Any], wanted: Mapping[Any, float], width: Mapping[Any, float]) -> dict[Any, float]:
    """Returns places in this order, as near to the wanted ones as widths allow (in the square)."""
    blocks: list[tuple[float, list[Any], list[float]]] = []
    for name in order:
        block = (wanted[name], [name], [0.0])
        while blocks:
            middle, names, shifts = blocks[-1]
            step = shifts[-1] + (width[names[-1]] + width[block[1][0]]) / 2 + GAP
            if middle + step <= block[0]:
                break
            blocks.pop()
            joined = [*names, *block[1]]
            moved = [*shifts, *(step + shift for shift in block[2])]
            block = (_mean([wanted[n] - shift for n, shift in zip(joined, moved, strict=True)], 0.0), joined, moved)
        blocks.append(block)
    return {n: middle + s for middle, names, shifts in blocks for n, s in zip(names, shifts, strict=True)}


def _spread(name: str, room: Room, edges: Edges, x: Mapping[Any, float], levels: Mapping[str, int]) -> dict[Any, float]:
    """Returns where each edge of a room leaves or enters its box, in the order of where they lead."""
    found = {}
    for end in (0, 1):
        own = sorted((edge for edge in edges if edge[end] == name), key=lambda e: x[path_of(e, levels)[(1, -2)[end]]])
        for number, edge in enumerate(own):
            found[edge] = x[name] + room.width * 0.8 * ((number + 0.5) / len(own) - 0.5)
    return found


def description() -> str:
    """Returns what the picture shows as text, which the file keeps."""
    rooms, edges = house()
    return "\n".join([*(f"{r.name}: {' | '.join(r.lines)}" for r in rooms.values()), *map(str, sorted(needed(edges)))])


def picture() -> bytes:
    """Returns the rooms on their floors as a PNG file, with an arrow from each to what it needs from below."""
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    rooms, edges = house()
    edges = needed(edges)
    x, rows, levels = placed(rooms, edges)
    left = min(*(x[name] - room.width / 2 for name, room in rooms.items()), *x.values()) - 0.25
    right = max(*(x[name] + room.width / 2 for name, room in rooms.items()), *x.values()) + 0.25
    bottom, top = -FLOOR / 2 + 0.05, FLOOR * (len(rows) - 0.5) - 0.05
    figure = new_figure(right - left, top - bottom, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_axis_off()
    ends = {name: _spread(name, rooms[name], edges, x, levels) for name in rooms}
    tallest = [max(rooms[name].height for name in row if name in rooms) for row in rows]
    for edge in sorted(edges):
        by, read = edge
        points = [(ends[by][edge], FLOOR * levels[by] - rooms[by].height / 2)]
        for place in path_of(edge, levels)[1:-1]:
            points += [(x[place], FLOOR * place[1] + side * tallest[place[1]] / 2) for side in (1, -1)]
        points.append((ends[read][edge], FLOOR * levels[read] + rooms[read].height / 2 + 0.06))
        curve, codes = points[:1], [Curve.MOVETO]
        for (a, y), (b, z) in pairwise(points):
            curve += [(a, (y + z) / 2), (b, (y + z) / 2), (b, z)]
            codes += [Curve.CURVE4] * 3
        ax.add_patch(PathPatch(Curve(curve, codes), facecolor="none", edgecolor=ARROW, linewidth=1.3, zorder=1))
        tip, low = points[-1][0], points[-1][1] - 0.05
        ax.fill([tip, tip - 0.055, tip + 0.055], [low, low + 0.13, low + 0.13], color=ARROW, linewidth=0, zorder=2)
    for name, room in rooms.items():
        middle, tall = FLOOR * levels[name], room.height
        corner, colour = (x[name] - room.width / 2, middle - tall / 2), COLOURS[levels[name] % len(COLOURS)]
        look: Any = {"boxstyle": "round,pad=0,rounding_size=0.09", "facecolor": colour, "edgecolor": INK}
        ax.add_patch(FancyBboxPatch(corner, room.width, tall, linewidth=1.1, zorder=3, **look))
        ax.text(x[name], middle + tall / 2 - 0.2, room.name, ha="center", va="center", fontsize=10.5, color=INK,
                weight="bold", zorder=4)  # fmt: skip
        for number, line in enumerate(room.lines):
            y = middle + tall / 2 - 0.41 - LINE * number
            ax.text(x[name], y, line, ha="center", va="center", fontsize=8, color=FAINT, zorder=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white", metadata={"Description": description()})
    return buffer.getvalue()


if __name__ == "__main__":
    write_whole(PICTURE, picture())
    write_whole(PAGE, filled(PAGE.read_text()).encode())
