"""The page docs/architecture.md: its picture and table are what the code gives, and what it names is there."""

import ast
import re
import runpy
import struct
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run .venv/bin/python docs/make_architecture.py"


@pytest.fixture(scope="module")
def made():
    """The script that makes the page."""
    return runpy.run_path(str(DOCS / "make_architecture.py"))


def texts(png):
    """The texts that a PNG file carries, by key."""
    place, found = 8, {}
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if kind in (b"tEXt", b"iTXt"):
            key, _, text = png[place + 8 : place + 8 + length].partition(b"\0")
            found[key.decode()] = text.decode("latin1")
        place += 12 + length
    return found


def test_the_table_of_rooms_is_what_the_code_gives(made):
    page = (DOCS / "architecture.md").read_text()
    assert made["filled"](page) == page, AGAIN


def test_the_picture_shows_the_rooms_that_the_code_has(made):
    kept = (DOCS / "pictures" / "rooms.png").read_bytes()
    assert texts(kept)["Description"] == made["description"](), AGAIN


def test_the_picture_is_drawn_alike_each_time(made):
    assert made["picture"]() == made["picture"]()


def test_every_import_points_to_a_lower_floor_and_every_room_has_a_job(made):
    rooms, edges = made["house"]()
    floors = made["floors"](edges)
    assert [edge for edge in edges if floors[edge[0]] <= floors[edge[1]]] == []
    assert [name for name, room in rooms.items() if not room.job] == []
    assert floors.keys() == rooms.keys()
    with pytest.raises(ValueError, match="a, b are in a circle"):
        made["floors"](frozenset({("a", "b"), ("b", "a"), ("b", "c")}))


def test_arrows_that_follow_from_others_are_left_out(made):
    edges = frozenset({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")})
    assert made["needed"](edges) == edges - {("a", "c")}


def test_boxes_lie_apart_and_lines_keep_off_them(made):
    rooms, edges = made["house"]()
    x, rows, _ = made["placed"](rooms, made["needed"](edges))
    for row in rows:
        ends = [(x[n] - half, x[n] + half) for n in row for half in [rooms[n].width / 2 if n in rooms else 0.1]]
        assert ends == sorted(ends)
        assert all(left[1] < right[0] for left, right in pairwise(ends))


def test_what_the_page_names_in_a_file_is_defined_there():
    page = (DOCS / "architecture.md").read_text()
    missing = []
    for path, name in re.findall(r"\]\((\.\./\S+\.py)\) `(\w+)`", page):
        tree = ast.parse((DOCS / path).read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        defined = {getattr(node, "name", None) for node in nodes}
        for node in nodes:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        missing += [(path, name)] * (name not in defined)
    assert missing == []
