import json
import math
from dataclasses import replace

import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.images.encodings import prepare
from mmfuse.sensor import DEPTH as DEPTH_ENCODINGS
from mmfuse.sensor import Calibration, Sensor

DEPTH = Sensor(1, "inverse_depth", unit=0.001, near=0.5, far=20.0)
CELSIUS = Sensor(1, "celsius", unit=0.04, range=(-20.0, 60.0))
WINDOW = Sensor(1, range=(20_000.0, 24_000.0))
CAMERA = Calibration((640, 480), (525.0, 525.0, 319.5, 239.5), (0.1, -0.2, 0.0, 0.0))
TURNED = ((0.0, -1.0, 0.0, 0.1), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, -0.3))


def depth_of(*counts: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Encodes one row of counts: (2, W)."""
    return encoded(DEPTH, *counts, dtype=dtype)


def encoded(sensor: Sensor, *counts: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Encodes one row of pixels: (encoded channels, W)."""
    return sensor.encode(torch.tensor(counts, dtype=dtype).reshape(1, 1, 1, -1))[0, :, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_intensity_is_kept_as_it_is(dtype):
    raw = torch.tensor([0, 1, 200, 255]).reshape(1, 2, 1, 2).to(dtype)
    encoded = Sensor(2).encode(raw)
    assert encoded.dtype == torch.float32
    assert encoded.flatten().tolist() == [0, 1, 200, 255]


def test_sixteen_bits_are_kept():
    raw = torch.tensor([0, 1, 32767, 32768, 65535]).reshape(1, 1, 1, 5).to(torch.uint16)
    assert Sensor(1).encode(raw).flatten().tolist() == [0, 1, 32767, 32768, 65535]


@pytest.mark.parametrize(
    "sensor",
    [
        Sensor(1),
        WINDOW,
        Sensor(1, "celsius", unit=0.0125, range=(-30.0, 50.0)),
        Sensor(1, "percentile"),
        Sensor(1, "clahe"),
    ],
)
def test_no_encoding_of_sixteen_bits_passes_through_eight(sensor):
    counts = (20_000 + 2 * torch.randperm(1600, generator=torch.Generator().manual_seed(0))).to(torch.uint16)
    values = sensor.encode(prepare(counts.reshape(1, 40, 40), sensor, None)[None])
    assert values.unique().numel() > 1500


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32])
def test_intensity_with_a_range_is_a_clipped_linear_window(dtype):
    values = encoded(WINDOW, 0, 19_999, 20_000, 20_001, 23_000, 24_000, 65_535, dtype=dtype)
    torch.testing.assert_close(values, torch.tensor([[0, 0, 0, 1 / 4000, 0.75, 1, 1]]))


def test_a_range_holds_for_all_channels_alike():
    values = Sensor(2, range=(10.0, 20.0)).encode(torch.tensor([12.0, 25.0]).reshape(1, 2, 1, 1))
    torch.testing.assert_close(values.flatten(), torch.tensor([0.2, 1.0]))


def test_celsius_of_kelvin_counts_by_hand():
    assert CELSIUS.encoded_channels == 1
    freezing, body = 273.15, 310.15
    high_gain = encoded(CELSIUS, freezing / 0.04, body / 0.04, 0, 65_535)
    torch.testing.assert_close(high_gain, torch.tensor([[20 / 80, 57 / 80, 0, 1]]), atol=1e-5, rtol=0)
    fine = encoded(replace(CELSIUS, unit=0.01), 27_315, 31_015, dtype=torch.uint16)
    torch.testing.assert_close(fine, torch.tensor([[20 / 80, 57 / 80]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("sensor", "mean"), [(WINDOW, (0.3,)), (CELSIUS, (0.3,)), (Sensor(2, range=(-5.0, 9.0)), (0.25, 0.8))]
)
def test_fill_of_a_window_encodes_to_the_mean(sensor, mean):
    sensor = replace(sensor, mean=mean, std=(1.0,) * len(mean))
    filled = torch.tensor(sensor.fill).reshape(1, -1, 1, 1)
    torch.testing.assert_close(sensor.encode(filled).flatten(), torch.tensor(mean), atol=1e-5, rtol=0)


def test_fill_of_what_is_prepared_is_its_mean():
    assert Sensor(1, "clahe", mean=(0.4,), std=(1.0,)).fill == (0.4,)
    assert Sensor(2, "percentile", mean=(0.4, 0.6), std=(1.0, 1.0)).fill == (0.4, 0.6)
    assert Sensor(1, "hha", mean=(9.0,) * 4, std=(1.0,) * 4).fill == (0.0,) * 4


def test_inverse_depth_by_hand():
    scaled, valid = depth_of(500, 1000, 20_000)
    low, high = 1 / 20, 1 / 0.5
    torch.testing.assert_close(scaled, torch.tensor([1.0, (1 - low) / (high - low), 0.0]))
    assert valid.tolist() == [1, 1, 1]


def test_metres_and_log_depth_by_hand():
    counts = (0, 100, 500, 3000, 20_000, 60_000)
    metres, valid = encoded(replace(DEPTH, encoding="metres"), *counts)
    torch.testing.assert_close(metres, torch.tensor([0, 0.5, 0.5, 3, 20, 20]))
    assert valid.tolist() == [0, 1, 1, 1, 1, 1]
    logarithm, valid = encoded(replace(DEPTH, encoding="log_depth"), *counts)
    torch.testing.assert_close(logarithm, torch.tensor([0, *map(math.log, (0.5, 0.5, 3, 20, 20))]))
    assert valid.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("encoding", ["inverse_depth", "metres", "log_depth"])
def test_depth_beyond_near_and_far_is_clipped_and_valid(encoding):
    sensor = replace(DEPTH, encoding=encoding)
    scaled, valid = encoded(sensor, 100, 60_000, dtype=torch.uint16)
    torch.testing.assert_close(scaled, encoded(sensor, 500, 20_000)[0])
    assert valid.tolist() == [1, 1]


@pytest.mark.parametrize("encoding", ["inverse_depth", "metres", "log_depth"])
@pytest.mark.parametrize("hole", [0.0, float("nan"), float("inf"), float("-inf"), -3.0])
def test_holes_are_invalid_and_leave_their_neighbours_alone(hole, encoding):
    sensor = replace(DEPTH, encoding=encoding)
    scaled, valid = encoded(sensor, 1000, hole, 2000)
    assert valid.tolist() == [1, 0, 1]
    assert scaled[1] == 0
    torch.testing.assert_close(scaled[[0, 2]], encoded(sensor, 1000, 2000)[0])


def test_unit_is_metres_per_count():
    metres = Sensor(1, "inverse_depth", unit=1.0).encode(torch.full((1, 1, 1, 1), 3.0))
    millimetres = Sensor(1, "inverse_depth", unit=0.001).encode(torch.full((1, 1, 1, 1), 3000.0))
    torch.testing.assert_close(metres, millimetres)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32])
def test_disparity_of_a_structured_light_sensor(dtype):
    sensor = replace(DEPTH, disparity=(-351.3, 1092.5))
    metres, valid = sensor.metres(torch.tensor([0, 500, 1000, 1092, 1093, 2047]).to(dtype))
    expected = torch.tensor([0, 351.3 / 592.5, 351.3 / 92.5, 351.3 / 0.5, 0, 0])
    torch.testing.assert_close(metres, expected)
    assert valid.tolist() == [0, 1, 1, 1, 0, 0]


def test_disparity_of_a_stereo_pair():
    metres, valid = replace(DEPTH, disparity=(72.0, 0.0)).metres(torch.tensor([0.0, 36.0, 7.2, -1.0, torch.nan]))
    torch.testing.assert_close(metres, torch.tensor([0, 2.0, 10.0, 0, 0]))
    assert valid.tolist() == [0, 1, 1, 0, 0]
    _, valid = replace(DEPTH, disparity=(72.0, 5.0)).metres(torch.tensor([5.0]))
    assert valid.tolist() == [0]


@pytest.mark.parametrize(
    ("sensor", "prepared", "channels"),
    [
        (Sensor(5), 5, 5),
        (CELSIUS, 1, 1),
        (Sensor(3, "percentile"), 3, 3),
        (Sensor(2, "clahe"), 2, 2),
        (DEPTH, 1, 2),
        (Sensor(1, "metres"), 1, 2),
        (Sensor(1, "log_depth"), 1, 2),
        (Sensor(1, "normals"), 4, 4),
        (Sensor(1, "hha"), 4, 4),
        (Sensor(1, "depth_colours"), 4, 4),
    ],
)
def test_channels_are_those_of_the_encoding(sensor, prepared, channels):
    assert (sensor.prepared_channels, sensor.encoded_channels) == (prepared, channels)
    assert len(sensor.fill) == prepared
    values = sensor.encode(torch.ones(2, prepared, 3, 4))
    assert values.shape == (2, channels, 3, 4)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("encoding", ["percentile", "clahe", "normals", "hha", "depth_colours"])
def test_what_is_prepared_is_not_encoded_again(encoding):
    sensor = Sensor(1, encoding)
    prepared = torch.randint(0, 256, (2, sensor.prepared_channels, 3, 4)).to(torch.uint8)
    assert torch.equal(sensor.encode(prepared), prepared.float())


def test_fill_encodes_to_the_mean_or_to_invalid():
    sensor = Sensor(3, mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0))
    assert sensor.fill == (10.0, 20.0, 30.0)
    assert Sensor(3).fill == (0.0, 0.0, 0.0)
    measured = Sensor(1, "inverse_depth", mean=(0.3, 0.9), std=(0.1, 0.1))
    assert measured.fill == (0.0,)
    filled = torch.tensor(measured.fill).reshape(1, 1, 1, 1)
    assert measured.encode(filled).flatten().tolist() == [0, 0]


def test_gaps_are_filled_with_the_raw_mean_of_their_channel():
    sensor = Sensor(2, range=(0.0, 100.0), mean=(0.1, 0.7), std=(1.0, 1.0))
    image = torch.tensor([[[torch.nan, 5.0]], [[6.0, torch.nan]]])
    torch.testing.assert_close(sensor.without_gaps(image), torch.tensor([[[10.0, 5.0]], [[6.0, 70.0]]]))
    torch.testing.assert_close(sensor.without_gaps(image[None])[0, :, 0, 1], torch.tensor([5.0, 70.0]))
    assert image.isnan().sum() == 2


def test_whole_numbers_and_depth_have_no_gaps_to_fill():
    counts = torch.zeros(1, 2, 2, dtype=torch.uint16)
    assert Sensor(1, mean=(9.0,), std=(1.0,)).without_gaps(counts) is counts
    depth = torch.tensor([[[torch.nan, 1.0]]])
    assert DEPTH.without_gaps(depth) is depth


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_values_that_mean_not_measured_are_gaps_of_intensity(dtype):
    raw = torch.tensor([[[0, 7, 255]], [[7, 3, 9]]]).to(dtype)
    measured = Sensor(2, nodata=(0, 255)).measured(raw)
    torch.testing.assert_close(
        measured, torch.tensor([[[torch.nan, 7, torch.nan]], [[7.0, 3, 9]]]), equal_nan=True, rtol=0, atol=0
    )
    assert Sensor(2).measured(raw) is raw


def test_values_that_mean_not_measured_are_invalid_depth_in_its_own_type():
    sensor = replace(DEPTH, nodata=(65535,))
    raw = torch.tensor([[[1000, 65535, 2000, 0]]], dtype=torch.uint16)
    assert sensor.measured(raw).dtype == torch.uint16
    assert sensor.measured(raw).tolist() == [[[1000, 0, 2000, 0]]]
    assert sensor.metres(raw)[1].tolist() == [[[1, 0, 1, 0]]]


def test_a_value_that_float32_rounds_is_still_found():
    raw = torch.tensor([[[-3.4e38, 1.0]]])
    assert Sensor(1, nodata=(-3.4e38,)).measured(raw).isnan().tolist() == [[[True, False]]]


def test_a_file_is_larger_than_its_image_by_the_border():
    assert Sensor(1, border=(1, 20, 300, 4000)).whole((640, 512)) == (941, 4532)


def test_depth_is_not_mixed_over_an_edge():
    for encoding in DEPTH_ENCODINGS:
        assert (Sensor(1, encoding).is_depth, Sensor(1, encoding).interpolation) == (True, "nearest")
    for sensor in (Sensor(1), CELSIUS, Sensor(1, "percentile"), Sensor(1, "clahe")):
        assert (sensor.is_depth, sensor.interpolation) == (False, "bilinear")


@pytest.mark.parametrize(
    "sensor",
    [
        Sensor(3, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), dtype="uint8"),
        DEPTH,
        CELSIUS,
        Sensor(1, "hha", gravity=(0.0, 0.2, 1.0), counts="rotated", border=(8, 4, 2, 1), dtype="uint16"),
        Sensor(1, "metres", disparity=(-351.3, 1092.5), counts="swapped"),
        Sensor(1, register="rig", calibration=Calibration(pose=TURNED), onto=CAMERA),
        Sensor(1, register="homography", homography=((2.0, 0.0, 1.0), (0.0, 2.0, 1.0), (0.0, 0.0, 1.0)), onto=CAMERA),
    ],
)
def test_a_sensor_survives_json(sensor):
    read = Sensor(**json.loads(json.dumps(sensor.to_dict())))
    assert read == sensor
    assert hash(read) == hash(sensor)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"channels": 1, "encoding": "depth"}, ["'depth'", "did you mean 'log_depth'"]),
        ({"channels": 0}, ["channels: 0", "use at least 1"]),
        ({"channels": 3, "encoding": "inverse_depth"}, ["channels: 3", "use 1"]),
        ({"channels": 3, "encoding": "celsius", "range": [0.0, 9.0]}, ["channels: 3", "encoding celsius", "use 1"]),
        ({"channels": 1, "encoding": "inverse_depth", "near": 0.0}, ["near, far: [0.0, 20.0]", "use 0 < near < far"]),
        ({"channels": 1, "encoding": "inverse_depth", "near": 9.0, "far": 2.0}, ["9.0, 2.0", "metres"]),
        ({"channels": 1, "encoding": "inverse_depth", "unit": 0.0}, ["unit: 0.0", "metres per count"]),
        ({"channels": 1, "encoding": "celsius", "range": [0.0, 9.0], "unit": -1.0}, ["unit: -1.0", "kelvin per count"]),
        ({"channels": 1, "range": [5.0, 5.0]}, ["range: [5.0, 5.0]", "[lowest, highest]"]),
        ({"channels": 1, "range": [5.0]}, ["range: [5.0]", "[lowest, highest]"]),
        ({"channels": 1, "range": [float("nan"), 5.0]}, ["range: [nan, 5.0]", "[lowest, highest]"]),
        ({"channels": 1, "encoding": "clahe", "range": [0.0, 5.0]}, ["range", "encoding clahe", "leave it out"]),
        ({"channels": 1, "encoding": "metres", "range": [0.0, 5.0]}, ["range", "encoding metres", "leave it out"]),
        (
            {"channels": 1, "encoding": "celsius", "range": [0.0, 9.0]},
            ["unit: 0.001", "kelvin per count, such as 0.01"],
        ),
        ({"channels": 1, "encoding": "celsius"}, ["range: []", "give [lowest, highest] in degrees Celsius"]),
        ({"channels": 1, "encoding": "metres", "disparity": [3.0]}, ["disparity: [3.0]", "a / (raw - b)"]),
        ({"channels": 1, "encoding": "metres", "disparity": [0.0, 3.0]}, ["disparity: [0.0, 3.0]", "a / (raw - b)"]),
        ({"channels": 1, "disparity": [3.0, 0.0]}, ["disparity: [3.0, 0.0]", "this isn't depth"]),
        ({"channels": 3, "counts": "swapped"}, ["counts: 'swapped'", "use plain"]),
        ({"channels": 1, "encoding": "hha", "gravity": [0.0, 1.0]}, ["gravity: [0.0, 1.0]", "[x, y, z]"]),
        ({"channels": 1, "encoding": "hha", "gravity": [0.0, 0.0, 0.0]}, ["gravity: [0.0, 0.0, 0.0]", "direction"]),
        ({"channels": 1, "border": [0, -1, 0, 0]}, ["border: [0, -1, 0, 0]", "[left, top, right, bottom]"]),
        ({"channels": 1, "border": [1, 2]}, ["border: [1, 2]", "[left, top, right, bottom]"]),
        ({"channels": 1, "border": []}, ["border: []", "[left, top, right, bottom]"]),
        ({"channels": 1, "homography": [[1.0, 0.0, 0.0]]}, ["homography", "write 3 x 3"]),
        ({"channels": 1, "homography": [[1.0, 0.0]] * 3}, ["homography", "write 3 x 3"]),
        ({"channels": 1, "register": "homography"}, ["homography: []", "write 3 x 3 for this register"]),
        ({"channels": 3, "mean": [1.0]}, ["mean: [1.0] has 1 entries", "give 3"]),
        ({"channels": 1, "encoding": "inverse_depth", "std": [1.0]}, ["std: [1.0] has 1 entries", "give 2"]),
        ({"channels": 1, "encoding": "normals", "mean": [1.0]}, ["mean: [1.0] has 1 entries", "give 4"]),
        ({"channels": 1, "std": [0.0]}, ["std: [0.0]", "positive"]),
    ],
)
def test_a_wrong_sensor_is_one_line_with_value_and_fix(values, parts):
    with pytest.raises(UserError) as caught:
        Sensor(**values)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
