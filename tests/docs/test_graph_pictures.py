"""Layouts of pyramid graphs that can be read, and the page docs/pyramids.md, which has to be what the code gives."""

import ast
import inspect
import re
import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path

import graph_pictures
import numpy as np
import pytest
import torch
from graph_pictures import RADIUS, Panel, placed, pyramid_legend, pyramid_picture, routed

from mmfuse.model import graphs
from mmfuse.model.nodes import Feature, outputs_of

DOCS = Path(__file__).parents[2] / "docs"


def panel(name, depth=1, modalities=("rgb",), placement="first", levels=(3, 4, 5, 6, 7), again=()):
    return Panel(graphs.build(graphs.PYRAMIDS[name], levels, modalities, depth, placement), again=again)


SMALL = {"depth": 2, "modalities": ("a", "b"), "levels": (3, 4, 5)}
PANELS = {
    **{name: panel(name) for name in graphs.PYRAMIDS},
    "two cells": panel("m2det", depth=2),
    "first": panel("bifpn", **SMALL),
    "every": panel("bifpn", **SMALL, placement="every", again=(4,)),
    "last": panel("bifpn", **SMALL, placement="last"),
    "three modalities": panel("bifpn", modalities=("a", "b", "c"), levels=(3, 4, 5)),
}


@pytest.fixture(scope="module")
def made():
    """The script that makes the page."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(DOCS / "make_pyramids.py"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_edges_run_to_the_right_or_to_a_neighbour_above_or_below(panel):
    marks = placed(panel)
    for node, sources in enumerate(panel.sources):
        for source, (x, y) in ((source, marks[source]) for source in sources):
            beside = isinstance(source, int) and abs(panel.graph[source].level - panel.graph[node].level) == 1
            assert x < marks[node][0] or (beside and x == marks[node][0] and y != marks[node][1])


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_coarser_levels_lie_above(panel):
    rows = {}
    for mark, (_, y) in placed(panel).items():
        level = panel.graph[mark].level if isinstance(mark, int) else mark[1].level
        rows.setdefault(level, []).append(y)
    levels = sorted(rows)
    assert all(max(rows[a]) < min(rows[b]) for a, b in pairwise(levels))


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_marks_lie_apart_and_no_line_passes_through_a_mark_that_it_does_not_join(panel):
    marks = placed(panel)
    edges = routed(panel, marks)
    read = Counter((mark, node) for node, sources in enumerate(panel.sources) for mark in sources)
    assert Counter((edge.source, edge.node) for edge in edges) == read
    for mark, at in marks.items():
        others = np.array([point for other, point in marks.items() if other != mark])
        assert np.hypot(*(others - at).T).min() > 2.5 * RADIUS
        lines = [edge.line for edge in edges if mark not in (edge.source, edge.node)]
        assert np.hypot(*(np.concatenate([others, *lines]) - at).T).min() > 1.25 * RADIUS


def test_short_ways_are_straight():
    edges = routed(PANELS["fpn"], placed(PANELS["fpn"]))
    lengths = [np.hypot(*np.diff(edge.line, axis=0).T).sum() for edge in edges]
    ways = [np.hypot(*(edge.line[-1] - edge.line[0])) for edge in edges]
    assert lengths == pytest.approx(ways)


def test_all_features_are_placed_and_those_that_are_read_again_are_placed_again():
    once, again = placed(PANELS["stdn"]), placed(PANELS["every"])
    assert {mark for mark in once if isinstance(mark, tuple)} == {(0, Feature("rgb", level)) for level in range(3, 8)}
    features = {(time, Feature(m, level)) for time in (0, 1) for m in "ab" for level in (3, 4, 5)}
    assert {mark for mark in again if isinstance(mark, tuple)} == features
    assert max(again[node][0] for node in range(4)) < min(again[1, Feature(m, 3)][0] for m in "ab")


def test_outputs_that_nothing_holds_back_lie_at_the_right():
    for name in ("bifpn", "panet", "fpn", "quad_fpn"):
        marks, outputs = placed(PANELS[name]), outputs_of(PANELS[name].graph).values()
        assert {marks[node][0] for node in outputs} == {max(x for x, _ in marks.values())}


def test_pictures_are_written(tmp_path):
    from matplotlib.image import imread

    pyramid_legend(tmp_path / "legend.png")
    pyramid_picture([PANELS["fpn"]], tmp_path / "one.png")
    pyramid_picture([PANELS["fpn"], PANELS["gfrnet"], PANELS["stdn"]], tmp_path / "new" / "three.png")
    pyramid_picture([PANELS["first"]], tmp_path / "modalities.png")
    one, three = imread(tmp_path / "one.png"), imread(tmp_path / "new" / "three.png")
    assert three.shape[1] > 2.5 * one.shape[1]
    assert all(imread(path)[..., :3].std() > 0.05 for path in tmp_path.rglob("*.png"))


def test_matplotlib_is_loaded_for_drawing_alone():
    tree = ast.parse(inspect.getsource(graph_pictures))
    at_once = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert at_once
    assert not any("matplotlib" in line for line in at_once)


@pytest.mark.slow
def test_the_page_has_the_tables_that_the_code_gives(made):
    page = (DOCS / "pyramids.md").read_text()
    assert made["filled"](page) == page, "run .venv/bin/python docs/make_pyramids.py"


def test_the_page_shows_every_picture_and_pyramid(made):
    page = (DOCS / "pyramids.md").read_text()
    shown = re.findall(r"\]\(pictures/pyramids/(\w+)\.png\)", page)
    assert sorted(shown) == sorted(["legend", *made["pictures"]()])
    assert {path.stem for path in (DOCS / "pictures" / "pyramids").iterdir()} == set(shown)
    assert set(re.findall(r"^### (\w+)$", page, re.M)) == graphs.PYRAMIDS.keys() == made["CELLS"].keys()


@pytest.mark.parametrize("name", ["nas_fpn", "quad_fpn", "m2det"])
def test_every_cell_after_the_first_costs_the_same(made, name):
    width = made["SIZE"].width
    three, expected = made["measured"](name, 3, "sum", width), made["cost"](name, 3)
    assert three.parameters == expected.parameters
    assert three.gmacs == pytest.approx(expected.gmacs)
    assert 0 < three.finest + three.laterals < three.gmacs
