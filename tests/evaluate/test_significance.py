import json
import time

import numpy as np
import pytest
import torch

from mmfuse.data.readers import Record
from mmfuse.errors import UserError
from mmfuse.evaluate.coco import coco_scores
from mmfuse.evaluate.significance import Difference, match, paired_bootstrap
from mmfuse.sample import Detections

CLASSES = ("person", "bicycle", "car")


def scene(images, seed=0, crowds=False):
    rng = np.random.default_rng(seed)
    records = []
    for image_id in rng.permutation(images) * 3:
        n = int(rng.integers(0, 6))
        corner, size = rng.uniform(0, 400, (n, 2)), rng.uniform(10, 100, (n, 2))
        boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
        ignore = rng.random(n) < (0.2 if crowds else 0)
        records.append(Record(int(image_id), {}, 500, 500, boxes, rng.integers(0, 3, n), ignore, None, None))
    return records


def detect(records, noise, recall, alarms, seed=0):
    """A made-up detector: finds a share of the objects, `noise` pixels off, and `alarms` false ones an image."""
    rng = np.random.default_rng(seed)
    detections = {}
    for r in records:
        seen = rng.random(len(r.boxes)) < recall
        corner = rng.uniform(0, 400, (alarms, 2))
        false = np.concatenate((corner, corner + rng.uniform(10, 100, (alarms, 2))), axis=1)
        boxes = np.concatenate((r.boxes[seen] + rng.normal(0, noise, (seen.sum(), 4)), false))
        scores = np.concatenate((rng.uniform(0.3, 1, seen.sum()), rng.uniform(0, 0.7, alarms)))
        labels = np.concatenate((r.labels[seen], rng.integers(0, 3, alarms)))
        order = np.argsort(-scores)
        detections[r.image_id] = Detections(*(torch.tensor(x[order]) for x in (boxes, scores, labels)))
    return detections


def duplicated(records, detections, weights):
    by_id = sorted(records, key=lambda r: r.image_id)
    copies, found = [], {}
    for r, times in zip(by_id, weights, strict=True):
        for _ in range(times):
            copy = Record(len(copies), r.files, r.width, r.height, r.boxes, r.labels, r.ignore, r.condition, r.sequence)
            found[copy.image_id] = detections[r.image_id]
            copies.append(copy)
    return copies, found


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unit_weights_equal_pycocotools(seed, crowds):
    records = scene(25, seed, crowds)
    detections = detect(records, noise=3, recall=0.8, alarms=6, seed=seed)
    fast = match(records, detections, CLASSES).average_precision(np.ones((1, 25), int))
    assert fast == pytest.approx(coco_scores(records, detections, CLASSES).ap, abs=1e-9)


@pytest.mark.parametrize("crowds", [False, True])
def test_weights_equal_pycocotools_on_duplicated_images(crowds):
    records = scene(20, 4, crowds)
    detections = detect(records, noise=3, recall=0.8, alarms=6)
    weights = np.random.default_rng(1).multinomial(20, np.full(20, 1 / 20), size=4)
    fast = match(records, detections, CLASSES).average_precision(weights)
    slow = [coco_scores(*duplicated(records, detections, w), CLASSES).ap for w in weights]
    assert fast == pytest.approx(slow, abs=1e-3)


def test_class_that_is_not_drawn_is_left_out():
    boxes = np.array([[0, 0, 50, 50]], np.float32)
    records = [Record(i, {}, 100, 100, boxes, np.array([i]), np.zeros(1, bool), None, None) for i in range(2)]
    matches = match(records, {0: Detections(torch.tensor(boxes), torch.ones(1), torch.tensor([0]))}, CLASSES)
    assert matches.average_precision(np.array([[1, 1], [2, 0], [0, 2]])) == pytest.approx([0.5, 1, 0])


def test_no_object_drawn_is_nan():
    records = scene(1, 0)
    assert np.isnan(match(records, {}, CLASSES).average_precision(np.zeros((1, 1), int))).all()


def test_identical_models_do_not_differ():
    records = scene(15)
    detections = detect(records, 3, 0.8, 3)
    assert paired_bootstrap(records, [detections], [detections], CLASSES, rounds=50) == Difference(0, 0, 0, 50)


def test_clearly_better_model_excludes_zero():
    records = scene(60)
    good = [detect(records, 1, 0.95, 1, seed) for seed in (0, 1)]
    poor = [detect(records, 6, 0.6, 4, seed) for seed in (2, 3)]
    better = paired_bootstrap(records, good, poor, CLASSES, rounds=200)
    assert 0 < better.low < better.mean < better.high
    worse = paired_bootstrap(records, poor, good, CLASSES, rounds=200)
    assert (worse.mean, worse.low, worse.high) == pytest.approx((-better.mean, -better.high, -better.low))


def test_models_of_one_quality_include_zero():
    records = scene(60)
    difference = paired_bootstrap(
        records, [detect(records, 4, 0.8, 3, 0)], [detect(records, 4, 0.8, 3, 1)], CLASSES, 200
    )
    assert difference.low < 0 < difference.high


def test_mean_is_the_difference_of_the_mean_over_seeds():
    records = scene(20)
    a, b = [detect(records, 2, 0.9, 2, seed) for seed in (0, 1)], [detect(records, 5, 0.9, 2, 2)]
    ap = [coco_scores(records, d, CLASSES).ap for d in (*a, *b)]
    difference = paired_bootstrap(records, a, b, CLASSES, rounds=20)
    assert difference.mean == pytest.approx((ap[0] + ap[1]) / 2 - ap[2])


def test_seed_decides_the_draws():
    records = scene(30)
    a, b = [detect(records, 2, 0.9, 2, 0)], [detect(records, 5, 0.9, 2, 1)]
    first = paired_bootstrap(records, a, b, CLASSES, rounds=40, seed=5)
    assert paired_bootstrap(records, a, b, CLASSES, rounds=40, seed=5) == first
    assert paired_bootstrap(records, a, b, CLASSES, rounds=40, seed=6) != first


def test_order_of_the_records_does_not_matter():
    records = scene(30)
    a, b = [detect(records, 2, 0.9, 2, 0)], [detect(records, 5, 0.9, 2, 1)]
    first = paired_bootstrap(records, a, b, CLASSES, rounds=40)
    assert paired_bootstrap(records[::-1], a, b, CLASSES, rounds=40) == first


def test_difference_survives_json():
    difference = Difference(0.1, 0.05, 0.15, 1000)
    assert Difference(**json.loads(json.dumps(difference.to_dict()))) == difference


@pytest.mark.parametrize(("seeds", "rounds"), [(0, 10), (1, 0)])
def test_nothing_to_compare_is_refused(seeds, rounds):
    with pytest.raises(UserError, match="give at least one of each"):
        paired_bootstrap(scene(3), [{}] * seeds, [{}], CLASSES, rounds)


def test_images_without_objects_are_refused():
    empty = Record(1, {}, 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), None, None)
    with pytest.raises(UserError, match="too few objects of person, bicycle, car"):
        paired_bootstrap([empty], [{}], [{}], CLASSES, 10)


@pytest.mark.slow
def test_thousand_rounds_take_seconds():
    records = scene(200)
    models = [detect(records, 3, 0.8, 97, seed) for seed in range(6)]
    begun = time.perf_counter()
    paired_bootstrap(records, models[:3], models[3:], CLASSES, rounds=1000)
    assert time.perf_counter() - begun < 60
