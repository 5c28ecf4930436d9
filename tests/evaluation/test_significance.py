import json
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation.arrays import overlaps
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.significance import Difference, difference, hardest, match, resampled_ap
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


def matched(records, models):
    return [match(records, detections, CLASSES) for detections in models]


def compared(records, a, b, rounds, seed=0):
    return difference(*(resampled_ap(matched(records, side), rounds, seed) for side in (a, b)))


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
    assert compared(records, [detections], [detections], rounds=50) == Difference(0, 0, 0, 50)


def test_clearly_better_model_excludes_zero():
    records = scene(60)
    good = [detect(records, 1, 0.95, 1, seed) for seed in (0, 1)]
    poor = [detect(records, 6, 0.6, 4, seed) for seed in (2, 3)]
    better = compared(records, good, poor, rounds=200)
    assert 0 < better.low < better.mean < better.high
    worse = compared(records, poor, good, rounds=200)
    assert (worse.mean, worse.low, worse.high) == pytest.approx((-better.mean, -better.high, -better.low))


def test_models_of_one_quality_include_zero():
    records = scene(60)
    ahead = compared(records, [detect(records, 4, 0.8, 3, 0)], [detect(records, 4, 0.8, 3, 1)], 200)
    assert ahead.low < 0 < ahead.high


def test_mean_is_the_difference_of_the_mean_over_seeds():
    records = scene(20)
    a, b = [detect(records, 2, 0.9, 2, seed) for seed in (0, 1)], [detect(records, 5, 0.9, 2, 2)]
    ap = [coco_scores(records, d, CLASSES).ap for d in (*a, *b)]
    assert compared(records, a, b, rounds=20).mean == pytest.approx((ap[0] + ap[1]) / 2 - ap[2])


def test_seed_decides_the_draws():
    records = scene(30)
    a, b = [detect(records, 2, 0.9, 2, 0)], [detect(records, 5, 0.9, 2, 1)]
    first = compared(records, a, b, rounds=40, seed=5)
    assert compared(records, a, b, rounds=40, seed=5) == first
    assert compared(records, a, b, rounds=40, seed=6) != first


def test_order_of_the_records_does_not_matter():
    records = scene(30)
    a, b = [detect(records, 2, 0.9, 2, 0)], [detect(records, 5, 0.9, 2, 1)]
    first = compared(records, a, b, rounds=40)
    assert compared(records[::-1], a, b, rounds=40) == first


@pytest.mark.parametrize(
    ("crowds", "mean", "low", "high"),
    [
        (False, 0.3732925764417244, 0.3379413240909664, 0.412508655065852),
        (True, 0.3544019352131701, 0.3107497438385258, 0.39583032639372073),
    ],
)
def test_figures_stay_what_they_were(crowds, mean, low, high):
    records = scene(40, 7, crowds)
    a = [detect(records, 2, 0.9, 2, seed) for seed in (0, 1)]
    b = [detect(records, 5, 0.8, 3, seed) for seed in (2, 3, 4)]
    assert compared(records, a, b, rounds=150) == Difference(
        *(pytest.approx(value, abs=1e-12) for value in (mean, low, high)), 150
    )


@pytest.mark.parametrize("rounds", [1, 63, 64, 65, 150])
def test_some_rounds_at_a_time_equal_all_at_once(rounds):
    records = scene(30, 3, crowds=True)
    models = [detect(records, 3, 0.8, 5, seed) for seed in (0, 1)]
    draws = np.random.default_rng(9).multinomial(30, np.full(30, 1 / 30), size=rounds)
    weights = np.concatenate((np.ones((1, 30), int), draws))
    slow = np.mean([match(records, d, CLASSES).average_precision(weights) for d in models], axis=0)
    assert np.array_equal(resampled_ap(matched(records, models), rounds, seed=9), slow)


def test_some_images_alone_equal_the_others_left_out():
    records = scene(40, 5, crowds=True)
    detections = detect(records, 3, 0.8, 6)
    chosen = np.arange(40) % 3 == 1
    alone = match(records, detections, CLASSES).on(chosen)
    draws = np.random.default_rng(0).multinomial(13, np.full(13, 1 / 13), size=20)
    weights = np.zeros((20, 40), int)
    weights[:, chosen] = draws
    zeros_elsewhere = match(records, detections, CLASSES).average_precision(weights)
    assert alone.average_precision(draws) == pytest.approx(zeros_elsewhere, abs=1e-12)
    part = [r for r, one in zip(sorted(records, key=lambda r: r.image_id), chosen, strict=True) if one]
    fresh = match(part, {r.image_id: detections[r.image_id] for r in part}, CLASSES)
    assert np.array_equal(resampled_ap([alone], 30), resampled_ap([fresh], 30))
    assert not np.allclose(resampled_ap([alone], 30), resampled_ap(matched(records, [detections]), 30))


def test_interval_holds_what_lies_between_its_quantiles_and_no_undefined_round():
    ap = np.array([0.5, *np.linspace(0, 1, 201), np.nan])
    ahead = difference(ap, np.full(203, 0.25))
    assert (ahead.mean, ahead.low, ahead.high) == pytest.approx((0.25, 0.025 - 0.25, 0.975 - 0.25))
    assert ahead.rounds == 202


def test_hardest_rival_is_one_that_is_ahead_for_sure():
    wide, sure, worse = (
        Difference(0, -0.2, 0.2, 9),
        Difference(-0.02, -0.03, -0.01, 9),
        Difference(-0.05, -0.1, -0.01, 9),
    )
    beaten = Difference(0.2, 0.1, 0.3, 9)
    assert [d.below for d in (wide, sure, beaten, Difference(0, -1, 0, 9))] == [False, True, False, False]
    assert hardest({"beaten": beaten, "wide": wide}) == "wide"
    assert hardest({"beaten": beaten, "wide": wide, "sure": sure}) == "sure"
    assert hardest({"wide": wide, "sure": sure, "worse": worse}) == "worse"


@pytest.mark.parametrize(
    ("low", "high", "judgement"),
    [
        (-0.107, 0.043, "not shown"),
        (-0.02, 0.3, "not shown"),
        (-0.01, 0.01, "not shown"),
        (-0.0099, 0.01, "not below"),
        (-0.0099, 0.0, "not below"),
        (0.0, 0.0, "not below"),
        (0.1, 0.2, "not below"),
        (-0.2, -0.1, "below"),
        (-0.005, -0.001, "below"),
    ],
)
def test_not_below_takes_an_interval_that_ends_above_one_point_less(low, high, judgement):
    assert Difference((low + high) / 2, low, high, 9).judgement == judgement


@pytest.mark.parametrize("crowds", [False, True])
def test_false_detections_find_no_object_at_half_overlap(crowds):
    records = scene(25, 3, crowds)
    detections = detect(records, noise=2, recall=0.8, alarms=6, seed=3)
    matches = match(records, detections, CLASSES)
    assert matches.images == 25
    for score in (0.3, 0.5):
        false = 0
        for r in records:
            free = np.ones(len(r.boxes), bool)
            for box, one, label in detections[r.image_id]:
                if one < score:
                    continue
                overlap = np.where(r.labels == int(label), overlaps(box.numpy()[None], r.boxes, r.ignore)[0], 0)
                own = np.where(free & ~r.ignore, overlap, 0)
                if own.max(initial=0) >= 0.5:
                    free[own.argmax()] = False
                elif not (overlap[r.ignore] >= 0.5).any():
                    false += 1
        assert matches.false_detections(score) == pytest.approx(false / 25)
        assert false > 25
    assert match(records, {}, CLASSES).false_detections() == 0


def test_difference_survives_json():
    ahead = Difference(0.1, 0.05, 0.15, 1000)
    assert Difference(**json.loads(json.dumps(asdict(ahead)))) == ahead


def test_images_without_objects_are_refused():
    empty = Record(1, {}, 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), None, None)
    with pytest.raises(UserError, match=r"^bootstrap: 10 rounds draw no object to find; use more rounds or another"):
        compared([empty], [{}], [{}], 10)


@pytest.mark.long
def test_thousand_rounds_take_seconds():
    """Of this process: what else runs on the machine doesn't count."""
    records = scene(200)
    models = [detect(records, 3, 0.8, 97, seed) for seed in range(6)]
    begun = time.process_time()
    compared(records, models[:3], models[3:], rounds=1000)
    assert time.process_time() - begun < 60
