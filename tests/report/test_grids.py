from dataclasses import replace

import torch
from png import pixels

from mmfuse.report import grids
from mmfuse.report.grids import GAP, batch_grid, found_grid
from mmfuse.sample import Batch, Detections, Sample, Targets
from mmfuse.sensor import Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
CLASSES = ("car", "bus")
BOX = torch.tensor([[10.0, 20, 50, 60]])
COLOURS = {"car": (255, 90, 95), "bus": (61, 220, 151)}


def coloured(panel, name):
    """Whether the colour of a class is in a panel."""
    return bool(((panel[..., :3] * 255).round() == COLOURS[name]).all(-1).any())


def has_box(panel, name, box):
    """Whether a box of a class is drawn there: its left and right edge, halfway down."""
    x1, y1, x2, y2 = (round(v) for v in box.tolist())
    edges = panel[(y1 + y2) // 2, [x1, x2 - 1], :3]
    return bool(((edges * 255).round() == COLOURS[name]).all())


def batch(size=(96, 128), images=3):
    height, width = size
    rgb, thermal = torch.full((images, 3, height, width), 40).byte(), torch.full((images, 1, height, width), 90).byte()
    targets = Targets([BOX] * images, [torch.tensor([0])] * images)
    own = Targets([BOX + 30] * images, [torch.tensor([1])] * images)
    present = {"rgb": torch.ones(images).bool(), "thermal": torch.tensor([True] * (images - 1) + [False])}
    ones = torch.ones(images)
    views = {"rgb": rgb, "thermal": thermal}
    return Batch(list(range(images)), views, present, targets, ones, ones[:, None].repeat(1, 2), {"thermal": own})


def panels(path, rows, columns, height=96, width=128):
    image = pixels(path)
    assert image.shape[:2] == (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    return [
        [image[y * (height + GAP) :, x * (width + GAP) :][:height, :width] for x in range(columns)] for y in range(rows)
    ]


def test_a_batch_is_shown_with_the_objects_of_each_sensor(tmp_path):
    batch_grid(batch(), SENSORS, CLASSES, tmp_path / "b.png")
    grid = panels(tmp_path / "b.png", 3, 2)
    for rgb, thermal in grid[:2]:
        assert has_box(rgb, "car", BOX[0])
        assert not coloured(rgb, "bus")
        assert has_box(thermal, "bus", BOX[0] + 30)
        assert not coloured(thermal, "car")
    assert has_box(grid[2][0], "car", BOX[0])
    assert not coloured(grid[2][1], "bus")  # it isn't there


def test_of_a_large_batch_the_first_are_shown_and_large_images_smaller(tmp_path):
    batch_grid(batch(images=20), SENSORS, CLASSES, tmp_path / "many.png", most=2)
    panels(tmp_path / "many.png", 2, 2)
    batch_grid(batch(size=(192, 1282), images=1), SENSORS, CLASSES, tmp_path / "large.png")
    ((rgb, _),) = panels(tmp_path / "large.png", 1, 2, height=64, width=428)
    assert has_box(rgb, "car", BOX[0] / 3)


def test_objects_and_detections_are_side_by_side(tmp_path):
    images = {"rgb": torch.full((3, 96, 128), 40).byte(), "thermal": torch.full((1, 96, 128), 90).byte()}
    sample = Sample(1, images, BOX, torch.tensor([0]))
    found = Detections(torch.cat((BOX + 30, BOX)), torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
    found_grid([sample, sample], [found, Detections.empty()], SENSORS, CLASSES, tmp_path / "f.png", threshold=0.3)
    first, second = panels(tmp_path / "f.png", 2, 4)
    for panel in (*first[:2], *second[:2]):
        assert has_box(panel, "car", BOX[0])
        assert not coloured(panel, "bus")
    for panel in first[2:]:
        assert has_box(panel, "bus", BOX[0] + 30)
        assert not coloured(panel, "car")  # its score is below the threshold
    for panel in second[2:]:
        assert not coloured(panel, "car")
        assert not coloured(panel, "bus")


def test_a_sensor_that_is_left_out_or_disagrees_is_told_on_it(tmp_path, monkeypatch):
    notes = []
    real = grids.draw
    monkeypatch.setattr(grids, "draw", lambda *given: notes.append(given[-1][""]) or real(*given))
    images = {"rgb": torch.full((3, 96, 128), 40).byte(), "thermal": torch.full((1, 96, 128), 90).byte()}
    sample = Sample(1, images, BOX, torch.tensor([0]))
    found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), disagreeing=("rgb", "thermal"))
    found = [found, replace(found, dropped=("thermal",))]
    found_grid([sample, sample], found, SENSORS, CLASSES, tmp_path / "f.png", threshold=0.3)
    assert [note for note in notes if "objects" not in note] == [
        *("rgb: shows another scene", "thermal: shows another scene"),
        *("rgb: shows another scene", "thermal: not believed"),
    ]
