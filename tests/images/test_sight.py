"""One path from a sensor to an answer: files, arrays, tensors and evaluation give the same boxes on the same pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.counters import count as count_calls
from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import eval_loader
from mmfuse.errors import UserError
from mmfuse.evaluation.inference import collect
from mmfuse.images.sight import Sight
from mmfuse.model.build import create_detector
from mmfuse.sample import Scene
from mmfuse.sensor import Calibration, Sensor

CAMERA = Calibration((128, 96), (100.0, 100.0, 63.5, 47.5))
ASIDE = dataclasses.replace(CAMERA, size=(64, 48), intrinsics=(50.0, 50.0, 31.5, 23.5))
DEPTH = ("inverse_depth", "metres", "log_depth", "normals", "hha", "depth_colours")
NONE = np.zeros(0, bool)


def detector_of(**sensors):
    torch.manual_seed(0)
    channels = {m: s.encoded_channels for m, s in sensors.items()}
    made = create_detector("d-4", channels, classes=["thing"], sensors=sensors, input_size=(128, 192))
    return made.to(memory_format=torch.channels_last).eval()


def drawn(size, dtype=np.uint8, channels=0, seed=0):
    shape = (size[1], size[0], channels) if channels else (size[1], size[0])
    if dtype == np.uint8:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.random.default_rng(seed).integers(500, 3000, shape).astype(dtype)


def write(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def same(one, other):
    assert len(one) == len(other) > 10
    for mine, theirs in ((one.boxes, other.boxes), (one.scores, other.scores), (one.labels, other.labels)):
        assert torch.equal(mine, theirs)


def evaluated(detector, files, size, calibration=None, onto=None):
    record = Record(
        7, files, *size, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), NONE,
        calibration=calibration or {}, onto=onto,
    )  # fmt: skip
    return collect(detector, eval_loader([record], detector.sensors, detector.input_size, 2, workers=0))[7]


def every_way(detector, pixels, files, size=(128, 96)):
    """Detections of a scene that is given in each way that there is, the evaluation's first."""
    images = {m: Image.fromarray(x) for m, x in pixels.items()}
    tensors = {m: torch.from_numpy(x if x.ndim == 3 else x[:, :, None]).permute(2, 0, 1) for m, x in pixels.items()}
    given = [files, pixels, images, tensors, Scene(pixels), [pixels]]
    return [evaluated(detector, files, size), *(detector.detect(one)[0] for one in given)]


@pytest.mark.parametrize("encoding", ["intensity", "percentile", "clahe", "celsius", *DEPTH])
def test_every_way_to_give_a_scene_gives_the_same_boxes_to_the_last_bit(tmp_path, encoding):
    options = {"range": (-250.0, -200.0), "unit": 0.02} if encoding == "celsius" else {}
    detector = detector_of(x=Sensor(1, encoding, calibration=CAMERA, dtype="uint16", seen=(500.0, 3000.0), **options))
    pixels = {"x": drawn((128, 96), np.uint16)}
    first, *others = every_way(detector, pixels, {"x": write(tmp_path / "x.png", pixels["x"])})
    for one in others:
        same(one, first)


def test_colour_is_the_same_in_every_way_and_at_any_size(tmp_path):
    detector = detector_of(rgb=Sensor(3, dtype="uint8"), thermal=Sensor(1, dtype="uint16", range=(500, 3000)))
    for size in ((640, 480), (100, 333), (192, 128)):
        pixels = {"rgb": drawn(size, channels=3), "thermal": drawn(size, np.uint16)}
        files = {m: write(tmp_path / f"{m}.png", x) for m, x in pixels.items()}
        first, *others = every_way(detector, pixels, files, size)
        for one in others:
            same(one, first)
        assert first.boxes[:, 2].max() <= size[0] * (1 + 1e-6)
        assert first.boxes[:, 3].max() <= size[1] * (1 + 1e-6)
        assert first.boxes.max() > 0.8 * min(size)


def test_a_rig_is_registered_in_every_way(tmp_path):
    sensors = {
        "rgb": Sensor(3, calibration=CAMERA),
        "depth": Sensor(1, "inverse_depth", register="rig", calibration=ASIDE, onto=CAMERA),
        "thermal": Sensor(1, register="rig", calibration=ASIDE, onto=CAMERA),
    }
    detector = detector_of(**sensors)
    pixels = {
        "rgb": drawn((128, 96), channels=3),
        "depth": drawn((64, 48), np.uint16),
        "thermal": drawn((64, 48), seed=3),
    }
    files = {m: write(tmp_path / f"{m}.png", x) for m, x in pixels.items()}
    first, *others = every_way(detector, pixels, files)
    for one in others:
        same(one, first)
    with pytest.raises(UserError, match=r"thermal: register: rig needs depth, which no sensor here gives"):
        detector.detect({"rgb": pixels["rgb"], "thermal": pixels["thermal"]})


def test_a_scene_brings_its_own_calibration(tmp_path):
    """Each image of a data set may have one (KITTI, SUN RGB-D): what the card lacks comes with the scene."""
    detector = detector_of(rgb=Sensor(3), depth=Sensor(1, "inverse_depth", register="rig"))
    pixels = {"rgb": drawn((128, 96), channels=3), "depth": drawn((64, 48), np.uint16)}
    files = {m: write(tmp_path / f"{m}.png", x) for m, x in pixels.items()}
    with pytest.raises(UserError, match="rig needs this sensor's calibration"):
        detector.detect(pixels)
    (found,) = detector.detect(Scene(pixels, {"depth": ASIDE}, CAMERA))
    same(found, evaluated(detector, files, (128, 96), {"depth": ASIDE}, CAMERA))
    moved = dataclasses.replace(ASIDE, pose=((1, 0, 0, 0.5), (0, 1, 0, 0), (0, 0, 1, 0)))
    (other,) = detector.detect(Scene(pixels, {"depth": moved}, CAMERA))
    assert not torch.equal(found.scores, other.scores)


def test_points_in_a_rig_are_taken_as_an_array(tmp_path):
    detector = detector_of(rgb=Sensor(3), lidar=Sensor(1, "inverse_depth", 1.0, register="rig"))
    points = np.random.default_rng(0).uniform((-3, -2, 2), (3, 2, 12), (500, 3)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    rgb = drawn((128, 96), channels=3)
    there = {"lidar": Calibration()}
    (one,) = detector.detect(Scene({"rgb": rgb, "lidar": points}, there, CAMERA))
    (other,) = detector.detect(Scene({"rgb": rgb, "lidar": tmp_path / "points.npy"}, there, CAMERA))
    same(one, other)


def test_border_and_counts_are_those_of_the_file(tmp_path):
    counts = drawn((140, 110), np.uint16)
    detector = detector_of(x=Sensor(1, "metres", border=(10, 7, 2, 7), counts="rotated"))
    inner = detector_of(x=Sensor(1, "metres"))
    (found,) = detector.detect({"x": (counts << 3) | (counts >> 13)})
    (expected,) = inner.detect({"x": counts[7:-7, 10:-2]})
    torch.testing.assert_close(found.boxes, expected.boxes + torch.tensor([10.0, 7, 10, 7]))
    assert torch.equal(found.scores, expected.scores)
    assert found.boxes.min() >= 7


def test_scenes_of_different_sizes_and_sensors_are_a_batch():
    detector = detector_of(rgb=Sensor(3), thermal=Sensor(1))
    scenes = [
        {"rgb": drawn((300, 200), channels=3), "thermal": drawn((300, 200))},
        {"thermal": drawn((80, 100))},
        {"rgb": drawn((192, 128), channels=3)},
    ]
    for resize in (True, False):
        found = detector.detect(scenes, resize=resize)
        for scene, together in zip(scenes, found, strict=True):
            (alone,) = detector.detect(scene, resize=resize)
            torch.testing.assert_close(together.scores, alone.scores, rtol=1e-3, atol=1e-5)


def test_without_resizing_an_image_keeps_its_scale():
    detector = detector_of(x=Sensor(1))
    seen = []
    detector.register_forward_pre_hook(lambda _, given: seen.append(given[0]["x"].shape[2:]))
    detector.detect({"x": drawn((300, 200))})
    detector.detect({"x": drawn((300, 200))}, resize=False)
    detector.detect([{"x": drawn((300, 200))}, {"x": drawn((10, 390))}], resize=False)
    stride = detector.stride
    assert [tuple(size) for size in seen] == [
        (128, 192), (-(-200 // stride) * stride, -(-300 // stride) * stride),
        (-(-390 // stride) * stride, -(-300 // stride) * stride),
    ]  # fmt: skip


def test_an_object_is_found_where_it_is_whatever_the_size_of_the_image():
    """The same picture at twice the size gives the same boxes, twice as large."""
    detector = detector_of(x=Sensor(1, "metres"))
    small = drawn((192, 128), np.uint16)
    large = np.kron(small, np.ones((2, 2), np.uint16))
    one, two = (detector.detect({"x": x})[0] for x in (small, large))
    assert torch.equal(two.boxes, 2 * one.boxes)
    assert torch.equal(two.scores, one.scores)


def test_arrays_that_are_flipped_or_of_another_byte_order_are_what_they_show():
    detector = detector_of(rgb=Sensor(3), x=Sensor(1, range=(0, 4000)))
    rgb, deep = drawn((192, 128), channels=3), drawn((192, 128), np.uint16)
    (expected,) = detector.detect({"rgb": rgb[..., ::-1].copy(), "x": deep})
    (found,) = detector.detect({"rgb": rgb[..., ::-1], "x": deep.astype(">u2")})
    same(found, expected)
    (wide,) = detector.detect({"rgb": rgb[..., ::-1].astype(np.float64), "x": deep.astype(np.int64)})
    torch.testing.assert_close(wide.scores, expected.scores, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.png", r"absent.png: can't be read: No such file"),
        ([[1, 2], [3, 4]], r"images: x is list; give a tensor \(C, H, W\), an array \(H, W, C\) of numbers, a PIL"),
        (np.array([["a"]]), r"images: x is ndarray; give a tensor"),
        (np.zeros((1, 96, 128), np.uint8), r"images: x: has 128 channels; the sensor has 1"),
        (np.zeros((96, 0), np.uint8), r"images: x has shape \(96, 0\); give a tensor \(1, H, W\) or an array"),
        (np.zeros(5, np.uint8), r"images: x has shape \(5,\); give a tensor"),
        (None, r"images: x is NoneType; give a tensor"),
    ],
)
def test_what_is_no_image_is_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        detector_of(x=Sensor(1)).detect({"x": given})
    assert "\n" not in str(caught.value)


def test_images_of_one_scene_must_be_of_one_size():
    detector = detector_of(rgb=Sensor(3), thermal=Sensor(1))
    with pytest.raises(UserError, match=r"images differ in size: {'rgb': '40x30', 'thermal': '41x30'}; give images of"):
        detector.detect({"rgb": drawn((40, 30), channels=3), "thermal": drawn((41, 30))})
    with pytest.raises(UserError, match="images: no scene is given"):
        detector.detect([])
    with pytest.raises(UserError, match=r"aren't one batch; give \(B, C, H, W\) of one B for all"):
        detector.detect({"rgb": torch.zeros(2, 3, 8, 8), "thermal": torch.zeros(1, 8, 8)})


# ---- units

MILLIMETRES = Sensor(1, "inverse_depth", dtype="uint16", seen=(700.0, 9000.0))
METRES = Sensor(1, "inverse_depth", 1.0, dtype="float32", seen=(0.7, 9.0))
COLOUR = Sensor(3, dtype="uint8", seen=(2.0, 251.0))
KELVIN = Sensor(1, "celsius", 0.01, range=(-20, 60), dtype="uint16", seen=(28000.0, 31000.0))
FOURTEEN_BITS = Sensor(1, range=(2000, 8000), dtype="uint16", seen=(2100.0, 7800.0))


def even(low, high, channels=1, dtype=np.float32, size=(64, 48)):
    values = np.random.default_rng(0).uniform(low, high, (size[1], size[0], channels))
    return values.astype(dtype)


@pytest.mark.parametrize(
    ("sensor", "image", "told"),
    [
        (COLOUR, even(0, 1, 3), r"0\.\d+ to 0\.\d+, but this sensor gives uint8 from 2 to 251; use its own unit"),
        (COLOUR, even(-2.1, 2.6, 3), r"-2.* to 2\.6, but"),
        (COLOUR, even(-120, 130, 3), "-1.* to 130"),
        (COLOUR, even(0, 65535, 3), "to 6.55"),
        (MILLIMETRES, even(0.7, 9.0), "0.7\\d* to (9|8.99\\d*), but this sensor gives uint16 from 700 to 9000"),
        (MILLIMETRES, even(1, 9, dtype=np.uint16), "1 to 8"),
        (METRES, even(700, 9000), "7\\d\\d.* to .*, but this sensor gives float32 from 0.7 to 9"),
        (KELVIN, even(-10, 35), "to 3"),
        (KELVIN, even(270, 310), "270"),
        (FOURTEEN_BITS, even(0, 1), "to 0"),
    ],
)
def test_another_unit_than_training_s_is_refused(sensor, image, told):
    with pytest.raises(UserError, match=f"^images: x holds .*{told}") as caught:
        detector_of(x=sensor).detect({"x": image})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sensor", "image"),
    [
        (COLOUR, even(0, 255, 3, np.uint8)),
        (COLOUR, even(0, 3, 3, np.uint8)),  # a dark night
        (COLOUR, even(0, 255, 3)),  # floats in the sensor's own unit
        (COLOUR, np.zeros((48, 64, 3), np.float32)),
        (MILLIMETRES, even(150, 400, dtype=np.uint16)),  # nearer than ever in training
        (MILLIMETRES, even(20000, 65000, dtype=np.uint16)),  # farther
        (MILLIMETRES, np.zeros((48, 64), np.uint16)),  # no measurement
        (MILLIMETRES, np.full((48, 64), 3, np.uint16)),  # a broken sensor, which doubt judges
        (METRES, even(5, 80)),
        (METRES, even(1e30, 1e38)),
        (KELVIN, even(20000, 26000, dtype=np.uint16)),
        (FOURTEEN_BITS, even(0, 20000, dtype=np.uint16)),
    ],
)
def test_values_outside_the_range_by_chance_are_no_error(sensor, image):
    assert len(detector_of(x=sensor).detect({"x": image})) == 1


def test_which_image_of_a_batch_is_wrong_is_told():
    good = even(0, 255, 3)
    with pytest.raises(UserError, match=r"^images: x of image 1 holds"):
        detector_of(x=COLOUR).detect([{"x": good}, {"x": good / 255}])


def test_a_detector_that_was_never_trained_takes_any_unit():
    assert len(detector_of(x=Sensor(3)).detect({"x": even(0, 1, 3)})) == 1


# ---- where the detector's size comes from


def test_the_size_is_part_of_the_detector():
    made = create_detector("d-4", {"x": 1}, 2)
    assert made.input_size == (made.spec["input_size"][0],) * 2
    assert create_detector("d-4", {"x": 1}, 2, input_size=(128, 256)).input_size == (128, 256)
    for wrong in ((100, 128), (0, 128), (-64, 64)):
        with pytest.raises(UserError, match=r"input_size: .* doesn't fit; use positive multiples of \d+"):
            create_detector("d-4", {"x": 1}, 2, input_size=wrong)


def test_a_sight_needs_no_detector():
    sight = Sight({"x": Sensor(1, mean=(9.0,), std=(1.0,))}, (64, 64), 32)
    views = sight.views({"x": np.full((16, 32), 200, np.uint8)})
    assert views.images["x"].shape == (1, 1, 64, 64)
    assert (views.images["x"][0, 0, :32] == 200).all()
    assert (views.images["x"][0, 0, 32:] == 9).all()
    assert views.contents.tolist() == [[32, 64]]
    assert views.scales.tolist() == [2]


# ---- what wasn't measured


@pytest.mark.parametrize("encoding", ["intensity", "percentile", "clahe"])
@pytest.mark.parametrize("register", ["none", "homography"])
def test_values_that_mean_not_measured_give_what_gaps_give(tmp_path, encoding, register):
    sensor = Sensor(1, encoding, nodata=(65535,), mean=(1200.0,), std=(300.0,))
    if register == "homography":
        sensor = dataclasses.replace(sensor, register=register, homography=((1, 0, 2), (0, 1, 0), (0, 0, 1)))
    pixels = drawn((128, 96), np.uint16)
    pixels[20:60, :90] = 65535
    gaps = np.where(pixels == 65535, np.nan, pixels).astype(np.float32)
    whole, file = drawn((128, 96), channels=3), write(tmp_path / "a.png", pixels)
    detector = detector_of(rgb=Sensor(3), thermal=sensor)
    (expected,) = detector.detect({"rgb": whole, "thermal": gaps})
    for given in (pixels, torch.from_numpy(pixels)[None], file):
        (found,) = detector.detect({"rgb": whole, "thermal": given})
        same(found, expected)


def test_values_that_mean_not_measured_tell_nothing_of_the_unit():
    image = even(2000, 8000, dtype=np.uint16)[..., 0]
    image[:30] = 65535
    with pytest.raises(UserError, match=r"^images: x holds"):
        detector_of(x=dataclasses.replace(FOURTEEN_BITS, seen=(20.0, 78.0))).detect({"x": image})
    image[image != 65535] //= 100
    assert len(detector_of(x=Sensor(1, dtype="uint16", seen=(20.0, 78.0), nodata=(65535,))).detect({"x": image})) == 1


AS_SHOWN = {
    "plain": (Sensor(3), torch.uint8),
    "deep": (Sensor(1, range=(0.0, 4000.0), dtype="uint16", seen=(400.0, 3100.0)), torch.uint16),
    "depth": (Sensor(1, encoding="inverse_depth", dtype="uint16", seen=(400.0, 3100.0)), torch.uint16),
    "float": (Sensor(1, range=(0.0, 4000.0), dtype="float32"), torch.float32),
    "nodata": (Sensor(1, nodata=(700.0,)), torch.uint16),
    "border": (Sensor(1, border=(8, 0, 0, 0)), torch.uint8),
    "rotated": (Sensor(1, counts="rotated", dtype="uint16"), torch.uint16),
    "percentile": (Sensor(1, encoding="percentile"), torch.uint16),
    "resized": (Sensor(1, register="resize"), torch.uint8),
    "other type": (Sensor(1, dtype="uint16"), torch.uint8),
}


@pytest.mark.parametrize("kind", AS_SHOWN)
def test_a_batch_of_tensors_is_seen_as_its_scenes_are(kind):
    sensor, dtype = AS_SHOWN[kind]
    sight = Sight({"x": sensor, "rgb": Sensor(3)}, (96, 128), 32)
    generator = torch.Generator().manual_seed(0)
    high = 256 if dtype == torch.uint8 else 3000
    width = 136 if kind == "border" else 128
    x = torch.randint(0, high, (3, sensor.channels, 96, width), generator=generator).to(dtype)
    images = {"x": x} if kind == "border" else {"x": x, "rgb": torch.zeros(3, 3, 96, 128, dtype=torch.uint8)}
    scenes = [{m: one[k] for m, one in images.items()} for k in range(3)]
    if kind == "other type":
        for given in (images, scenes):
            with pytest.raises(UserError, match="uint8"):
                sight.views(given)
        return
    together, one_by_one = sight.views(images), sight.views(scenes)
    for name in ("images", "present", "figures"):
        for m, expected in getattr(one_by_one, name).items():
            torch.testing.assert_close(
                getattr(together, name)[m].float(), expected.float(), rtol=0, atol=0, equal_nan=True
            )
    for name in ("contents", "scales", "corners"):
        assert torch.equal(getattr(together, name), getattr(one_by_one, name))


def test_a_batch_that_is_as_shown_is_not_copied_nor_gone_through():
    sight = Sight({"x": AS_SHOWN["deep"][0], "rgb": Sensor(3)}, (96, 128), 32)

    def batch(count):
        return {
            "x": torch.ones(count, 1, 96, 128).to(torch.uint16),
            "rgb": torch.zeros(count, 3, 96, 128, dtype=torch.uint8),
        }

    few, images = batch(1), batch(8)
    assert count_calls(lambda: sight.views(few)).calls == count_calls(lambda: sight.views(images)).calls
    assert all(sight.views(images).images[m] is x for m, x in images.items())
