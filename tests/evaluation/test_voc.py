import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation.voc import METHODS, VocScores, voc_scores
from mmfuse.sample import Detections

CLASSES = ("person", "bicycle", "car")
FIRST, SECOND, THIRD = [0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]
AWAY = [300, 300, 310, 310]


def record(image_id, boxes, labels, ignore=None, condition=None):
    return Record(
        image_id=image_id,
        files={},
        width=640,
        height=512,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignore=np.zeros(len(labels), bool) if ignore is None else np.array(ignore, bool),
        condition=condition,
    )


def found(boxes, scores, labels=None):
    labels = torch.zeros(len(scores), dtype=torch.int64) if labels is None else torch.tensor(labels)
    boxes, scores = (torch.tensor(values, dtype=torch.float64) for values in (boxes, scores))
    return Detections(boxes.reshape(-1, 4), scores, labels)


def both(records, detections):
    """AP by area and by 11 points."""
    return [voc_scores(records, detections, CLASSES, method).ap50 for method in METHODS]


def test_average_precision_by_hand():
    # right, wrong, right, of three objects: precision 1 to recall 1/3, 2/3 to recall 2/3, then 0
    truth = [record(1, [FIRST, SECOND, THIRD], [0, 0, 0])]
    detections = {1: found([FIRST, AWAY, SECOND], [0.9, 0.8, 0.7])}
    area, points = (1 + 2 / 3) / 3, (4 * 1 + 3 * 2 / 3) / 11
    assert both(truth, detections) == pytest.approx([area, points])


def test_precision_is_the_best_at_any_higher_recall():
    truth = [record(1, [FIRST, SECOND], [0, 0])]
    detections = {1: found([AWAY, FIRST, SECOND], [0.9, 0.8, 0.7])}
    assert both(truth, detections) == pytest.approx([2 / 3, 2 / 3])


def test_a_recall_of_three_tenths_reaches_the_point():
    """0.3 isn't the 3 * 0.1 of an evenly spaced range, which is a little larger."""
    boxes = [[x, 0, x + 10, 10] for x in range(0, 200, 20)]
    truth = [record(1, boxes, [0] * 10)]
    assert both(truth, {1: found(boxes[:3], [0.9, 0.8, 0.7])}) == pytest.approx([0.3, 4 / 11])


def test_half_of_the_union_is_enough():
    truth = [record(1, [FIRST], [0])]
    assert both(truth, {1: found([[0, 0, 10, 5]], [0.9])}) == pytest.approx([1, 1])
    assert both(truth, {1: found([[0, 0, 10, 4.99]], [0.9])}) == [0, 0]


def test_a_duplicate_is_a_false_positive():
    truth = [record(1, [FIRST, SECOND], [0, 0])]
    detections = {1: found([FIRST, FIRST, SECOND], [0.9, 0.8, 0.7])}
    assert both(truth, detections) == pytest.approx([(1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11])


def test_the_best_scored_detection_finds_the_object():
    truth = [record(1, [FIRST], [0])]
    detections = {1: found([FIRST, [0, 0, 10, 6]], [0.5, 0.9])}
    assert both(truth, detections) == pytest.approx([1, 1])


def test_a_detection_belongs_to_the_object_that_it_overlaps_most():
    """COCO would give the second detection to the neighbour, which it overlaps by 2/3; VOC calls it a duplicate."""
    truth = [record(1, [FIRST, [2, 0, 12, 10]], [0, 0])]
    assert both(truth, {1: found([FIRST, FIRST], [0.9, 0.8])}) == pytest.approx([0.5, 6 / 11])


def test_difficult_objects_count_neither_way():
    truth = [record(1, [FIRST, SECOND], [0, 0], ignore=[False, True])]
    detections = {1: found([SECOND, SECOND, FIRST], [0.9, 0.8, 0.7])}
    assert both(truth, detections) == pytest.approx([1, 1])
    assert voc_scores(truth, detections, CLASSES).boxes == 1


def test_a_part_of_a_difficult_object_is_a_false_positive():
    """Unlike COCO's crowds, which take in any detection inside them."""
    truth = [record(1, [FIRST, [100, 100, 200, 200]], [0, 0], ignore=[False, True])]
    assert both(truth, {1: found([[100, 100, 140, 140], FIRST], [0.9, 0.8])}) == pytest.approx([0.5, 0.5])


def test_another_class_does_not_find_the_object():
    truth = [record(1, [FIRST, SECOND], [0, 1])]
    scores = voc_scores(truth, {1: found([SECOND, SECOND, FIRST], [0.9, 0.8, 0.7], [0, 1, 0])}, CLASSES)
    assert scores.per_class == {"person": 0.5, "bicycle": 1, "car": None}


def test_classes_without_objects_are_left_out_of_the_mean():
    truth = [record(1, [FIRST, SECOND, THIRD], [0, 1, 2], ignore=[False, False, True])]
    scores = voc_scores(truth, {1: found([FIRST, THIRD], [0.9, 0.8], [0, 2])}, CLASSES)
    assert scores.per_class == {"person": 1, "bicycle": 0, "car": None}
    assert scores.ap50 == 0.5


def test_detections_of_all_images_are_ranked_together():
    truth = [record(1, [FIRST], [0]), record(2, [], []), record(3, [FIRST], [0])]
    detections = {1: found([FIRST], [0.9]), 2: found([AWAY], [0.8]), 3: found([FIRST], [0.7])}
    assert both(truth, detections)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_equal_scores_are_ranked_by_image_id():
    truth = [record(4, [FIRST], [0]), record(2, [], [])]
    detections = {4: found([FIRST], [0.5]), 2: found([AWAY], [0.5])}
    assert both(truth, detections) == both(truth[::-1], detections) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("detections", [{}, {1: Detections.empty(), 2: Detections.empty()}])
def test_nothing_found_is_zero(detections):
    truth = [record(1, [FIRST], [0]), record(2, [], [])]
    scores = voc_scores(truth, detections, CLASSES)
    assert (scores.ap50, scores.per_class) == (0, {"person": 0, "bicycle": None, "car": None})
    assert both(truth, detections) == [0, 0]


def test_conditions_are_scored_on_their_own_images():
    truth = [
        record(1, [FIRST], [0], condition="day"),
        record(2, [FIRST, SECOND], [1, 0], ignore=[False, True], condition="night"),
        record(3, [], [], condition="fog"),
        record(4, [FIRST], [0]),
    ]
    scores = voc_scores(truth, {1: found([FIRST], [0.9]), 2: found([FIRST], [0.9])}, CLASSES)
    assert scores.per_condition == {
        "day": {"ap50": 1, "images": 1, "boxes": 1},
        "fog": {"ap50": None, "images": 1, "boxes": 0},
        "night": {"ap50": 0, "images": 1, "boxes": 1},
    }
    assert (scores.method, scores.images, scores.boxes) == ("area", 4, 3)


def test_scores_survive_json():
    scores = voc_scores([record(1, [FIRST], [0], condition="day")], {1: found([FIRST], [0.9])}, CLASSES, "11-point")
    assert VocScores(**json.loads(json.dumps(asdict(scores), allow_nan=False))) == scores


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_average_precision(records, detections, label, method):
    """The rules of the development kit, a detection and an object at a time."""
    objects = {
        r.image_id: [
            [box, bool(i), False] for box, k, i in zip(r.boxes.tolist(), r.labels, r.ignore, strict=True) if k == label
        ]
        for r in records
    }
    wanted = sum(not difficult for boxes in objects.values() for _, difficult, _ in boxes)
    if wanted == 0:
        return None
    ranked = [
        (float(score), image_id, box.tolist())
        for image_id, found_here in detections.items()
        for box, score, k in found_here
        if int(k) == label
    ]
    right, wrong, curve = 0, 0, []
    for _, image_id, box in sorted(ranked, reverse=True):
        best, owner = 0.0, None
        for candidate in objects[image_id]:
            if overlap(box, candidate[0]) > best:
                best, owner = overlap(box, candidate[0]), candidate
        if best < 0.5:
            wrong += 1
        elif owner[1]:
            continue
        elif owner[2]:
            wrong += 1
        else:
            right += 1
            owner[2] = True
        curve.append((right / wanted, right / (right + wrong)))
    if method == "11-point":
        return sum(max((p for r, p in curve if r >= t / 10), default=0) for t in range(11)) / 11
    recalls = sorted({r for r, _ in curve if r > 0})
    widths = np.diff([0, *recalls])
    return sum(width * max(p for r, p in curve if r >= recall) for width, recall in zip(widths, recalls, strict=True))


def crowded_scene(seed):
    """Images with many overlapping objects, some difficult, and detections near them, some on the wrong class."""
    rng = np.random.default_rng(seed)
    records, detections = [], {}
    for image_id in rng.permutation(8).tolist():
        n, false = int(rng.integers(0, 9)), int(rng.integers(0, 5))
        corner = rng.uniform(0, 60, (n + false, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(20, 60, (n + false, 2))), axis=1)
        labels = rng.integers(0, 3, n + false)
        condition = str(rng.choice(["day", "night"]))
        records.append(record(image_id, boxes[:n], labels[:n], rng.random(n) < 0.2, condition))
        near = np.repeat(boxes, 2, axis=0)
        keep = rng.random(len(near)) < 0.7
        near, named = (near + rng.normal(0, 4, near.shape))[keep], np.repeat(labels, 2)[keep]
        detections[image_id] = found(near, rng.random(len(near)), named)
    return records, detections


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_the_slow_version(method, seed):
    records, detections = crowded_scene(seed)
    scores = voc_scores(records, detections, CLASSES, method)
    slow = {name: slow_average_precision(records, detections, k, method) for k, name in enumerate(CLASSES)}
    assert scores.per_class == pytest.approx(slow)
    assert scores.ap50 == pytest.approx(np.mean([ap for ap in slow.values() if ap is not None]))
    day = [r for r in records if r.condition == "day"]
    aps = [slow_average_precision(day, {r.image_id: detections[r.image_id] for r in day}, k, method) for k in range(3)]
    known = [ap for ap in aps if ap is not None]
    assert scores.per_condition["day"]["ap50"] == pytest.approx(np.mean(known) if known else None)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({1: found([[0, 0, float("nan"), 5]], [0.9])}, "image 1: a detection isn't finite"),
        ({1: found([FIRST], [float("nan")])}, "image 1: a detection isn't finite"),
        ({1: found([FIRST], [0.9], [3])}, "image 1: label 3 is none of 3 classes"),
        ({55: Detections.empty()}, "image 55: has detections but isn't among those to score"),
    ],
)
def test_wrong_detections_are_refused(detections, message):
    with pytest.raises(UserError, match=message):
        voc_scores([record(1, [FIRST], [0])], detections, CLASSES)


def test_wrong_ground_truth_is_refused():
    with pytest.raises(UserError, match="image 2: a ground-truth box isn't finite"):
        voc_scores([record(2, [[0, 0, np.inf, 5]], [0])], {}, CLASSES)


@pytest.mark.parametrize("records", [[], [record(2, [], [])], [record(2, [FIRST], [0], ignore=[True])]])
def test_split_without_objects_is_refused(records):
    with pytest.raises(UserError, match=f"the {len(records)} images to score hold no object of person, bicycle, car"):
        voc_scores(records, {}, CLASSES)


def test_unknown_method_is_refused():
    with pytest.raises(UserError, match="method: '11-points' is not a known VOC average precision; did you mean '11-p"):
        voc_scores([record(1, [FIRST], [0])], {}, CLASSES, "11-points")
