import numpy as np
import pytest
import torch

from mmfuse.sample import Scene
from mmfuse.sources.loading import LastFrames, groups, load, load_each


def rgb(value=0, size=(64, 96)):
    return np.full((*size, 3), value, np.uint8)


def test_items_come_in_groups():
    assert list(groups(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(groups([], 2)) == []


def test_what_cannot_be_read_leaves_its_scene_without_that_sensor(detector, tmp_path, write):
    write(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    scenes = [
        Scene({"rgb": tmp_path / "a.png", "thermal": tmp_path / "broken.png"}, name="one"),
        Scene({"rgb": tmp_path / "broken.png"}, name="two"),
        Scene({"rgb": rgb(), "thermal": rgb()[..., 0], "lidar": "never looked at"}, name="three"),
        Scene({"lidar": "x"}, name="four"),
        Scene({"rgb": rgb(), "thermal": rgb(size=(10, 10))[..., 0]}, name="five"),
    ]
    loaded = load(scenes, detector.sight)
    assert loaded.rows == [0, 2]
    assert {m: mask.tolist() for m, mask in loaded.views.present.items()} == {
        "rgb": [True, True], "thermal": [False, True]
    }  # fmt: skip
    assert ["broken.png: can't be" in " ".join(p) for p in loaded.problems] == [True, True, False, False, False]
    assert loaded.problems[2] == ()
    assert loaded.problems[3] == ("four: has no image of rgb, thermal",)
    assert "differ in size" in loaded.problems[4][0]
    (alone,) = detector.sight.views({"rgb": rgb()}).images["rgb"]
    assert torch.equal(loaded.views.images["rgb"][1], alone)


def test_nothing_that_can_be_shown_is_no_views(detector, tmp_path):
    loaded = load([Scene({"rgb": tmp_path / "absent.png"})], detector.sight)
    assert (loaded.views, loaded.rows) == (None, [])


def test_processes_give_what_one_gives_in_order(detector, tmp_path, write):
    for i in range(7):
        write(tmp_path / f"{i}.png", seed=i)
    batches = [(i // 2, [Scene({"rgb": tmp_path / f"{i}.png"}, name=str(i))]) for i in range(7)]
    alone = list(load_each(iter(batches), detector.sight, 0))
    shared = list(load_each(batches, detector.sight, 2))
    for (number, one), (other_number, other) in zip(alone, shared, strict=True):
        assert number == other_number
        assert [s.name for s in one.scenes] == [s.name for s in other.scenes]
        assert torch.equal(one.views.images["rgb"], other.views.images["rgb"])


def test_a_frame_repeats_that_has_the_bits_of_its_sensors_last(detector):
    grey = rgb()[..., 0]
    views = [
        {"rgb": rgb(), "thermal": grey},
        {"rgb": rgb(1), "thermal": grey.copy()},
        {"rgb": rgb(1)},
        {"rgb": rgb(size=(9, 9)), "thermal": grey},  # can't be shown, but was there
        {"rgb": rgb(2), "thermal": grey},
        {"rgb": rgb(1), "thermal": grey + 1},
    ]
    assert stuck_in(views, detector) == {
        "rgb": [False, False, True, False, False],
        "thermal": [False, True, False, True, False],
    }
    assert not LastFrames().stuck(load([Scene(views[0])], detector.sight))["rgb"].any()


def stuck(shown, detector):
    """Where thermal is stuck that shows so many different frames beside RGB, whose frames are all new."""
    views = [{"rgb": rgb(k % 256), "thermal": rgb(value % 256)[..., 0]} for k, value in enumerate(shown)]
    found = stuck_in(views, detector)
    assert not any(found["rgb"])
    return [k for k, told in enumerate(found["thermal"]) if told]


def test_a_slower_sensor_is_stuck_where_it_repeats_for_longer_than_it_does(detector):
    """Thermal at a third of the rate of RGB: of its first frame it isn't known that it is one of a slow sensor."""
    shown = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, *[4] * 8, 5, 5, 5, 6]
    assert stuck(shown, detector) == [1, 2, *range(12 + 4, 12 + 8)]


@pytest.mark.parametrize(("rate", "until"), [(20, 10), (25, 30), (9, 10), (1, 30)])
def test_any_slower_rate_is_learnt(detector, rate, until):
    frozen = stuck([k * rate // 30 for k in range(100)], detector)
    assert [k for k in frozen if k > until] == []


def test_one_long_stop_does_not_make_a_sensor_a_slow_one(detector):
    assert stuck([0, 1, 2, *[3] * 9, 4, 5, 6, 6], detector) == [*range(4, 12), 15]
    assert stuck([*[0] * 9, 1, *[2] * 4], detector) == [*range(1, 9), *range(11, 14)]  # from the start


def stuck_in(views, detector):
    last, found = LastFrames(), {"rgb": [], "thermal": []}
    for group in groups([Scene(images) for images in views], 2):
        loaded = load(group, detector.sight)
        stuck = last.stuck(loaded)
        for m, told in found.items():
            told += stuck.get(m, torch.zeros(len(loaded.rows), dtype=torch.bool)).tolist()
    return found
