"""Positions against scenes whose depth is known exactly, and against what depth can't tell."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mmfuse
from mmfuse import Calibration, Detections, UserError, lift
from mmfuse.embedded.solids import trace
from mmfuse.embedded.street import build_scene
from mmfuse.images.geometry import points_of

CAMERA = Calibration((80, 60), (100.0, 100.0, 39.5, 29.5))
PEACH = Path(__file__).parents[3] / "shared/data/peach_rgbd"


def found(*boxes):
    count = len(boxes)
    return Detections(torch.tensor(boxes).reshape(-1, 4).float(), torch.ones(count), torch.zeros(count).long())


def plate(behind=8.0):
    """A plate 4 m away in columns 30 to 49 and rows 20 to 39, in front of a wall."""
    depth = torch.full((60, 80), behind)
    depth[20:40, 30:50] = 4.0
    return depth


def street(seed, size=(384, 512)):
    """Exact depth, its camera, the boxes of what nothing hides, and the median range of what is seen of each."""
    scene = build_scene(np.random.default_rng([seed, 77]), size)
    view = trace(scene.camera, scene.solids)
    depth = np.where(np.isfinite(view.depth), view.depth, 0).astype(np.float32)
    camera = Calibration(size[::-1], (scene.camera.focal,) * 2 + (size[1] / 2 - 0.5, size[0] / 2 - 0.5))
    reach = points_of(torch.from_numpy(depth), camera).norm(dim=-1).numpy()
    boxes, distances = [], []
    for index, whole in enumerate(view.whole):
        seen = view.owner == index
        rows, columns = seen.nonzero()
        if len(rows) >= max(100, 0.95 * whole) and 0.5 <= np.median(reach[seen]) <= 20:
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            distances.append(np.median(reach[seen]))
    return depth, camera, found(*boxes), np.array(distances)


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_distances_in_ray_cast_streets(holes):
    errors, bars = [], []
    for seed in range(1000, 1012):
        depth, camera, objects, truth = street(seed)
        depth[np.random.default_rng(seed).random(depth.shape) < holes] = 0
        got = np.array([p.distance for p in lift(objects, depth, camera)])
        errors.append(np.abs(got - truth))
        bars.append(np.maximum(0.02 * truth, 0.05))
    within = np.concatenate(errors) <= np.concatenate(bars)
    assert len(within) >= 25
    assert within.mean() >= 0.95


def test_a_plate_before_a_wall():
    (position,) = lift(found([26, 16, 54, 44]), plate(), CAMERA)
    assert position.centre == pytest.approx((0, 0, 4), abs=0.03)
    assert position.distance == pytest.approx(4, abs=0.02)
    assert position.pixels == 400
    assert str(position) == "4.0 m"


def test_the_oriented_box_is_around_the_object_alone():
    depth = plate()
    depth[20:40, 20:60] = 4.0
    box = lift(found([16, 16, 64, 44]), depth, CAMERA)[0].box
    assert sorted(box.size) == pytest.approx([0, 0.76, 1.56], abs=0.1)
    assert box.centre == pytest.approx([0, 0, 4], abs=0.1)
    assert np.abs(box.axes[:, box.size.argmax()]) == pytest.approx([1, 0, 0], abs=0.1)


def test_distance_is_along_the_ray():
    depth = torch.full((60, 80), 8.0)
    depth[0:10, 70:80] = 3.0
    (position,) = lift(found([70, 0, 80, 10]), depth, CAMERA)
    assert position.centre == pytest.approx((1.05, -0.75, 3), abs=0.03)
    assert position.distance == pytest.approx(math.sqrt(1.05**2 + 0.75**2 + 9), rel=0.01)


def test_the_lens_is_undone():
    bent = Calibration(CAMERA.size, CAMERA.intrinsics, (-0.3, 0.05, 0.0, 0.0))
    box, depth = found([70, 0, 80, 10]), torch.full((60, 80), 3.0)
    assert lift(box, depth, bent)[0].centre[0] > lift(box, depth, CAMERA)[0].centre[0] + 0.02


def test_intrinsics_are_scaled_to_the_depth():
    twice = CAMERA.scaled((160, 120))
    a, b = (lift(found([26, 16, 54, 44]), plate(), camera)[0] for camera in (CAMERA, twice))
    assert a.centre == pytest.approx(b.centre, abs=1e-5)


@pytest.mark.parametrize("hole", [0.0, float("nan"), float("inf")])
def test_what_depth_does_not_tell_is_not_guessed(hole):
    depth = plate()
    depth[20:40, 30:50] = hole
    (position,) = lift(found([30, 20, 50, 40]), depth, CAMERA)
    assert not position.known
    assert position.pixels == 0
    assert position.box is None
    assert math.isnan(position.distance)
    assert all(math.isnan(v) for v in position.centre)
    assert str(position) == "distance unknown"


def test_a_few_pixels_give_a_distance_and_no_box():
    (position,) = lift(found([38, 28, 41, 31]), plate(), CAMERA)
    assert position.distance == pytest.approx(4, abs=0.02)
    assert position.pixels == 9
    assert position.box is None


def test_a_box_partly_outside_counts_what_is_inside():
    depth = torch.full((60, 80), 3.0)
    assert lift(found([-10, -10, 10, 10]), depth, CAMERA)[0].pixels == 100


def test_nothing_found_has_no_positions():
    assert lift(Detections.empty(), plate(), CAMERA) == []


def test_arrays_and_tensors_are_alike():
    box = found([26, 16, 54, 44])
    a, b = (lift(box, d, CAMERA)[0] for d in (plate(), plate().double().numpy()))
    assert (a.distance, a.pixels) == (pytest.approx(b.distance, abs=1e-5), b.pixels)


@pytest.mark.parametrize(
    ("box", "depth", "camera", "says"),
    [
        ([0, 0, 9, 9], torch.ones(1, 60, 80), CAMERA, "depth: .*1, 60, 80"),
        ([0, 0, 9, 9], torch.ones(60, 80).int(), CAMERA, "depth: .*int32.*metres"),
        ([0, 0, 9, 9], plate(), Calibration((80, 60)), "calibration: intrinsics"),
        ([200, 0, 240, 9], plate(), CAMERA, "boxes: .*80 x 60"),
        ([0, 0, math.nan, 9], plate(), CAMERA, "boxes: .*finite"),
    ],
)
def test_mistakes_are_named(box, depth, camera, says):
    with pytest.raises(UserError, match=says):
        lift(found(box), depth, camera)


@pytest.mark.skipif(not PEACH.is_dir(), reason="needs the shared data")
def test_real_depth_of_an_orchard():
    from PIL import Image

    path = sorted((PEACH / "depth").glob("*.png"))[0]
    depth = np.asarray(Image.open(path)).astype(np.float32) / 1000
    height, width = depth.shape
    label = next(p for p in PEACH.rglob(f"{path.stem}.txt"))
    rows = np.loadtxt(label, ndmin=2)[:, 1:] * [width, height, width, height]
    boxes = np.concatenate((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2), 1)
    got = lift(found(*boxes.tolist()), depth, Calibration((width, height), (610.0, 610.0, 639.5, 359.5)))
    known = [p for p in got if p.known]
    assert len(got) == len(boxes)
    assert known
    assert all(0.3 < p.distance < 6 for p in known)


def test_it_is_public():
    assert {"lift", "Position", "OrientedBox"} <= set(dir(mmfuse))
