import numpy as np
import pytest

from mmfuse.data.annotations.records import Record
from mmfuse.data.checks.objects import objects, too_small


def record(*sides, ignore=()):
    boxes = np.array([[0, 0, w, h] for w, h in sides], np.float32).reshape(-1, 4)
    flags = np.array([i in ignore for i in range(len(sides))], bool)
    return Record(1, {}, 200, 100, boxes, np.zeros(len(sides), np.int64), flags)


@pytest.mark.parametrize(
    ("size", "zoom", "lost"),
    [((100, 200), 1, 0), ((50, 100), 1, 1), ((50, 400), 1, 1), ((50, 100), 2, 0), ((25, 50), 1, 2), ((1, 2), 1, 3)],
)
def test_what_is_under_two_pixels_on_a_side_once_fitted_is_lost(size, zoom, lost):
    seen = [record((3, 50), (20, 6), (90, 90), (1, 1), ignore=[3]), record()]
    assert objects(seen) == 3
    assert too_small(seen, size, zoom) == lost
