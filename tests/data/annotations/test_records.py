import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mmfuse.data.annotations.records import Objects, Record, own_objects, seen_alone
from mmfuse.sensor import Sensor


def objects(boxes, size):
    columns = np.array(boxes, np.float32), np.array([1, 0]), np.array([False, True])
    return Objects(*columns, size, np.array([2, -1]), np.array([12.0, 3000.0]))


RECORD = Record(
    7,
    {"rgb": Path("a.png"), "thermal": Path("b.png")},
    40,
    20,
    np.array([[1, 2, 3, 4]], np.float32),
    np.array([0]),
    np.array([False]),
    condition="night",
    objects_of={"thermal": objects([[2, 4, 6, 8], [0, 0, 80, 60]], (80, 60))},
)


def test_own_objects_are_scaled_to_the_frame_of_the_reference():
    found = own_objects(RECORD, "thermal", Sensor(1, register="resize"))
    assert found is not None
    np.testing.assert_allclose(found.boxes, [[1, 4 / 3, 3, 8 / 3], [0, 0, 40, 20]])
    assert found.boxes.dtype == np.float32
    assert found.size == (40, 20)
    np.testing.assert_allclose(found.area, [2, 500])


@pytest.mark.parametrize(
    "sensor",
    [Sensor(1, register="rig"), Sensor(1, register="homography", homography=((1, 0, 0), (0, 1, 0), (0, 0, 1)))],
)
def test_boxes_do_not_follow_a_warped_image(sensor):
    assert own_objects(RECORD, "thermal", sensor) is None
    assert seen_alone([RECORD], "thermal", sensor) == [RECORD]


def test_seen_alone_the_own_objects_count_and_others_keep_the_references():
    plain = dataclasses.replace(RECORD, objects_of={})
    seen, kept = seen_alone([RECORD, plain], "thermal", Sensor(1, register="resize"))
    assert seen.labels.tolist() == [1, 0]
    assert seen.ignore.tolist() == [False, True]
    np.testing.assert_array_equal(seen.occlusion, [2, -1])
    np.testing.assert_allclose(seen.area, [2, 500])
    assert seen.boxes[1].tolist() == [0, 0, 40, 20]
    assert (seen.image_id, seen.condition, seen.width) == (7, "night", 40)
    assert kept is plain
    assert seen_alone([RECORD], "rgb", Sensor(3)) == [RECORD]
