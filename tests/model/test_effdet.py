"""Parity with effdet, the reference implementation: weights in common, random and fresh in every run."""

from collections.abc import Iterator

import pytest
import torch
from oracle import (
    AnchorLabeler,
    Anchors,
    DetectionLoss,
    _batch_detection,
    _post_process,
    get_efficientdet_config,
    ours,
    reference,
    rows,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.boxes import iou
from mmfuse.model import postprocess
from mmfuse.model.build import create_detector
from mmfuse.model.detector import CLASS_PRIOR, FusionDetector, Outputs
from mmfuse.model.effdet_weights import key_map
from mmfuse.model.postprocess import SIGMA, Selection, soft_nms
from mmfuse.sample import Targets
from mmfuse.scaling import PUBLISHED

PARAMETERS = {
    "d0": 3_880_067,
    "d1": 6_625_898,
    "d2": 8_097_039,
    "d3": 12_032_296,
    "d4": 20_723_675,
    "d5": 33_653_315,
    "d6": 51_871_782,
    "d7": 51_871_782,
    "d7x": 77_147_166,
}
GMACS = {
    "d0": 2.49,
    "d1": 6.00,
    "d2": 10.83,
    "d3": 24.57,
    "d4": 54.58,
    "d5": 134.13,
    "d6": 224.12,
    "d7": 322.73,
    "d7x": 407.63,
}
ANCHORS = {"d0": 49_104, "d1": 76_725, "d3": 150_381, "d7": 441_936, "d7x": 442_260}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these small inputs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "size",
    [pytest.param(size, marks=pytest.mark.long) if size in ("d3", "d4", "d6", "d7") else size for size in PARAMETERS],
)
def test_parameters_and_macs_are_the_published_ones(size: str) -> None:
    """In training mode: packed heads also convolve the few places between the levels."""
    side = PUBLISHED[size].resolution
    with torch.device("meta"):
        detector = create_detector(size, {"rgb": 3}, 90).train()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            detector({"rgb": torch.empty(1, 3, side, side)})
    assert sum(p.numel() for p in detector.parameters()) == PARAMETERS[size]
    assert counter.get_total_flops() / 2e9 == pytest.approx(GMACS[size], rel=0.02)


def test_parameters_of_the_symmetric_flavour() -> None:
    with torch.device("meta"):
        detector = create_detector("d0", {"rgb": 3}, 90, flavour="symmetric")
    assert sum(p.numel() for p in detector.parameters()) == 3_877_763


def check_outputs(name: str, height: int, width: int) -> None:
    model = reference(name, height, width)
    detector = ours(name, model)
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        class_levels, box_levels = model(images)
        outputs = detector({"rgb": images})
    expected_class, expected_box = rows(class_levels, 90), rows(box_levels, 4)
    assert expected_class.std() > 0.1
    assert expected_box.std() > 0.1
    for found, expected in ((outputs.class_logits, expected_class), (outputs.box_codes, expected_box)):
        scale = max(1.0, float(expected.abs().max()) / 10)  # d7x with random weights reaches some hundreds
        assert (found - expected).abs().max() < 1e-4 * scale


@pytest.mark.parametrize(
    ("name", "width"), [("tf_efficientdet_d0", 256), ("tf_efficientdet_d0", 384), ("efficientdet_d0", 384)]
)
def test_outputs_of_d0(name: str, width: int) -> None:
    check_outputs(name, 256, width)


@pytest.mark.parametrize("name", ["tf_efficientdet_d1", "tf_efficientdet_d2", "efficientdet_d1", "efficientdet_q0"])
def test_outputs_of_larger_sizes(name: str) -> None:
    check_outputs(name, 128, 256)


@pytest.mark.parametrize(
    ("name", "width"), [("tf_efficientdet_d3", 128), pytest.param("tf_efficientdet_d7x", 256, marks=pytest.mark.long)]
)
def test_outputs_of_the_largest_sizes(name: str, width: int) -> None:
    check_outputs(name, 256, width)


@pytest.mark.parametrize("size", ANCHORS)
def test_anchors(size: str) -> None:
    side = PUBLISHED[size].resolution
    height, width = side, side + PUBLISHED[size].coarsest_stride
    with torch.device("meta"):
        detector = create_detector(size, {"rgb": 3}, 1)
    detector.to_empty(device="cpu")
    assert detector.anchors((side, side)).shape == (ANCHORS[size], 4)
    config = get_efficientdet_config(f"tf_efficientdet_{size}")
    config.image_size = (height, width)
    expected = Anchors.from_config(config).boxes[:, [1, 0, 3, 2]]
    assert (detector.anchors((height, width)) - expected).abs().max() < 1e-4


def random_targets(batch: int, height: int, width: int, classes: int) -> Targets:
    """Objects of many sizes; the second image has a pair that asks for the same anchors, the last has none."""
    boxes, labels = [], []
    for index in range(batch):
        count = 0 if index == batch - 1 and batch > 1 else 12
        centre = torch.rand(count, 2) * torch.tensor([width, height])
        half = torch.exp(torch.rand(count, 2) * 4) * 2
        found = torch.cat((centre - half, centre + half), 1)
        found = found.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        if index == 1:
            found[1] = found[0] + 0.25
        boxes.append(found)
        labels.append(torch.randint(classes, (count,)))
    return Targets(boxes, labels)


@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "efficientdet_d0"])
def test_loss_and_gradients(name: str) -> None:
    height, width, classes, batch = 256, 384, 7, 3
    torch.manual_seed(0)
    model = reference(name, height, width, classes)
    detector = ours(name, model)
    images, targets = torch.randn(batch, 3, height, width), random_targets(batch, height, width, classes)

    labeler = AnchorLabeler(Anchors.from_config(model.config), classes, match_threshold=0.5)
    wanted = labeler.batch_label_anchors(
        [boxes[:, [1, 0, 3, 2]] if len(boxes) else torch.zeros(1, 4) for boxes in targets.boxes],
        [labels + 1 if len(labels) else torch.tensor([-1]) for labels in targets.labels],
    )
    expected = DetectionLoss(model.config)(*model(images), *wanted)
    found = detector.loss(detector({"rgb": images}), targets)
    for key, value in zip(("total", "class", "box"), expected, strict=True):
        assert found[key].item() == pytest.approx(value.item(), rel=1e-5)

    expected[0].backward()
    found["total"].backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    compared = 0
    for key, theirs in key_map(detector).items():
        if theirs not in gradients:
            continue
        a, b = detector.get_parameter(key).grad, gradients[theirs]
        assert a is not None
        assert b is not None
        assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max())), key
        compared += 1
    assert compared == len(gradients)


def effdet_detections(
    class_levels: list[Tensor], box_levels: list[Tensor], model: torch.nn.Module, soft: bool = False
) -> Tensor:
    config = model.config
    height, width = config.image_size
    classes, boxes, places, labels = _post_process(class_levels, box_levels, config.num_levels, config.num_classes)
    batch = len(class_levels[0])
    anchors = Anchors.from_config(config).boxes
    size = torch.tensor([[width, height]] * batch, dtype=torch.float32)
    return _batch_detection(batch, classes, boxes, anchors, places, labels, torch.ones(batch), size, soft_nms=soft)


def test_detections_are_the_same_box_for_box() -> None:
    model = reference("tf_efficientdet_d0", 256, 384)
    detector = ours("tf_efficientdet_d0", model)
    with torch.no_grad():
        class_levels, box_levels = model(torch.randn(2, 3, 256, 384))
        class_levels = [x + torch.randn_like(x) * 0.01 for x in class_levels]  # no ties
        expected = effdet_detections(class_levels, box_levels, model)
    found = detector.decode(Outputs(rows(class_levels, 90), rows(box_levels, 4), (256, 384)))
    for ours_, theirs in zip(found, expected, strict=True):
        assert len(ours_) == 100
        assert torch.equal(ours_.labels, theirs[:, 5].long() - 1)
        assert torch.allclose(ours_.scores, theirs[:, 4], atol=1e-6)
        assert torch.allclose(ours_.boxes, theirs[:, :4], atol=1e-3)


@pytest.fixture(scope="module")
def softened() -> tuple[FusionDetector, Outputs, Tensor]:
    """A detector, outputs whose scores are around 0.5 and overlap a lot, and what effdet's Soft-NMS makes of them."""
    classes = 3  # effdet moves classes apart by whole images, which rounds boxes
    model = reference("tf_efficientdet_d0", 128, 256, classes)
    with torch.no_grad():
        class_levels, box_levels = model(torch.randn(2, 3, 128, 256))
        class_levels = [x - CLASS_PRIOR + torch.randn_like(x) * 0.01 for x in class_levels]  # no ties
        expected = effdet_detections(class_levels, box_levels, model, soft=True)
    outputs = Outputs(rows(class_levels, classes), rows(box_levels, 4), (128, 256))
    return ours("tf_efficientdet_d0", model), outputs, expected


def check_soft(softened: tuple[FusionDetector, Outputs, Tensor]) -> None:
    """Scores are the same in order; labels and boxes too, but for a pair in a near-tie."""
    detector, outputs, expected = softened
    for found, theirs in zip(detector.decode(outputs, selection=Selection(soft=True)), expected, strict=True):
        assert len(found) == 100
        assert (found.scores - theirs[:, 4]).abs().max() < 1e-5
        alike = (found.labels == theirs[:, 5].long() - 1) & ((found.boxes - theirs[:, :4]).abs().amax(1) < 0.01)
        assert alike.sum() >= 98


def test_soft_detections_are_the_same_box_for_box(softened: tuple[FusionDetector, Outputs, Tensor]) -> None:
    check_soft(softened)
    assert softened[2][:, :, 4].std() > 0.01


def across_classes(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    return soft_nms(boxes, scores, torch.zeros_like(labels), selection)


def linear(a: Tensor, b: Tensor) -> Tensor:
    """What stands for the overlap where the decay is 1 - overlap."""
    return (-(1 - iou(a, b)).clamp(min=1e-9).log() * SIGMA).sqrt()


@pytest.mark.parametrize(("part", "wrong"), [("SIGMA", 0.49), ("soft_nms", across_classes), ("iou", linear)])
def test_another_decay_is_not_the_same(
    softened: tuple[FusionDetector, Outputs, Tensor], part: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postprocess, part, wrong)
    with pytest.raises(AssertionError):
        check_soft(softened)


def test_detect_finds_the_boxes_of_the_whole_reference() -> None:
    model = reference("tf_efficientdet_d0", 256, 256)
    detector = ours("tf_efficientdet_d0", model)
    raw = {"rgb": torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)}
    with torch.no_grad():
        expected = effdet_detections(*model(detector.normalise(raw)["rgb"]), model)[0]
    found = detector.detect(raw, resize=False)[0]
    assert (found.scores - expected[:, 4]).abs().max() < 1e-4
    for box, _, label in list(found)[:20]:
        distance = (expected[:, :4] - box).abs().amax(1).where(expected[:, 5] == label + 1, torch.inf)
        assert distance.min() < 0.05
