import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.fusion import EPSILON, FUSIONS, merge_type
from mmfuse.model.nodes import Feature
from mmfuse.model.presence import Rows

COUNT, WIDTH = 3, 4


@pytest.fixture(params=FUSIONS)
def name(request):
    return request.param


def make(name, count=COUNT):
    """A merge whose parameters are no longer at their start."""
    torch.manual_seed(1)
    merge = FUSIONS[name](count, WIDTH)
    with torch.no_grad():
        for parameter in merge.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.2)
    return merge


def maps(count=COUNT, batch=2):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, WIDTH, 5, 3, generator=generator) for _ in range(count)]


def rows_of(present):
    """Which images have each input, given a mask (B, n)."""
    return [Rows.of(mask) for mask in present.unbind(1)]


def smaller(name, merge, kept):
    """The merge of fewer inputs with the same parameters."""
    other = FUSIONS[name](len(kept), WIDTH)
    if hasattr(merge, "weight"):
        other.weight.data.copy_(merge.weight.data[kept])
    for new, index in zip(getattr(other, "gates", []), kept, strict=False):
        new.load_state_dict(merge.gates[index].state_dict())
    return other


def test_all_present_equals_no_mask(name):
    merge, inputs = make(name), maps()
    assert torch.equal(merge(inputs, rows_of(torch.ones(2, COUNT, dtype=torch.bool))), merge(inputs))


def test_one_input_works(name):
    merge, (x,) = FUSIONS[name](1, WIDTH), maps(1)
    total = {"gated": 0.5, "gated_spatial": 0.5, "fast": 1.0, "channel": 1.0}.get(name)
    scale = total / (total + EPSILON) if total else 1.0
    torch.testing.assert_close(merge([x]), x * scale)


@pytest.mark.parametrize("pixels", [float("nan"), float("inf"), -1e30, 7.0])
def test_what_an_absent_input_holds_changes_nothing(name, pixels):
    merge, inputs = make(name), maps()
    present = torch.tensor([[True, False, True], [True, True, False]])
    clean = [x.where(present[:, i, None, None, None], 0) for i, x in enumerate(inputs)]
    dirty = [x.where(present[:, i, None, None, None], pixels).requires_grad_() for i, x in enumerate(inputs)]
    out = merge(dirty, rows_of(present))
    assert torch.equal(out, merge(clean, rows_of(present)))
    out.square().sum().backward()
    for i, x in enumerate(dirty):
        assert x.grad.isfinite().all()
        assert torch.equal(x.grad[~present[:, i]], torch.zeros_like(x.grad[~present[:, i]]))
    assert all(p.grad.isfinite().all() for p in merge.parameters())


@pytest.mark.parametrize("absent", range(COUNT))
def test_none_and_a_mask_say_the_same(name, absent):
    merge, inputs = make(name), maps()
    present = torch.ones(2, COUNT, dtype=torch.bool)
    present[:, absent] = False
    by_mask = merge(inputs, rows_of(present))
    without = [None if i == absent else x for i, x in enumerate(inputs)]
    torch.testing.assert_close(merge(without), by_mask)
    torch.testing.assert_close(merge(without, rows_of(present)), by_mask)


@pytest.mark.parametrize("kept", [[0, 1], [1, 2], [2]])
def test_the_others_are_normalised_again(name, kept):
    merge, inputs = make(name), maps()
    fewer = smaller(name, merge, kept)([inputs[i] for i in kept])
    scale = COUNT / len(kept) if name == "sum" else 1.0
    out = merge([x if i in kept else None for i, x in enumerate(inputs)])
    torch.testing.assert_close(out, fewer * scale)


def test_images_don_t_see_each_other(name):
    merge, inputs = make(name), maps(batch=3)
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    each = [merge([x[i : i + 1] for x in inputs], rows_of(present[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(merge(inputs, rows_of(present)), torch.cat(each))


def test_gradients_reach_every_present_input_and_every_weight(name):
    merge, inputs = make(name), [x.requires_grad_() for x in maps()]
    merge(inputs).square().sum().backward()
    for value in (*inputs, *merge.parameters()):
        assert (value.grad != 0).any()
    if name not in ("sum", "gated", "gated_spatial"):
        assert (merge.weight.grad != 0).all()


def test_shares_are_readable_and_add_up_to_one(name):
    merge = make(name)
    shares = merge.shares()
    assert shares.shape == (COUNT,)
    assert not shares.requires_grad
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(FUSIONS[name](COUNT, WIDTH).shares(), torch.full((COUNT,), 1 / COUNT))
    if name in ("fast", "unbounded", "gated", "gated_spatial"):
        merge.weight.data.copy_(torch.tensor([1.0, 3.0, 0.0]))
        torch.testing.assert_close(merge.shares(), torch.tensor([0.25, 0.75, 0.0]))


def test_the_formulas():
    a, b = maps(2)
    weight = torch.tensor([2.0, -1.0])

    def merged(name, value):
        merge = FUSIONS[name](2, WIDTH)
        merge.weight.data.copy_(value)
        return merge([a, b])

    torch.testing.assert_close(merged("fast", weight), a * 2 / (2 + EPSILON))
    torch.testing.assert_close(merged("unbounded", weight), 2 * a - b)
    soft = weight.softmax(0)
    torch.testing.assert_close(merged("softmax", weight), soft[0] * a + soft[1] * b)
    torch.testing.assert_close(FUSIONS["sum"](2, WIDTH)([a, b]), a + b)
    channels = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 3.0]])
    total = (channels.sum(0) + EPSILON)[:, None, None]
    torch.testing.assert_close(
        merged("channel", channels), (a * channels[0, :, None, None] + b * channels[1, :, None, None]) / total
    )


def test_a_gate_turns_its_input_down_in_that_image_alone():
    merge = FUSIONS["gated"](2, 1)
    merge.gates[0].weight.data.fill_(-50)
    dark, bright = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0)
    out = merge([torch.cat((dark, bright)), torch.zeros(2, 1, 2, 2)])
    assert out[0].mean().item() == pytest.approx(-2 / 3, abs=1e-3)
    assert out[1].abs().max().item() < 1e-6


def test_a_spatial_gate_turns_its_input_down_at_that_place_alone():
    merge = FUSIONS["gated_spatial"](2, 1)
    merge.gates[0].weight.data.fill_(-50)
    x = torch.ones(1, 1, 2, 3)
    x[..., 1] = -1
    out = merge([x, torch.zeros_like(x)])
    # the gate of a place with 1 is shut; with -1 it is open and the other's half open: -1 * 1 / (1 + 0.5)
    torch.testing.assert_close(out, torch.where(x > 0, 0.0, -2 / 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["gated", "gated_spatial"])
def test_gates_learn_which_images_or_places_are_dark(name):
    """Input 0 shows the scene, but for where it is dark; input 1 shows it with noise. The merge must show the scene."""
    torch.manual_seed(0)
    merge = FUSIONS[name](2, WIDTH)
    optimiser = torch.optim.Adam(merge.parameters(), 0.05)

    def drawn(batch):
        dark = torch.rand(batch, 1, 1, 1) < 0.5 if name == "gated" else torch.rand(batch, 1, 5, 6) < 0.5
        scene = torch.randn(batch, WIDTH, 5, 6)
        return dark, scene, [torch.where(dark, -2.0, 1 + scene), scene + 0.3 * torch.randn_like(scene)]

    for _ in range(150):
        _, scene, inputs = drawn(16)
        optimiser.zero_grad()
        (merge(inputs) - scene).square().mean().backward()
        optimiser.step()
    dark, _, inputs = drawn(32)
    with torch.no_grad():
        share = merge.weights(inputs, torch.ones(1, 2))[:, 0].expand(-1, -1, 5, 6)
    where = dark.expand_as(share)
    assert share[where].mean() < 0.5 * share[~where].mean()
    assert share[where].mean() < merge.shares()[0]


def test_gates_of_a_whole_detector_turn_away_from_a_sensor_in_the_dark():
    """They alone are trained, to give in the dark what the other sensor gives alone, and in light what both do."""
    torch.manual_seed(0)
    detector = create_detector("d-4", {"a": 1, "b": 1}, 1, fusion="gated")
    gates = [p for name, p in detector.named_parameters() if ".gates." in name]
    for parameter in detector.parameters():
        parameter.requires_grad_(any(parameter is gate for gate in gates))
    optimiser = torch.optim.Adam(gates, 0.1)

    def drawn(batch):
        dark, scene = torch.rand(batch) < 0.5, torch.randn(batch, 1, 64, 64)
        return dark, {"a": torch.where(dark[:, None, None, None], 0.02 * scene - 3, scene), "b": scene}

    for norm in (part for part in detector.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.momentum = None  # statistics of what comes next
    with torch.no_grad():
        detector.train()(drawn(16)[1])
    detector.eval()
    for _ in range(40):
        dark, images = drawn(8)
        with torch.no_grad():
            wanted = detector(images, {"a": ~dark, "b": torch.ones(8, dtype=torch.bool)}).class_logits
        optimiser.zero_grad()
        (detector(images).class_logits - wanted).square().mean().backward()
        optimiser.step()
    dark, images = drawn(32)
    weights = []
    for node, merge in zip(detector.pyramid.graph, detector.pyramid.merges, strict=True):
        for place in (i for i, source in enumerate(node.inputs) if source == Feature("a", node.level)):
            merge.register_forward_hook(
                lambda merge, given, made, place=place: weights.append(
                    merge.weights(given[0], torch.ones(1, merge.count))[:, place].flatten()
                )
            )
    with torch.no_grad():
        detector(images)
    share = torch.stack(weights).mean(0)
    assert share[dark].mean() < 0.7 * share[~dark].mean()


def test_gates_cost_next_to_nothing():
    def cost(fusion):
        with torch.device("meta"):
            detector = create_detector("d0", {"a": 3, "b": 1}, 90, fusion=fusion).eval()
            images = {"a": torch.empty(1, 3, 512, 512), "b": torch.empty(1, 1, 512, 512)}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector(images)
        return counter.get_total_flops()

    plain = cost("fast")
    for name in ("gated", "gated_spatial"):
        assert plain < cost(name) <= 1.03 * plain


def test_weights_follow_the_type_of_the_maps(name):
    inputs = [x.bfloat16() for x in maps()]
    assert make(name).bfloat16()(inputs).dtype == torch.bfloat16


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"^fusion: 'fastt' is not a known fusion; did you mean 'fast'\?$"):
        merge_type("fastt")
