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
