import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.evaluation.arrays import overlaps
from mmfuse.evaluation.coco import coco_pair, evaluate_pair
from mmfuse.evaluation.curves import (
    STEPS,
    THRESHOLD,
    best_thresholds,
    confusion,
    curves,
    f1_of,
    precision_of,
)
from mmfuse.evaluation.significance import match
from mmfuse.sample import Detections

CLASSES = ("person", "bicycle", "car")


def record(image_id, boxes, labels, ignore=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore, bool)
    return Record(image_id, {}, 640, 512, boxes, np.array(labels, np.int64), flags, None, None)


def found(boxes, scores, labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    return Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores).float(), labels)


def street(seed, images=12):
    """Few large boxes that lie on each other, of three classes, a quarter to ignore; scores often equal."""
    rng = np.random.default_rng(seed)
    records, detections = [], {}
    for i in range(images):
        count = int(rng.integers(0, 6))
        corner = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(20, 50, (count, 2))), 1)
        records.append(record(2 * i + 1, boxes, rng.integers(0, 3, count), rng.random(count) < 0.25))
        number = int(rng.integers(0, 12)) if count else 2
        moved = boxes[rng.integers(0, count, number)] if count else np.array([[5.0, 5, 40, 40]] * 2)
        moved = moved + rng.normal(0, 4, (number, 4))
        detections[2 * i + 1] = found(moved, rng.random(number).round(1).clip(0.1), rng.integers(0, 3, number))
    return records, detections


def brute_matches(rec, dets, classes_apart=True):
    """COCO's rule at IoU 0.5 in plain loops: of each detection, best first, the object that it finds, None or "-"."""
    boxes, scores, labels = (x.numpy().astype(float) for x in (dets.boxes, dets.scores, dets.labels))
    iou = overlaps(boxes, rec.boxes, over_found=rec.ignore)
    taken, result = set(), {}
    for d in np.argsort(-scores, kind="stable"):
        best = None
        for ignored in (False, True):
            for n in range(len(rec.boxes)):
                if rec.ignore[n] != ignored or (n in taken and not ignored):
                    continue
                if rec.labels[n] == labels[d] and iou[d, n] >= 0.5 and (best is None or iou[d, n] >= iou[d, best]):
                    best = n
            if best is not None:
                break
        if best is not None and not rec.ignore[best]:
            taken.add(best)
        result[int(d)] = "-" if best is not None and rec.ignore[best] else best
    return result


@pytest.mark.parametrize("seed", range(4))
def test_precision_over_recall_is_that_of_pycocotools(seed):
    records, detections = street(seed)
    evaluation = evaluate_pair(*coco_pair(records, detections, CLASSES), [r.image_id for r in records], sizes=False)
    evaluation.accumulate()
    expected = evaluation.eval["precision"][:, :, :, 0, -1]
    rankings = match(records, detections, CLASSES).rankings
    for k, ranking in enumerate(rankings):
        np.testing.assert_allclose(precision_of(ranking), [expected[0, :, k], expected[:, :, k].mean(0)], atol=1e-12)
    assert 0.05 < expected[0].mean() < 0.95
    told = curves(match(records, detections, CLASSES), confusion(records, detections, CLASSES, {}, None))
    np.testing.assert_allclose(told.overall.precision50, expected[0].mean(1), atol=5.1e-5)
    np.testing.assert_allclose(told.overall.precision, expected.mean((0, 2)), atol=5.1e-5)
    np.testing.assert_allclose(told.per_class["car"].precision, expected[:, :, 2].mean(0), atol=5.1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_f1_over_threshold_is_counted_right(seed):
    records, detections = street(seed)
    rankings = match(records, detections, CLASSES).rankings
    for k, ranking in enumerate(rankings):
        expected = []
        for threshold in STEPS:
            hits = false = objects = 0
            for rec in records:
                dets = detections[rec.image_id]
                dets = dets[(dets.scores.double() >= threshold) & (dets.labels == k)]
                result = list(brute_matches(rec, dets).values())
                hits += sum(isinstance(r, int) for r in result)
                false += result.count(None)
                objects += int(((rec.labels == k) & ~rec.ignore).sum())
            expected.append(2 * hits / (hits + false + objects))
        np.testing.assert_allclose(f1_of(ranking, STEPS), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_lets_pass_what_gives_the_highest_f1(seed):
    records, detections = street(seed)
    matches = match(records, detections, CLASSES)
    best = best_thresholds(matches, CLASSES)
    assert list(best) == list(CLASSES)
    for ranking, threshold in zip(matches.rankings, best.values(), strict=True):
        tried = f1_of(ranking, np.concatenate(([0.0], ranking.score, ranking.score + 1e-9)))
        assert f1_of(ranking, np.array([threshold]))[0] == tried.max() > 0
        assert np.abs(ranking.score - threshold).min() > 1e-3


def test_the_best_threshold_lies_between_two_scores():
    records = [record(1, [[0, 0, 10, 10], [50, 50, 90, 90]], [0, 0])]
    boxes = [[0, 0, 10, 10], [50, 50, 90, 90], [200, 200, 250, 250]]
    assert best_thresholds(match(records, {1: found(boxes, [0.75, 0.5, 0.25], [0, 0, 0])}, CLASSES), CLASSES) == {
        "person": 0.375
    }
    assert best_thresholds(match(records, {1: found(boxes[:2], [0.75, 0.5], [0, 0])}, CLASSES), CLASSES) == {
        "person": 0.25
    }


def test_a_class_that_is_never_found_has_no_best_threshold():
    records = [record(1, [[0, 0, 10, 10]], [0])]
    detections = {1: found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.9], [0, 1])}
    assert best_thresholds(match(records, detections, CLASSES), CLASSES) == {}
    assert best_thresholds(match(records, {}, CLASSES), CLASSES) == {}


def brute_confusion(records, detections, limits):
    size = len(CLASSES) + 1
    counts = np.zeros((size, size), int)
    for rec in records:
        dets = detections.get(rec.image_id, Detections.empty())
        dets = dets[dets.scores.double() >= torch.tensor([limits[CLASSES[k]] for k in dets.labels.tolist()])]
        own = brute_matches(rec, dets)
        labels = dets.labels.tolist()
        lost = set(np.flatnonzero(~rec.ignore).tolist())
        for d, n in own.items():
            if isinstance(n, int):
                counts[rec.labels[n], labels[d]] += 1
                lost.discard(n)
        iou = overlaps(dets.boxes.double().numpy(), rec.boxes)
        false = [d for d in own if own[d] is None]
        # of equal scores the lower class goes first, as in pycocotools
        for d in sorted(false, key=lambda d: (-float(dets.scores[d]), labels[d])):
            near = [n for n in lost if iou[d, n] >= 0.5]
            if near:
                n = max(near, key=lambda n: iou[d, n])
                counts[rec.labels[n], labels[d]] += 1
                lost.discard(n)
            else:
                counts[-1, labels[d]] += 1
        for n in lost:
            counts[rec.labels[n], -1] += 1
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_confusion_is_counted_right(seed):
    records, detections = street(seed)
    limits = {"person": 0.3, "bicycle": 0.5, "car": 0.05}
    told = confusion(records, detections, CLASSES, limits, "val")
    assert told.thresholds == limits
    assert told.chosen_on == "val"
    counts = np.array(told.counts)
    np.testing.assert_array_equal(counts, brute_confusion(records, detections, limits))
    assert counts[np.triu_indices(3, 1)].sum() > 0  # some are taken for another class
    objects = sum(np.bincount(r.labels[~r.ignore], minlength=3) for r in records)
    np.testing.assert_array_equal(counts[:3].sum(1), objects)
    for ranking, name in zip(match(records, detections, CLASSES).rankings, CLASSES, strict=True):
        assert told.f1(name) == pytest.approx(f1_of(ranking, np.array([limits[name]]))[0])


def test_confusion_by_hand():
    """A person found, a bicycle taken for a car, a car lost, a false person; one on a crowd counts neither way."""
    boxes = [[0, 0, 20, 20], [50, 50, 90, 90], [100, 100, 150, 150], [200, 200, 400, 400]]
    records = [record(4, boxes, [0, 1, 2, 0], [False, False, False, True]), record(9, [], [])]
    detections = {
        4: found([*boxes[:2], [220, 220, 260, 260], boxes[2]], [0.9, 0.8, 0.7, 0.2], [0, 2, 0, 2]),
        9: found([[5, 5, 9, 9]], [0.6], [0]),
    }
    told = confusion(records, detections, CLASSES, {}, None)
    assert told.counts == ((1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 0))
    assert (told.precision("person"), told.recall("person"), told.f1("person")) == (0.5, 1, pytest.approx(2 / 3))
    assert (told.precision("bicycle"), told.recall("bicycle"), told.f1("bicycle")) == (None, 0, 0)
    assert told.thresholds == dict.fromkeys(CLASSES, THRESHOLD)
    low = confusion(records, detections, CLASSES, {"car": 0.1}, "val")
    assert low.counts == ((1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 1, 0), (1, 0, 0, 0))


def test_the_right_class_has_the_object_even_if_another_scores_higher():
    records = [record(1, [[0, 0, 20, 20]], [0])]
    detections = {1: found([[0, 0, 20, 20], [0, 0, 20, 20]], [0.9, 0.5], [2, 0])}
    assert confusion(records, detections, CLASSES, {}, None).counts[0][0] == 1


def test_more_than_a_hundred_may_be_taken_for_others():
    """COCO's limit is for each class; what is left of all classes together may be more."""
    boxes = [[30 * (i % 20), 30 * (i // 20), 30 * (i % 20) + 20, 30 * (i // 20) + 20] for i in range(150)]
    records = [record(1, boxes, [0] * 150)]
    detections = {1: found(boxes, np.linspace(0.9, 0.4, 150), [1, 2] * 75)}
    assert confusion(records, detections, CLASSES, {}, None).counts[0] == (0, 75, 75, 0)


def test_nothing_found_and_classes_without_objects():
    records = [record(1, [[0, 0, 20, 20]], [0])]
    told = curves(match(records, {}, CLASSES), confusion(records, {}, CLASSES, {}, None))
    assert told.per_class["car"] is None
    assert told.per_class["person"] == told.overall
    assert set(told.overall.precision50 + told.overall.precision + told.overall.f1) == {0.0}
    assert told.confusion.counts[0] == (0, 0, 0, 1)
    assert told.confusion.f1("car") is None


def test_curves_are_small_and_survive_json():
    records, detections = street(0)
    told = asdict(curves(match(records, detections, CLASSES), confusion(records, detections, CLASSES, {}, None)))
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text)["overall"]["f1"] == list(told["overall"]["f1"])
    assert len(text) < 4 * 303 * 9  # a number is at most 0.1234 and what separates it from the next
