import sys
from dataclasses import replace

import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.images.letterbox import letterbox
from mmfuse.images.registration import register
from mmfuse.recipes import DataRecipe
from mmfuse.sensor import Calibration, Sensor

REFERENCE = Calibration((160, 120), (150, 150, 79.5, 59.5))
ASIDE = Calibration((160, 120), (150, 150, 79.5, 59.5), pose=((1, 0, 0, 0.2), (0, 1, 0, 0), (0, 0, 1, 0)))
COARSE = Calibration((80, 60), (75, 75, 39.5, 29.5))
SCANNER = Calibration(pose=((0, -1, 0, 0), (0, 0, -1, 0), (1, 0, 0, 0)))  # x ahead, y left, z up
HALF = ((0.5, 0, -0.25), (0, 0.5, -0.25), (0, 0, 1))
SHIFT = ((1, 0, 3), (0, 1, 2), (0, 0, 1))

COLOUR = Sensor(3)
DEPTH = Sensor(1, "inverse_depth")
RIG = Sensor(1, register="rig", calibration=ASIDE, onto=REFERENCE)
RIG_DEPTH = Sensor(1, "inverse_depth", register="rig", calibration=COARSE, onto=REFERENCE)


def image(height=120, width=160, channels=1, dtype=torch.uint8):
    values = torch.arange(channels * height * width).reshape(channels, height, width) % 251
    return values.to(dtype)


@pytest.fixture
def no_open3d(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)


def test_images_in_the_frame_are_left_alone(no_open3d):
    images = {"a": image(), "b": image(10, 10)}
    found = register(images, {"a": Sensor(1), "b": DEPTH}, (40, 30))
    assert list(found) == ["a", "b"]
    assert found["a"] is images["a"]
    assert found["b"] is images["b"]
    assert register({}, {"a": RIG}, None) == {}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("size", [(64, 48), (20, 30)])
def test_resized_images_keep_their_type_and_depth_its_values(no_open3d, dtype, size):
    sensor, deep = Sensor(2, register="resize"), replace(DEPTH, register="resize")
    shown = image(24, 32, 2, dtype)
    found = register({"a": shown, "b": shown[:1]}, {"a": sensor, "b": deep}, size)
    for m, channels in (("a", 2), ("b", 1)):
        assert found[m].dtype == dtype
        assert found[m].shape == (channels, size[1], size[0])
    assert set(found["b"].to(torch.int64).unique().tolist()) <= set(shown.to(torch.int64).unique().tolist())
    if size == (64, 48):  # of the same shape, so that the letterbox is a plain resize
        for m, whole in (("a", shown), ("b", shown[:1])):
            boxed, _, _ = letterbox({m: whole}, size[::-1], {m: {"a": sensor, "b": deep}[m]})
            assert torch.equal(found[m], boxed[m])


def test_resizing_averages_intensity_over_what_it_drops(no_open3d):
    striped = (torch.arange(80) % 4 == 0).repeat(80, 1).to(torch.uint8)[None] * 200  # bilinear alone sees none
    found = register({"a": striped}, {"a": Sensor(1, register="resize")}, (20, 20))["a"]
    assert (found[:, :, 1:-1].float() - 50).abs().max() < 20


def test_a_homography_gives_nan_outside_for_intensity_and_zero_for_depth(no_open3d):
    sensors = {
        "a": Sensor(1, register="homography", homography=SHIFT),
        "b": replace(DEPTH, register="homography", homography=SHIFT),
    }
    counts = image(12, 16, 1, torch.uint16)
    found = register({"a": image(12, 16), "b": counts}, sensors, (20, 10))
    assert found["a"].dtype == torch.float32
    assert found["b"].dtype == torch.uint16
    torch.testing.assert_close(found["a"][:, 2:, 3:19], image(12, 16)[:, :8].float(), rtol=0, atol=0.01)
    assert torch.equal(found["b"][:, 2:, 3:19].int(), counts[:, :8].int())
    for m, empty in (("a", found["a"].isnan()), ("b", found["b"].int() == 0)):
        assert bool(empty[:, :2].all() and empty[:, :, :3].all() and empty[:, :, 19:].all()), m


def test_the_frame_is_as_large_as_the_labels_then_the_images_then_the_calibration_say(no_open3d):
    moved = Sensor(1, register="resize", onto=REFERENCE)
    lying = {"a": moved, "b": COLOUR}
    assert register({"a": image(10, 10), "b": image(30, 40, 3)}, lying, (50, 60))["a"].shape == (1, 60, 50)
    assert register({"a": image(10, 10), "b": image(30, 40, 3)}, lying, None)["a"].shape == (1, 30, 40)
    assert register({"a": image(10, 10)}, lying, None)["a"].shape == (1, 120, 160)
    with pytest.raises(UserError, match="the reference frame isn't known of a alone; give an image"):
        register({"a": image()}, {"a": replace(moved, onto=None)}, None)


# --------------------------------------------------------------------------------------------------------------- rigs


def test_depth_is_seen_from_the_reference_camera_in_its_own_unit():
    sensor = replace(RIG_DEPTH, unit=0.00025, calibration=ASIDE)
    counts = torch.full((1, 120, 160), 8000).to(torch.uint16)  # 2 m
    counts[:, :, :5] = 0
    found = register({"d": counts}, {"d": sensor}, None)["d"]
    assert found.dtype == torch.float32
    assert found.shape == (1, 120, 160)
    metres, valid = sensor.metres(found)
    # the sensor is 0.2 m to the right: its columns 5 to 159 lie 15 further right in the reference
    assert bool(valid[:, :, 20:].all())
    assert bool((found[:, :, :20] == 0).all())
    torch.testing.assert_close(metres[:, :, 20:], torch.full((1, 120, 140), 2.0), rtol=0, atol=1e-4)


def test_disparity_survives_the_way_exactly():
    sensor = replace(RIG_DEPTH, disparity=(-351.3, 1092.5))
    disparity = torch.full((1, 60, 80), 900.0)  # 351.3 / 192.5 m
    disparity[:, :30] = 0
    found = register({"d": disparity}, {"d": sensor}, None)["d"]
    metres, valid = sensor.metres(found)
    assert bool((found[:, :60] == 0).all())
    assert bool((valid[:, 60:] == 1).all())
    torch.testing.assert_close(found[:, 60:], torch.full((1, 60, 160), 900.0), rtol=0, atol=0.01)
    torch.testing.assert_close(metres[:, 60:], torch.full((1, 60, 160), 351.3 / 192.5), rtol=1e-4, atol=0)


def test_points_become_a_depth_image(no_open3d):
    sensor = replace(RIG_DEPTH, calibration=SCANNER, unit=0.002)
    points = torch.tensor([[4.0, 0.4, -0.2], [8.0, 0.8, -0.4], [-4.0, 0, 0]])
    found = register({"p": points}, {"p": sensor}, None)["p"]
    assert found.dtype == torch.float32
    assert found.shape == (1, 120, 160)
    # 0.4 m left and 0.2 m below at 4 m: column 79.5 - 15, row 59.5 + 7.5, and the far one behind it
    assert found.nonzero().tolist() == [[0, 67, 65]] or found.nonzero().tolist() == [[0, 67, 64]]
    assert sensor.metres(found)[0].max() == pytest.approx(4)


def test_intensity_is_looked_up_through_depth():
    depth = torch.full((1, 120, 160), 3000).to(torch.uint16)  # 3 m: the sensor's columns lie 10 further right
    depth[:, 50:60] = 0
    shown = image(channels=2, dtype=torch.uint8)
    found = register({"a": shown, "d": depth}, {"a": replace(RIG, channels=2), "d": DEPTH}, None)
    assert list(found) == ["a", "d"]
    assert found["d"] is depth
    assert found["a"].dtype == torch.float32
    assert found["a"].shape == (2, 120, 160)
    torch.testing.assert_close(found["a"][:, :50, 10:], shown[:, :50, :150].float(), rtol=0, atol=0.1)
    assert bool(found["a"][:, 50:60].isnan().all())
    assert bool(found["a"][:, :, :9].isnan().all())
    assert bool(found["a"][:, 60:, 10:].isfinite().all())


def test_the_homography_stands_in_where_there_is_no_depth_but_not_for_what_is_hidden():
    depth = torch.full((1, 120, 160), 6000).to(torch.uint16)  # the wall: 5 px
    depth[:, 40:80, 60:100] = 1000  # near: 30 px
    depth[:, :10] = 0
    sensor = replace(RIG, homography=SHIFT)
    found = register({"a": image(), "d": depth}, {"a": sensor, "d": DEPTH}, None)["a"]
    shown = image().float()
    torch.testing.assert_close(found[:, 2:10, 3:], shown[:, :8, :157], rtol=0, atol=0.1)
    assert bool(found[:, :2].isnan().all())
    torch.testing.assert_close(found[:, 20:30, 5:], shown[:, 20:30, :155], rtol=0, atol=0.1)
    torch.testing.assert_close(found[:, 42:78, 62:98], shown[:, 42:78, 32:68], rtol=0, atol=0.1)
    assert bool(found[:, 42:78, 40:58].isnan().all())  # the near thing hides the wall beside it
    without = register({"a": image()}, {"a": sensor}, None)["a"]
    torch.testing.assert_close(without[:, 2:, 3:], shown[:, :118, :157], rtol=0, atol=0.1)


def test_intensity_waits_for_depth_that_is_itself_registered():
    counts = torch.full((1, 60, 80), 3000).to(torch.uint16)
    sensors = {"a": RIG, "scan": RIG_DEPTH, "c": COLOUR}
    found = register({"a": image(), "scan": counts, "c": image(channels=3)}, sensors, (160, 120))
    assert list(found) == ["a", "scan", "c"]
    torch.testing.assert_close(found["a"][:, :, 10:], image()[:, :, :150].float(), rtol=0, atol=0.1)


def test_the_first_depth_sensor_is_the_guide():
    near, far = (torch.full((1, 120, 160), value).to(torch.uint16) for value in (1000, 3000))
    sensors = {"a": RIG, "near": DEPTH, "far": DEPTH}
    shown = image().float()
    found = register({"a": image(), "near": near, "far": far}, sensors, None)["a"]
    torch.testing.assert_close(found[:, :, 30:], shown[:, :, :130], rtol=0, atol=0.1)
    found = register({"a": image(), "far": far, "near": near}, sensors, None)["a"]
    torch.testing.assert_close(found[:, :, 10:], shown[:, :, :150], rtol=0, atol=0.1)


def test_a_frame_of_another_size_than_the_reference_calibration():
    counts = torch.full((1, 60, 80), 2000).to(torch.uint16)
    found = register({"d": counts}, {"d": RIG_DEPTH}, (320, 240))["d"]
    assert found.shape == (1, 240, 320)
    assert bool((found - 2000).abs().max() < 0.1)


def test_registered_intensity_can_be_augmented():
    from mmfuse.data.transforms import augment
    from mmfuse.sample import Sample

    depth = torch.full((1, 120, 160), 3000).to(torch.uint16)
    sensors = {"a": replace(RIG, mean=(100.0,), std=(1.0,)), "d": DEPTH}
    found = register({"a": image(), "d": depth}, sensors, None)
    found = {m: sensors[m].without_gaps(x) for m, x in found.items()}
    assert bool((found["a"][:, :, :9] == 100).all())
    sample = Sample(1, found, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    shown = augment(sample, (96, 128), sensors, DataRecipe(), torch.Generator().manual_seed(0))
    assert bool(shown.images["a"].isfinite().all())


# ------------------------------------------------------------------------------------------------------------- faults

POINTS = torch.ones(5, 3)
WRONG = {
    "no depth": ({"a": image()}, {"a": RIG}, "a: register: rig needs depth, which no sensor here gives; add a depth"),
    "no own calibration": ({"d": image()}, {"d": replace(RIG_DEPTH, calibration=None)}, "d: .* this sensor's calib"),
    "no reference": (
        {"d": image(), "c": image()},
        {"d": replace(RIG_DEPTH, onto=None), "c": COLOUR},
        "d: .* reference",
    ),
    "no intrinsics": ({"d": image()}, {"d": replace(RIG_DEPTH, calibration=SCANNER)}, "d: calibration: intrinsics of"),
    "other intrinsics": (
        {"d": image()},
        {"d": replace(RIG_DEPTH, onto=Calibration((160, 120)))},
        "d: calibration: intrinsics of the reference camera",
    ),
    "singular": (
        {"a": image()},
        {"a": Sensor(1, register="homography", homography=((1, 1, 0), (1, 1, 0), (0, 0, 1)), onto=REFERENCE)},
        "a: homography: .* can't be inverted",
    ),
    "depth of another size": (
        {"a": image(), "d": image(60, 80), "c": image(channels=3)},
        {"c": COLOUR, "a": RIG, "d": DEPTH},
        "a: register: the depth is 80 x 60 and the reference frame 160 x 120; register it",
    ),
    "points as they are": ({"p": POINTS}, {"p": DEPTH}, r"p: register: points \(5, 3\) need depth, register: rig"),
    "resized points": ({"p": POINTS}, {"p": replace(DEPTH, register="resize")}, "p: register: points"),
    "points of light": ({"p": POINTS}, {"p": RIG}, "p: register: points"),
    "points of four": ({"p": torch.ones(5, 4)}, {"p": replace(RIG_DEPTH, calibration=SCANNER)}, "p: register: points"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_rule_lacks_is_one_line(name):
    images, sensors, message = WRONG[name]
    size = (160, 120) if name == "depth of another size" else None
    with pytest.raises(UserError, match=message) as caught:
        register(images, sensors, size)
    assert "\n" not in str(caught.value)
