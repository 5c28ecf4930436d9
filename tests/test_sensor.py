import json

import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.sensor import ENCODINGS, Sensor

DEPTH = Sensor(1, "inverse_depth", unit=0.001, near=0.5, far=20.0)


def depth_of(*counts: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Encodes one row of counts: (2, W)."""
    return DEPTH.encode(torch.tensor(counts, dtype=dtype).reshape(1, 1, 1, -1))[0, :, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_intensity_is_kept_as_it_is(dtype):
    raw = torch.tensor([0, 1, 200, 255]).reshape(1, 2, 1, 2).to(dtype)
    encoded = Sensor(2).encode(raw)
    assert encoded.dtype == torch.float32
    assert encoded.flatten().tolist() == [0, 1, 200, 255]


def test_sixteen_bits_are_kept():
    raw = torch.tensor([0, 1, 32767, 32768, 65535]).reshape(1, 1, 1, 5).to(torch.uint16)
    assert Sensor(1).encode(raw).flatten().tolist() == [0, 1, 32767, 32768, 65535]


def test_inverse_depth_by_hand():
    scaled, valid = depth_of(500, 1000, 20_000)
    low, high = 1 / 20, 1 / 0.5
    torch.testing.assert_close(scaled, torch.tensor([1.0, (1 - low) / (high - low), 0.0]))
    assert valid.tolist() == [1, 1, 1]


def test_depth_beyond_near_and_far_is_clipped_and_valid():
    scaled, valid = depth_of(100, 60_000, dtype=torch.uint16)
    torch.testing.assert_close(scaled, torch.tensor([1.0, 0.0]))
    assert valid.tolist() == [1, 1]


@pytest.mark.parametrize("hole", [0.0, float("nan"), float("inf"), float("-inf"), -3.0])
def test_holes_are_invalid_and_leave_their_neighbours_alone(hole):
    scaled, valid = depth_of(1000, hole, 2000)
    assert valid.tolist() == [1, 0, 1]
    assert scaled[1] == 0
    torch.testing.assert_close(scaled[[0, 2]], depth_of(1000, 2000)[0])


def test_unit_is_metres_per_count():
    metres = Sensor(1, "inverse_depth", unit=1.0).encode(torch.full((1, 1, 1, 1), 3.0))
    millimetres = Sensor(1, "inverse_depth", unit=0.001).encode(torch.full((1, 1, 1, 1), 3000.0))
    torch.testing.assert_close(metres, millimetres)


def test_encoded_channels_are_those_of_the_encoding():
    for sensor in (Sensor(1), Sensor(3), Sensor(5), DEPTH):
        encoded = sensor.encode(torch.ones(2, sensor.channels, 3, 4))
        assert encoded.shape == (2, sensor.encoded_channels, 3, 4)


def test_fill_encodes_to_the_mean_or_to_invalid():
    sensor = Sensor(3, mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0))
    assert sensor.fill == (10.0, 20.0, 30.0)
    assert Sensor(3).fill == (0.0, 0.0, 0.0)
    measured = Sensor(1, "inverse_depth", mean=(0.3, 0.9), std=(0.1, 0.1))
    assert measured.fill == (0.0,)
    filled = torch.tensor(measured.fill).reshape(1, 1, 1, 1)
    assert measured.encode(filled).flatten().tolist() == [0, 0]


def test_depth_is_not_mixed_over_an_edge():
    assert (Sensor(1).interpolation, DEPTH.interpolation) == ("bilinear", "nearest")


def test_a_sensor_survives_json():
    for sensor in (Sensor(3, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0)), DEPTH):
        assert Sensor(**json.loads(json.dumps(sensor.to_dict()))) == sensor


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"channels": 1, "encoding": "depth"}, ["'depth'", *ENCODINGS]),
        ({"channels": 0}, ["channels: 0", "use at least 1"]),
        ({"channels": 3, "encoding": "inverse_depth"}, ["channels: 3", "use 1"]),
        ({"channels": 1, "encoding": "inverse_depth", "near": 0.0}, ["near, far: 0.0, 20.0", "use 0 < near < far"]),
        ({"channels": 1, "encoding": "inverse_depth", "near": 9.0, "far": 2.0}, ["9.0, 2.0", "metres"]),
        ({"channels": 1, "encoding": "inverse_depth", "unit": 0.0}, ["unit: 0.0", "metres per count"]),
        ({"channels": 3, "mean": [1.0]}, ["mean: [1.0] has 1 entries", "give 3"]),
        ({"channels": 1, "encoding": "inverse_depth", "std": [1.0]}, ["std: [1.0] has 1 entries", "give 2"]),
        ({"channels": 1, "std": [0.0]}, ["std: [0.0]", "positive"]),
    ],
)
def test_a_wrong_sensor_is_one_line_with_value_and_fix(values, parts):
    with pytest.raises(UserError) as caught:
        Sensor(**values)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
