import itertools
import math

import pytest

from mmfuse.errors import UserError
from mmfuse.scaling import PUBLISHED, rule, size

# EfficientDet, table 1 and google/automl: resolution, backbone, width, depths, levels, anchor scale, fusion.
TABLE = """
d0  512  b0 64  3 3 3-7 4 fast
d1  640  b1 88  4 3 3-7 4 fast
d2  768  b2 112 5 3 3-7 4 fast
d3  896  b3 160 6 4 3-7 4 fast
d4  1024 b4 224 7 4 3-7 4 fast
d5  1280 b5 288 7 4 3-7 4 fast
d6  1280 b6 384 8 5 3-7 4 sum
d7  1536 b6 384 8 5 3-7 5 sum
d7x 1536 b7 384 8 5 3-8 4 sum
""".strip().splitlines()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split()[0])
def test_the_published_family(row):
    name, *rest = row.split()
    s = size(name)
    levels = f"{s.levels[0]}-{s.levels[-1]}"
    found = [s.resolution, s.backbone, s.width, s.pyramid_depth, s.head_depth, levels, s.anchor_scale, s.fusion]
    assert s.name == name
    assert [f"{v:g}" if isinstance(v, float) else str(v) for v in found] == rest
    assert list(s.levels) == list(range(s.levels[0], s.levels[-1] + 1))
    assert s.resolution % s.coarsest_stride == 0
    assert s.coarsest_stride == 2 ** int(rest[5][-1])


def test_the_table_is_complete():
    assert list(PUBLISHED) == [row.split()[0] for row in TABLE]


@pytest.mark.parametrize("phi", range(5))
def test_the_rule_is_near_the_table(phi):
    a, b = rule(phi), PUBLISHED[f"d{phi}"]
    assert (a.name, a.resolution, a.backbone, a.pyramid_depth, a.head_depth) == (
        b.name,
        b.resolution,
        b.backbone,
        b.pyramid_depth,
        b.head_depth,
    )
    assert abs(a.width - b.width) <= 0.1 * b.width


@pytest.mark.parametrize(
    ("name", "resolution", "backbone", "width", "pyramid_depth", "head_depth"),
    [
        ("d8", 1536, "b7", 704, 11, 5),
        ("d0.5", 640, "b1", 72, 4, 3),
        ("d2.25", 768, "b2", 128, 5, 3),
        ("d-0.5", 512, "b0", 56, 3, 2),
        ("d-1", 384, "lcnet_100", 48, 2, 2),
        ("d-2", 256, "lcnet_075", 32, 1, 2),
        ("d-3", 128, "lcnet_050", 24, 1, 2),
        ("d-9", 128, "lcnet_050", 8, 1, 1),
    ],
)
def test_the_rule_outside_the_table(name, resolution, backbone, width, pyramid_depth, head_depth):
    s = size(name)
    assert s == rule(float(name[1:]))
    assert (s.name, s.resolution, s.backbone, s.width, s.pyramid_depth, s.head_depth) == (
        name,
        resolution,
        backbone,
        width,
        pyramid_depth,
        head_depth,
    )
    coarsest = min(7, int(math.log2(resolution / 4)))
    assert s.levels == tuple(range(3, coarsest + 1))


def test_the_rule_grows_with_phi_and_stays_buildable():
    sizes = [rule(phi / 4) for phi in range(-40, 41)]
    for s in sizes:
        assert s.resolution % s.coarsest_stride == 0
        assert s.width % 8 == 0
        assert min(s.resolution, s.width, s.pyramid_depth, s.head_depth) >= 1
    for a, b in itertools.pairwise(sizes):
        assert a.resolution <= b.resolution
        assert a.width <= b.width
        assert a.pyramid_depth <= b.pyramid_depth
        assert a.head_depth <= b.head_depth
    assert sizes[-1].width == 8 * math.floor(64 * 1.35**10 / 8 + 0.5)


@pytest.mark.parametrize(("alias", "name"), [("d6.0", "d6"), ("d07", "d7"), ("d-0", "d0"), ("d-1.0", "d-1")])
def test_one_phi_has_one_size(alias, name):
    assert size(alias) == size(name)


@pytest.mark.parametrize(
    "name", ["", "d", "D0", "0", "d8x", "d1.", "d--1", "d1e3", "dnan", "d+1", "d0 ", "d100000", "b0"]
)
def test_a_bad_name_is_one_line_with_the_names(name):
    with pytest.raises(UserError) as caught:
        size(name)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(name) in message
    assert "d7x" in message
