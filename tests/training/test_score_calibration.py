"""Calibration against Newton's method, closed forms, matches by hand, and as a whole where ProbEn's premise holds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation.inference import collect
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.model.detector import CLASS_PRIOR, FusionDetector
from mmfuse.sample import Batch, Detections, Targets
from mmfuse.training.score_calibration import LEAST_SLOPE, calibrate, collect_calibrated, platt


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def targets_of(hit):
    hits = hit.sum()
    return np.where(hit, (hits + 1) / (hits + 2), 1 / (len(hit) - hits + 2))


def newton(scores, hit):
    """The most likely slope and offset for Platt's targets."""
    columns = np.stack([np.log(scores / (1 - scores)), np.ones(len(scores))], 1)
    line = np.array([0.0, 0.0])
    for _ in range(50):
        p = sigmoid(columns @ line)
        hessian = columns.T @ (columns * (p * (1 - p))[:, None])
        line = line - np.linalg.solve(hessian, columns.T @ (p - targets_of(hit)))
    return line


@pytest.mark.parametrize(("slope", "offset", "count"), [(0.4, -2.0, 4000), (2.5, 1.0, 4000), (1.0, -1.0, 12)])
def test_slope_and_offset_are_the_most_likely_ones(slope, offset, count):
    generator = np.random.default_rng(count)
    scores = sigmoid(generator.normal(-1, 2, count))
    hit = generator.random(count) < sigmoid(slope * np.log(scores / (1 - scores)) + offset)
    found = platt(torch.from_numpy(scores), torch.from_numpy(hit))
    assert found == pytest.approx(newton(scores, hit), abs=1e-4)
    if count > 1000:
        assert found == pytest.approx((slope, offset), abs=0.3)


def test_hits_and_misses_far_apart_stay_finite():
    """One hit of one and one miss of one have the targets 2/3 and 1/3, which two points reach exactly."""
    scores = torch.tensor([0.9, 0.1])
    slope, offset = platt(scores, torch.tensor([True, False]))
    assert slope == pytest.approx(math.log(2) / math.log(9), abs=1e-4)
    assert offset == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("hit", [[True, True, True, False], [True, True]])
def test_scores_that_say_nothing_get_the_share_of_hits(hit):
    hit = torch.tensor(hit)
    slope, offset = platt(torch.full((len(hit),), 0.25), hit)
    assert slope >= LEAST_SLOPE
    assert sigmoid(slope * math.log(1 / 3) + offset) == pytest.approx(targets_of(hit.numpy()).mean(), abs=1e-4)


def test_the_order_of_scores_is_never_turned_round():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    hit = torch.tensor([False, False, True, False, True, True])
    assert newton(scores.numpy(), hit.numpy())[0] < 0
    slope, offset = platt(scores, hit)
    assert slope == LEAST_SLOPE
    p = sigmoid(slope * np.log(scores.numpy() / (1 - scores.numpy())) + offset)
    assert p.mean() == pytest.approx(targets_of(hit.numpy()).mean(), abs=1e-4)


def test_certain_scores_can_be_fitted():
    hit = torch.tensor([True, True, False, False, False])
    line = platt(torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), hit)
    assert line == pytest.approx(
        platt(torch.tensor([1.0, 1.0, 1e-6, 1e-6, 1.0]).double().clamp(max=1 - 1e-6), hit), abs=1e-5
    )
    assert LEAST_SLOPE < line[0] < 0.5


@pytest.mark.parametrize("scores", [[], [0.9, 0.2]])
def test_without_a_hit_scores_are_taken_at_their_word(scores):
    assert platt(torch.tensor(scores), torch.zeros(len(scores), dtype=torch.bool)) == (1.0, 0.0)


def ensemble(modalities, classes=("person", "car")):
    torch.manual_seed(0)
    made = create_detector("d-4", dict.fromkeys(modalities, 1), classes=classes, placement="boxes")
    for part in made.modules():
        if isinstance(part, FusionDetector):  # spread outputs, so that detections differ
            part.class_head.predict.pointwise.weight.data *= 100
    return made.eval()


def record(image_id, *rows):
    """Rows of x1, y1, x2, y2, label, ignore."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    labels, ignore = values[:, 4].astype(np.int64), values[:, 5] > 0
    return Record(image_id, {"a": Path("a.png")}, 200, 200, values[:, :4], labels, ignore)


def detections(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].long())


RECORDS = [
    record(1, (0, 0, 100, 100, 0, 0), (120, 120, 160, 160, 0, 1)),
    record(2, (0, 0, 50, 50, 1, 0)),
    record(3),
]
FOUND = {
    1: detections(
        (0, 0, 100, 52, 0.9, 0),  # a hit, by an IoU of 0.52
        (0, 0, 100, 100, 0.8, 0),  # a miss: a better one has its object
        (0, 0, 100, 100, 0.7, 1),  # a miss, of another class
        (120, 120, 160, 160, 0.6, 0),  # to be ignored
    ),
    2: detections((0, 0, 50, 24, 0.5, 1)),  # a miss, by an IoU of 0.48
    3: detections((5, 5, 9, 9, 0.4, 0)),  # a miss, where there is nothing
}
LINE = platt(torch.tensor([0.9, 0.8, 0.7, 0.5, 0.4]), torch.tensor([True, False, False, False, False]))


def test_hits_are_coco_s_at_half_overlap_and_ignored_boxes_count_neither_way():
    made = ensemble("ab")
    better = {i: one if i != 2 else detections((0, 0, 50, 50, 0.5, 1)) for i, one in FOUND.items()}
    calibrate(made, {"a": FOUND, "b": better}, RECORDS)
    second = platt(torch.tensor([0.9, 0.8, 0.7, 0.5, 0.4]), torch.tensor([True, False, False, True, False]))
    assert made.slopes.tolist() == pytest.approx([LINE[0], second[0]], abs=1e-4)
    assert made.offsets.tolist() == pytest.approx([LINE[1], second[1]], abs=1e-4)
    assert made.prior.item() == pytest.approx(math.log((3 + 1) / (7 + 1)), abs=1e-5)


def test_a_member_without_a_hit_is_left_as_it_was_made_and_out_of_the_prior():
    made = ensemble("abc")
    for old in (made.slopes, made.offsets, made.prior):
        old.fill_(9.0)
    wrong = {1: detections((150, 0, 190, 40, 0.9, 0)), 2: Detections.empty(), 3: Detections.empty()}
    calibrate(made, {"a": wrong, "b": FOUND, "c": {}}, RECORDS)
    assert made.slopes.tolist() == pytest.approx([1, LINE[0], 1], abs=1e-4)
    assert made.offsets.tolist() == pytest.approx([0, LINE[1], 0], abs=1e-4)
    assert made.prior.item() == pytest.approx(math.log((1 + 1) / (4 + 1)), abs=1e-5)
    calibrate(made, {"a": wrong, "b": {}, "c": {}}, RECORDS)
    assert (made.slopes.tolist(), made.offsets.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert made.prior.item() == pytest.approx(CLASS_PRIOR)


def test_a_detector_that_diverged_is_one_line():
    bad = {1: detections((0, 0, math.nan, 9, 0.5, 0))}
    with pytest.raises(UserError, match=r"^image 1: a detection isn't finite; the detector has diverged"):
        calibrate(ensemble(["a"]), {"a": bad}, RECORDS)


def test_merged_scores_are_probabilities_where_members_are_independent():
    """Places with an object or none, whose log-odds each member sees with noise of its own, and then distorts."""
    generator = torch.Generator().manual_seed(0)
    made = ensemble("abc", classes=("person",))
    corners = torch.stack(torch.meshgrid(torch.arange(8) * 24, torch.arange(5) * 24, indexing="ij"), -1).reshape(-1, 2)
    places = torch.cat((corners, corners + 20), 1).float()
    records, truth, found = [], [], {m: {} for m in "abc"}
    for image_id in range(150):
        holds = torch.rand(len(places), generator=generator) < 0.15
        rows = [(*box, 0, 0) for box in places[holds].tolist()]
        records.append(record(image_id, *rows))
        truth.append(holds)
        for m, slope, offset in (("a", 0.3, 0.0), ("b", 2.0, -1.0), ("c", 1.0, 3.0)):
            sees = torch.randn(len(places), generator=generator) + 1.5 * holds
            scores = (slope * sees + offset).sigmoid()
            order = scores.argsort(descending=True)
            found[m][image_id] = Detections(places[order], scores[order], torch.zeros(len(places), dtype=torch.int64))

    def errors():
        """Mean distance of probability and share of objects, over ten equal groups by score."""
        scores, holds = [], []
        for one, there in zip(made.merge({m: list(each.values()) for m, each in found.items()}), truth, strict=True):
            assert len(one) == len(places)
            scores.append(one.scores)
            holds.append(there[(one.boxes[:, None, :2] - places[None, :, :2]).abs().sum(2).argmin(1)].float())
        order = torch.cat(scores).argsort()
        groups = [torch.cat(values)[order].view(10, -1).mean(1) for values in (scores, holds)]
        return (groups[0] - groups[1]).abs().mean().item()

    before = errors()
    calibrate(made, found, records)
    assert made.prior.item() == pytest.approx(math.log(0.15 / 0.85), abs=0.1)
    assert errors() < 0.015
    assert before > 0.1


def batches(generator=7):
    """Five images of three sensors, in batches of two: all there, one each, and one sensor for the last."""
    draw = torch.Generator().manual_seed(generator)
    seen = [(1, 1, 1), (1, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    made = []
    for rows in ([0, 1], [2, 3], [4]):
        images = {m: torch.randint(0, 256, (len(rows), 1, 64, 96), generator=draw, dtype=torch.uint8) for m in "abc"}
        present = {m: torch.tensor([bool(seen[row][k]) for row in rows]) for k, m in enumerate("abc")}
        nothing = Targets([torch.zeros(0, 4)] * len(rows), [torch.zeros(0, dtype=torch.int64)] * len(rows))
        made.append(
            Batch(
                [10 + row for row in rows],
                images,
                present,
                nothing,
                torch.tensor([0.5] * len(rows)),
                torch.tensor([[64, 96]] * len(rows)),
            )
        )
    return made


def found_alone(made, m):
    return {i: one for batch in batches() for i, one in collect(made.member(m), [batch]).items()}


def test_what_is_collected_is_what_the_calibrated_ensemble_then_finds(monkeypatch, tmp_path):
    made = ensemble("abc")
    alone = {m: found_alone(made, m) for m in "abc"}
    assert len(alone["b"][11]) == 0
    truth = [
        record(i, *[(*box.tolist(), int(k), 0) for m in "abc" for box, _, k in alone[m][i][:2]]) for i in alone["a"]
    ]
    runs = []
    real = FusionDetector.forward
    monkeypatch.setattr(
        FusionDetector,
        "forward",
        lambda self, *a, **k: (runs.append(len(next(iter(a[0].values())))), real(self, *a, **k))[1],
    )
    found = collect_calibrated(made, batches(), truth)
    assert sum(runs) == 8
    assert made.slopes.tolist() != [1, 1, 1]
    checkpoint.save_detector(tmp_path / "x.safetensors", made, {})
    again = collect(checkpoint.load(tmp_path / "x.safetensors"), batches())
    assert list(found) == list(again) == [10, 11, 12, 13, 14]
    for i, one in found.items():
        torch.testing.assert_close(one.scores, again[i].scores, rtol=1e-4, atol=1e-5)
        assert one.scores.device.type == "cpu"
    best = alone["b"][12]
    expected = (made.slopes[1] * best.scores.logit() + made.offsets[1]).sigmoid()
    torch.testing.assert_close(found[12].scores, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[12].boxes, best.boxes, rtol=1e-4, atol=1e-2)


def test_nothing_found_on_validation_leaves_it_uncalibrated(monkeypatch):
    made = ensemble("abc")
    nothing = Detections.empty()
    monkeypatch.setattr(FusionDetector, "decode", lambda self, outputs, *a: [nothing] * len(outputs.class_logits))
    found = collect_calibrated(made, batches(), [record(i, (0, 0, 9, 9, 0, 0)) for i in range(10, 15)])
    assert {len(one) for one in found.values()} == {0}
    assert len(found) == 5
    assert made.prior.item() == pytest.approx(CLASS_PRIOR)
