import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V

from mmfuse.data.transforms import augment
from mmfuse.images.letterbox import letterbox
from mmfuse.recipes import DataRecipe
from mmfuse.sample import Sample
from mmfuse.sensor import Sensor

RGB = Sensor(3, mean=(10.4, 19.6, 30.0), std=(1.0, 1.0, 1.0))
GREY = Sensor(1, mean=(77.0,), std=(1.0,))
DEPTH = Sensor(1, "inverse_depth")
SENSORS = {"rgb": RGB, "thermal": GREY, "depth": DEPTH}
GREY_OF = np.array([0.2989, 0.587, 0.114])[:, None, None]
PLAIN = DataRecipe(hflip=0.0, scale_jitter=(1.0, 1.0), color_jitter=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_chance_augmenting_is_the_letterbox():
    rng = np.random.default_rng(1)
    images = {"rgb": torch.from_numpy(rng.integers(0, 256, (3, 30, 40), dtype=np.uint8))}
    sample = Sample(1, images, torch.tensor([[4.0, 3.0, 20.0, 28.0]]), torch.tensor([2]))
    for size in ((30, 40), (60, 96), (20, 20)):
        augmented = augment(sample, size, SENSORS, PLAIN, generator())
        expected, scale, content = letterbox(images, size, SENSORS)
        assert torch.equal(augmented.images["rgb"], expected["rgb"])
        torch.testing.assert_close(augmented.boxes, sample.boxes * scale)
        assert (augmented.scale, augmented.content) == (scale, content)


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


def moved(seed, **moves):
    """The marked sample, shown at its own size and flipped or not, with some modalities moved."""
    recipe = dataclasses.replace(PLAIN, hflip=0.5, **moves)
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1), "depth": DEPTH}
    sample = augment(marked_sample(), (90, 120), sensors, recipe, generator(seed))
    (box,) = augment(marked_sample(), (90, 120), sensors, dataclasses.replace(PLAIN, hflip=0.5), generator(seed)).boxes
    assert torch.equal(sample.boxes, box[None])
    return sample, box


def middle_of(image):
    rows, columns = (image[0].float() > 100).nonzero().float().unbind(1)
    return torch.stack((columns.mean(), rows.mean())) + 0.5


@pytest.mark.parametrize("seed", range(6))
def test_a_moved_modality_goes_its_own_way_and_its_boxes_with_it(seed):
    sample, box = moved(seed, shift={"thermal": 80.0, "depth": 40.0}, rotation={"thermal": 10.0})
    middles = {m: middle_of(image) for m, image in sample.images.items()}
    torch.testing.assert_close(middles["rgb"], (box[:2] + box[2:]) / 2)
    assert sample.own.keys() == {"thermal", "depth"}
    for m, (boxes, labels) in sample.own.items():
        assert labels.tolist() == [1]
        torch.testing.assert_close(middles[m], (boxes[0, :2] + boxes[0, 2:]) / 2, atol=0.6, rtol=0)
        torch.testing.assert_close(boxes[0, 2:] - boxes[0, :2], box[2:] - box[:2])
    assert (middles["thermal"] - middles["depth"]).norm() > 0.5


def test_shifts_fill_a_disc_and_their_length_is_that_at_640_pixels():
    found = torch.stack([moved(seed, shift={"thermal": 80.0})[0].own["thermal"][0][0, :2] for seed in range(60)])
    plain = torch.stack([moved(seed)[1][:2] for seed in range(60)])
    lengths = (found - plain).norm(dim=1)
    reach = 80.0 * 120 / 640
    assert 0.85 * reach < lengths.max() <= reach + 1e-4
    assert (lengths < reach / 2).float().mean() < 0.4
    assert (found - plain).mean(0).abs().max() < 0.4 * reach
    assert (found - plain).amin(0).max() < -0.5 * reach < 0.5 * reach < (found - plain).amax(0).min()


def test_a_turn_is_about_the_middle_of_the_image_and_turns_normals_too():
    sensors = {"rgb": Sensor(3), "depth": Sensor(1, "normals")}
    normals = torch.tensor([0.6, 0.0, 0.8, 1.0])[:, None, None].expand(4, 60, 60).contiguous()
    boxes = torch.tensor([[26.0, 6.0, 34.0, 14.0]])
    sample = Sample(1, {"rgb": torch.zeros(3, 60, 60, dtype=torch.uint8), "depth": normals}, boxes, torch.tensor([0]))
    recipe = dataclasses.replace(PLAIN, rotation={"depth": 180.0})
    shown = augment(sample, (60, 60), sensors, recipe, generator(5))
    x, y = ((shown.own["depth"][0][0, :2] + shown.own["depth"][0][0, 2:]) / 2 - 30).tolist()
    assert math.hypot(x, y) == pytest.approx(20, abs=1e-3)
    angle = math.atan2(x, -y)  # clockwise from straight up, where the box was
    assert abs(angle) > 0.2
    here = shown.images["depth"][:, 30, 30]
    expected = torch.tensor([0.6 * math.cos(angle), 0.6 * math.sin(angle), 0.8, 1.0])
    torch.testing.assert_close(here, expected, atol=1e-3, rtol=0)


def test_what_a_move_uncovers_is_the_fill_and_depth_is_not_mixed():
    sensors = {"rgb": RGB, "depth": DEPTH}
    depth = torch.from_numpy(np.random.default_rng(0).choice([1000, 50000], (1, 40, 40)).astype(np.uint16))
    rgb = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    sample = Sample(1, {"rgb": rgb, "depth": depth}, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    recipe = dataclasses.replace(PLAIN, shift={"depth": 300.0, "rgb": 300.0}, rotation={"depth": 20.0})
    shown = augment(sample, (40, 40), sensors, recipe, generator(1))
    assert set(shown.images["depth"].unique().tolist()) == {0, 1000, 50000}
    assert set(shown.images["rgb"][2].unique().tolist()) >= {30, 200}
    assert shown.images["rgb"].dtype == torch.uint8
    assert shown.images["depth"].dtype == torch.uint16


def test_a_sensor_alone_is_not_moved_and_unnamed_ones_neither():
    recipe = dataclasses.replace(PLAIN, shift={"thermal": 100.0}, rotation={"thermal": 20.0})
    sample = marked_sample()
    alone = Sample(1, {"thermal": sample.images["thermal"]}, sample.boxes, sample.labels)
    shown = augment(alone, (90, 120), {"thermal": GREY}, recipe, generator())
    assert torch.equal(shown.images["thermal"], sample.images["thermal"])
    assert not shown.own
    both = augment(sample, (90, 120), SENSORS, recipe, generator())
    assert torch.equal(both.images["rgb"], sample.images["rgb"])
    assert torch.equal(both.images["depth"], sample.images["depth"])
    assert not torch.equal(both.images["thermal"], sample.images["thermal"])


def test_moving_leaves_all_other_chance_as_it_was():
    recipe = DataRecipe(hflip=0.5, scale_jitter=(0.5, 2.0), color_jitter=0.3)
    plain = augment(marked_sample(), (80, 100), SENSORS, recipe, generator(3))
    still = augment(
        marked_sample(), (80, 100), SENSORS, dataclasses.replace(recipe, shift={"thermal": 9.0}), generator(3)
    )
    assert torch.equal(plain.images["rgb"], still.images["rgb"])
    assert torch.equal(plain.boxes, still.boxes)


def test_boxes_of_its_own_follow_the_view_and_count_where_asked():
    sample = dataclasses.replace(
        marked_sample(), own={"thermal": (torch.tensor([[10.0, 20, 30, 40], [90, 50, 110, 70]]), torch.tensor([0, 2]))}
    )
    assert not augment(sample, (180, 240), SENSORS, PLAIN, generator()).own
    shown = augment(sample, (180, 240), SENSORS, dataclasses.replace(PLAIN, boxes="own", hflip=1.0), generator())
    boxes, labels = shown.own["thermal"]
    assert boxes.tolist() == [[180, 40, 220, 80], [20, 100, 60, 140]]
    assert labels.tolist() == [0, 2]
    assert shown.boxes.tolist() == [[112, 80, 190, 140]]


def test_flip_mirrors():
    sample = marked_sample()
    plain = augment(sample, (90, 120), SENSORS, PLAIN, generator())
    flipped = augment(sample, (90, 120), SENSORS, dataclasses.replace(PLAIN, hflip=1.0), generator())
    for m in SENSORS:
        assert torch.equal(flipped.images[m], plain.images[m].flip(-1))
    assert flipped.boxes.tolist() == [[120 - 64, 40, 120 - 25, 70]]


def test_a_mirrored_normal_points_to_the_other_side():
    sensor = Sensor(1, "normals")
    image = torch.arange(48, dtype=torch.float32).reshape(4, 3, 4)
    sample = Sample(1, {"depth": image}, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    recipe = dataclasses.replace(PLAIN, hflip=1.0)
    shown = augment(sample, (3, 4), {"depth": sensor}, recipe, generator()).images["depth"]
    assert torch.equal(shown, torch.cat((-image[:1], image[1:])).flip(-1))
    assert torch.equal(sample.images["depth"], torch.arange(48, dtype=torch.float32).reshape(4, 3, 4))


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


def smooth(channels, height, width):
    coarse = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, channels, 9, 7), dtype=np.uint8))
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.mark.parametrize("seed", range(4))
def test_how_an_image_lies_in_memory_changes_nothing(seed):
    image = smooth(3, 53, 61)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = []
    for x in (image, channels_last):
        sample = Sample(1, {"rgb": x}, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        found.append(augment(sample, (48, 64), SENSORS, DataRecipe(), generator(seed)).images["rgb"])
    assert torch.equal(*found)
    assert all(x.is_contiguous() for x in found)


@pytest.mark.parametrize("seed", range(6))
def test_colour_changes_as_in_torchvision_save_for_rounding(seed):
    image = 80 + smooth(3, 30, 40) // 4
    sample = Sample(1, {"rgb": image}, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    found = augment(sample, (30, 40), SENSORS, dataclasses.replace(PLAIN, color_jitter=0.3), generator(seed))
    chance = torch.rand(7, generator=generator(seed))[4:].tolist()
    brightness, contrast, saturation = (1 + 0.3 * (2 * c - 1) for c in chance)
    expected = image.double().numpy() * brightness
    expected = contrast * expected + (1 - contrast) * (expected * GREY_OF).sum(0).mean()
    expected = saturation * expected + (1 - saturation) * (expected * GREY_OF).sum(0)
    np.testing.assert_allclose(found.images["rgb"].numpy(), expected, atol=0.51)
    one_by_one = V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(image, brightness), contrast), saturation)
    np.testing.assert_allclose(found.images["rgb"].int(), one_by_one.int(), atol=3)


@pytest.mark.parametrize("seed", range(6))
def test_colour_is_clipped_not_wrapped(seed):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :4] = 255
    sample = Sample(1, {"rgb": image}, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    found = augment(sample, (8, 8), SENSORS, dataclasses.replace(PLAIN, color_jitter=0.9), generator(seed)).images[
        "rgb"
    ]
    assert (found[:, :4].int() >= found[:, 4:].int()).all()
