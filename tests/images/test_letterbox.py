import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmfuse.errors import UserError
from mmfuse.images.letterbox import letterbox, stacked
from mmfuse.sensor import Sensor

RGB = Sensor(3, mean=(10.4, 19.6, 30.0), std=(1.0, 1.0, 1.0))
GREY = Sensor(1, mean=(77.0,), std=(1.0,))
DEPTH = Sensor(1, "inverse_depth")
IDENTITY = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SENSORS = {"rgb": RGB, "thermal": GREY, "depth": DEPTH}


def test_letterbox_fits_and_fills():
    images = {
        "rgb": torch.full((3, 10, 20), 200, dtype=torch.uint8),
        "thermal": torch.full((1, 10, 20), 40000, dtype=torch.uint16),
        "depth": torch.full((1, 10, 20), 1234, dtype=torch.uint16),
    }
    placed, scale, content = letterbox(images, (32, 32), SENSORS)
    assert (scale, content) == (1.6, (16, 32))
    for m, value, fill in (("rgb", 200, [10, 20, 30]), ("thermal", 40000, [77]), ("depth", 1234, [0])):
        image = placed[m].to(torch.int64)
        assert placed[m].dtype == images[m].dtype
        assert image.shape == (len(fill), 32, 32)
        assert (image[:, :16] == value).all()
        assert (image[:, 16:] == torch.tensor(fill)[:, None, None]).all()


@pytest.mark.parametrize("size", [(24, 40), (7, 9), (12, 16)])
def test_depth_is_never_mixed_and_lies_where_nearest_exact_puts_it(size):
    depth = torch.from_numpy(np.random.default_rng(0).integers(0, 60000, (1, 12, 16), dtype=np.uint16))
    placed, scale, _ = letterbox({"depth": depth}, size, {"depth": DEPTH})
    height, width = round(12 * scale), round(16 * scale)
    expected = F.interpolate(depth.float()[None], (height, width), mode="nearest-exact")[0]
    assert torch.equal(placed["depth"].float()[:, :height, :width], expected)


def test_a_given_scale_is_taken_and_the_rest_is_filled():
    image = torch.full((1, 10, 20), 3, dtype=torch.uint8)
    placed, scale, content = letterbox({"thermal": image}, (32, 64), SENSORS, 1.0)
    assert (scale, content) == (1.0, (10, 20))
    assert torch.equal(placed["thermal"][:, :10, :20], image)
    assert (placed["thermal"][:, 10:] == 77).all()


def test_gaps_are_filled_where_training_had_some_and_something_is_measured():
    image = torch.full((1, 4, 4), 5.0)
    image[0, 1, 2] = torch.nan
    for had_gaps in ({"gaps": True}, {"register": "rig"}, {"register": "homography", "homography": IDENTITY}):
        sensors = {"thermal": dataclasses.replace(GREY, **had_gaps)}
        placed, _, _ = letterbox({"thermal": image}, (4, 4), sensors)
        assert placed["thermal"][0, 1, 2] == 77
        placed, _, _ = letterbox({"thermal": torch.full((1, 4, 4), torch.nan)}, (4, 4), sensors)
        assert placed["thermal"].isnan().all()
    placed, _, _ = letterbox({"thermal": image}, (4, 4), SENSORS)
    assert placed["thermal"][0, 1, 2].isnan()


def test_scenes_are_stacked_with_nothing_where_a_sensor_is_absent():
    rgb, depth = torch.ones(3, 4, 6, dtype=torch.uint8), torch.ones(1, 4, 6, dtype=torch.uint16)
    images, there = stacked([{"rgb": rgb}, {"rgb": rgb, "depth": depth}], [7, 8], SENSORS)
    assert images["depth"].dtype == torch.uint16
    assert [x.shape[1:] for x in images.values()] == [(3, 4, 6), (1, 4, 6), (1, 4, 6)]
    assert (images["depth"][0] == 0).all()
    assert {m: mask.tolist() for m, mask in there.items()} == {
        "rgb": [True, True], "thermal": [False, False], "depth": [False, True]
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^rgb: images \[7, 8\] mix float32 and uint8; give all"):
        stacked([{"rgb": rgb}, {"rgb": rgb.float()}], [7, 8], SENSORS)


def smooth(channels, height, width):
    coarse = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, channels, 9, 7), dtype=np.uint8))
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.mark.parametrize("size", [(64, 80), (31, 100), (47, 33), (10, 7), (1, 3)])
def test_grey_is_resized_as_torch_does_whatever_the_sides(size):
    image = smooth(1, 53, 61)
    part = {"thermal": image[:, 2:, 1:]}
    placed, _, _ = letterbox(part, size, {"thermal": GREY})
    scale = min(size[0] / 51, size[1] / 60)
    height, width = max(1, round(51 * scale)), max(1, round(60 * scale))
    expected = F.interpolate(
        image[None, :, 2:, 1:].contiguous().float(), (height, width), mode="bilinear", antialias=True
    )
    assert (placed["thermal"][:, :height, :width].float() - expected[0]).abs().max() <= 1
