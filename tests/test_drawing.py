import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.drawing import CLASS_COLOURS, _placed, _shared, displayable
from mmfuse.errors import UserError
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1), "depth": Sensor(1, "inverse_depth")}
RED = (0xFF, 0x5A, 0x5F)


@pytest.fixture
def images():
    return {
        "rgb": torch.full((3, 40, 60), 128, dtype=torch.uint8),
        "thermal": torch.arange(27000, 29400).reshape(1, 40, 60).to(torch.uint16),
        "depth": torch.arange(0, 24000, 10).reshape(1, 40, 60).to(torch.uint16),
    }


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


def scene(height=200, width=300):
    return {"rgb": np.full((height, width, 3), 128, np.uint8), "thermal": np.full((height, width), 60, np.uint8)}


def found(*boxes, labels=None, **options):
    count = len(boxes)
    scores = torch.linspace(0.9, 0.5, count) if count else torch.zeros(0)
    labels = torch.tensor(labels if labels is not None else [0] * count, dtype=torch.int64)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), scores, labels, classes=("person", "car"), **options
    )


def has(panel, colour):
    return (np.asarray(panel) == colour).all(-1)


def test_a_picture_has_the_images_own_resolution_side_by_side():
    picture = found((50, 60, 120, 150)).draw(scene())
    assert (picture.mode, picture.size) == ("RGB", (602, 200))
    panels = np.asarray(picture)[:, :300], np.asarray(picture)[:, 302:]
    for panel, grey in zip(panels, (128, 60), strict=True):
        assert has(panel, RED)[60:150, 50:120].any()
        assert (panel[190, 290] == grey).all()
        inner = panel[64:146, 54:116]
        assert (inner == grey).all()  # neither box nor caption covers the object
        assert has(panel, RED)[40:59, 50:120].any()  # the caption lies above


def test_boxes_have_the_colour_of_their_class():
    picture = np.asarray(found((20, 60, 80, 150), (150, 60, 220, 150), labels=[0, 1]).draw({"rgb": scene()["rgb"]}))
    green = tuple(int(CLASS_COLOURS[1][i : i + 2], 16) for i in (1, 3, 5))
    assert has(picture, RED)[:, :100].any()
    assert not has(picture, RED)[:, 140:].any()
    assert has(picture, green)[:, 140:].any()


def test_a_note_tells_that_nothing_was_found_or_a_sensor_is_not_believed():
    plain, nothing = (np.asarray(one.draw(scene())) for one in (found((5, 5, 9, 9)), found()))
    assert not has(plain[180:], (0, 0, 0)).any()
    assert has(nothing[180:, :300], (0, 0, 0)).any()
    assert has(nothing[180:, 302:], (0, 0, 0)).any()
    doubted = np.asarray(found((5, 5, 9, 9), dropped=("thermal", "absent")).draw(scene()))
    assert not has(doubted[180:, :300], (0, 0, 0)).any()
    assert has(doubted[180:, 302:], (0, 0, 0)).any()


def test_captions_keep_off_other_boxes_where_there_is_room():
    areas = [(100, 100, 150, 150), (100, 60, 150, 95)]
    places = _placed(areas, [(40, 12)] * 2, (300, 200), 1)
    shown = [(x, y, x + 40, y + 12) for x, y in places]
    assert all(_shared(one, area) == 0 for one in shown for area in areas)
    assert _shared(*shown) == 0


@pytest.mark.parametrize("area", [(0, 0, 300, 200), (-5, -5, 4, 4), (290, 190, 310, 230), (10, 0, 12, 200)])
def test_captions_stay_in_the_picture(area):
    ((x, y),) = _placed([area], [(40, 12)], (300, 200), 1)
    assert (0 <= x <= 260, 0 <= y <= 188) == (True, True)


def test_tiny_images_long_names_and_foreign_scripts_are_drawn():
    many = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) * 20
    boxes = torch.cat((many[:, :2], many[:, :2] + many[:, 2:]), 1)
    names = ("Fußgänger mit einem sehr langen Namen", "行人")
    crowded = Detections(boxes, torch.rand(60), torch.arange(60) % 2, classes=names)
    assert crowded.draw({"x": np.zeros((24, 32), np.uint8)}).size == (32, 24)
    assert crowded.draw({"x": np.zeros((1, 1), np.uint8)}).size == (1, 1)


def test_images_come_as_tensors_arrays_and_pil(images):
    one = found((5, 5, 30, 30))
    expected = one.draw({"rgb": images["rgb"]})
    array = images["rgb"].permute(1, 2, 0).numpy()
    for other in (array, Image.fromarray(array)):
        assert (np.asarray(one.draw({"rgb": other})) == np.asarray(expected)).all()
    assert one.draw(images, SENSORS).size == (60 * 3 + 2 * 2, 40)


def test_captions_can_be_given():
    one = found((50, 60, 120, 150))
    own, usual = one.draw(scene(), captions=["12.3 m"]), one.draw(scene())
    assert (np.asarray(own) != np.asarray(usual)).any()


def test_what_cannot_be_drawn_is_one_line():
    one = found((5, 5, 30, 30))
    grey = np.zeros((40, 60), np.uint8)
    for images, message in (
        ({}, r"draw: the images are {}; give some of one size"),
        ({"x": "a.png"}, r"draw: x is str; give a tensor \(C, H, W\), array"),
        ({"x": np.zeros((2, 40, 60, 3), np.uint8)}, r"draw: x is Tensor of \(2, 40, 60, 3\); give a tensor"),
        ({"x": grey, "y": grey[:20]}, r"draw: the images are {'x': '60x40', 'y': '60x20'}; give some of one size"),
    ):
        with pytest.raises(UserError, match=message):
            one.draw(images)
    with pytest.raises(UserError, match="captions: 2 of 1 objects; give one for each"):
        one.draw({"x": grey}, captions=["a", "b"])


def test_a_palette_is_drawn_in_its_colours():
    colour = Image.new("RGB", (60, 40), (200, 30, 90))
    picture = np.asarray(found().draw({"x": colour.convert("P", palette=Image.Palette.ADAPTIVE)}))
    assert np.abs(picture[5, 5].astype(int) - (200, 30, 90)).max() < 6


def test_a_label_beyond_the_known_classes_is_its_number():
    assert found((5, 5, 30, 30), labels=[7]).names == ["7"]
