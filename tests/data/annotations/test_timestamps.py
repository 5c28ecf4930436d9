import numpy as np
import pytest

from mmfuse.data.annotations.timestamps import match
from mmfuse.errors import UserError


def slow(reference, other, tolerance):
    found = []
    for time in reference:
        gap, _, index = min(((abs(time - t), t, i) for i, t in enumerate(other)), default=(float("inf"), 0, 0))
        found.append(index if gap <= tolerance else None)
    return found


def test_the_nearest_frame_within_the_tolerance_is_taken():
    assert match([0.0, 1.0, 2.0], [0.1, 0.9, 2.6], 0.5) == [0, 1, None]
    assert match([5.0], [1.0, 2.0], 3.0) == [1]
    assert match([-5.0], [1.0, 2.0], 5.9) == [None]


def test_a_slower_sensor_serves_several_frames():
    assert match([0, 10, 20, 30], [2, 29], 10) == [0, 0, 1, 1]


def test_order_does_not_matter():
    assert match([2, 0, 1], [21, 1, 11], 100) == [1, 1, 1]
    assert match([20, 0, 10], [21, 1, 11], 1) == [0, 1, 2]


def test_ties_go_to_the_earlier_and_equal_times_to_the_first():
    assert match([1.0], [2.0, 0.0], 1.0) == [1]
    assert match([1, 3, 0], [2, 2, 2], 5) == [0, 0, 0]
    assert match([9], [5, 7, 7], 5) == [1]


def test_a_gap_of_just_the_tolerance_counts():
    assert match([0], [4], 4) == [0]
    assert match([0], [4], 3.999) == [None]
    assert match([7], [7], 0) == [0]


def test_nothing_to_match():
    assert match([], [1.0], 1.0) == []
    assert match([1.0, 2.0], [], 1.0) == [None, None]


def test_nanoseconds_since_1970_keep_their_last_digit():
    start = 1_700_000_000_000_000_000
    assert match([start + 1], [start + 3, start], 1) == [1]
    assert match([start + 1], [start + 3], 1) == [None]


@pytest.mark.parametrize("seed", range(20))
def test_random_times_agree_with_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    reference, other = (rng.integers(0, 60, rng.integers(1, 40)).tolist() for _ in range(2))
    tolerance = int(rng.integers(0, 5))
    assert match(reference, other, tolerance) == slow(reference, other, tolerance)
    as_floats = match([t / 8 for t in reference], [t / 8 for t in other], tolerance / 8)
    assert as_floats == slow(reference, other, tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_times_that_are_no_numbers_are_refused(bad):
    with pytest.raises(UserError, match=r"times: number 1 of the reference frames is .*; give finite"):
        match([0.0, bad], [1.0], 1.0)
    with pytest.raises(UserError, match="number 0 of the other frames"):
        match([0.0], [bad], 1.0)
    with pytest.raises(UserError, match="of the reference frames"):
        match([bad], [], 1.0)
    with pytest.raises(UserError, match="times: one of the other frames is too large"):
        match([0], [10**30], 1)


@pytest.mark.parametrize("bad", [-1, float("nan")])
def test_a_wrong_tolerance_is_refused(bad):
    with pytest.raises(UserError, match=r"tolerance: .* is not allowed; use 0 or more"):
        match([0.0], [1.0], bad)
