import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation.miss_rate import ALL, REASONABLE, Curve, MissRates, Setup, _curve, _judge, miss_rates
from mmfuse.sample import Detections

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "kaist_miss_rate"
CLASSES = ("person", "bicycle")
PERSON = [100, 100, 140, 200]
SECOND = [300, 100, 340, 200]
AWAY = [500, 300, 540, 400]


def record(image_id, boxes, ignore=None, condition=None, labels=None, occlusion=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Record(
        image_id=image_id,
        files={},
        width=640,
        height=512,
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64),
        ignore=np.zeros(len(boxes), bool) if ignore is None else np.array(ignore, bool),
        condition=condition,
        occlusion=None if occlusion is None else np.array(occlusion, np.int64),
    )


def found(boxes, scores, labels=None):
    labels = torch.zeros(len(scores), dtype=torch.int64) if labels is None else torch.tensor(labels)
    boxes, scores = (torch.tensor(values, dtype=torch.float64) for values in (boxes, scores))
    return Detections(boxes.reshape(-1, 4), scores, labels)


def curve(records, detections, setup=REASONABLE, target="person"):
    """The points of the curve as plain numbers: false positives per image and miss rate."""
    points = _curve(_judge(records, detections, CLASSES, setup, target))
    return list(zip(points.fppi.tolist(), points.miss_rate.tolist(), strict=True))


def counted(box, setup=REASONABLE, occlusion=None):
    """Whether a person counts, beside one who does."""
    truth = record(1, [PERSON, box], occlusion=None if occlusion is None else [0, occlusion])
    return miss_rates([truth], {}, CLASSES, setup).boxes == 2


def test_everybody_found_is_the_lowest_rate():
    scores = miss_rates([record(1, [PERSON])], {1: found([PERSON], [0.9])}, CLASSES)
    assert scores.miss_rate == pytest.approx(1e-10)
    assert (scores.setup, scores.images, scores.boxes) == ("reasonable", 1, 1)


def test_one_image_by_hand():
    # one of two people found above a false positive: FPPI 0 misses half, which holds at eight points; at FPPI 1 the
    # second person is found too
    truth = [record(1, [PERSON, SECOND])]
    detections = {1: found([AWAY, PERSON, SECOND], [0.6, 0.9, 0.5])}
    assert curve(truth, detections) == [(0, 0.5), (1, 0.5), (1, 0)]
    assert miss_rates(truth, detections, CLASSES).miss_rate == pytest.approx(
        math.exp((8 * math.log(0.5) - 23.02585) / 9)
    )


@pytest.mark.parametrize("missed", range(9))
def test_points_are_nine_from_a_hundredth_to_one(missed):
    last = (10, 17, 31, 56, 100, 177, 316, 562, 1000)[missed]  # the false positives in 1000 images that a point allows
    for false, points in ((last, missed), (last + 1, missed + 1)):
        found_at = Curve(np.array([false / 1000]), np.array([0.0]), images=1000, boxes=1)
        assert found_at.log_average() == pytest.approx(1e-10 ** (1 - points / 9))


def test_before_the_first_false_positive_allowed_everybody_is_missed():
    truth = [record(1, [PERSON])]
    detections = {1: found([AWAY, PERSON], [0.9, 0.5])}
    assert curve(truth, detections) == [(1, 1), (1, 0)]
    assert miss_rates(truth, detections, CLASSES).miss_rate == pytest.approx(1e-10 ** (1 / 9))


def test_false_positives_are_divided_by_all_images():
    truth = [record(1, [PERSON]), record(2, []), record(3, []), record(4, [])]
    assert curve(truth, {1: found([AWAY], [0.9])}) == [(0.25, 1)]


def test_detections_of_all_images_are_ranked_together():
    truth = [record(1, [PERSON]), record(2, [PERSON])]
    detections = {1: found([AWAY, PERSON], [0.5, 0.8]), 2: found([PERSON], [0.9])}
    assert curve(truth, detections) == [(0, 0.5), (0, 0), (0.5, 0)]


def test_half_of_the_union_is_enough():
    assert curve([record(1, [PERSON])], {1: found([[100, 100, 140, 150]], [0.9])}) == [(0, 0)]
    assert curve([record(1, [PERSON])], {1: found([[100, 100, 140, 149.9]], [0.9])}) == [(1, 1)]


def test_a_person_is_found_once():
    assert curve([record(1, [PERSON])], {1: found([PERSON, PERSON], [0.9, 0.8])}) == [(0, 0), (1, 0)]


def test_the_best_score_takes_the_person():
    nearly, exactly = [100, 100, 140, 180], PERSON
    assert curve([record(1, [PERSON])], {1: found([exactly, nearly], [0.5, 0.9])}) == [(0, 0), (1, 0)]


def test_a_detection_takes_the_person_that_it_overlaps_most():
    # both overlap the first; the second detection fits only the neighbour if the first took the nearer one
    left, right = [100, 100, 140, 200], [110, 100, 150, 200]
    detections = {1: found([[109, 100, 149, 200], [98, 100, 138, 200]], [0.9, 0.8])}
    assert curve([record(1, [left, right])], detections) == [(0, 0.5), (0, 0)]


def test_a_taken_person_leaves_the_next_nearest():
    left, right = [100, 100, 140, 200], [110, 100, 150, 200]
    assert curve([record(1, [left, right])], {1: found([left, left], [0.9, 0.8])}) == [(0, 0.5), (0, 0)]


def test_an_ignored_region_eats_detections():
    crowd = [200, 100, 600, 400]
    inside, half, out = [300, 200, 340, 300], [580, 200, 620, 300], [581, 200, 621, 300]
    truth = [record(1, [PERSON, crowd], ignore=[False, True])]
    assert curve(truth, {1: found([inside, inside, half], [0.9, 0.8, 0.7])}) == []
    assert curve(truth, {1: found([out], [0.7])}) == [(1, 1)]
    assert miss_rates(truth, {}, CLASSES).boxes == 1


def test_a_detection_on_a_person_and_an_ignored_region_finds_the_person():
    truth = [record(1, [[80, 80, 300, 300], PERSON], ignore=[True, False])]
    assert curve(truth, {1: found([PERSON, PERSON], [0.9, 0.8])}) == [(0, 0)]  # the duplicate is ignored


def test_equal_scores_are_ranked_by_image_id():
    records = [record(4, [PERSON]), record(2, [])]
    detections = {4: found([PERSON], [0.5]), 2: found([AWAY], [0.5])}
    assert curve(records, detections) == curve(records[::-1], detections) == [(0.5, 1), (0.5, 0)]


def test_equal_scores_in_an_image_keep_their_order():
    assert curve([record(1, [PERSON])], {1: found([AWAY, PERSON], [0.5, 0.5])}) == [(1, 1), (1, 0)]


def test_low_people_do_not_count():
    assert counted([300, 100, 340, 155])
    assert not counted([300, 100, 340, 154])
    assert counted([300, 100, 340, 120], ALL)
    assert not counted([300, 100, 340, 119], ALL)


def test_a_setup_may_bound_the_height_above():
    far = Setup("far", (20, 100), (0, 1))
    assert counted([300, 100, 340, 200], far)
    assert not counted([300, 100, 340, 201], far)


@pytest.mark.parametrize(("level", "reasonable"), [(-1, True), (0, True), (1, True), (2, False)])
def test_heavily_occluded_people_count_in_all_only(level, reasonable):
    assert counted(SECOND, REASONABLE, level) == reasonable
    assert counted(SECOND, ALL, level)


@pytest.mark.parametrize("setup", [REASONABLE, ALL])
def test_people_at_the_border_do_not_count(setup):
    assert counted([5, 5, 45, 105], setup)
    assert counted([595, 407, 635, 507], setup)
    for box in ([4, 5, 45, 105], [5, 4, 45, 105], [595, 407, 636, 507], [595, 407, 635, 508]):
        assert not counted(box, setup)


@pytest.mark.parametrize("box", [[300, 100, 340, 150], [0, 100, 40, 200], SECOND])
def test_who_does_not_count_is_ignored(box):
    truth = record(1, [PERSON, box], occlusion=[0, 2 if box == SECOND else 0])
    assert curve([truth], {1: found([box], [0.9])}) == []


def test_nothing_found_misses_everybody():
    truth = [record(1, [PERSON]), record(2, [])]
    for detections in ({}, {1: Detections.empty(), 2: Detections.empty()}):
        assert miss_rates(truth, detections, CLASSES).miss_rate == 1
        assert curve(truth, detections) == []


def test_only_ignored_detections_miss_everybody():
    truth = [record(1, [PERSON, AWAY], ignore=[False, True])]
    assert miss_rates(truth, {1: found([AWAY], [0.9])}, CLASSES).miss_rate == 1


def test_people_in_an_image_without_detections_count():
    truth = [record(1, [PERSON]), record(2, [PERSON])]
    detections = {1: found([AWAY, PERSON], [0.4, 0.9])}
    assert curve(truth, detections) == [(0, 0.5), (0.5, 0.5)]


def test_other_classes_play_no_part():
    truth = [record(1, [SECOND, PERSON], labels=[1, 0], occlusion=[2, 0])]
    detections = {1: found([SECOND, PERSON], [0.9, 0.8], labels=[1, 0])}
    assert curve(truth, detections) == [(0, 0)]
    assert curve(truth, {1: found([SECOND], [0.9], labels=[0])}) == [(1, 1)]
    assert curve(truth, detections, ALL, target="bicycle") == [(0, 0)]


def test_conditions_are_scored_on_their_own_images():
    truth = [
        record(1, [PERSON], condition="day"),
        record(2, [PERSON], condition="night"),
        record(3, [], condition="night"),
        record(4, [], condition="fog"),
    ]
    detections = {1: found([PERSON], [0.9]), 2: found([AWAY], [0.9])}
    scores = miss_rates(truth, detections, CLASSES)
    assert scores.per_condition == {
        "day": {"miss_rate": pytest.approx(1e-10), "images": 1, "boxes": 1},
        "fog": {"miss_rate": None, "images": 1, "boxes": 0},
        "night": {"miss_rate": 1, "images": 2, "boxes": 1},
    }
    assert (scores.images, scores.boxes) == (4, 2)


def test_scores_survive_json():
    scores = miss_rates([record(1, [PERSON], condition="day")], {}, CLASSES)
    assert MissRates(**json.loads(json.dumps(asdict(scores), allow_nan=False))) == scores


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({1: found([[0, 0, float("nan"), 5]], [0.9])}, "image 1: a detection isn't finite"),
        ({1: found([PERSON], [float("nan")])}, "image 1: a detection isn't finite"),
        ({1: found([PERSON], [0.9], labels=[2])}, "image 1: label 2 is none of 2 classes"),
        ({1: found([PERSON], [0.9], labels=[-1])}, "image 1: label -1 is none of 2 classes"),
        ({55: Detections.empty()}, "image 55: has detections but isn't among those to score"),
    ],
)
def test_wrong_detections_are_refused(detections, message):
    with pytest.raises(UserError, match=message):
        miss_rates([record(1, [PERSON])], detections, CLASSES)


def test_wrong_ground_truth_is_refused():
    with pytest.raises(UserError, match="image 2: a ground-truth box isn't finite"):
        miss_rates([record(2, [[0, 0, np.inf, 5]])], {}, CLASSES)


@pytest.mark.parametrize("records", [[], [record(1, [])], [record(1, [[300, 100, 340, 150]])]])
def test_nobody_to_find_is_refused(records):
    with pytest.raises(UserError, match=f"the {len(records)} images to score hold no person that counts as reason"):
        miss_rates(records, {}, CLASSES)


def test_unknown_names_are_refused():
    truth = [record(1, [PERSON], condition="night")]
    with pytest.raises(UserError, match="target: 'persn' is not a known class to score; did you mean 'person'"):
        miss_rates(truth, {}, CLASSES, target="persn")


@pytest.fixture(scope="module")
def kaist():
    if not PUBLISHED.is_dir():
        pytest.skip("the KAIST ground truth is not here")
    truth = json.loads((PUBLISHED / "KAIST_annotation.json").read_text())
    annotations = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    records = []
    for image_id, objects in annotations.items():
        boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        ignore, occlusion = ([a[key] for a in objects] for key in ("ignore", "occlusion"))
        condition = "day" if image_id < 1455 else "night"
        records.append(record(image_id, boxes, ignore, condition, occlusion=occlusion))
    return records


def kaist_result(method):
    rows = np.loadtxt(PUBLISHED / f"{method}_result.txt", delimiter=",")
    rows[:, 3:5] += rows[:, 1:3]
    return {int(i) - 1: found(rows[rows[:, 0] == i, 1:5], rows[rows[:, 0] == i, 5]) for i in np.unique(rows[:, 0])}


def percent(scores):
    rates = (scores.miss_rate, scores.per_condition["day"]["miss_rate"], scores.per_condition["night"]["miss_rate"])
    return [100 * rate for rate in rates]


@pytest.mark.parametrize(("method", "published"), [("MBNet", (8.13, 8.28, 7.86)), ("MLPD", (7.58, 7.95, 6.95))])
def test_published_miss_rates_are_reproduced(kaist, method, published):
    scores = miss_rates(kaist, kaist_result(method), CLASSES)
    boxes = (scores.boxes, scores.per_condition["day"]["boxes"], scores.per_condition["night"]["boxes"])
    assert boxes == (1455, 989, 466)
    assert percent(scores) == pytest.approx(published, abs=0.006)


def test_everybody_counts_in_the_setup_all(kaist):
    scores = miss_rates(kaist, kaist_result("MLPD"), CLASSES, ALL)
    assert scores.boxes == 3276
    assert percent(scores) == pytest.approx((29.524, 29.350, 29.852), abs=1e-3)
