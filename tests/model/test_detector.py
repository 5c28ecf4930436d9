import copy
from typing import get_args

import pytest
import torch
from tiny import inputs, make, raw
from torch import nn
from torchvision.ops import box_iou

from mmfuse.architecture import Placement
from mmfuse.errors import UserError
from mmfuse.model.build import IMAGENET_MEAN, create_detector
from mmfuse.model.detector import FusionDetector, Outputs
from mmfuse.model.fusion import FUSIONS
from mmfuse.model.graphs import PYRAMIDS
from mmfuse.model.nodes import Feature
from mmfuse.model.presence import Presence
from mmfuse.sample import Targets
from mmfuse.sensor import Sensor

pytestmark = pytest.mark.usefixtures("tiny_sizes")


ARRANGEMENTS = [
    *({"fusion": fusion} for fusion in FUSIONS),
    *({"pyramid": pyramid, "pyramid_depth": 2} for pyramid in PYRAMIDS if pyramid != "bifpn"),
    *({"placement": placement, "pyramid_depth": 2} for placement in get_args(Placement) if placement != "first"),
    *({"pyramid": pyramid, "placement": "last", "fusion": "softmax"} for pyramid in ("nas_fpn", "gfrnet", "stdn")),
]


@pytest.fixture(params=ARRANGEMENTS, ids=lambda options: "-".join(map(str, options.values())))
def arrangement(request):
    """Options of `create_detector`: every fusion, every pyramid, every placement."""
    return request.param


def values(out):
    """The tensors of outputs, those of a `BoxEnsemble` modality by modality."""
    if isinstance(out, Outputs):
        return {"class": out.class_logits, "box": out.box_codes}
    return {f"{m} {k}": v for m, one in out.members.items() for k, v in values(one).items()}


def same_outputs(got, wanted):
    got, wanted = values(got), values(wanted)
    assert got.keys() == wanted.keys()
    for key, value in got.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-4)


def same_detections(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.boxes[:20], other.boxes[:20], rtol=1e-3, atol=1e-2)


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


def test_a_batch_is_its_images_one_by_one_with_sensors_missing_here_and_there(arrangement):
    detector, images = make("abc", **arrangement), inputs("abc", batch=4)
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
        same_detections(detector.decode(whole), [detector.decode(one)[0] for one in each])
    if isinstance(whole, Outputs):
        joined = [torch.cat([values(one)[key] for one in each]) for key in ("class", "box")]
        same_outputs(whole, Outputs(*joined, (128, 128)))
    same_outputs(each[3], alone)


def test_what_an_absent_sensor_s_image_holds_changes_nothing(arrangement):
    detector, images = make("ab", **arrangement), inputs("ab")
    present = {"b": torch.tensor([False, True])}
    with torch.no_grad():
        expected = values(detector(images, present))
        for pixels in (torch.nan, torch.inf, 1e30):
            images["b"][0] = pixels
            got = values(detector(images, present))
            assert all(torch.equal(got[key], value) for key, value in expected.items())
        by_omission = detector({"a": images["a"]})
        all_masked = detector(images, {"b": torch.tensor([False, False])})
    same_outputs(all_masked, by_omission)


@pytest.mark.parametrize("placement", ["first", "last", "boxes"])
def test_absent_images_don_t_enter_the_statistics_of_batch_norms(placement):
    """A sensor's branch learns from the images that it is in, as if they were the whole batch."""
    images = inputs("ab", batch=4)
    present = {"b": torch.tensor([True, False, True, False])}
    masked, alone = (make("ab", placement=placement, pyramid_depth=1).train() for _ in range(2))
    masked(images, present)
    alone({m: x[present["b"]] for m, x in images.items()})
    branch = tuple(_parts_of("b", masked))
    other = alone.state_dict()
    checked = 0
    for key, value in masked.state_dict().items():
        if key.startswith(branch) and key.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(value, other[key], msg=lambda text, key=key: f"{key}: {text}")
            checked += 1
    assert checked > 20


def _parts_of(modality, detector):
    """Names of what reads one modality alone: its backbone, its laterals, and nodes that depend on nothing else."""
    yield f"members.{modality}."
    if isinstance(detector, FusionDetector):
        yield f"backbones.{modality}."
        yield f"pyramid.extend.{modality}."
        for index, node in enumerate(detector.pyramid.graph):
            if detector.pyramid.reached[index] == {modality}:
                yield f"pyramid.nodes.{index}."
            for place, source in enumerate(node.inputs):
                if isinstance(source, Feature) and source.modality == modality:
                    yield f"pyramid.nodes.{index}.laterals.{place}."


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


@pytest.mark.parametrize("kept", ["b", "ac"])
def test_one_checkpoint_detects_with_any_sensors(kept, arrangement):
    """What is left out costs nothing and gives what masks give, image by image."""
    detector, images = make("abc", **arrangement), raw("abc", batch=2)
    ran = []
    for name, part in detector.named_modules():
        if name.startswith(("backbones.", "members.")) and name.endswith(".net"):
            part.register_forward_hook(lambda *_, name=name: ran.append(name.split(".")[1]))
    found = detector.detect({m: images[m] for m in kept})
    assert set(ran) <= {*kept, "stacked"}
    assert len(ran) == len(set(ran))
    absent = {m: torch.zeros(2, dtype=torch.bool) for m in "abc" if m not in kept}
    same_detections(found, detector.detect(images, absent))
    second = {m: torch.tensor([True, False]) for m in absent}
    same_detections(found[1:], detector.detect(images, second)[1:])


def test_features_serve_several_masks():
    detector, images = make("abc"), inputs("abc")
    with torch.no_grad():
        features = detector.features(images, Presence.whole("abc", 2))
        for kept in ("a", "bc", "abc"):
            masks = {m: torch.full((2,), m in kept) for m in "abc"}
            merged = detector.merge(features, (128, 128), Presence.of(masks))
            same_outputs(merged, detector({m: images[m] for m in kept}))


def test_training_reaches_every_weight(arrangement):
    detector = make(**arrangement).train()
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


def test_a_sixth_level_needs_larger_inputs():
    detector = make(size="deep")
    out = detector(inputs(batch=1, height=256, width=512))
    assert out.class_logits.shape[1] == 9 * sum((256 >> n) * (512 >> n) for n in range(3, 9))
    with pytest.raises(UserError, match="not a multiple of 256"):
        detector(inputs(batch=1))


# ---- settings


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


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize(("height", "width"), [(100, 130), (1, 300), (128, 129)])
def test_any_size_and_boxes_inside_the_image(height, width, resize):
    found = make().detect(raw(batch=2, height=height, width=width), resize=resize, max_detections=500)
    assert len(found) == 2
    for each in found:
        assert len(each) > 0
        assert each.boxes.min() >= 0
        assert each.boxes[:, 0::2].max() <= width * (1 + 1e-6)
        assert each.boxes[:, 1::2].max() <= height * (1 + 1e-6)


def test_padding_is_the_sensor_s_fill():
    """As in training: the mean for light, no measurement for depth."""
    torch.manual_seed(0)
    sensors = {
        "light": Sensor(1, mean=(50.0,), std=(20.0,)),
        "depth": Sensor(1, "inverse_depth", mean=(0.4, 0.8), std=(0.2, 0.3)),
    }
    detector = create_detector("tiny", {"light": 1, "depth": 2}, 2, sensors=sensors, backbone="test_resnet").eval()
    images = {m: torch.randint(50, 256, (1, 1, 100, 90), dtype=torch.uint8) for m in sensors}
    padded = {m: nn.functional.pad(x.float(), (0, 38, 0, 28), value=sensors[m].fill[0]) for m, x in images.items()}
    seen = []
    detector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detector.detect(images, resize=False)
    for modality, x in detector.normalise({m: x.round() for m, x in padded.items()}).items():
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


A, B = torch.zeros(2, 1, 128, 128), torch.zeros(2, 3, 128, 128)
YES = torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("images", "present", "message"),
    [
        ({}, None, r"images: is empty; give at least one of a, b$"),
        ({"a": A, "thermal": B}, None, r"images: 'thermal' is not a known modality of this detector; use one of a, b$"),
        (
            {"a": B},
            None,
            r"images: a(: has 3 channels; the sensor has 1| has shape \(2, 3, 128, 128\); give \(B, 1, H, W\)$)",
        ),
        (
            {"a": A[0, 0]},
            None,
            r"images: a has shape \(128, 128\); give (\(B, 1, H, W\)$|a tensor \(1, H, W\) or an array)",
        ),
        (
            {"a": A, "b": B[:, :, :64]},
            None,
            r"images(: \(batch, height, width\) differ: .*; resize| differ in size: .*; give)",
        ),
        ({"a": A, "b": B[:1]}, None, r"images: (\(batch, height, width\) differ|{'a': .*} aren't one batch)"),
        (
            {"a": A[:0]},
            None,
            r"images: (\(batch, height, width\) is \(0, 128, 128\)|no scene is given); give at least one",
        ),
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


@pytest.mark.long
def test_a_detector_overfits_four_images():
    images, targets, _ = scenes(4, seed=1)
    detector = trained("ab", [(images, targets, None)] * 120)
    found = detector.detect(images, threshold=0.5)
    for each, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        on = hits(each, boxes, labels)
        assert on.shape == (len(boxes), len(boxes))
        assert (on.sum(0) == 1).all()
        assert (on.sum(1) == 1).all()


@pytest.mark.slow
def test_a_fused_detector_finds_what_one_sensor_alone_cannot():
    images, targets, owners = scenes(16, seed=1000)
    detector = trained("ab", [scenes(4, seed) for seed in range(160)])
    recall = {}
    for modalities in ("a", "ab"):
        found = detector.detect({m: images[m] for m in modalities}, threshold=0.3)
        on = [hits(*each).any(1) for each in zip(found, targets.boxes, targets.labels, strict=True)]
        recall[modalities] = [torch.cat(on)[owners == owner].float().mean().item() for owner in (0, 1)]
    assert min(recall["ab"]) > 0.75
    assert recall["a"][0] > 0.6
    assert recall["a"][1] < 0.2
