"""Boxes of several detectors merged by probability, against sums by hand and a slow version."""

import math

import pytest
import torch
from tiny import inputs, make
from torchvision.ops import box_iou

from mmfuse.errors import UserError
from mmfuse.model.detector import CLASS_PRIOR
from mmfuse.model.ensemble import merge_boxes
from mmfuse.model.postprocess import DEFAULT, Selection
from mmfuse.sample import Detections, Targets

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def detections(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].long())


def odds(score):
    return math.log(score / (1 - score))


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def merge(images, selection=DEFAULT, slopes=None, offsets=None, prior=CLASS_PRIOR):
    """Merges as an ensemble does that isn't calibrated, unless told otherwise."""
    members = max(len(image) for image in images)
    lines = [torch.tensor(x) if x else torch.full((members,), plain) for x, plain in ((slopes, 1.0), (offsets, 0.0))]
    return merge_boxes(images, selection, *lines, torch.tensor(prior))


def test_two_that_agree_are_one_object_with_the_odds_of_both():
    one, other = detections((0, 0, 10, 10, 0.6, 1)), detections((0, 0, 10, 8, 0.3, 1))
    (found,) = merge([[one, other]])
    assert found.labels.tolist() == [1]
    logit = odds(0.6) + odds(0.3) - CLASS_PRIOR
    assert found.scores.item() == pytest.approx(sigmoid(logit), abs=1e-5)
    assert found.boxes[0].tolist() == pytest.approx([0, 0, 10, (0.6 * 10 + 0.3 * 8) / 0.9], abs=1e-4)


def test_what_the_other_thinks_unlikely_loses_score():
    one, other = detections((0, 0, 10, 10, 0.6, 0)), detections((0, 0, 10, 10, 0.002, 0))
    assert merge([[one, other]])[0].scores.item() < 0.6


@pytest.mark.parametrize("second", [(20, 20, 30, 30, 0.3, 1), (0, 0, 10, 10, 0.3, 0)])
def test_other_places_and_other_classes_stay_apart(second):
    (found,) = merge([[detections((0, 0, 10, 10, 0.6, 1)), detections(second)]])
    assert found.scores.tolist() == pytest.approx([0.6, 0.3], abs=1e-5)
    assert found.labels.tolist() == [1, second[-1]]


def test_a_detector_has_one_vote_an_object():
    one = detections((0, 0, 10, 10, 0.6, 0), (0, 0, 10, 4.9, 0.5, 0))
    other = detections((0, 0, 10, 9, 0.4, 0), (0, 0, 10, 7, 0.35, 0))
    (found,) = merge([[one, other]])
    logit = odds(0.6) + odds(0.4) - CLASS_PRIOR
    assert found.scores[0].item() == pytest.approx(sigmoid(logit), abs=1e-5)
    assert found.scores.tolist()[1:] == pytest.approx([0.5], abs=1e-5)


def test_probabilities_are_those_of_each_detector_and_the_prior():
    one, other = detections((0, 0, 10, 10, 0.6, 1)), detections((0, 0, 10, 8, 0.3, 1), (50, 50, 60, 60, 0.2, 1))
    slopes, offsets, prior = [0.5, 2.0], [-1.0, 0.25], -2.0
    (found,) = merge([[one, other]], DEFAULT, slopes, offsets, prior)
    p, q = 0.5 * odds(0.6) - 1.0, 2.0 * odds(0.3) + 0.25
    alone = sigmoid(2.0 * odds(0.2) + 0.25)
    assert found.scores.tolist() == pytest.approx([sigmoid(p + q - prior), alone], abs=1e-5)
    assert found.boxes[0, 3].item() == pytest.approx(
        (sigmoid(p) * 10 + sigmoid(q) * 8) / (sigmoid(p) + sigmoid(q)), abs=1e-4
    )


def test_the_most_probable_box_leads_whatever_its_raw_score():
    """The second detector's is sure enough to lead, and it alone overlaps both of the others."""
    one = detections((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 3.8, 0.8, 0))
    other = detections((0, 0, 10, 6.5, 0.5, 0))
    assert [len(x) for x in merge([[one, other]])] == [2]
    (found,) = merge([[one, other]], DEFAULT, [0.1, 1.0], [-1.0, 5.0])
    assert found.scores.tolist() == pytest.approx(
        [sigmoid(0.1 * odds(0.9) - 1.0 + odds(0.5) + 5.0 - CLASS_PRIOR)], abs=1e-5
    )


def test_certain_scores_stay_finite():
    one, other = detections((0, 0, 10, 10, 1.0, 0)), detections((0, 0, 10, 10, 1e-9, 0), (20, 20, 30, 30, 1.0, 0))
    (found,) = merge([[one, other]], DEFAULT, [0.5, 1.0], [0.0, 0.0])
    assert found.boxes[0].tolist() == pytest.approx([20, 20, 30, 30])
    both = 0.5 * odds(1 - 1e-6) + odds(1e-6) - CLASS_PRIOR
    assert found.scores.tolist() == pytest.approx([1 - 1e-6, sigmoid(both)], rel=1e-2)


def slow_merge(image, threshold, slopes, offsets, prior):
    """One object after the other, best first."""
    rows = [
        (sigmoid(slopes[k] * odds(float(s)) + offsets[k]), b, int(c), k)
        for k, one in enumerate(image)
        for b, s, c in one
    ]
    rows.sort(key=lambda row: -row[0])
    merged = []
    while rows:
        head, *rest = rows
        near = [r for r in rest if r[2] == head[2] and float(box_iou(r[1][None], head[1][None])) > threshold]
        rows = [r for r in rest if not any(r is n for n in near)]
        votes = {head[3]: head}
        for row in near:
            votes.setdefault(row[3], row)
        logit = sum(odds(v[0]) for v in votes.values()) - (len(votes) - 1) * prior
        total = sum(v[0] for v in votes.values())
        merged.append((sigmoid(logit), sum(v[0] * v[1] for v in votes.values()) / total, head[2]))
    return sorted(merged, key=lambda row: -row[0])


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_merging_is_that_of_one_object_after_the_other(members, threshold, calibrated):
    slopes, offsets = ([0.6, 1.5, 0.9], [-0.5, 0.3, -1.0]) if calibrated else ([1.0] * 3, [0.0] * 3)
    calibration = (slopes[:members], offsets[:members], -2.0 if calibrated else CLASS_PRIOR)
    generator = torch.Generator().manual_seed(members)
    images = []
    for sizes in ((9, 9, 9), (0, 0, 0), (4, 0, 7), (0, 5, 2)):
        image = []
        for size in sizes[:members]:
            corner = torch.rand(size, 2, generator=generator) * 20
            side = 8 + torch.rand(size, 2, generator=generator) * 8
            scores = torch.rand(size, generator=generator) * 0.9 + 0.05
            labels = torch.randint(2, (size,), generator=generator)
            image.append(Detections(torch.cat((corner, corner + side), 1), scores, labels))
        images.append(image)
    found = merge(images, Selection(iou_threshold=threshold), *calibration)
    assert [len(one) for one in found][1] == 0
    for one, image in zip(found, images, strict=True):
        expected = slow_merge(image, threshold, *calibration)
        assert one.scores.tolist() == pytest.approx([row[0] for row in expected], abs=1e-4)
        assert one.labels.tolist() == [row[2] for row in expected]
        for box, row in zip(one.boxes, expected, strict=True):
            torch.testing.assert_close(box, row[1], rtol=1e-4, atol=1e-3)
    few = merge(images, Selection(0.5, threshold, max_detections=3), *calibration)
    assert [len(one) for one in few] == [min(3, int((one.scores > 0.5).sum())) for one in found]


def test_a_box_at_the_very_threshold_keeps_its_own_vote():
    """In float32 these two overlap by more than a half, in float64, where they are told apart, by less."""
    one = detections((248.1282958984375, 384.11090087890625, 267.3930969238281, 409.6078796386719, 0.9, 0))
    other = detections((254.54989624023438, 384.11090087890625, 273.814697265625, 409.6078796386719, 0.8, 0))
    (found,) = merge([[one, other]])
    assert found.scores.tolist() == pytest.approx([0.9, 0.8], abs=1e-5)


def test_a_threshold_is_for_the_merged_score():
    one, other = detections((0, 0, 10, 10, 0.4, 0)), detections((0, 0, 10, 10, 0.4, 0))
    assert len(merge([[one, other]], Selection(0.5))[0]) == 1
    detector, images = make("ab", placement="boxes"), inputs("ab", batch=1)
    with torch.no_grad():
        outputs = detector(images)
    (every,) = detector.decode(outputs)
    threshold = float(every.scores[10])
    (some,) = detector.decode(outputs, None, Selection(threshold))
    assert some.scores.tolist() == every.scores[:10].tolist()
    small = detector.decode(outputs, torch.tensor([[50, 40]] * 2))[0]
    assert float(small.boxes[:, 2].max()) < 40.001
    assert float(small.boxes[:, 3].max()) < 50.001


def test_soft_suppression_is_refused():
    detector = make("ab", placement="boxes")
    with pytest.raises(UserError, match=r"^soft: placement boxes merges .*; leave it out$"):
        detector.decode(detector(inputs("ab")), None, Selection(soft=True))


def test_nothing_found_by_anyone():
    assert [len(one) for one in merge([[Detections.empty()] * 2] * 3)] == [0, 0, 0]


def targets():
    return Targets(
        [torch.tensor([[10.0, 10, 60, 60]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 128, 128]])],
        [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])],
    )


def test_each_member_learns_as_if_it_were_alone():
    detector, images = make("ab", placement="boxes"), inputs("ab", batch=3)
    present = {"b": torch.tensor([True, False, True])}
    loss = detector.loss(detector(images, present), targets())
    own = targets()
    a, b = detector.members["a"], detector.members["b"]
    whole = a.loss(a({"a": images["a"]}), own)
    part = b.loss(b({"b": images["b"][present["b"]]}), Targets(own.boxes[::2], own.labels[::2]))
    for key, value in loss.items():
        torch.testing.assert_close(value, whole[key] + part[key])


def test_an_image_with_one_sensor_has_that_detector_s_boxes():
    detector, images = make("ab", placement="boxes"), inputs("ab", batch=2)
    with torch.no_grad():
        found = detector.decode(detector(images, {"b": torch.tensor([False, True])}))
        alone = detector.members["a"].decode(detector.members["a"]({"a": images["a"][:1]}))
    torch.testing.assert_close(found[0].scores, alone[0].scores)
    torch.testing.assert_close(found[0].boxes, alone[0].boxes)
    assert not torch.allclose(found[1].scores, alone[0].scores)


def calibrated(modalities):
    detector = make(modalities, placement="boxes")
    for number in range(len(modalities)):
        detector.slopes[number], detector.offsets[number] = 0.5 + number, -1.0 - number
    detector.prior.fill_(-1.5)
    return detector


def test_each_member_keeps_its_own_calibration_where_others_are_absent():
    detector, images = calibrated("abc"), inputs("abc", batch=3)
    seen = {"a": torch.tensor([True, False, False]), "b": torch.tensor([False, True, False])}
    with torch.no_grad():
        found = detector.decode(detector(images, seen | {"c": torch.tensor([False, False, True])}))
        without_a = detector.decode(detector({m: images[m] for m in "bc"}, {"b": torch.tensor([False, True, True])}))
    for one, m, row, number in ((found[0], "a", 0, 0), (found[1], "b", 1, 1), (found[2], "c", 2, 2)):
        with torch.no_grad():
            (alone,) = detector.member(m).decode(detector.member(m)({m: images[m][row : row + 1]}))
        expected = ((0.5 + number) * alone.scores.logit() - 1.0 - number).sigmoid()
        torch.testing.assert_close(one.scores, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.boxes, alone.boxes, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        (alone,) = detector.member("c").decode(detector.member("c")({"c": images["c"][:1]}))
    torch.testing.assert_close(without_a[0].scores, (2.5 * alone.scores.logit() - 3.0).sigmoid(), rtol=1e-4, atol=1e-6)


def test_decoding_merges_three_members_in_their_order():
    detector, images = calibrated("abc"), inputs("abc", batch=1)
    with torch.no_grad():
        (found,) = detector.decode(detector(images))
        each = [detector.member(m).decode(detector.member(m)({m: images[m]}))[0] for m in "abc"]
    expected = slow_merge(each, 0.5, detector.slopes.tolist(), detector.offsets.tolist(), -1.5)[:100]
    assert found.scores.tolist() == pytest.approx([row[0] for row in expected], abs=1e-4)


def test_the_calibration_is_part_of_the_state_but_not_learnt():
    detector = calibrated("ab")
    state = detector.state_dict()
    assert state["slopes"].tolist() == [0.5, 1.5]
    assert state["offsets"].tolist() == [-1.0, -2.0]
    assert state["prior"].item() == -1.5
    assert not {"slopes", "offsets", "prior"} & {name for name, _ in detector.named_parameters()}
    fresh = make("ab", placement="boxes")
    assert (fresh.slopes.tolist(), fresh.offsets.tolist()) == ([1, 1], [0, 0])
    assert fresh.prior.item() == pytest.approx(CLASS_PRIOR)
