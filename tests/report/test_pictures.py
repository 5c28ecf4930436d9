from dataclasses import replace

import pytest
import torch
from png import pixels

from mmfuse.report import pictures
from mmfuse.report.pictures import GalleryRow, gallery
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

CLASSES = ("person", "car")
SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
TRUTH = (torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([1]))


@pytest.fixture
def images():
    return {
        "rgb": torch.full((3, 40, 60), 128, dtype=torch.uint8),
        "thermal": torch.arange(27000, 29400).reshape(1, 40, 60).to(torch.uint16),
    }


def found(*scores):
    boxes = torch.tensor([[5.0, 5, 30, 20], [20, 10, 50, 35]])[: len(scores)]
    return Detections(boxes, torch.tensor(scores), torch.arange(len(scores)))


def test_gallery_has_a_row_for_each_image_and_room_for_what_lacks(images, tmp_path):
    row = GalleryRow("1", images, TRUTH, {"single": found(0.9), "both": Detections.empty()})
    unpaired = GalleryRow("2", {"thermal": images["thermal"]}, TRUTH, row.detections)
    shown_on = {"single": "thermal", "both": "rgb"}
    gallery([row], SENSORS, shown_on, CLASSES, tmp_path / "one.png")
    gallery([row, unpaired], SENSORS, shown_on, CLASSES, tmp_path / "two.png")
    assert pixels(tmp_path / "two.png").shape[0] > pixels(tmp_path / "one.png").shape[0]


def test_gallery_leaves_out_what_is_below_the_threshold(images, tmp_path):
    for name, detections in (("none", Detections.empty()), ("weak", found(0.2, 0.1)), ("strong", found(0.9, 0.1))):
        row = GalleryRow("1", images, TRUTH, {"model": detections})
        gallery([row], SENSORS, {"model": "rgb"}, CLASSES, tmp_path / name)
    assert (pixels(tmp_path / "none") == pixels(tmp_path / "weak")).all()
    assert (pixels(tmp_path / "none") != pixels(tmp_path / "strong")).any()


def test_gallery_tells_of_sensors_that_are_left_out_and_that_disagree(images, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(pictures, "_note", lambda ax, text: told.append(text))
    doubted = replace(found(), dropped=("rgb",), disagreeing=("rgb",))
    row = GalleryRow("1", images, TRUTH, {"both": doubted, "thermal": found(0.9)})
    gallery([row], SENSORS, {"both": "rgb", "thermal": "thermal"}, CLASSES, tmp_path / "a.png")
    assert told == ["rgb left out, doubted\nrgb shows another scene"]


def test_names_are_no_formulas(images, tmp_path):
    """What matplotlib would take for one, and fail at."""
    row = GalleryRow("$\\x{", images, TRUTH, {"model": found(0.9, 0.9)})
    gallery([row], SENSORS, {"model": "rgb"}, ("$a_{$", "<b>$"), tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").std() > 0
