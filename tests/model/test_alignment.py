import json

import pytest
import torch
import torch.nn.functional as F
from tiny import BACKBONES, CHANNELS, inputs, make, raw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmfuse import scaling
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.alignment import Alignment, OffsetNet, sample
from mmfuse.model.build import create_detector
from mmfuse.model.effdet_weights import export_effdet, import_effdet
from mmfuse.model.grafting import graft
from mmfuse.model.presence import Presence
from mmfuse.recipes import ModelRecipe, Recipe, TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.branches import StepLoss

pytestmark = pytest.mark.usefixtures("tiny_sizes")

ALL = Presence.whole("abc", 2)
TARGETS = Targets([torch.tensor([[4.0, 4, 60, 70]])] * 2, [torch.tensor([1])] * 2)


def make_aligned(modalities="ab", align="a", **options):
    """A detector whose offsets are far from zero and depend on what both maps hold."""
    detector = make(modalities, align=align, **options)
    spread(detector.alignment)
    return detector


def spread(alignment):
    generator = torch.Generator().manual_seed(3)
    for net in nets_of(alignment):
        net.offsets.weight.data.normal_(generator=generator).mul_(0.1)
        net.offsets.bias.data.uniform_(0.5, 1.5, generator=generator)


def nets_of(module):
    return [part for part in module.modules() if isinstance(part, OffsetNet)]


def same(one, other, **tolerance):
    torch.testing.assert_close(one.class_logits, other.class_logits, **tolerance)
    torch.testing.assert_close(one.box_codes, other.box_codes, **tolerance)


def equal(one, other):
    return torch.equal(one.class_logits, other.class_logits) and torch.equal(one.box_codes, other.box_codes)


# ---- sample


def read_slowly(x, offsets):
    """Bilinear interpolation with zeros around the map, a value at a time."""
    batch, _, height, width = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                at_y, at_x = i + offsets[b, 0, i, j].item(), j + offsets[b, 1, i, j].item()
                for row in range(height):
                    for column in range(width):
                        weight = max(0.0, 1 - abs(at_y - row)) * max(0.0, 1 - abs(at_x - column))
                        out[b, :, i, j] += weight * x[b, :, row, column]
    return out


def test_sampling_is_bilinear_at_each_place_and_zero_outside():
    torch.manual_seed(0)
    x, offsets = torch.randn(3, 5, 4, 6), 2.5 * torch.randn(3, 2, 4, 6)
    torch.testing.assert_close(sample(x, offsets), read_slowly(x, offsets))


def test_offsets_are_rows_then_columns_from_which_a_place_reads():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    down = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    assert sample(x, down).tolist() == [[[[3.0, 4.0, 5.0], [0.0, 0.0, 0.0]]]]
    half_right = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    assert sample(x, half_right).tolist() == [[[[0.5, 1.5, 1.0], [3.5, 4.5, 2.5]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_offsets_change_no_bit(dtype):
    x = torch.randn(2, 33, 7, 5).to(dtype)
    made = sample(x, torch.zeros(2, 2, 7, 5, dtype=dtype))
    assert made.dtype == dtype
    assert torch.equal(made, x)


def test_an_offset_that_is_no_number_gives_none_there_and_far_ones_give_zero():
    x, offsets = torch.ones(2, 3, 4, 4), torch.zeros(2, 2, 4, 4)
    offsets[0, 0, 1, 2], offsets[0, 1, 3, 3] = torch.nan, torch.nan
    offsets[1, 0, 0, 0], offsets[1, 1, 0, 1], offsets[1, 0, 0, 2] = torch.inf, -torch.inf, -1e30
    expected = torch.ones(2, 3, 4, 4)
    expected[0, :, 1, 2] = expected[0, :, 3, 3] = torch.nan
    expected[1, :, 0, :3] = 0
    torch.testing.assert_close(sample(x, offsets), expected, equal_nan=True)


# ---- offsets


def test_offsets_depend_on_both_maps():
    torch.manual_seed(0)
    net = OffsetNet(3, 5, 8, bias=False).eval()
    x, reference = torch.randn(2, 3, 6, 4), torch.randn(2, 5, 6, 4)
    assert net(x, reference).shape == (2, 2, 6, 4)
    assert not net(x, reference).any()
    nn.init.normal_(net.offsets.weight)
    first = net(x, reference)
    assert not torch.equal(net(x + 1, reference), first)
    assert not torch.equal(net(x, reference + 1), first)


def test_it_learns_to_shift():
    """Maps show the reference's content in other channels, moved by 2 rows and -1 column."""
    torch.manual_seed(0)
    net, mix = OffsetNet(6, 4, 16, bias=False).train(), torch.randn(6, 4) / 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    errors = []
    for _ in range(60):
        reference = 3 * F.avg_pool2d(torch.randn(4, 4, 22, 22), 3, 1)
        wanted = torch.einsum("oc,bchw->bohw", mix, reference)
        moved = wanted.roll((2, -1), (2, 3))
        offsets = net(moved, reference)
        inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
        error = F.mse_loss(sample(moved, offsets)[inner], wanted[inner])
        errors.append((error / F.mse_loss(moved[inner], wanted[inner])).item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[0] == 1.0
    assert max(errors[-5:]) < 0.15
    assert offsets[inner].mean((0, 2, 3)).tolist() == pytest.approx([2, -1], abs=0.25)


# ---- a fresh detector

ARRANGEMENTS = [
    ("ab", {"align": "a"}),
    ("ab", {"align": "b", "flavour": "symmetric"}),
    ("abc", {"align": "b"}),
    ("abc", {"align": "a", "placement": "every", "pyramid_depth": 2}),
    ("abc", {"align": "c", "placement": "last"}),
    ("ab", {"align": "a", "pyramid": "stdn"}),
    ("ab", {"align": "a", "pyramid": "m2det"}),
]


@pytest.mark.parametrize(("modalities", "options"), ARRANGEMENTS, ids=str)
def test_a_fresh_detector_says_what_it_says_without_alignment(modalities, options):
    images = inputs(modalities)
    detector, plain = make(modalities, **options), make(modalities, **options | {"align": None})
    assert plain.alignment is None
    noise = 1e-5 if "c" in modalities else 0.0  # its maps lie channels last in memory, aligned ones don't
    with torch.no_grad():
        same(detector(images), plain(images), rtol=noise, atol=noise)
        spread(detector.alignment)
        assert not equal(detector(images), plain(images))


@pytest.mark.parametrize(("modalities", "options"), ARRANGEMENTS, ids=str)
def test_gradients_move_the_offsets_at_the_first_step_and_reach_all_else_after(modalities, options):
    detector = make(modalities, **options).train()
    images, nets = inputs(modalities), nets_of(detector.alignment)
    detector.loss(detector(images), TARGETS)["total"].backward()
    assert all(p.grad is not None for p in detector.alignment.parameters())  # processes wait for each of them
    for net in nets:
        assert net.offsets.weight.grad.any()
        assert net.offsets.bias.grad.any()
    spread(detector.alignment)
    detector.loss(detector(images), TARGETS)["total"].backward()
    for net in nets:
        for conv in (net.own.conv, net.reference.conv, net.conv.depthwise, net.conv.pointwise):
            assert conv.weight.grad.any()


def test_levels_that_the_pyramid_does_not_read_have_no_net():
    counts = {p: len(nets_of(make("abc", align="a", pyramid=p).alignment)) for p in ("bifpn", "m2det", "stdn")}
    assert counts == {"bifpn": 6, "m2det": 4, "stdn": 2}


def test_a_shared_backbone_can_be_aligned():
    options = {"backbone": "test_resnet", "share_backbone": True}
    torch.manual_seed(0)
    detector = create_detector("tiny", {"a": 1, "b": 1}, 2, align="b", **options).eval()
    torch.manual_seed(0)
    plain = create_detector("tiny", {"a": 1, "b": 1}, 2, **options).eval()
    images = {m: torch.randn(1, 1, 128, 128) for m in "ab"}
    with torch.no_grad():
        assert equal(detector(images), plain(images))
        spread(detector.alignment)
        assert not equal(detector(images), plain(images))


def test_it_costs_less_than_a_tenth():
    side, counts = scaling.size("d0").resolution, []
    with torch.device("meta"):
        detector = create_detector("d0", {"a": 3, "b": 1}, 90, align="a").eval()
        images = {m: torch.empty(1, channels, side, side) for m, channels in detector.spec["modalities"].items()}
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            detector(images)
        counts.append(counter.get_total_flops() / 2)
        detector.alignment = None
    # deform_conv2d isn't counted: the four neighbours of a value, then the identity
    channels = detector.backbones["b"].channels
    sampling = sum((c * c + 4 * c) * (side // 8 // 2**i) ** 2 for i, c in enumerate(channels))
    assert 1.01 < (counts[0] + sampling) / counts[1] < 1.05


# ---- which images are aligned


def test_the_others_are_aligned_with_the_reference_which_stays():
    detector = make_aligned("abc", align="b")
    with torch.no_grad():
        features = detector.features(inputs("abc"), ALL)
        aligned = detector.alignment(features, ALL)
    assert list(aligned) == list(features)
    assert aligned["b"] is features["b"]
    for m in "ac":
        for i, (x, before) in enumerate(zip(aligned[m], features[m], strict=True)):
            net = detector.alignment.nets[m][str(i)]
            assert torch.equal(x, sample(before, net(before, features["b"][i])))
            assert not torch.equal(x, before)


def test_images_that_lack_one_of_the_two_keep_their_features():
    detector, images = make_aligned("abc"), inputs("abc", batch=4)
    present = {
        "a": torch.tensor([True, False, True, True]),
        "b": torch.tensor([True, True, False, True]),
        "c": torch.tensor([False, True, False, False]),
    }
    with torch.no_grad():
        features = detector.features(images, Presence.whole("abc", 4))
        aligned = detector.alignment(features, Presence.of(present))
        both = {m: [x[[0, 3]] for x in maps] for m, maps in features.items()}
        expected = detector.alignment(both, ALL)
        for noise in (torch.nan, torch.inf, 1e30):
            for m, mask in present.items():
                for x in features[m]:
                    x[~mask] = noise
            got = detector.alignment(features, Presence.of(present))
            for x, y, before in zip(got["b"], expected["b"], features["b"], strict=True):
                torch.testing.assert_close(x[[0, 3]], y)
                assert torch.equal(x[1], before[1])
                assert torch.equal(x[2].nan_to_num(7), before[2].nan_to_num(7))
    assert not torch.equal(aligned["b"][0][0], features["b"][0][0])
    assert aligned["c"] is features["c"]


def test_what_is_absent_from_the_whole_batch_is_no_work():
    detector, images = make_aligned("abc"), inputs("abc")
    ran = []
    for net in nets_of(detector.alignment):
        net.register_forward_hook(lambda net, *_: ran.append(net))
    own = {m: set(nets_of(detector.alignment.nets[m])) for m in "bc"}
    with torch.no_grad():
        for absent, expected in (("a", set()), ("b", own["c"]), ("c", own["b"]), ("", own["b"] | own["c"])):
            left = {m: x for m, x in images.items() if m != absent}
            masks = {m: torch.full((2,), m != absent) for m in images}
            for given in ((left,), (left, masks), (images, masks)):
                ran.clear()
                detector(*given)
                assert set(ran) == expected
        ran.clear()
        detector(images, {"a": torch.tensor([True, False]), "b": torch.tensor([False, True])})
        assert set(ran) == own["c"]


def test_a_batch_is_its_images_one_by_one():
    detector, images = make_aligned("abc", align="b"), inputs("abc", batch=4)
    present = {
        "a": torch.tensor([True, False, True, False]),
        "b": torch.tensor([True, True, False, False]),
        "c": torch.tensor([True, True, False, True]),
    }
    with torch.no_grad():
        whole = detector(images, present)
        for i in range(4):
            one = detector({m: x[i : i + 1] for m, x in images.items() if present[m][i]})
            torch.testing.assert_close(whole.class_logits[i : i + 1], one.class_logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(whole.box_codes[i : i + 1], one.box_codes, rtol=1e-4, atol=1e-4)


def test_images_that_lack_one_of_the_two_don_t_enter_the_statistics():
    masked, alone = (make_aligned("ab").train() for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    maps = {m: [torch.randn(4, c, 4, 4, generator=generator) for c in masked.backbones[m].channels] for m in "ab"}
    present = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([True, False, True, True])}
    masked.alignment(maps, Presence.of(present))
    alone.alignment({m: [x[[0, 3]] for x in own] for m, own in maps.items()}, ALL)
    fresh = make_aligned("ab").alignment.state_dict()
    moved = 0
    for key, value in masked.alignment.state_dict().items():
        torch.testing.assert_close(value, alone.alignment.state_dict()[key])
        moved += key.endswith("running_mean") and not torch.equal(value, fresh[key])
    assert moved == 9


def test_branches_that_see_one_sensor_alone_are_not_aligned():
    detector, images = make_aligned("ab"), inputs("ab")
    present = {m: torch.ones(2, dtype=torch.bool) for m in "ab"}
    with torch.no_grad():
        losses = StepLoss(detector, TrainRecipe(branch_losses=1.0))(images, present, TARGETS)
        whole = detector.loss(detector(images), TARGETS)
        repeated = Targets(TARGETS.boxes * 2, TARGETS.labels * 2)
        each = [detector({m: images[m]}) for m in "ab"]
        joined = type(each[0])(
            torch.cat([one.class_logits for one in each]), torch.cat([one.box_codes for one in each]), each[0].size
        )
        branch = detector.loss(joined, repeated)["total"]
    torch.testing.assert_close(losses["class"], whole["class"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["box"], whole["box"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["branch"], branch, rtol=1e-4, atol=1e-4)


# ---- checkpoints, starts from single modalities and weights of effdet's


def test_a_checkpoint_holds_it(tmp_path):
    detector = make_aligned("abc", align="c", placement="every")
    assert json.loads(json.dumps(detector.spec))["align"] == "c"
    checkpoint.save_detector(tmp_path / "best.safetensors", detector, {})
    again = checkpoint.load(tmp_path)
    assert again.spec == detector.spec
    with torch.no_grad():
        same = detector.to(memory_format=torch.channels_last)
        assert equal(again(inputs("abc")), same(inputs("abc")))


def test_specs_from_before_it_load():
    detector = make("ab")
    old = {key: value for key, value in detector.spec.items() if key != "align"}
    again = checkpoint.build(old)
    again.load_state_dict(detector.state_dict())
    with torch.no_grad():
        assert equal(again.eval()(inputs("ab")), detector(inputs("ab")))


def test_it_starts_from_single_modalities():
    singles = {m: make(m, fusion="fast") for m in "ab"}
    aligned, plain = make("ab", align="a"), make("ab")
    for detector in (aligned, plain):
        graft(detector, singles, "b")
    with torch.no_grad():
        assert equal(aligned(inputs("ab")), plain(inputs("ab")))


def test_weights_of_effdet_s_leave_it_as_it_is_and_have_no_place_for_it():
    source = make("b", num_classes=3)
    state = export_effdet(source)
    detector, plain = make_aligned("ab"), make("ab")
    before = {key: value.clone() for key, value in detector.alignment.state_dict().items()}
    notes = [import_effdet(one, state) for one in (detector, plain)]
    assert notes[0].loaded == notes[1].loaded
    assert all(torch.equal(value, before[key]) for key, value in detector.alignment.state_dict().items())
    with torch.no_grad():
        alone = {"b": inputs("ab")["b"]}
        assert equal(detector(alone), plain(alone))
    with pytest.raises(UserError, match=r"modalities a, b.*effdet has one modality"):
        export_effdet(detector)


def test_detections_come_out_of_an_aligned_detector():
    detector = make_aligned("ab")
    assert len(detector.detect(raw("ab"))[0])
    assert len(detector.detect({"b": raw("ab")["b"]})[0])


# ---- what is refused


@pytest.mark.parametrize(
    ("modalities", "model", "message"),
    [
        ("ab", {"align": "aa"}, r"^{}align: 'aa' is not a known modality of this detector; did you mean 'a'\?$"),
        ("ab", {"align": "thermal"}, r"^{}align: 'thermal' is not a known modality of this detector; use one of a, b$"),
        ("a", {"align": "a"}, r"^{}align: 'a' is not allowed; leave it out for one modality$"),
        ("a", {"align": "b"}, r"^{}align: 'b' is not allowed; leave it out for one modality$"),
        *(
            (
                "ab",
                {"align": "a", "placement": placement},
                rf"^{{}}align: 'a' is not allowed; leave it out for placement {placement}$",
            )
            for placement in ("channels", "boxes")
        ),
    ],
)
def test_wrong_names_and_places_are_one_line(modalities, model, message):
    with pytest.raises(UserError, match=message.format("model.")):
        Recipe("x", "card.yaml", tuple(modalities), ModelRecipe(**model))
    with pytest.raises(UserError, match=message.format("")):
        create_detector("tiny", {m: CHANNELS[m] for m in modalities}, 2, backbone=BACKBONES["a"], **model)


@pytest.mark.parametrize("placement", ["first", "every", "last"])
def test_a_recipe_can_name_any_of_its_modalities(placement):
    recipe = Recipe("x", "card.yaml", ("a", "b", "c"), ModelRecipe(placement=placement, align="c"))
    assert recipe.to_dict()["model"]["align"] == "c"
    assert ModelRecipe().align is None


def test_alignment_reads_its_widths_by_level():
    detector = make("ab", align="b", width=12)
    assert isinstance(detector.alignment, Alignment)
    own, reference = detector.backbones["a"].channels, detector.backbones["b"].channels
    for place, net in detector.alignment.nets["a"].items():
        assert net.own.conv.in_channels == own[int(place)]
        assert net.reference.conv.in_channels == reference[int(place)]
        assert net.own.conv.out_channels == 12
