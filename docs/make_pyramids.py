"""Draws the pictures of pyramids.md and computes its tables: .venv/bin/python docs/make_pyramids.py."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import torch
from graph_pictures import Panel, pyramid_legend, pyramid_picture
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.files import write_whole
from mmfuse.model import graphs
from mmfuse.model.build import create_detector
from mmfuse.model.fusion import merge_type
from mmfuse.model.nodes import Graph
from mmfuse.model.presence import Presence
from mmfuse.model.pyramid import Pyramid
from mmfuse.report.tables import markdown_table
from mmfuse.scaling import PUBLISHED

PAGE = Path(__file__).with_name("pyramids.md")
PICTURES = PAGE.parent / "pictures" / "pyramids"
SIZE = PUBLISHED["d3"]
DEPTH = SIZE.pyramid_depth
CELLS = {
    "fpn": 2 * DEPTH,
    "panet": DEPTH,
    "nas_fpn": DEPTH,
    "fully_connected": 2 * DEPTH,
    "bifpn": DEPTH,
    "simplified_panet": DEPTH,
    "quad_fpn": DEPTH // 2,
    "gfrnet": 2 * DEPTH,
    "stdn": 1,
    "m2det": 8,
}
PAPER = {
    "fpn": (1.00, 1.00),
    "panet": (1.00, 1.00),
    "nas_fpn": (0.71, 0.72),
    "fully_connected": (1.24, 1.21),
    "bifpn": (0.88, 0.67),
    "bifpn, weighted": (0.88, 0.68),
}
"""Parameters and multiply-adds relative to the repeated top-down FPN (EfficientDet, table 5)."""
FITTED = ("nas_fpn", "fully_connected", "bifpn")


@dataclass(frozen=True)
class Cost:
    """Parameters, and billions of multiply-adds for one image; of these, the finest nodes' and the laterals'."""

    parameters: float = 0
    gmacs: float = 0
    finest: float = 0
    laterals: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(a * factor for a in astuple(self)))

    def __sub__(self, other: "Cost") -> "Cost":
        return self + other * -1

    def to(self, other: "Cost") -> tuple[float, float]:
        """Returns the ratios of parameters and of multiply-adds."""
        return self.parameters / other.parameters, self.gmacs / other.gmacs


@cache
def whole() -> tuple[Cost, Pyramid]:
    """Returns the cost of the size's own detector with one modality and 90 classes, and its pyramid."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector = create_detector(SIZE.name, {"rgb": 3}, 90).train()  # whose heads aren't packed
        detector({"rgb": torch.empty(1, 3, SIZE.resolution, SIZE.resolution)})
    return Cost(sum(p.numel() for p in detector.parameters()), counter.get_total_flops() / 2e9), detector.pyramid


def graph(name: str, cells: int) -> Graph:
    """Returns a pyramid over the size's levels for one modality."""
    return graphs.build(graphs.PYRAMIDS[name], SIZE.levels, ("rgb",), cells)


@cache
def measured(name: str, cells: int, fusion: str, width: int) -> Cost:
    """Returns the cost of a pyramid alone."""
    own, nodes = whole()[1], graph(name, cells)
    sides = [SIZE.resolution // 2**level for level in SIZE.levels]
    with torch.device("meta"):
        pyramid = Pyramid(nodes, own.channels, width, merge_type(fusion), same=own.same, bias=True).eval()
        maps = [torch.empty(1, c, side, side) for c, side in zip(own.channels["rgb"], sides, strict=False)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pyramid({"rgb": maps}, Presence.whole(["rgb"], 1))
    finest = laterals = 0.0
    for module, flops in counter.get_flop_counts().items():
        gmacs = sum(flops.values()) / 2e9
        if found := re.fullmatch(r"Pyramid\.nodes\.(\d+)\.(conv|unit)", module):
            finest += gmacs * (nodes[int(found[1])].level == SIZE.levels[0])
        elif re.fullmatch(r"Pyramid\.(extend|nodes\.\d+\.laterals)\.\w+", module):
            laterals += gmacs
    return Cost(sum(p.numel() for p in pyramid.parameters()), counter.get_total_flops() / 2e9, finest, laterals)


def cost(name: str, cells: int, fusion: str = "sum", width: int = SIZE.width) -> Cost:
    """Returns the cost of a pyramid alone, where each cell after the first costs the same."""
    first = measured(name, 1, fusion, width)
    return first + (measured(name, 2, fusion, width) - first) * (cells - 1)


def passes(name: str, cells: int) -> int:
    """Returns how many cells of a pyramid stand against so many of BiFPN."""
    return cells * CELLS[name] // DEPTH


def rest() -> Cost:
    """Returns the cost of backbone and heads, which is the same with every pyramid."""
    return whole()[0] - cost("bifpn", DEPTH, SIZE.fusion)


def cost_table() -> str:
    """Returns the cost of every pyramid relative to the repeated FPN."""
    reference = cost("fpn", CELLS["fpn"])
    rows = []
    labels = (label for name in CELLS for label in (name, f"{name}, weighted"))
    for label in (label for label in labels if label in CELLS or label in PAPER):
        name, _, weighted = label.partition(", ")
        own = cost(name, CELLS[name], "fast" if weighted else "sum")
        ratios = (*(own + rest()).to(reference + rest()), *own.to(reference), *PAPER.get(label, (None, None)))
        rows.append([label, CELLS[name], len(graph(name, CELLS[name])), *(r and f"{r:.2f}" for r in ratios)])
    header = ("pyramid", "cells", "nodes", "whole: params", "GMACs", "alone: params", "GMACs", "paper: params", "FLOPs")
    return markdown_table(header, rows)


def share_table() -> str:
    """Returns the nodes of every pyramid by level, and its multiply-adds by kind."""
    rows = []
    for name, cells in CELLS.items():
        at, own = Counter(node.level for node in graph(name, cells)), cost(name, cells)
        shares = (own.finest, own.gmacs - own.finest - own.laterals, own.laterals, own.gmacs)
        rows.append([name, cells, *(at[level] for level in SIZE.levels), *(f"{share:.2f}" for share in shares)])
    header = ("pyramid", "cells", *(f"P{level}" for level in SIZE.levels), "GMACs: nodes at P3", "other nodes")
    return markdown_table((*header, "laterals", "all"), rows)


def figure_table() -> str:
    """Returns the figures that explain the others: totals, or ratios where a label says "to"."""
    first, later = cost("fpn", 1), {name: cost(name, 2) - cost(name, 1) for name in ("fpn", *FITTED)}
    total, bifpn = cost("fpn", 2 * DEPTH) + rest(), cost("bifpn", DEPTH) + rest()
    needed = 1 + round((bifpn.gmacs / PAPER["bifpn"][1] - (first + rest()).gmacs) / later["fpn"].gmacs)
    five = {name: cost(name, passes(name, 5)) for name in later}
    products = {name: Cost(gmacs=values_merged(graph(name, passes(name, 5))) / 1e9) for name in later}
    one_lateral = five["fpn"] + later["bifpn"] * 5 - later["fpn"] * 10
    connected = five["fully_connected"] + products["fully_connected"]
    rows: dict[str, Cost | tuple[float, float]] = {
        f"whole d3 with {2 * DEPTH} cells of fpn": total,
        "its backbone and heads": rest(),
        "these to the whole": rest().to(total),
        f"whole d3, {DEPTH} cells of bifpn to {needed} of fpn": bifpn.to(cost("fpn", needed) + rest()),
        "a cell of fpn after the first": later["fpn"],
        "its node at P3": Cost(later["fpn"].parameters / len(SIZE.levels), later["fpn"].finest),
        "a cell of nas_fpn after the first to two of fpn": later["nas_fpn"].to(later["fpn"] * 2),
        "a cell of fully_connected after the first to one of fpn": later["fully_connected"].to(later["fpn"]),
        "a cell of bifpn after the first to two of fpn": later["bifpn"].to(later["fpn"] * 2),
        "5 cells of bifpn to 10 of fpn": five["bifpn"].to(five["fpn"]),
        "… with a lateral for each map, not each edge": one_lateral.to(five["fpn"]),
        "… with the products of weights": (five["bifpn"] + products["bifpn"]).to(five["fpn"]),
        "10 cells of fully_connected to 10 of fpn": five["fully_connected"].to(five["fpn"]),
        "… with an operation for each merged value": connected.to(five["fpn"] + products["fpn"]),
        f"whole d3 with {DEPTH} cells of bifpn": bifpn,
        "whole d3 with 5 cells of bifpn": five["bifpn"] + rest(),
    }
    texts = {
        label: (f"{x.parameters / 1e6:.2f} M", f"{x.gmacs:.2f}") if isinstance(x, Cost) else [f"{r:.3f}" for r in x]
        for label, x in rows.items()
    }
    return markdown_table(("what", "parameters", "GMACs"), ((label, *text) for label, text in texts.items()))


def values_merged(nodes: Graph) -> int:
    """Returns how many values the merges of a graph read."""
    areas = {level: (SIZE.resolution // 2**level) ** 2 for level in SIZE.levels}
    return sum(len(node.merged) * areas[node.level] for node in nodes) * SIZE.width


def fit_table() -> str:
    """Returns the ratios of pyramids alone by width and number of cells, and how far they are from the paper's."""
    rows = []
    for width, cells in [*((SIZE.width, cells) for cells in range(3, 9)), (112, 7), (200, 4)]:
        own = [cost(name, passes(name, cells), width=width) for name in ("fpn", *FITTED)]
        alone = [ratio for c in own[1:] for ratio in c.to(own[0])]
        in_all = [ratio for c in own[1:] for ratio in (c + rest()).to(own[0] + rest())]
        off = (f"{_off(alone):.3f}", f"{_off(in_all):.3f}" if width == SIZE.width else None)
        rows.append([width, cells, passes("fpn", cells), *(f"{ratio:.3f}" for ratio in alone), *off])
    rows.append(["paper", None, None, *(f"{ratio:.2f}" for name in FITTED for ratio in PAPER[name]), None, None])
    header = ("width", "cells", "passes", *(text for name in FITTED for text in (f"{name}: params", "GMACs")))
    return markdown_table((*header, "off: alone", "whole"), rows)


def _off(ratios: Sequence[float]) -> float:
    paper = [ratio for name in FITTED for ratio in PAPER[name]]
    return sum(abs(a - b) for a, b in zip(ratios, paper, strict=True)) / len(paper)


def tables() -> dict[str, str]:
    """Returns the Markdown that the page has between its markers, by marker."""
    return {"cost": cost_table(), "shares": share_table(), "figures": figure_table(), "fit": fit_table()}


def filled(page: str) -> str:
    """Returns the page with `tables` between its markers."""
    for name, text in tables().items():
        page, found = re.subn(f"(?s)<!-- {name} -->.*?<!-- end -->", f"<!-- {name} -->\n\n{text}\n<!-- end -->", page)
        if found != 1:
            raise ValueError(f"{PAGE.name}: has {found} places <!-- {name} --> … <!-- end -->; needs one")
    return page


def pictures() -> dict[str, list[Panel]]:
    """Returns the panels of each picture: a cell of each pyramid, two where the second differs, and placements."""
    found = {name: [Panel(graph(name, 1))] for name in graphs.PYRAMIDS}
    for name in ("stdn", "m2det"):
        found[name] = [Panel(graph(name, 1), "1 cell"), Panel(graph(name, 2), "2 cells")]
    for placement in ("first", "every", "last"):
        nodes = graphs.build(graphs.PYRAMIDS["bifpn"], (3, 4, 5), ("rgb", "thermal"), 2, placement)
        again = (len(nodes) // 2,) if placement == "every" else ()
        found[f"placement_{placement}"] = [Panel(nodes, again=again)]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    pyramid_legend(PICTURES / "legend.png")
    for name, panels in pictures().items():
        pyramid_picture(panels, PICTURES / f"{name}.png")
    write_whole(PAGE, filled(PAGE.read_text()).encode())
