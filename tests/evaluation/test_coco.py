import dataclasses
import json
import logging
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation import coco
from mmfuse.evaluation.coco import Scores, coco_scores
from mmfuse.sample import Detections

CLASSES = ("person", "bicycle", "car")


def record(image_id, boxes, labels, ignore=None, condition=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return Record(image_id, {}, 640, 512, boxes, np.array(labels, np.int64), flags, condition, None)


def found(boxes, scores, labels):
    return Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores).float(), torch.tensor(labels))


def perfect(records):
    return {
        r.image_id: found(r.boxes[~r.ignore], np.full((~r.ignore).sum(), 0.9), r.labels[~r.ignore]) for r in records
    }


@pytest.fixture
def records():
    return [
        record(7, [[10, 10, 40, 30], [100, 100, 400, 300]], [0, 2], condition="day"),
        record(3, [[5, 5, 60, 70]], [0], condition="night"),
        record(9, [], [], condition="night"),
    ]


def test_ground_truth_as_detections_is_perfect(records):
    scores = coco_scores(records, perfect(records), CLASSES)
    assert (scores.ap, scores.ap50, scores.ap75, scores.ar_100) == pytest.approx((1, 1, 1, 1))
    assert (scores.ap_small, scores.ap_medium, scores.ap_large) == pytest.approx((1, 1, 1))
    assert (scores.images, scores.boxes) == (3, 3)


def test_class_without_objects_is_left_out(records):
    scores = coco_scores(records, perfect(records), CLASSES)
    assert scores.per_class == {"person": pytest.approx(1), "bicycle": None, "car": pytest.approx(1)}


def test_size_without_objects_is_none():
    scores = coco_scores([record(1, [[0, 0, 10, 10]], [0])], {1: found([[0, 0, 10, 10]], [0.5], [0])}, CLASSES)
    assert scores.ap_small == pytest.approx(1)
    assert (scores.ap_medium, scores.ap_large) == (None, None)


def test_the_areas_of_the_data_tell_small_from_large():
    """The box of 40 x 40 pixels is medium, what it covers of them small; of the second it is the other way round."""
    objects = record(1, [[0, 0, 40, 40], [100, 100, 120, 120], [200, 200, 240, 240]], [0, 0, 0])
    objects = dataclasses.replace(objects, area=np.array([900.0, 1100.0, 1600.0]))
    detections = {1: found([[100, 100, 120, 120]], [0.9], [0])}
    scores = coco_scores([objects], detections, CLASSES)
    assert (scores.ap_small, scores.ap_large) == (0, None)
    assert scores.ap_medium == pytest.approx(51 / 101)
    assert coco_scores([objects], perfect([objects]), CLASSES).ap_small == pytest.approx(1)


@pytest.mark.parametrize("detections", [{}, {3: Detections.empty(), 7: Detections.empty(), 9: Detections.empty()}])
def test_nothing_found_is_zero(records, detections):
    scores = coco_scores(records, detections, CLASSES)
    assert (scores.ap, scores.ap50, scores.ar_100) == (0, 0, 0)
    assert scores.per_class == {"person": 0, "bicycle": None, "car": 0}


def test_image_without_entry_has_no_detections(records):
    detections = perfect(records)
    del detections[3]
    assert coco_scores(records, detections, CLASSES) == coco_scores(
        records, {**detections, 3: Detections.empty()}, CLASSES
    )


def test_ap_by_hand():
    # one of two objects found above a false alarm: precision 1 up to recall 0.5, that is 51 of 101 thresholds
    truth = [record(1, [[0, 0, 10, 10], [50, 50, 90, 90]], [0, 0])]
    detections = {1: found([[0, 0, 10, 10], [200, 200, 250, 250]], [0.9, 0.5], [0, 0])}
    scores = coco_scores(truth, detections, CLASSES)
    assert scores.ap == pytest.approx(51 / 101)
    assert scores.ar_100 == pytest.approx(0.5)


def test_ap50_counts_a_box_that_ap75_refuses():
    scores = coco_scores([record(1, [[0, 0, 100, 100]], [0])], {1: found([[0, 0, 100, 60]], [0.9], [0])}, CLASSES)
    assert (scores.ap50, scores.ap75) == pytest.approx((1, 0))
    assert scores.ap == pytest.approx(0.3)  # IoU 0.6 passes 0.50, 0.55 and 0.60


def test_first_object_and_first_detection_count():
    """Ids that start from 0 would lose the first match."""
    scores = coco_scores([record(0, [[0, 0, 50, 50]], [0])], {0: found([[0, 0, 50, 50]], [0.3], [0])}, CLASSES)
    assert scores.ap == pytest.approx(1)


def test_box_in_an_ignored_region_counts_neither_way():
    truth = [record(1, [[0, 0, 20, 20], [100, 100, 300, 300]], [0, 0], ignore=[False, True])]
    detections = {1: found([[120, 120, 160, 160], [0, 0, 20, 20]], [0.9, 0.5], [0, 0])}
    scores = coco_scores(truth, detections, CLASSES)
    assert scores.ap == pytest.approx(1)
    assert scores.boxes == 1


def test_conditions_are_scored_on_their_own_images(records):
    detections = perfect(records)
    del detections[3]
    scores = coco_scores(records, detections, CLASSES)
    assert scores.per_condition == {
        "day": {"ap": pytest.approx(1), "ap50": pytest.approx(1), "images": 1, "boxes": 2},
        "night": {"ap": 0, "ap50": 0, "images": 2, "boxes": 1},
    }


def test_condition_without_objects_is_none(records):
    scores = coco_scores([*records, record(4, [], [], condition="fog")], perfect(records), CLASSES)
    assert scores.per_condition["fog"] == {"ap": None, "ap50": None, "images": 1, "boxes": 0}


def test_scores_survive_json(records):
    scores = coco_scores(records, perfect(records), CLASSES)
    assert Scores(**json.loads(json.dumps(asdict(scores), allow_nan=False))) == scores


def test_nothing_is_printed(records, capsys):
    coco_scores(records, perfect(records), CLASSES)
    assert capsys.readouterr() == ("", "")


def test_half_precision_detections_are_accepted(records):
    halves = {k: Detections(d.boxes.half(), d.scores.bfloat16(), d.labels) for k, d in perfect(records).items()}
    assert coco_scores(records, halves, CLASSES).ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({3: found([[0, 0, float("nan"), 5]], [0.9], [0])}, "image 3: a detection isn't finite"),
        ({3: found([[0, 0, 5, 5]], [float("nan")], [0])}, "image 3: a detection isn't finite"),
        ({3: found([[0, 0, 5, 5]], [0.9], [3])}, "image 3: label 3 is none of 3 classes"),
        ({55: Detections.empty()}, "image 55: has detections but isn't among those to score"),
    ],
)
def test_wrong_detections_are_refused(records, detections, message):
    with pytest.raises(UserError, match=message):
        coco_scores(records, detections, CLASSES)


def test_ground_truth_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match="image 2: a ground-truth box isn't finite"):
        coco_scores([record(2, [[0, 0, np.inf, 5]], [0])], {}, CLASSES)


def test_split_without_objects_is_refused():
    with pytest.raises(UserError, match="the 1 images to score hold no object of person, bicycle, car"):
        coco_scores([record(2, [], [])], {}, CLASSES)


# ---- the fast backend


def crowded_scene(seed):
    """Images with objects of four classes and all sizes, crowds, none, more than 100 detections, and equal scores."""
    rng = np.random.default_rng(seed)
    records, detections = [], {}
    for i in range(16):
        count = rng.integers(1, 12) if i % 5 else 0
        corner, side = rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(1.5, 5.5, (count, 2)))
        boxes = np.concatenate((corner, corner + side), 1).astype(np.float32)
        labels, ignore = rng.integers(0, 3, count), rng.random(count) < 0.2
        records.append(record(3 * i + 2, boxes, labels, ignore, ("day", "night")[i % 2]))
        number = (140, 30, 0)[i % 3]
        chosen = rng.integers(0, max(count, 1), number)
        moved = (boxes if count else np.array([[9, 9, 90, 90]]))[chosen] + rng.normal(0, 3, (number, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        right = (labels if count else np.zeros(1, int))[chosen]
        named = np.where(rng.random(number) < 0.7, right, rng.integers(0, 4, number))
        detections[3 * i + 2] = found(moved, rng.random(number).round(2), named)
    return records, detections


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fast_backend_gives_the_same_figures(seed, monkeypatch):
    fast = pytest.importorskip("faster_coco_eval").COCOeval_faster
    records, detections = crowded_scene(seed)
    scores = []
    for evaluation in (COCOeval, fast):
        monkeypatch.setattr(coco, "evaluation_type", lambda sizes, one=evaluation: one)
        scores.append(asdict(coco_scores(records, detections, [*CLASSES, "none"])))
    plain, other = scores
    assert 0.05 < plain["ap"] < 0.9
    assert None not in [plain[key] for key in ("ap_small", "ap_medium", "ap_large")]
    assert plain.pop("per_condition") == {
        tag: pytest.approx(values, abs=1e-12) for tag, values in other.pop("per_condition").items()
    }
    assert plain.pop("per_class") == pytest.approx(other.pop("per_class"), abs=1e-12)
    assert plain == pytest.approx(other, abs=1e-12)


def test_the_fast_backend_is_used_where_it_is_installed(records, monkeypatch, caplog):
    fast = pytest.importorskip("faster_coco_eval").COCOeval_faster
    assert coco.evaluation_type(sizes=True) is fast
    ran, real = [], fast.evaluate
    monkeypatch.setattr(fast, "evaluate", lambda self: (ran.append(self.params.imgIds), real(self))[1])
    with caplog.at_level(logging.WARNING):
        coco_scores(records, perfect(records), CLASSES)
    assert ran == [[3, 7, 9], [7], [3, 9]]
    assert not caplog.records
    assert coco.evaluation_type(sizes=False) is COCOeval
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco.evaluation_type(sizes=True) is COCOeval
