import numpy as np
import pytest
import torch
from png import pixels

from mmfuse.report.pictures import GalleryRow, displayable, gallery, overlay
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

CLASSES = ("person", "car")
SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1), "depth": Sensor(1, "inverse_depth")}
TRUTH = (torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([1]))


@pytest.fixture
def images():
    return {
        "rgb": torch.full((3, 40, 60), 128, dtype=torch.uint8),
        "thermal": torch.arange(27000, 29400).reshape(1, 40, 60).to(torch.uint16),
        "depth": torch.arange(0, 24000, 10).reshape(1, 40, 60).to(torch.uint16),
    }


def found(*scores):
    boxes = torch.tensor([[5.0, 5, 30, 20], [20, 10, 50, 35]])[: len(scores)]
    return Detections(boxes, torch.tensor(scores), torch.arange(len(scores)))


def test_eight_bits_are_shown_as_they_are(images):
    shown = displayable(images["rgb"], SENSORS["rgb"])
    assert (shown.shape, shown.dtype) == ((40, 60, 3), np.uint8)
    assert (shown == 128).all()
    grey = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    assert (displayable(grey, Sensor(1)) == grey.permute(1, 2, 0).numpy()).all()


def test_sixteen_bits_are_stretched_over_their_percentiles(images):
    shown = displayable(images["thermal"], SENSORS["thermal"]).astype(int).sum(axis=2)
    assert shown.min() < 10
    assert shown.max() > 600
    assert (np.diff(shown.mean(axis=1)) > 0).all()


def test_one_hot_pixel_does_not_darken_the_rest(images):
    hot = images["thermal"].to(torch.int32)
    hot[0, 0, 0] = 65535
    rest = displayable(hot.to(torch.uint16), Sensor(1))[1:]
    assert (rest == displayable(images["thermal"], Sensor(1))[1:]).mean() > 0.9


def test_flat_and_invalid_images_are_shown():
    assert displayable(torch.full((1, 4, 4), 300, dtype=torch.uint16), Sensor(1)).shape == (4, 4, 3)
    assert displayable(torch.full((1, 4, 4), torch.nan), Sensor(1)).shape == (4, 4, 3)
    assert (displayable(torch.zeros(1, 4, 4, dtype=torch.uint16), SENSORS["depth"]) == 0).all()


def test_holes_of_depth_are_black_and_near_is_bright(images):
    shown = displayable(images["depth"], SENSORS["depth"]).astype(int).sum(axis=2)
    assert shown[0, 0] == 0
    assert (shown.reshape(-1)[1:] > 0).all()
    assert shown[2].mean() > shown[-1].mean()


def test_overlay_draws_every_sensor(images, tmp_path):
    overlay(images, SENSORS, found(0.9, 0.5), CLASSES, tmp_path / "new" / "all.png", TRUTH)
    overlay({"rgb": images["rgb"]}, SENSORS, found(0.9, 0.5), CLASSES, tmp_path / "one.png")
    assert pixels(tmp_path / "new" / "all.png").shape[1] > 2 * pixels(tmp_path / "one.png").shape[1]


def test_overlay_leaves_out_what_is_below_the_threshold(images, tmp_path):
    for name, detections in (("none", Detections.empty()), ("weak", found(0.2, 0.1)), ("strong", found(0.9, 0.1))):
        overlay({"rgb": images["rgb"]}, SENSORS, detections, CLASSES, tmp_path / name, threshold=0.3)
    assert (pixels(tmp_path / "none") == pixels(tmp_path / "weak")).all()
    assert (pixels(tmp_path / "none") != pixels(tmp_path / "strong")).any()


def test_overlay_colours_boxes_by_class(images, tmp_path):
    overlay({"rgb": images["rgb"]}, SENSORS, found(0.9, 0.8), CLASSES, tmp_path / "a.png")
    swapped = Detections(found(0.9, 0.8).boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    overlay({"rgb": images["rgb"]}, SENSORS, swapped, CLASSES, tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()


def test_gallery_has_a_row_for_each_image_and_room_for_what_lacks(images, tmp_path):
    row = GalleryRow("1", images, TRUTH, {"single": found(0.9), "both": Detections.empty()})
    unpaired = GalleryRow("2", {"thermal": images["thermal"]}, TRUTH, row.detections)
    shown_on = {"single": "thermal", "both": "rgb"}
    gallery([row], SENSORS, shown_on, CLASSES, tmp_path / "one.png")
    gallery([row, unpaired], SENSORS, shown_on, CLASSES, tmp_path / "two.png")
    assert pixels(tmp_path / "two.png").shape[0] > pixels(tmp_path / "one.png").shape[0]


def test_failed_picture_leaves_the_good_one(images, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"good")
    with pytest.raises(IndexError):
        overlay(images, SENSORS, Detections(found(0.9).boxes, torch.ones(1), torch.tensor([7])), CLASSES, path)
    assert path.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
