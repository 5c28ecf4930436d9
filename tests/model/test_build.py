import json

import pytest
import torch
from tiny import CHANNELS, inputs, make, raw

from mmfuse.architecture import Architecture
from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.sensor import Sensor

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def test_a_shared_backbone_is_one_backbone():
    one = create_detector("tiny", {"a": 1, "b": 1}, 2, backbone="test_resnet", share_backbone=True).eval()
    own = create_detector("tiny", {"a": 1, "b": 1}, 2, backbone="test_resnet")
    count = sum(p.numel() for p in one.backbones.parameters())
    assert sum(p.numel() for p in own.backbones.parameters()) == 2 * count
    with torch.no_grad():
        assert one({m: torch.randn(1, 1, 128, 128) for m in "ab"}).class_logits.isfinite().all()


def test_default_backbones_are_the_size_s_own():
    detector = create_detector("tiny", {"a": 3}, 2)
    assert detector.backbones["a"].channels == [24, 56, 160]
    assert detector.modalities == ("a",)
    assert detector.classes == ("0", "1")


@pytest.mark.parametrize("size", ["d-1", "d-2.5", "d-9"])
def test_any_phi_gives_a_detector(size):
    detector = create_detector(size, {"a": 1, "b": 1}, 2).eval()
    side = Architecture.of(detector.spec).scale.resolution
    with torch.no_grad():
        out = detector({m: torch.randn(1, 1, side, side) for m in "ab"})
    assert out.class_logits.shape[1] == len(detector.anchors((side, side)))


def test_a_size_that_sums_does_so_for_one_modality_alone():
    assert make("a").spec["fusion"] == "fast"
    assert make("a", size="sum").spec["fusion"] == "sum"
    assert make("ab", size="sum").spec["fusion"] == "fast"


@pytest.mark.parametrize("as_json", [False, True])
def test_the_spec_builds_an_equal_detector(as_json):
    sensors = {"a": Sensor(1, mean=(90.5,), std=(30.25,))}
    detector = make(pyramid="panet", fusion="channel", flavour="symmetric", placement="every", sensors=sensors)
    spec = json.loads(json.dumps(detector.spec)) if as_json else detector.spec
    again = create_detector(**{**spec, "sensors": {m: Sensor(**values) for m, values in spec["sensors"].items()}})
    again.load_state_dict(detector.state_dict())
    assert json.dumps(again.spec) == json.dumps(detector.spec)
    assert again.classes == detector.classes
    images = raw()
    for one, other in zip(detector.detect(images), again.eval().detect(images), strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": {}}, r"modalities: is empty"),
        ({"modalities": {"my sensor": 3}}, r"modalities: 'my sensor' can't be a name"),
        ({"modalities": {"shared": 3}}, r"modalities: 'shared' can't be a name"),
        ({"modalities": {"items": 3}}, r"modalities: 'items' can't be a name"),
        ({"modalities": {"rgb": 0}}, r"channels"),
        ({"size": "large"}, r"size: 'large' is not a size; use one of d0"),
        ({"pyramid": "bifpm"}, r"pyramid: 'bifpm' is not a known pyramid; did you mean 'bifpn'\?"),
        ({"fusion": "faster"}, r"fusion: 'faster' is not a known fusion; did you mean 'fast'\?"),
        ({"flavour": "torch"}, r"flavour: 'torch' is not a known flavour; use one of tf, symmetric"),
        ({"placement": "all"}, r"placement: 'all' is not a known placement"),
        ({"backbone": "resnet19"}, r"backbone: 'resnet19' is not a timm model"),
        ({"backbone": {"rbg": "resnet18"}}, r"backbone: 'rbg' is not a known modality .*did you mean 'rgb'\?"),
        ({"sensors": {"rbg": Sensor(3)}}, r"sensors: 'rbg' is not a known modality .*did you mean 'rgb'\?"),
        ({"sensors": {"rgb": Sensor(1, "inverse_depth")}}, r"modalities: 3 channels, but the sensor encodes to 2"),
        ({"num_classes": 0}, r"num_classes: 0 with 0 class names"),
        ({"num_classes": None}, r"num_classes: None with 0 class names"),
        ({"classes": ["x"]}, r"num_classes: 2 with 1 class names"),
        (
            {"modalities": {"rgb": 3, "b": 1}, "share_backbone": True},
            r"share_backbone: .* differ in channels or backbone",
        ),
        ({"modalities": {"stacked": 3}}, r"modalities: 'stacked' can't be a name"),
        ({"width": 0}, r"width: 0 is not allowed; use at least 1"),
        ({"pyramid_depth": -1}, r"pyramid_depth: -1 is not allowed; use at least 1"),
        ({"head_depth": 0}, r"head_depth: 0 is not allowed; use at least 1"),
        (
            {
                "modalities": {"rgb": 3, "b": 1},
                "placement": "channels",
                "backbone": {"rgb": "test_resnet", "b": "test_convnext"},
            },
            r"backbone: .* differ, but placement channels has one for all; name one",
        ),
        *(
            (
                {"modalities": {"rgb": 3, "b": 3}, "placement": placement, "share_backbone": True},
                rf"share_backbone: placement {placement} .*; use first",
            )
            for placement in ("channels", "boxes")
        ),
    ],
)
def test_wrong_settings_are_one_line(change, message):
    options = {"size": "tiny", "modalities": {"rgb": 3}, "num_classes": 2, "backbone": "test_resnet"} | change
    with pytest.raises(UserError, match=message) as caught:
        create_detector(**options)
    assert "\n" not in str(caught.value)


# ---- size


def test_parts_of_the_size_can_be_set_alone():
    base, own = make("a"), Architecture("tiny").scale
    for change in ({"width": 16}, {"pyramid_depth": 3}, {"head_depth": 2}):
        detector = make("a", **change)
        ((name, value),) = change.items()
        scale = Architecture.of(detector.spec).scale
        assert getattr(scale, name) == value
        assert all(getattr(scale, k) == getattr(own, k) for k in ("width", "head_depth") if k != name)
        assert sum(p.numel() for p in detector.parameters()) > sum(p.numel() for p in base.parameters())
        assert detector.spec[name] == value
    assert len(make("a", pyramid_depth=3).pyramid.graph) == 3 * len(base.pyramid.graph)


# ---- placement


def test_one_modality_has_no_placement():
    base = make("a").state_dict()
    for placement in ("channels", "every", "last", "boxes"):
        detector = make("a", placement=placement)
        assert detector.spec["placement"] == "first"
        assert {k: v.shape for k, v in detector.state_dict().items()} == {k: v.shape for k, v in base.items()}


def test_channels_have_one_backbone_that_reads_them_all():
    detector = make("abc", placement="channels")
    assert list(detector.backbones) == ["stacked"]
    stem = next(p for p in detector.backbones.parameters() if p.ndim == 4)
    assert stem.shape[1] == sum(CHANNELS.values())
    assert len(detector.pyramid.graph) == len(make("a").pyramid.graph)
    assert all(len(node.inputs) <= 3 for node in detector.pyramid.graph)
    with pytest.raises(UserError, match=r"^placement: channels .* use first$"):
        detector.fusion_shares()


def test_an_absent_channel_is_an_image_of_its_mean():
    detector, images = make("ab", placement="channels"), inputs("ab")
    with torch.no_grad():
        alone = detector({"a": images["a"]})
        mean = detector({"a": images["a"], "b": torch.zeros_like(images["b"])})
    assert torch.equal(alone.class_logits, mean.class_logits)


def test_separate_pyramids_have_shares_in_the_nodes_where_they_meet():
    detector = make("ab", placement="last")
    out = list(detector.pyramid.nodes)[-5:]
    for node, weight in zip(out, ([1.0, 3.0], [1.0, 1.0], [0.0, 2.0], [1.0, 0.0], [3.0, 1.0]), strict=True):
        node.merge.weight.data.copy_(torch.tensor(weight))
    shares = detector.fusion_shares()
    assert list(shares["a"].values()) == pytest.approx([0.25, 0.5, 0.0, 1.0, 0.75], abs=1e-3)
    assert list(shares["b"].values()) == pytest.approx([0.75, 0.5, 1.0, 0.0, 0.25], abs=1e-3)


def test_scale_transfer_has_the_shares_of_the_one_level_that_it_reads_at_every_output():
    shares = make("ab", pyramid="stdn").fusion_shares()
    assert {m: list(by_level) for m, by_level in shares.items()} == {m: [3, 4, 5, 6, 7] for m in "ab"}
    assert list(shares["a"].values()) == pytest.approx([0.5] * 5)


def test_boxes_have_a_whole_detector_each():
    detector = make("ab", placement="boxes")
    assert isinstance(detector, BoxEnsemble)
    for modality, member in detector.members.items():
        assert isinstance(member, FusionDetector)
        alone = make(modality)
        assert {k: v.shape for k, v in member.state_dict().items()} == {
            k: v.shape for k, v in alone.state_dict().items()
        }
    with pytest.raises(UserError, match=r"^placement: boxes .* use first$"):
        detector.fusion_shares()
    assert make("ab", size="sum", placement="boxes").members["a"].spec["fusion"] == "sum"


@pytest.mark.parametrize("placement", ["channels", "every", "last", "boxes"])
def test_every_placement_is_rebuilt_from_its_spec(placement):
    detector = make("ab", placement=placement, width=16, pyramid_depth=2)
    spec = json.loads(json.dumps(detector.spec))
    again = create_detector(**{**spec, "sensors": {m: Sensor(**values) for m, values in spec["sensors"].items()}})
    again.load_state_dict(detector.state_dict())
    images = raw("ab")
    for one, other in zip(detector.detect(images), again.detect(images), strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
