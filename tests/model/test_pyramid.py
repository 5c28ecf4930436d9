import pytest
import torch
import torch.nn.functional as F

from mmfuse.model import graphs
from mmfuse.model.fusion import FUSIONS, Fast
from mmfuse.model.nodes import Feature, Gate, Node
from mmfuse.model.presence import Presence
from mmfuse.model.pyramid import Pyramid, propagated, resample

LEVELS, WIDTH = (3, 4, 5, 6, 7), 8
CHANNELS = {"a": [4, 8, 6], "b": [3, 5, 8], "c": [2, 2, 2]}


def make(modalities, *, cell="bifpn", depth=2, inputs="first", merge=Fast, same=True):
    torch.manual_seed(0)
    graph = graphs.build(graphs.PYRAMIDS[cell], LEVELS, modalities, depth, inputs)
    pyramid = Pyramid(graph, {m: CHANNELS[m] for m in modalities}, WIDTH, merge, same=same, bias=same)
    return pyramid.eval()


def there(modalities, batch=2):
    return Presence.whole(modalities, batch)


def features(modalities, batch=2, height=16, width=32):
    generator = torch.Generator().manual_seed(3)
    return {
        m: [torch.randn(batch, c, height >> i, width >> i, generator=generator) for i, c in enumerate(CHANNELS[m])]
        for m in modalities
    }


@pytest.mark.parametrize(("inputs", "modalities"), [("first", "a"), ("first", "abc"), ("every", "ab")])
@pytest.mark.parametrize("cell", graphs.PYRAMIDS)
def test_levels_of_one_to_three_modalities(cell, inputs, modalities):
    pyramid = make(modalities, cell=cell, inputs=inputs)
    out = pyramid(features(modalities), there(modalities))
    assert [tuple(x.shape) for x in out] == [(2, WIDTH, 16 >> i, 32 >> i) for i in range(5)]


def test_a_graph_run_by_hand():
    graph = (
        Node(4, (Feature("a", 4), Feature("a", 5))),
        Node(3, (Feature("a", 3), 0)),
        Node(4, (0, 1)),
        Node(5, (Feature("a", 5), 2)),
    )
    torch.manual_seed(0)
    pyramid = Pyramid(graph, {"a": [8, 8, 8]}, 8, Fast, same=True, bias=True).eval()
    p3, p4, p5 = (torch.randn(1, 8, n, n) for n in (8, 4, 2))

    def node(index, *inputs):
        module = pyramid.nodes[index]
        return module.norm(module.conv(F.silu(sum(inputs) / (len(inputs) + 1e-4))))

    def up(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def down(x):
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    n0 = node(0, p4, up(p5))
    n1 = node(1, p3, up(n0))
    n2 = node(2, n0, down(n1))
    n3 = node(3, p5, down(n2))
    for got, wanted in zip(pyramid({"a": [p3, p4, p5]}, there("a", 1)), (n1, n2, n3), strict=True):
        torch.testing.assert_close(got, wanted)


def of_one_node(node, maps, channels=(8, 8, 8), levels=(3, 4, 5)):
    """What a node makes of maps of levels 3 to 5, before its own convolution, and the pyramid that holds it."""
    rest = tuple(Node(level, (Feature("a", level),)) for level in levels if level != node.level)
    torch.manual_seed(0)
    pyramid = Pyramid((*rest, node), {"a": channels}, 8, FUSIONS["sum"], same=True, bias=True).eval()
    seen = []
    pyramid.nodes[-1].conv.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        pyramid({"a": maps}, there("a", len(maps[0])))
    return seen[0], pyramid.nodes[-1]


def test_attention_scales_by_the_largest_value_of_the_other():
    p3, p4, p5 = (torch.randn(2, 8, n, n) for n in (8, 4, 2))
    node = Node(4, (Feature("a", 5), Feature("a", 4), Feature("a", 3)), Gate("attention", (0,), (1,)))
    got, _ = of_one_node(node, [p3, p4, p5])
    scale = p5.amax((2, 3), keepdim=True).sigmoid()
    up = p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(got, F.silu(up + scale * p4 + resample(p3, 1, True)))


def test_a_gate_unit_scales_place_by_place_and_is_not_added():
    p3, p4, p5 = (torch.randn(2, 8, n, n) for n in (8, 4, 2))
    node = Node(4, (Feature("a", 5), Feature("a", 4), Feature("a", 3)), Gate("unit", (0,), (1,)))
    got, module = of_one_node(node, [p3, p4, p5])
    scale = F.relu(module.unit.norm(module.unit.conv(p5))).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(got, F.silu(scale * p4 + resample(p3, 1, True)))


@pytest.mark.parametrize("kind", ["attention", "unit"])
def test_gates_of_several_modalities_take_those_that_are_there(kind):
    both = tuple(Feature(m, level) for level in (5, 4) for m in "ab")
    graph = (Node(3, (Feature("a", 3), Feature("b", 3))), Node(5, both[:2]), Node(4, both, Gate(kind, (0, 1), (2, 3))))
    torch.manual_seed(0)
    pyramid = Pyramid(graph, dict.fromkeys("ab", (8, 8, 8)), 8, FUSIONS["sum"], same=True, bias=True).eval()
    module, seen = pyramid.nodes[-1], []
    module.conv.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    maps = {m: [torch.randn(2, 8, n, n) for n in (8, 4, 2)] for m in "ab"}
    with torch.no_grad():
        pyramid(maps, Presence.of({"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}))

    def up(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    for image, there in ((0, "ab"), (1, "a")):
        coarse, fine = ([maps[m][i][image : image + 1] for m in there] for i in (2, 1))
        if kind == "attention":
            scale = torch.cat(coarse).amax((0, 2, 3), keepdim=True).sigmoid()
            total = sum(up(x) for x in coarse) + sum(x * scale for x in fine)
        else:
            scale = up(F.relu(module.unit.norm(module.unit.conv(sum(coarse) / len(there)))))
            total = sum(x * scale for x in fine)
        torch.testing.assert_close(seen[0][image : image + 1], F.silu(total * 2 / len(there)))


@pytest.mark.parametrize("width", [8, 6])
def test_scale_transfer_turns_channels_into_pixels(width):
    """A width that four doesn't divide is filled up with zeros."""
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, width, 2, 2)]
    got, module = of_one_node(Node(4, (Feature("a", 5),), transfer=True), maps, (8, 8, width))
    shuffled = torch.zeros(1, 2, 4, 4)
    for channel in range(width):
        shuffled[:, channel // 4, channel % 4 // 2 :: 2, channel % 2 :: 2] = maps[2][:, channel]
    torch.testing.assert_close(got, F.silu(module.laterals["0"](shuffled)))


def test_scale_transfer_averages_on_the_way_down():
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)]
    got, _ = of_one_node(Node(5, (Feature("a", 3),), transfer=True), maps)
    torch.testing.assert_close(got, F.silu(maps[0].view(1, 8, 2, 4, 2, 4).mean((3, 5))))


@pytest.mark.parametrize(("same", "padding"), [(True, (0, 1, 0, 1)), (False, (1, 1, 1, 1))])
def test_pooling_pads_at_the_end_or_on_both_sides(same, padding):
    x = -torch.rand(1, 2, 6, 4) - 1
    padded = F.pad(x, padding, value=-torch.inf)
    expected = torch.stack(
        [padded[:, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].amax((2, 3)) for r in range(3) for c in range(2)], -1
    ).view(1, 2, 3, 2)
    assert torch.equal(resample(x, 1, same), expected)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2, 3])
def test_resampling_by_any_power_of_two(shift, same):
    assert resample(torch.rand(1, 1, 8, 16), shift, same).shape == (1, 1, int(8 / 2**shift), int(16 / 2**shift))


def test_features_of_another_width_have_a_lateral_for_each_edge():
    pyramid = make("a", depth=3)
    of_node = {i: list(node.laterals) for i, node in enumerate(pyramid.nodes) if node.laterals}
    # level 4 has the pyramid's own width, level 5 is read by nodes 1 and 5, levels 6 and 7 are made by the extension
    assert of_node == {1: ["0"], 3: ["0"], 5: ["0"]}
    assert pyramid.nodes[1].laterals["0"] is not pyramid.nodes[5].laterals["0"]
    assert list(pyramid.extend) == ["a"]


def test_each_modality_keeps_its_laterals_where_it_is_read_again():
    first, every = (
        sum(len(n.laterals) for n in make("ab", depth=2, inputs=inputs).nodes) for inputs in ("first", "every")
    )
    assert every == 2 * first


@pytest.mark.parametrize(
    ("cell", "fusion"),
    [*((cell, "fast") for cell in graphs.PYRAMIDS), *(("bifpn", fusion) for fusion in FUSIONS if fusion != "fast")],
)
def test_gradients_reach_every_parameter_and_feature(cell, fusion):
    pyramid = make("ab", cell=cell, merge=FUSIONS[fusion])
    maps = {m: [x.requires_grad_() for x in part] for m, part in features("ab").items()}
    sum(x.square().sum() for x in pyramid(maps, there("ab"))).backward()
    read = {source for node in pyramid.graph for source in node.inputs}
    for m, part in maps.items():
        for level, x in zip(LEVELS, part, strict=False):
            assert (x.grad is not None and bool(x.grad.any())) == (Feature(m, level) in read)
    # a softmax over the one input of a node can't have a gradient
    alone = tuple(f"nodes.{i}.merge" for i, node in enumerate(pyramid.graph) if len(node.inputs) == 1)
    without = [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if fusion != "softmax" or not name.startswith(alone)] == []


def shared(graph, weights, fusion="fast", modalities="abc"):
    """The shares of a graph's outputs, in the order of the modalities, by level, given the weights of its nodes."""
    pyramid = Pyramid(graph, dict.fromkeys(modalities, (8, 8, 8)), 8, FUSIONS[fusion], same=True, bias=True)
    for merge, values in zip(pyramid.merges, weights, strict=True):
        merge.weight.data.copy_(torch.tensor(values))
    shares = pyramid.modality_shares()
    assert list(shares) == list(modalities)
    return {level: [shares[m][level] for m in modalities] for level in pyramid.levels}


def test_shares_go_through_the_graph_by_hand():
    graph = (
        Node(4, (Feature("a", 4), Feature("b", 4), Feature("c", 4))),
        Node(3, (Feature("a", 3), 0)),
        Node(4, (0, 1)),
        Node(5, (Feature("c", 5), 2)),
    )
    shares = shared(graph, ([1.0, 2.0, 1.0], [1.0, 3.0], [1.0, 1.0], [4.0, 1.0]))
    # node 0: 1/4, 1/2, 1/4; node 1: 1/4 a + 3/4 node 0; node 2: their mean; node 3: 4/5 c + 1/5 node 2
    assert list(shares) == [3, 4, 5]
    assert shares[3] == pytest.approx([0.4375, 0.375, 0.1875])
    assert shares[4] == pytest.approx([0.34375, 0.4375, 0.21875])
    assert shares[5] == pytest.approx([0.06875, 0.0875, 0.84375])


def test_negative_weights_count_by_their_magnitude_and_features_by_name():
    graph = (Node(3, (Feature("b", 3), Feature("a", 3))), Node(4, (Feature("a", 4), 0)), Node(5, (Feature("b", 5),)))
    shares = shared(graph, ([-3.0, 1.0], [-1.0, 1.0], [-2.0]), "unbounded", "ab")
    assert shares == {
        3: pytest.approx([0.25, 0.75]),
        4: pytest.approx([0.625, 0.375]),
        5: pytest.approx([0.0, 1.0]),
    }


def test_what_only_gates_has_no_share():
    gated = Node(3, (Feature("a", 4), Feature("b", 3), Feature("c", 3)), Gate("unit", (0,), (1,)))
    graph = (Node(4, (Feature("a", 4),)), gated, Node(5, (1,)))
    assert shared(graph, ([1.0], [1.0, 3.0], [1.0]))[5] == pytest.approx([0.0, 0.25, 0.75])


def test_a_node_whose_weights_are_all_shut_has_no_shares_and_counts_nowhere():
    graph = (Node(3, (Feature("a", 3), Feature("b", 3))), Node(4, (Feature("a", 4), 0)), Node(5, (Feature("b", 5),)))
    shares = shared(graph, ([-1.0, -1.0], [1.0, 1.0], [1.0]), modalities="ab")
    assert (shares[3], shares[4]) == ([0.0, 0.0], pytest.approx([1.0, 0.0]))


@pytest.mark.parametrize("cell", graphs.PYRAMIDS)
def test_shares_of_every_level_add_up_to_one(cell):
    for inputs, modalities in (("first", "a"), ("first", "abc"), ("every", "abc"), ("last", "abc")):
        pyramid = make(modalities, cell=cell, inputs=inputs)
        for merge in pyramid.merges:
            torch.nn.init.uniform_(merge.weight, 0.1, 2)
        shares = pyramid.modality_shares()
        for level in LEVELS:
            assert sum(shares[m][level] for m in modalities) == pytest.approx(1, abs=1e-5), (inputs, modalities)


def test_weights_of_each_image_are_propagated_by_themselves():
    graph = (Node(3, (Feature("a", 3), Feature("b", 3))), Node(4, (Feature("b", 4), 0)))
    first, second = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.2, 0.8]])
    wanted = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    torch.testing.assert_close(propagated(graph, [first, second], "ab")[1], wanted)
