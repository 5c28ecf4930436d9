import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmfuse.config import DataRecipe
from mmfuse.data.readers import Record
from mmfuse.data.transforms import augment, letterbox, load_sample, read_image
from mmfuse.errors import UserError
from mmfuse.sample import Sample
from mmfuse.sensor import Sensor

RGB = Sensor(3, mean=(10.4, 19.6, 30.0), std=(1.0, 1.0, 1.0))
GREY = Sensor(1, mean=(77.0,), std=(1.0,))
DEPTH = Sensor(1, "inverse_depth")
SENSORS = {"rgb": RGB, "thermal": GREY, "depth": DEPTH}
PLAIN = DataRecipe(hflip=0.0, scale_jitter=(1.0, 1.0), color_jitter=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def save(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return path


def make_record(files, width=8, height=6, ignore=(False,)):
    count = len(ignore)
    return Record(
        3,
        files,
        width,
        height,
        np.tile(np.array([[1, 2, 5, 6]], np.float32), (count, 1)),
        np.arange(count),
        np.array(ignore),
    )


def test_8_and_16_bits_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    counts = rng.integers(0, 65536, (6, 8), dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", colour), RGB)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), colour.transpose(2, 0, 1))
    for sensor in (GREY, DEPTH):
        image = read_image(save(tmp_path / "b.png", counts), sensor)
        assert image.dtype == torch.uint16
        np.testing.assert_array_equal(image.numpy()[0], counts)


def test_8_bit_grey_and_colour_become_what_the_sensor_has(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (read_image(save(tmp_path / "a.png", grey), RGB).numpy() == grey).all()
    assert (read_image(save(tmp_path / "b.png", np.stack([grey] * 3, 2)), GREY).numpy() == grey).all()


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", GREY).shape == (1, 8, 6)


def test_unreadable_images_are_named(tmp_path):
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole.png", rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.png", "empty.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name, RGB)


def test_other_channels_are_refused_where_turning_would_lose_the_values(tmp_path):
    deep = save(tmp_path / "deep.png", np.ones((6, 8), np.uint16))
    colour = save(tmp_path / "colour.png", np.ones((6, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"deep.png: has 1 channels; the sensor has 3"):
        read_image(deep, RGB)
    with pytest.raises(UserError, match=r"colour.png: has 3 channels; the sensor has 1"):
        read_image(colour, DEPTH)


def test_a_sample_leaves_out_crowds_and_absent_modalities(tmp_path):
    files = {"rgb": save(tmp_path / "a.png", np.ones((6, 8, 3), np.uint8))}
    sample = load_sample(make_record(files, ignore=(False, True, False)), SENSORS)
    assert set(sample.images) == {"rgb"}
    assert sample.labels.tolist() == [0, 2]
    assert sample.boxes.shape == (2, 4)


def test_images_of_different_size_are_refused(tmp_path):
    rgb = save(tmp_path / "a.png", np.ones((6, 8, 3), np.uint8))
    wide = save(tmp_path / "b.png", np.ones((6, 9), np.uint8))
    with pytest.raises(UserError, match=r"a.png is 8 x 6, .*b.png is 9 x 6"):
        load_sample(make_record({"rgb": rgb, "thermal": wide}), SENSORS)
    with pytest.raises(UserError, match=r"b.png: is 9 x 6, but image 3 is labelled as 8 x 6"):
        load_sample(make_record({"thermal": wide}), SENSORS)
    with pytest.raises(UserError, match="no file for any of depth"):
        load_sample(make_record({"rgb": rgb}), {"depth": DEPTH})


def test_letterbox_fits_and_fills():
    images = {
        "rgb": torch.full((3, 10, 20), 200, dtype=torch.uint8),
        "thermal": torch.full((1, 10, 20), 40000, dtype=torch.uint16),
        "depth": torch.full((1, 10, 20), 1234, dtype=torch.uint16),
    }
    boxes = torch.tensor([[2.0, 4.0, 20.0, 10.0]])
    placed, moved, scale = letterbox(images, boxes, (32, 32), SENSORS)
    assert scale == 1.6
    torch.testing.assert_close(moved / scale, boxes)
    for m, value, fill in (("rgb", 200, [10, 20, 30]), ("thermal", 40000, [77]), ("depth", 1234, [0])):
        image = placed[m].to(torch.int64)
        assert placed[m].dtype == images[m].dtype
        assert image.shape == (len(fill), 32, 32)
        assert (image[:, :16] == value).all()
        assert (image[:, 16:] == torch.tensor(fill)[:, None, None]).all()


@pytest.mark.parametrize("size", [(24, 40), (7, 9), (12, 16)])
def test_depth_is_never_mixed_and_lies_where_nearest_exact_puts_it(size):
    depth = torch.from_numpy(np.random.default_rng(0).integers(0, 60000, (1, 12, 16), dtype=np.uint16))
    placed, _, scale = letterbox({"depth": depth}, torch.zeros(0, 4), size, {"depth": DEPTH})
    height, width = round(12 * scale), round(16 * scale)
    expected = F.interpolate(depth.float()[None], (height, width), mode="nearest-exact")[0]
    assert torch.equal(placed["depth"].float()[:, :height, :width], expected)


def test_without_chance_augmenting_is_the_letterbox():
    rng = np.random.default_rng(1)
    images = {"rgb": torch.from_numpy(rng.integers(0, 256, (3, 30, 40), dtype=np.uint8))}
    sample = Sample(1, images, torch.tensor([[4.0, 3.0, 20.0, 28.0]]), torch.tensor([2]))
    for size in ((30, 40), (60, 96), (20, 20)):
        augmented = augment(sample, size, SENSORS, PLAIN, generator())
        expected, boxes, scale = letterbox(images, sample.boxes, size, SENSORS)
        assert torch.equal(augmented.images["rgb"], expected["rgb"])
        torch.testing.assert_close(augmented.boxes, boxes)
        assert augmented.scale == scale


def marked_sample():
    """A sample whose every modality is dark save for the one object, of odd size at an odd place."""
    images = {
        "rgb": torch.zeros(3, 90, 120, dtype=torch.uint8),
        "thermal": torch.zeros(1, 90, 120, dtype=torch.uint16),
        "depth": torch.zeros(1, 90, 120, dtype=torch.uint16),
    }
    images["rgb"][:, 40:70, 25:64] = 250
    images["thermal"][:, 40:70, 25:64] = 60000
    images["depth"][:, 40:70, 25:64] = 60000
    return Sample(1, images, torch.tensor([[25.0, 40.0, 64.0, 70.0]]), torch.tensor([1]))


@pytest.mark.parametrize("seed", range(12))
def test_all_modalities_and_boxes_move_alike(seed):
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1), "depth": DEPTH}
    recipe = DataRecipe(hflip=0.5, scale_jitter=(0.5, 2.0), color_jitter=0.0)
    sample = augment(marked_sample(), (80, 100), sensors, recipe, generator(seed))
    for box in sample.boxes:
        for image in sample.images.values():
            values = image[0].float()
            rows, columns = (values > values.max() / 2).nonzero().unbind(1)
            found = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
            torch.testing.assert_close(found, box, atol=1.1, rtol=0)


def test_the_scenes_of_the_test_above_differ_and_mostly_keep_the_object():
    recipe = DataRecipe(hflip=0.5, scale_jitter=(0.5, 2.0), color_jitter=0.0)
    boxes = [augment(marked_sample(), (80, 100), SENSORS, recipe, generator(seed)).boxes for seed in range(12)]
    found = {tuple(b[0].tolist()) for b in boxes if len(b)}
    assert len(found) >= 6


def test_flip_mirrors():
    sample = marked_sample()
    plain = augment(sample, (90, 120), SENSORS, PLAIN, generator())
    flipped = augment(sample, (90, 120), SENSORS, dataclasses.replace(PLAIN, hflip=1.0), generator())
    for m in SENSORS:
        assert torch.equal(flipped.images[m], plain.images[m].flip(-1))
    assert flipped.boxes.tolist() == [[120 - 64, 40, 120 - 25, 70]]


def test_colour_jitter_touches_8_bit_colour_only():
    rng = np.random.default_rng(2)
    images = {
        "rgb": torch.from_numpy(rng.integers(0, 256, (3, 30, 40), dtype=np.uint8)),
        "thermal": torch.from_numpy(rng.integers(0, 256, (1, 30, 40), dtype=np.uint8)),
        "depth": torch.from_numpy(rng.integers(0, 60000, (1, 30, 40), dtype=np.uint16)),
        "deep": torch.from_numpy(rng.integers(0, 60000, (3, 30, 40), dtype=np.uint16)),
    }
    sensors = {**SENSORS, "deep": Sensor(3)}
    sample = Sample(1, images, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    jittered = augment(sample, (30, 40), sensors, dataclasses.replace(PLAIN, color_jitter=0.4), generator())
    assert not torch.equal(jittered.images["rgb"], images["rgb"])
    assert all(torch.equal(jittered.images[m], images[m]) for m in ("thermal", "depth", "deep"))


def test_objects_cut_to_less_than_a_quarter_or_two_pixels_are_dropped():
    sample = Sample(
        1,
        {"rgb": torch.zeros(3, 100, 100, dtype=torch.uint8)},
        torch.tensor([[0.0, 0.0, 100.0, 100.0], [50.0, 50.0, 51.0, 80.0], [40.0, 40.0, 60.0, 60.0]]),
        torch.tensor([0, 1, 2]),
    )
    assert augment(sample, (100, 100), SENSORS, PLAIN, generator()).labels.tolist() == [0, 2]
    zoomed = dataclasses.replace(PLAIN, scale_jitter=(3.0, 3.0))
    for seed in range(8):
        cut = augment(sample, (100, 100), SENSORS, zoomed, generator(seed))
        assert 0 not in cut.labels.tolist()
        assert (cut.boxes >= 0).all()
        assert (cut.boxes <= 100).all()


def test_chance_comes_from_the_generator_alone():
    recipe = DataRecipe(scale_jitter=(0.5, 2.0), color_jitter=0.5)
    first = augment(marked_sample(), (64, 64), SENSORS, recipe, generator(5))
    torch.manual_seed(99)
    again = augment(marked_sample(), (64, 64), SENSORS, recipe, generator(5))
    assert all(torch.equal(first.images[m], again.images[m]) for m in SENSORS)
    assert torch.equal(first.boxes, again.boxes)
