from pathlib import Path

import pytest
import torch

from mmfuse.data.checks.contents import Content, type_errors
from mmfuse.sensor import Sensor


def gathered(sensor, *images):
    content = Content(sensor)
    for number, image in enumerate(images):
        content.add(Path(f"{number}.png"), image)
    return content


def test_range_types_and_what_is_not_measured_are_of_all_images():
    content = gathered(
        Sensor(1), torch.tensor([[[3.0, torch.nan], [5, 9]]]), torch.full((1, 2, 2), 4, dtype=torch.uint8)
    )
    report = content.report()
    assert report.types == {"float32": 1, "uint8": 1}
    assert report.range == (3, 9)
    assert report.invalid == 1 / 8
    assert (report.blank, report.constant) == (0, 1)
    assert report.to_text() == "float32 and uint8, 3 to 9, 12.5% invalid"
    (error,) = type_errors("thermal", Sensor(1), [content])
    assert error.startswith("thermal: images of uint8: 1, such as 1.png, but 1 of float32, such as 0.png")


def test_points_are_measured_by_their_distance():
    points = torch.tensor([[3.0, 4, 0], [0, 0, 0], [6, 8, 0]])
    report = gathered(Sensor(1, "inverse_depth"), points).report()
    assert report.range == (5, 10)
    assert report.invalid == pytest.approx(1 / 3)


def test_one_blank_image_is_a_warning_and_nothing_but_blank_ones_an_error():
    blank, full = torch.zeros(1, 4, 4, dtype=torch.uint16), torch.arange(2000, 2016).view(1, 4, 4).to(torch.uint16)
    depth = Sensor(1, "inverse_depth")
    some, none = gathered(depth, blank, full), gathered(depth, blank, blank)
    assert [line.split(":")[0] for line in some.warnings()] == ["images without any measurement"]
    assert not list(some.errors())
    assert not list(none.warnings())
    assert [line.split(":")[0] for line in none.errors()] == ["no image measures anything"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_an_extreme_value_that_fills_a_quarter_of_all_pixels_is_a_warning(order):
    images = [torch.arange(100.0).reshape(1, 10, 10), torch.arange(100.0).reshape(1, 10, 10), torch.arange(100.0)]
    images[2] = images[2].reshape(1, 10, 10).clone()
    images[0][0, :4], images[1][0, :4] = -9999, -9999
    found = gathered(Sensor(1), *(images[i] for i in order))
    assert list(found.warnings()) == [
        "27% of the pixels have the lowest value, -9999; is it a sensor at its limit, or what wasn't measured? "
        "Then name it in nodata"
    ]
    images[1][0, :1] = 5
    assert list(gathered(Sensor(1), *(images[i] for i in order)).warnings()) == []
    images[1][0, :9] = 700
    (warning,) = gathered(Sensor(1), *(images[i] for i in order)).warnings()
    assert warning.startswith("30% of the pixels have the highest value, 700")


def test_infinite_values_are_a_warning():
    image = torch.arange(100.0).reshape(1, 10, 10)
    image[0, 0, 0] = float("-inf")
    (warning,) = gathered(Sensor(1), image, torch.arange(100.0).reshape(1, 10, 10)).warnings()
    assert warning.startswith("images with infinite values: 1, such as ")


@pytest.mark.parametrize(
    ("sensor", "values", "message"),
    [
        (Sensor(1), [-3e38, 5, 1e38], "values from -3e+38 to 1e+38 can't be measured"),
        (Sensor(1), [0, 5, 65535], ""),
        (
            Sensor(1, encoding="celsius", range=(0, 50), unit=0.01),
            [0, 29000, 31000],
            "times the unit 0.01 can't be kelvin",
        ),
        (
            Sensor(1, encoding="celsius", range=(0, 50), unit=1),
            [29000, 30000, 31000],
            "times the unit 1 can't be kelvin",
        ),
        (Sensor(1, encoding="celsius", range=(0, 50), unit=0.01), [27000, 29000, 31000], ""),
        (Sensor(1, encoding="metres", unit=1), [1, 2, 3e38], "values from 1 to 3e+38 m can't be a depth"),
        (Sensor(1, encoding="metres", unit=1), [0, 1, 19], ""),
    ],
)
def test_values_that_cannot_be_are_a_warning(sensor, values, message):
    image = torch.tensor(values, dtype=torch.float32).reshape(1, 1, 3)
    warnings = [warning for warning in gathered(sensor, image).warnings() if "pixels have" not in warning]
    assert len(warnings) == bool(message)
    assert message in "".join(warnings)
