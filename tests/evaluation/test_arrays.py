import numpy as np
import pytest
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.evaluation.arrays import overlaps, paired
from mmfuse.sample import Detections

SQUARE = np.array([[0, 0, 10, 10]])


def record(image_id):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Record(image_id, {}, 640, 512, *nothing)


@pytest.mark.parametrize(
    ("other", "over_union", "over_found"),
    [
        ([0, 0, 10, 10], 1, 1),
        ([0, 0, 10, 5], 0.5, 0.5),
        ([5, 0, 15, 10], 1 / 3, 0.5),
        ([0, 0, 20, 20], 0.25, 1),
        ([10, 0, 20, 10], 0, 0),  # they touch
        ([20, 20, 30, 30], 0, 0),  # apart in both directions, whose product is positive
        ([2, 2, 2, 8], 0, 0),
    ],
)
def test_overlap_by_hand(other, over_union, over_found):
    assert overlaps(SQUARE, np.array([other])) == pytest.approx(np.array([[over_union]]))
    assert overlaps(SQUARE, np.array([other]), np.array([True])) == pytest.approx(np.array([[over_found]]))


def test_each_object_has_its_own_kind_of_overlap():
    boxes = np.array([[0, 0, 20, 20], [0, 0, 20, 20]])
    assert overlaps(SQUARE, boxes, np.array([False, True])).tolist() == [[0.25, 1]]


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [8, 8, 2, 2]])
def test_a_found_box_without_area_overlaps_nothing(box):
    assert overlaps(np.array([box]), SQUARE, np.array([True])).tolist() == [[0]]


def test_overlap_of_nothing_is_empty():
    nothing = np.zeros((0, 4))
    assert overlaps(nothing, SQUARE).shape == (0, 1)
    assert overlaps(SQUARE, nothing, np.zeros(0, bool)).shape == (1, 0)


def test_images_come_by_id_and_detections_best_first():
    boxes = torch.arange(12).reshape(3, 4)
    detections = {2: Detections(boxes, torch.tensor([0.2, 0.9, 0.2]).bfloat16(), torch.tensor([0, 1, 1]))}
    (first, nothing), (second, found) = paired([record(7), record(2)], detections, ("a", "b"))[::-1]
    assert (first.image_id, second.image_id) == (7, 2)
    assert nothing.boxes.shape == (0, 4)
    assert found.boxes[:, 0].tolist() == [4, 0, 8]
    assert found.labels.tolist() == [1, 0, 1]
