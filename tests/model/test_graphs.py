"""Edges drawn from the code, against tables that were written by hand from the papers."""

from itertools import product

import pytest

from mmfuse.model import graphs
from mmfuse.model.nodes import Feature, Gate, Node, modalities_of, outputs_of

LEVELS = (3, 4, 5, 6, 7)


def build(name, levels=LEVELS, modalities=("rgb",), depth=1, placement="first"):
    return graphs.build(graphs.PYRAMIDS[name], levels, modalities, depth, placement)


def numbered(graph, levels=LEVELS, modality="rgb"):
    """Edges as papers write them: inputs first, finest first, then the nodes in order."""
    place = {Feature(modality, level): i for i, level in enumerate(levels)}
    return [
        (node.level, [place[s] if isinstance(s, Feature) else s + len(levels) for s in node.inputs]) for node in graph
    ]


# One cell over P3 to P7, which are the sources 0 to 4; the nodes are 5 and up, in order: (level, what it reads).
PAPERS = {
    # EfficientDet, figure 2 (a): P7out = conv(P7in), P6out = conv(P6in + resize(P7out)), ...
    "fpn": [(7, [4]), (6, [3, 5]), (5, [2, 6]), (4, [1, 7]), (3, [0, 8])],
    # figure 2 (b): the same, then from P3 up
    "panet": [
        *[(7, [4]), (6, [3, 5]), (5, [2, 6]), (4, [1, 7]), (3, [0, 8])],
        *[(3, [9]), (4, [8, 10]), (5, [7, 11]), (6, [6, 12]), (7, [5, 13])],
    ],
    # figure 2 (e) of the first version: PANet without the nodes of one input (P7 down, P3 up)
    "simplified_panet": [
        *[(6, [3, 4]), (5, [2, 5]), (4, [1, 6]), (3, [0, 7])],
        *[(4, [7, 8]), (5, [6, 9]), (6, [5, 10]), (7, [4, 11])],
    ],
    # figure 2 (d), figure 3: an edge more from the input to the output of P4, P5 and P6
    "bifpn": [
        *[(6, [3, 4]), (5, [2, 5]), (4, [1, 6]), (3, [0, 7])],
        *[(4, [1, 7, 8]), (5, [2, 6, 9]), (6, [3, 5, 10]), (7, [4, 11])],
    ],
    # figure 2 (d) of the first version: from all inputs to all outputs
    "fully_connected": [(level, [0, 1, 2, 3, 4]) for level in LEVELS],
    # NAS-FPN, figure 5: seven merging cells; P5 and P7, which nothing has read, join the outputs of their level
    "nas_fpn": [
        *[(4, [3, 1]), (4, [1, 5]), (3, [0, 6]), (4, [6, 7])],
        *[(5, [8, 7, 2]), (7, [9, 6, 4]), (6, [10, 9])],
    ],
    # Quad-FPN: BiFPN, then the same upside down, then the sum of both at each level
    "quad_fpn": [
        *[(6, [3, 4]), (5, [2, 5]), (4, [1, 6]), (3, [0, 7])],
        *[(4, [1, 7, 8]), (5, [2, 6, 9]), (6, [3, 5, 10]), (7, [4, 11])],
        *[(4, [1, 0]), (5, [2, 13]), (6, [3, 14]), (7, [4, 15])],
        *[(6, [3, 15, 16]), (5, [2, 14, 17]), (4, [1, 13, 18]), (3, [0, 19])],
        *[(3, [8, 20]), (4, [9, 19]), (5, [10, 18]), (6, [11, 17]), (7, [12, 16])],
    ],
    # STDN, figure 2: every scale from the last map (here of stride 32)
    "stdn": [(level, [2]) for level in LEVELS],
    # G-FRNet, figure 2: a gate unit between each two neighbours, read by the refinement unit of the finer one
    "gfrnet": [(7, [4]), (6, [4, 3, 5]), (5, [3, 2, 6]), (4, [2, 1, 7]), (3, [1, 0, 8])],
    # M2Det, figure 2: base feature of a shallow and a deep map; down and up again; aggregation of each scale
    "m2det": [
        (3, [0, 2]),
        *[(4, [5]), (5, [6]), (6, [7]), (7, [8])],
        *[(6, [8, 9]), (5, [7, 10]), (4, [6, 11]), (3, [5, 12])],
        *[(3, [13]), (4, [12]), (5, [11]), (6, [10]), (7, [9])],
    ],
}


def test_every_pyramid_has_its_table():
    assert PAPERS.keys() == graphs.PYRAMIDS.keys()


@pytest.mark.parametrize("name", PAPERS)
def test_edges_are_those_of_the_paper(name):
    assert numbered(build(name)) == PAPERS[name]


@pytest.mark.parametrize("name", [name for name in PAPERS if name not in ("m2det", "stdn")])
def test_a_second_cell_reads_the_outputs_of_the_first(name):
    one = PAPERS[name]
    last = {level: len(LEVELS) + index for index, (level, _) in enumerate(one)}
    shift = len(one)
    again = [(level, [last[3 + s] if s < len(LEVELS) else s + shift for s in sources]) for level, sources in one]
    assert numbered(build(name, depth=2)) == one + again


def test_repeated_scale_transfer_refines_the_last_map_alone():
    assert numbered(build("stdn", depth=3)) == [(5, [2]), (5, [5]), *[(level, [6]) for level in LEVELS]]


def test_a_second_u_shape_starts_from_the_base_and_the_first_and_all_are_aggregated():
    graph = numbered(build("m2det", levels=(3, 4, 5), depth=2), levels=(3, 4, 5))
    assert graph == [
        (3, [0, 2]),
        *[(4, [3]), (5, [4]), (4, [4, 5]), (3, [3, 6])],
        (3, [3, 7]),
        *[(4, [8]), (5, [9]), (4, [9, 10]), (3, [8, 11])],
        *[(3, [7, 12]), (4, [6, 11]), (5, [5, 10])],
    ]


def test_gates_of_nas_fpn_are_the_coarser_parent():
    gates = {index: (node.gate.kind, node.gate.by, node.gate.scaled) for index, node in gated("nas_fpn")}
    attention = ("attention", (0,), (1,))
    assert gates == {0: attention, 4: attention, 5: attention, 6: attention}
    assert all(node.merged == tuple(range(len(node.inputs))) for _, node in gated("nas_fpn"))


def gated(name, **options):
    return [(index, node) for index, node in enumerate(build(name, **options)) if node.gate]


def test_gate_units_scale_the_finer_map_and_are_not_added():
    assert [index for index, _ in gated("gfrnet")] == [1, 2, 3, 4]
    assert all(node.gate == Gate("unit", (0,), (1,)) for _, node in gated("gfrnet"))
    assert all(node.merged == (1, 2) for _, node in gated("gfrnet"))


def test_gates_read_and_scale_every_modality():
    (_, first), *_ = gated("nas_fpn", modalities=("a", "b", "c"))
    assert first.inputs == tuple(Feature(m, level) for level in (6, 4) for m in "abc")
    assert first.gate == Gate("attention", (0, 1, 2), (3, 4, 5))
    (_, unit), *_ = gated("gfrnet", modalities=("a", "b"))
    assert unit.inputs == (*(Feature(m, level) for level in (7, 6) for m in "ab"), 0)
    assert (unit.gate, unit.merged) == (Gate("unit", (0, 1), (2, 3)), (2, 3, 4))


def test_scale_transfer_alone_transfers():
    assert {name for name in PAPERS if any(node.transfer for node in build(name))} == {"stdn"}
    assert all(node.transfer for node in build("stdn"))


@pytest.mark.parametrize("modalities", [("rgb", "thermal"), ("a", "b", "c")])
@pytest.mark.parametrize("name", PAPERS)
def test_whatever_reads_a_level_reads_it_from_every_modality(name, modalities):
    single, several = build(name, modalities=modalities[:1], depth=2), build(name, modalities=modalities, depth=2)
    assert len(single) == len(several)
    for one, node in zip(single, several, strict=True):
        lifted = [
            [Feature(m, s.level) for m in modalities] if isinstance(s, Feature) else [s]
            for s in one.inputs
        ]  # fmt: skip
        assert node.inputs == tuple(source for slot in lifted for source in slot)
        assert (node.level, node.transfer) == (one.level, one.transfer)
        if one.gate:
            first, second = len(lifted[0]), len(lifted[1])
            assert node.gate == Gate(one.gate.kind, tuple(range(first)), tuple(range(first, first + second)))
        else:
            assert node.gate is None


def test_every_cell_may_read_the_modalities_again():
    graph = build("bifpn", modalities=("a", "b"), depth=2, placement="every")
    assert graph[:8] == build("bifpn", modalities=("a", "b"))

    def both(level):
        return Feature("a", level), Feature("b", level)

    assert graph[8] == Node(6, (6, *both(6), 7, *both(7)))
    assert graph[12] == Node(4, (4, *both(4), 10, 11))
    assert graph[15] == Node(7, (7, *both(7), 14))


@pytest.mark.parametrize("name", PAPERS)
def test_every_cell_of_any_pyramid_may_read_the_modalities_again(name):
    graph = build(name, modalities=("a", "b"), depth=2, placement="every")
    features = [s for node in graph for s in node.inputs if isinstance(s, Feature)]
    once = [s for node in build(name, modalities=("a", "b"), depth=2) for s in node.inputs if isinstance(s, Feature)]
    assert len(features) > len(once)
    assert modalities_of(graph)[-1] == {"a", "b"}


@pytest.mark.parametrize("name", PAPERS)
def test_separate_pyramids_meet_in_one_last_node_a_level(name):
    graph = build(name, modalities=("a", "b"), depth=2, placement="last")
    alone = {m: build(name, modalities=(m,), depth=2) for m in "ab"}
    half = len(alone["a"])
    assert graph[:half] == alone["a"]
    assert [n.level for n in graph[half : 2 * half]] == [n.level for n in alone["b"]]
    assert {frozenset(s) for s in modalities_of(graph)[:half]} == {frozenset("a")}
    assert {frozenset(s) for s in modalities_of(graph)[half : 2 * half]} == {frozenset("b")}
    out = outputs_of(alone["a"])
    assert graph[2 * half :] == tuple(Node(level, (i, i + half)) for level, i in out.items())
    assert build(name, modalities=("a",), depth=2, placement="last") == alone["a"]


@pytest.mark.parametrize("name", PAPERS)
def test_any_levels_give_a_graph_that_runs_in_order_and_has_no_idle_node(name):
    for last, placement in product(range(4, 9), ("first", "every", "last")):
        levels = tuple(range(3, last + 1))
        graph = build(name, levels, ("a", "b"), 3, placement)
        for index, node in enumerate(graph):
            assert node.inputs
            assert all(source < index for source in node.inputs if isinstance(source, int))
        out = outputs_of(graph)
        assert tuple(out) == levels
        read = {source for node in graph for source in node.inputs}
        assert set(range(len(graph))) - read <= set(out.values())
        deepest = {Feature(m, min(5, last)) for m in "ab"}
        features = {source for source in read if isinstance(source, Feature)}
        every = {Feature(m, level) for m in "ab" for level in levels}
        assert deepest <= features
        if name == "stdn":
            assert features == deepest
        elif name != "m2det":
            assert features == every


def test_nas_fpn_with_fewer_and_more_levels():
    """What would lie above the coarsest level lies there; coarser levels than 7 follow from the one below."""
    four = (3, 4, 5, 6)
    assert numbered(build("nas_fpn", four), four) == [
        *[(4, [3, 1]), (4, [1, 4]), (3, [0, 5]), (4, [5, 6])],
        *[(5, [7, 6, 2]), (6, [8, 5]), (6, [9, 8])],
    ]
    three = (3, 4, 5)
    graph = build("nas_fpn", three)
    assert numbered(graph, three) == [
        *[(4, [2, 1]), (4, [1, 3]), (3, [0, 4]), (4, [4, 5])],
        *[(5, [6, 5, 2]), (5, [7, 4]), (5, [8, 7])],
    ]
    assert [node.gate.by for node in graph if node.gate] == [(0,)] * 4
    six = (*LEVELS, 8)
    assert numbered(build("nas_fpn", six), six)[-1] == (8, [5, 6 + 5])


def test_outputs_are_the_last_nodes_finest_first():
    assert outputs_of(build("bifpn")) == {3: 3, 4: 4, 5: 5, 6: 6, 7: 7}
    assert list(outputs_of(build("fpn", depth=2)).items()) == [(3, 9), (4, 8), (5, 7), (6, 6), (7, 5)]


def cells(name, **options):
    return [node.cell for node in build(name, **options)]


def test_nodes_know_the_cell_that_they_were_drawn_in():
    assert cells("bifpn", depth=3) == [0] * 8 + [1] * 8 + [2] * 8
    assert cells("fpn", modalities=("a", "b", "c"), depth=2, placement="every") == [0] * 5 + [1] * 5
    # idle nodes of the first two cells are left out
    assert cells("stdn", depth=3) == [0, 1, 2, 2, 2, 2, 2]


def test_pyramids_of_their_own_have_the_same_cells_and_meet_in_one_after_them():
    assert cells("fpn", levels=(3, 4), modalities=("a", "b", "c"), depth=2, placement="last") == [0, 0, 1, 1] * 3 + [
        2,
        2,
    ]


def test_each_u_shape_is_a_cell_and_so_is_what_adds_them():
    one = {"levels": (3, 4, 5), "depth": 2}
    assert cells("m2det", **one) == [0] * 5 + [1] * 5 + [2] * 3
    both = cells("m2det", **one, modalities=("a", "b"), placement="last")
    assert both == ([0] * 5 + [1] * 5 + [2] * 3) * 2 + [3] * 3


def test_nodes_that_differ_in_their_cell_alone_are_equal():
    assert Node(3, (0,), cell=1) == Node(3, (0,), cell=2)
    assert Node(3, (0,), cell=1) != Node(3, (1,), cell=1)
