import pytest

from mmfuse.model import graphs
from mmfuse.model.graphs import Feature, Node

LEVELS = (3, 4, 5, 6, 7)


def numbered(graph, levels=LEVELS, modality="rgb"):
    """Edges as papers write them: inputs first, finest first, then the nodes in order."""
    place = {Feature(modality, level): i for i, level in enumerate(levels)}
    return [
        (node.level, [place[s] if isinstance(s, Feature) else s + len(levels) for s in node.inputs]) for node in graph
    ]


def test_bifpn_is_the_published_table():
    assert numbered(graphs.build(graphs.bifpn, LEVELS, ["rgb"], 1)) == [
        (6, [3, 4]),
        (5, [2, 5]),
        (4, [1, 6]),
        (3, [0, 7]),
        (4, [1, 7, 8]),
        (5, [2, 6, 9]),
        (6, [3, 5, 10]),
        (7, [4, 11]),
    ]


def test_a_second_bifpn_cell_reads_the_outputs_of_the_first():
    second = numbered(graphs.build(graphs.bifpn, LEVELS, ["rgb"], 2))[8:]
    assert second == [
        (6, [11, 12]),
        (5, [10, 13]),
        (4, [9, 14]),
        (3, [8, 15]),
        (4, [9, 15, 16]),
        (5, [10, 14, 17]),
        (6, [11, 13, 18]),
        (7, [12, 19]),
    ]


def test_fpn_edges():
    assert numbered(graphs.build(graphs.fpn, (3, 4, 5), ["rgb"], 1), (3, 4, 5)) == [(5, [2]), (4, [1, 3]), (3, [0, 4])]


def test_panet_edges():
    assert numbered(graphs.build(graphs.panet, (3, 4, 5), ["rgb"], 1), (3, 4, 5)) == [
        (5, [2]),
        (4, [1, 3]),
        (3, [0, 4]),
        (3, [5]),
        (4, [4, 6]),
        (5, [3, 7]),
    ]


@pytest.mark.parametrize("modalities", [("rgb", "thermal"), ("a", "b", "c")])
@pytest.mark.parametrize("name", graphs.PYRAMIDS)
def test_whatever_reads_a_level_reads_it_from_every_modality(name, modalities):
    cell = graphs.PYRAMIDS[name]
    single = graphs.build(cell, LEVELS, modalities[:1], 2)
    expected = tuple(
        Node(
            node.level,
            tuple(
                each
                for source in node.inputs
                for each in (
                    [Feature(m, source.level) for m in modalities] if isinstance(source, Feature) else [source]
                )
            ),
        )
        for node in single
    )
    assert graphs.build(cell, LEVELS, modalities, 2) == expected


def test_every_cell_may_read_the_modalities_again():
    graph = graphs.build(graphs.bifpn, LEVELS, ("a", "b"), 2, "every")
    first = graphs.build(graphs.bifpn, LEVELS, ("a", "b"), 1)
    assert graph[:8] == first

    def both(level):
        return Feature("a", level), Feature("b", level)

    assert graph[8] == Node(6, (6, *both(6), 7, *both(7)))
    assert graph[12] == Node(4, (4, *both(4), 10, 11))
    assert graph[15] == Node(7, (7, *both(7), 14))


@pytest.mark.parametrize("name", graphs.PYRAMIDS)
def test_nodes_read_only_what_has_run_and_every_feature_is_read(name):
    graph = graphs.build(graphs.PYRAMIDS[name], LEVELS, ("a", "b"), 3)
    for index, node in enumerate(graph):
        assert all(source < index for source in node.inputs if isinstance(source, int))
    read = {source for node in graph for source in node.inputs if isinstance(source, Feature)}
    assert read == {Feature(m, level) for m in ("a", "b") for level in LEVELS}


def test_outputs_are_the_last_nodes_finest_first():
    assert graphs.outputs(graphs.build(graphs.bifpn, LEVELS, ["rgb"], 1)) == {3: 3, 4: 4, 5: 5, 6: 6, 7: 7}
    assert list(graphs.outputs(graphs.build(graphs.fpn, LEVELS, ["rgb"], 2)).items()) == [
        (3, 9),
        (4, 8),
        (5, 7),
        (6, 6),
        (7, 5),
    ]
