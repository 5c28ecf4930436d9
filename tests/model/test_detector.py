import copy
import json

import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms, box_iou

from mmfuse import boxes as box_maths
from mmfuse import scaling
from mmfuse.errors import UserError
from mmfuse.model import postprocess
from mmfuse.model.build import IMAGENET_MEAN, create_detector
from mmfuse.model.detector import Outputs
from mmfuse.model.fusion import FUSIONS
from mmfuse.model.postprocess import Selection
from mmfuse.sample import Targets
from mmfuse.scaling import Size
from mmfuse.sensor import Sensor

SIZES = {
    "tiny": Size("tiny", 128, "tinynet_e", width=8, pyramid_depth=1, head_depth=1),
    "small": Size("small", 128, "tinynet_e", width=16, pyramid_depth=1, head_depth=1),
    "sum": Size("sum", 128, "tinynet_e", width=8, pyramid_depth=1, head_depth=1, fusion="sum"),
    "deep": Size("deep", 256, "tinynet_e", width=8, pyramid_depth=1, head_depth=1, levels=(3, 4, 5, 6, 7, 8)),
}
BACKBONES = {"a": "test_resnet", "b": "mobilenetv3_small_050", "c": "test_convnext"}
CHANNELS = {"a": 1, "b": 3, "c": 4}


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
    for name, size in SIZES.items():
        monkeypatch.setitem(scaling.PUBLISHED, name, size)


def make(modalities="ab", size="tiny", **options):
    torch.manual_seed(0)
    options = {"backbone": {m: BACKBONES[m] for m in modalities}, "num_classes": 3} | options
    detector = create_detector(size, {m: CHANNELS[m] for m in modalities}, **options)
    # spread outputs, so that detections differ
    detector.class_head.predict.pointwise.weight.data *= 5
    return detector.eval()


def inputs(modalities="ab", batch=2, height=128, width=128):
    generator = torch.Generator().manual_seed(5)
    return {m: torch.randn(batch, CHANNELS[m], height, width, generator=generator) for m in modalities}


def raw(modalities="ab", batch=1, height=128, width=128, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(6)
    return {
        m: torch.randint(0, 256, (batch, CHANNELS[m], height, width), generator=generator).to(dtype) for m in modalities
    }


def same_outputs(got, wanted):
    torch.testing.assert_close(got.class_logits, wanted.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.box_codes, wanted.box_codes, rtol=1e-4, atol=1e-4)


# ---- forward


@pytest.mark.parametrize("modalities", ["a", "b", "c", "ab", "abc"])
def test_one_to_three_modalities_of_different_families_and_channels(modalities):
    out = make(modalities)(inputs(modalities))
    assert out.class_logits.shape == (2, 9 * (256 + 64 + 16 + 4 + 1), 3)
    assert out.box_codes.shape == (*out.class_logits.shape[:2], 4)
    assert out.size == (128, 128)


@pytest.mark.parametrize("flavour", ["tf", "symmetric"])
def test_one_detector_takes_several_sizes(flavour):
    detector = make(flavour=flavour)
    for height, width in ((128, 128), (128, 384), (256, 128)):
        out = detector(inputs(height=height, width=width))
        assert out.class_logits.shape[1] == out.box_codes.shape[1] == len(detector.anchors((height, width)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_is_its_images_one_by_one_with_sensors_missing_here_and_there(fusion):
    detector, images = make("abc", fusion=fusion), inputs("abc", batch=4)
    present = {
        "a": torch.tensor([True, False, True, False]),
        "b": torch.tensor([True, True, False, False]),
        "c": torch.tensor([True, True, False, True]),
    }
    with torch.no_grad():
        whole = detector(images, present)
        each = [
            detector({m: x[i : i + 1] for m, x in images.items()}, {m: p[i : i + 1] for m, p in present.items()})
            for i in range(4)
        ]
        alone = detector({"c": images["c"][3:]})
    same_outputs(
        whole, Outputs(torch.cat([e.class_logits for e in each]), torch.cat([e.box_codes for e in each]), (128, 128))
    )
    same_outputs(each[3], alone)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_an_absent_sensor_s_image_holds_changes_nothing(fusion):
    detector, images = make("ab", fusion=fusion), inputs("ab")
    present = {"b": torch.tensor([False, True])}
    with torch.no_grad():
        expected = detector(images, present)
        for pixels in (torch.nan, torch.inf, 1e30):
            images["b"][0] = pixels
            got = detector(images, present)
            assert torch.equal(got.class_logits, expected.class_logits)
            assert torch.equal(got.box_codes, expected.box_codes)
        by_omission = detector({"a": images["a"]})
        all_masked = detector(images, {"b": torch.tensor([False, False])})
    same_outputs(all_masked, by_omission)


def test_a_mask_of_ones_is_no_mask():
    detector, images = make(), inputs()
    ones = {m: torch.ones(2, dtype=torch.bool) for m in images}
    with torch.no_grad():
        same_outputs(detector(images, ones), detector(images))


def test_an_absent_sensor_s_backbone_runs_on_no_image():
    detector, images = make(), inputs(batch=3)
    rows = {m: [] for m in images}
    for modality, backbone in detector.backbones.items():
        backbone.register_forward_hook(lambda _, args, __, m=modality: rows[m].append(len(args[0])))
    with torch.no_grad():
        detector({"a": images["a"]})
        detector(images, {"b": torch.tensor([False, True, False])})
        detector(images, {"a": torch.zeros(3, dtype=torch.bool)})
    assert rows == {"a": [3, 3], "b": [1, 3]}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_reaches_every_weight(fusion):
    detector = make(fusion=fusion).train()
    present = {"a": torch.tensor([True, True, False]), "b": torch.tensor([False, True, True])}
    out = detector(inputs(batch=3), present)
    wanted = Targets(
        [torch.tensor([[10.0, 10, 60, 60]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 128, 128]])],
        [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])],
    )
    loss = detector.loss(out, wanted)
    assert set(loss) == {"class", "box", "total"}
    loss["total"].backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in detector.parameters())


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
    side = detector.size.resolution
    with torch.no_grad():
        out = detector({m: torch.randn(1, 1, side, side) for m in "ab"})
    assert out.class_logits.shape[1] == len(detector.anchors((side, side)))


def test_a_size_that_sums_does_so_for_one_modality_alone():
    assert make("a").spec["fusion"] == "fast"
    assert make("a", size="sum").spec["fusion"] == "sum"
    assert make("ab", size="sum").spec["fusion"] == "fast"


def test_a_sixth_level_needs_larger_inputs():
    detector = make(size="deep")
    out = detector(inputs(batch=1, height=256, width=512))
    assert out.class_logits.shape[1] == 9 * sum((256 >> n) * (512 >> n) for n in range(3, 9))
    with pytest.raises(UserError, match="not a multiple of 256"):
        detector(inputs(batch=1))


# ---- settings


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


def test_statistics_travel_with_the_weights():
    detector = make(sensors={"a": Sensor(1, mean=(7.0,), std=(3.0,))})
    assert detector.state_dict()["mean_a"].item() == 7
    torch.testing.assert_close(detector.state_dict()["mean_b"].flatten(), torch.tensor(IMAGENET_MEAN))
    torch.testing.assert_close(detector.normalise({"a": torch.full((1, 1, 2, 2), 10)})["a"], torch.ones(1, 1, 2, 2))


def test_shares_of_the_modalities_add_up():
    detector = make("abc")
    shares = detector.fusion_shares()
    assert list(shares) == ["a", "b", "c"]
    assert list(shares["a"]) == [3, 4, 5, 6, 7]
    for level in shares["a"]:
        assert sum(shares[m][level] for m in "abc") == pytest.approx(1)
    assert set(make("a").fusion_shares()["a"].values()) == {1.0}


# ---- decoding


def crowd(detector, batch, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    count = len(detector.anchors((128, 128)))
    logits = torch.randn(batch, count, classes, generator=generator)
    return Outputs(logits * spread, torch.randn(batch, count, 4, generator=generator) * 0.3, (128, 128))


def slow_decode(detector, out, size, threshold, iou, most, candidates):
    found = []
    for logits, codes in zip(out.class_logits, out.box_codes, strict=True):
        scores, order = logits.sigmoid().flatten().sort(descending=True, stable=True)
        scores, order = scores[:candidates], order[:candidates]
        order, scores = order[scores > threshold], scores[scores > threshold]
        labels, places = order % logits.shape[1], order // logits.shape[1]
        boxes = box_maths.clip(box_maths.decode(codes[places], detector.anchors(out.size)[places]), *size)
        kept = batched_nms(boxes.double(), scores.double(), labels, iou)[:most]
        found.append((boxes[kept], scores[kept], labels[kept]))
    return found


@pytest.mark.parametrize(
    ("batch", "threshold", "iou", "most", "candidates"),
    [
        (3, 0.0, 0.5, 100, 5000),
        (2, 0.0, 0.5, 3, 5000),
        (2, 0.6, 0.5, 100, 5000),
        (2, 0.0, 0.05, 40, 5000),  # few survive: the first 200 candidates don't yield 40
        (2, 0.99999, 0.5, 100, 5000),
        (2, 0.0, 0.9, 100, 30),
        (1, 0.0, 0.3, 9000, 10**6),
    ],
)
def test_decoding_is_torchvision_s_suppression_image_by_image(batch, threshold, iou, most, candidates):
    detector = make("a")
    out, size = crowd(detector, batch, 3, seed=batch), (100, 120)
    options = {"score_threshold": threshold, "iou_threshold": iou, "max_detections": most, "candidates": candidates}
    got = detector.decode(out, size, Selection(**options))
    for mine, (boxes, scores, labels) in zip(
        got, slow_decode(detector, out, size, threshold, iou, most, candidates), strict=True
    ):
        torch.testing.assert_close(mine.boxes, boxes)
        torch.testing.assert_close(mine.scores, scores)
        assert torch.equal(mine.labels, labels)
        assert len(mine) <= most


def test_suppression_grows_its_prefix_until_enough_is_kept(monkeypatch):
    """One place holds the best 700 candidates, so that the first prefix keeps one box alone."""
    detector, lengths = make("a"), []
    out = crowd(detector, 2, 3, seed=9)
    same = box_maths.encode(torch.tensor([10.0, 10, 50, 50]), detector.anchors((128, 128))[:700])
    out.box_codes[0, :700] = same
    out.class_logits[0, :700, 1] = torch.linspace(20, 10, 700)

    def count(boxes, scores, iou):
        lengths.append(len(boxes))
        return nms(boxes, scores, iou)

    nms = postprocess.nms
    monkeypatch.setattr(postprocess, "nms", count)
    got = detector.decode(out, None, Selection(max_detections=20))
    assert lengths == [200, 800, 3200]
    for mine, (boxes, scores, labels) in zip(
        got, slow_decode(detector, out, (128, 128), 0, 0.5, 20, 5000), strict=True
    ):
        torch.testing.assert_close(mine.boxes, boxes)
        torch.testing.assert_close(mine.scores, scores)
        assert torch.equal(mine.labels, labels)
        assert len(mine) == 20


def test_images_with_nothing_stand_between_others():
    detector = make("a")
    out = crowd(detector, 3, 3, seed=2)
    out.class_logits[1] = -30
    counts = [len(d) for d in detector.decode(out, None, Selection(0.5, max_detections=7))]
    assert counts == [7, 0, 7]
    assert [len(d) for d in detector.decode(out, None, Selection(1.0))] == [0, 0, 0]


def test_boxes_of_different_classes_don_t_suppress_each_other():
    detector = make("a")
    out = crowd(detector, 1, 3, seed=2)
    out.class_logits.fill_(-30)
    out.class_logits[0, 500] = torch.tensor([3.0, 1.0, 2.0])
    (found,) = detector.decode(out, None, Selection(0.5))
    assert found.labels.tolist() == [0, 2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())


# ---- detect


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_raw_images_of_any_type_say_the_same(dtype):
    detector = make()
    expected = detector.detect(raw())
    (got,) = detector.detect(raw(dtype=dtype))
    assert torch.equal(got.boxes, expected[0].boxes)
    assert len(got) == 100
    assert got.scores.tolist() == sorted(got.scores.tolist(), reverse=True)


def test_one_image_needs_no_batch():
    detector, images = make(), raw()
    (expected,) = detector.detect(images)
    (got,) = detector.detect({m: x[0] for m, x in images.items()})
    assert torch.equal(got.boxes, expected.boxes)


@pytest.mark.parametrize(("height", "width"), [(100, 130), (1, 300), (128, 129)])
def test_any_size_and_boxes_inside_the_image(height, width):
    found = make().detect(raw(batch=2, height=height, width=width), max_detections=500)
    assert len(found) == 2
    for each in found:
        assert len(each) > 0
        assert each.boxes.min() >= 0
        assert each.boxes[:, 0::2].max() <= width
        assert each.boxes[:, 1::2].max() <= height


def test_padding_is_the_sensor_s_fill():
    """As in training: the mean for light, no measurement for depth."""
    torch.manual_seed(0)
    sensors = {
        "light": Sensor(1, mean=(50.0,), std=(20.0,)),
        "depth": Sensor(1, "inverse_depth", mean=(0.4, 0.8), std=(0.2, 0.3)),
    }
    detector = create_detector("tiny", {"light": 1, "depth": 2}, 2, sensors=sensors, backbone="test_resnet").eval()
    images = {"light": torch.rand(1, 1, 100, 90) * 255, "depth": torch.randint(500, 9000, (1, 1, 100, 90))}
    padded = {m: nn.functional.pad(x.float(), (0, 38, 0, 28), value=sensors[m].fill[0]) for m, x in images.items()}
    seen = []
    detector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detector.detect(images)
    for modality, x in detector.normalise(padded).items():
        torch.testing.assert_close(seen[0][modality], x)


def test_a_batch_is_detected_as_its_images_are():
    detector, images = make(), raw(batch=3)
    present = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, True, False])}
    whole = detector.detect(images, present)
    for i, found in enumerate(whole):
        (alone,) = detector.detect({m: x[i] for m, x in images.items() if present[m][i]})
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-3, atol=1e-5)


def test_detecting_leaves_the_modes_of_all_parts_as_they_were():
    detector = make().train()
    detector.backbones["a"].eval()
    before = {name: part.training for name, part in detector.named_modules()}
    statistics = copy.deepcopy(detector.state_dict())
    detector.detect(raw())
    with pytest.raises(UserError):
        detector.detect(raw(), {"a": torch.tensor([False]), "b": torch.tensor([False])})
    assert {name: part.training for name, part in detector.named_modules()} == before
    assert all(torch.equal(value, statistics[name]) for name, value in detector.state_dict().items())


def test_training_goes_on_after_detecting_at_the_same_size():
    detector = make("a")
    detector.detect(raw("a"))
    out = detector.train()(inputs("a"))
    boxes, labels = torch.tensor([[5.0, 5, 60, 60]]), torch.tensor([0])
    detector.loss(out, Targets([boxes, boxes], [labels, labels]))["total"].backward()
    copy.deepcopy(detector)


# ---- mistakes


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
    ],
)
def test_wrong_settings_are_one_line(change, message):
    options = {"size": "tiny", "modalities": {"rgb": 3}, "num_classes": 2, "backbone": "test_resnet"} | change
    with pytest.raises(UserError, match=message) as caught:
        create_detector(**options)
    assert "\n" not in str(caught.value)


A, B = torch.zeros(2, 1, 128, 128), torch.zeros(2, 3, 128, 128)
YES = torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("images", "present", "message"),
    [
        ({}, None, r"images: is empty; give at least one of a, b$"),
        ({"a": A, "thermal": B}, None, r"images: 'thermal' is not a known modality of this detector; use one of a, b$"),
        ({"a": B}, None, r"images: a has shape \(2, 3, 128, 128\); give \(B, 1, H, W\)$"),
        ({"a": A[0, 0]}, None, r"images: a has shape \(128, 128\); give \(B, 1, H, W\)$"),
        ({"a": A, "b": B[:, :, :64]}, None, r"images: \(batch, height, width\) differ: .*; resize to one size$"),
        ({"a": A, "b": B[:1]}, None, r"images: \(batch, height, width\) differ"),
        ({"a": A[:0]}, None, r"images: \(batch, height, width\) is \(0, 128, 128\); give at least one"),
        ({"a": A, "b": B}, {"c": YES}, r"present: 'c' is not a known modality"),
        ({"a": A, "b": B}, {"a": YES[:1]}, r"present: a is torch.bool \(1,\); give torch.bool \(2,\)$"),
        ({"a": A, "b": B}, {"a": YES.float()}, r"present: a is torch.float32 \(2,\); give torch.bool \(2,\)$"),
        (
            {"a": A, "b": B},
            {"a": ~YES, "b": torch.tensor([True, False])},
            r"present: image 1 of the batch has no sensor",
        ),
        ({"a": A}, {"a": ~YES}, r"present: image 0 of the batch has no sensor at all; leave it out$"),
    ],
)
@pytest.mark.parametrize("verb", ["forward", "detect"])
def test_wrong_images_are_one_line(verb, images, present, message):
    detector = make()
    with pytest.raises(UserError, match=message) as caught:
        getattr(detector, verb)(images, present)
    assert "\n" not in str(caught.value)


def test_forward_wants_multiples_of_the_coarsest_stride():
    with pytest.raises(UserError, match=r"^images: 128x192 is not a multiple of 128 in height and width; pad them$"):
        make()(inputs(height=128, width=192))


# ---- the claim


def scenes(count, seed):
    """Images of two sensors, and for each image its boxes, labels and owners.

    Each quarter of an image holds a square (label 0), a bar (label 1) or nothing, which one sensor alone shows: its
    owner, 0 or 1. Nothing in the other sensor tells that it is there.
    """
    generator = torch.Generator().manual_seed(seed)
    images = {m: torch.randint(40, 80, (count, 1, 128, 128), generator=generator).to(torch.uint8) for m in "ab"}
    quarters = torch.tensor([[0, 0], [64, 0], [0, 64], [64, 64]])
    corners = quarters + torch.randint(0, 24, (count, 4, 2), generator=generator)
    labels = torch.randint(0, 2, (count, 4), generator=generator)
    owners = torch.randint(0, 3, (count, 4), generator=generator)
    owners[:, 0] %= 2
    sides = torch.stack((40 - 20 * labels, torch.full_like(labels, 40)), -1)
    boxes = torch.cat((corners, corners + sides), -1)
    there = owners < 2
    for i, j in there.nonzero().tolist():
        x0, y0, x1, y1 = boxes[i, j].tolist()
        images["ab"[owners[i, j]]][i, 0, y0:y1, x0:x1] = 220
    rows = range(count)
    targets = Targets([boxes[i][there[i]].float() for i in rows], [labels[i][there[i]] for i in rows])
    return images, targets, torch.cat([owners[i][there[i]] for i in rows])


def trained(modalities, batches):
    torch.manual_seed(0)
    detector = create_detector("small", dict.fromkeys(modalities, 1), 2, backbone="test_efficientnet").train()
    for part in detector.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1
    optimiser = torch.optim.AdamW(detector.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, len(batches), pct_start=0.1)
    for images, targets, _ in batches:
        loss = detector.loss(detector(detector.normalise({m: images[m] for m in modalities})), targets)["total"]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimiser.step()
        schedule.step()
    return detector


def hits(found, boxes, labels):
    """Which detection (N, D) is on which object: the overlap is above 0.5 and the label is right."""
    return (box_iou(boxes, found.boxes) > 0.5) & (labels[:, None] == found.labels[None])


@pytest.mark.slow
def test_a_detector_overfits_four_images():
    images, targets, _ = scenes(4, seed=1)
    detector = trained("ab", [(images, targets, None)] * 120)
    found = detector.detect(images, score_threshold=0.5)
    for each, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        on = hits(each, boxes, labels)
        assert on.shape == (len(boxes), len(boxes))
        assert (on.sum(0) == 1).all()
        assert (on.sum(1) == 1).all()


@pytest.mark.slow
def test_a_fused_detector_finds_what_each_sensor_alone_cannot():
    batches = [scenes(4, seed) for seed in range(160)]
    images, targets, owners = scenes(16, seed=1000)
    recall = {}
    for modalities in ("a", "b", "ab"):
        found = trained(modalities, batches).detect({m: images[m] for m in modalities}, score_threshold=0.3)
        on = [hits(*each).any(1) for each in zip(found, targets.boxes, targets.labels, strict=True)]
        recall[modalities] = [torch.cat(on)[owners == owner].float().mean().item() for owner in (0, 1)]
    assert min(recall["ab"]) > 0.75
    assert recall["a"][0] > 0.6
    assert recall["b"][1] > 0.6
    assert recall["a"][1] < 0.2
    assert recall["b"][0] < 0.2
