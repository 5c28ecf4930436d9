"""Against scenes that Open3D casts rays at from known cameras, and against values worked out by hand."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmfuse.data.annotations.calibration_files import read_calibration
from mmfuse.errors import UserError
from mmfuse.images.geometry import project_points, register_depth, warp_by_homography, warp_through_depth
from mmfuse.sensor import Calibration

CENTIMETRE = 0.01
BARREL = (-0.3, 0.12, 0.002, -0.003, -0.02)
RATIONAL = (0.4, -0.2, -0.001, 0.002, 0.05, 0.5, -0.1, 0.02)


def pose(angles=(0, 0, 0), at=(0, 0, 0)):
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return tuple(map(tuple, np.column_stack((matrix, at)).tolist()))


def camera(width, height, focal, distortion=(), **where):
    middle = (width - 1) / 2, (height - 1) / 2
    return Calibration((width, height), (focal, focal * 1.02, *middle), distortion, pose(**where))


SMALL = camera(160, 120, 150)


def by_opencv(across, distortion):
    """OpenCV's formula, written from its documentation."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (*distortion, *(0,) * (8 - len(distortion)))
    x, y = across[..., 0], across[..., 1]
    r2 = x**2 + y**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return np.stack(
        (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2), y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y), -1
    )


def rays(cal):
    """Directions (H, W, 3) with z = 1, the lens undone by a patient fixed-point iteration."""
    (width, height), (fx, fy, cx, cy) = cal.size, cal.intrinsics
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    seen = np.stack(((u - cx) / fx, (v - cy) / fy), -1)
    across = seen
    for _ in range(60 if cal.distortion else 0):
        across = across + 0.7 * (seen - by_opencv(across, cal.distortion))
    return np.concatenate((across, np.ones((height, width, 1))), -1)


def in_frame(points, source, target):
    moved = np.linalg.inv(target.pose) @ np.array(source.pose)
    return points @ moved[:3, :3].T + moved[:3, 3]


def pixels(points, cal):
    fx, fy, cx, cy = cal.intrinsics
    z = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
    return by_opencv(points[..., :2] / z, cal.distortion) * (fx, fy) + (cx, cy)


class Scene:
    """A room: floor, wall, box, ball and a thin post. `cast` gives depth (H, W), 0 where a ray meets nothing."""

    def __init__(self):
        import open3d

        self.open3d, make = open3d, open3d.t.geometry.TriangleMesh
        self.scene = open3d.t.geometry.RaycastingScene(nthreads=1)
        for mesh, at in (
            (make.create_box(20, 0.1, 20), (-10, 1.2, 0)),
            (make.create_box(20, 6, 0.1), (-10, -4, 6)),
            (make.create_box(0.6, 1.2, 0.6), (-0.8, 0, 2.2)),
            (make.create_sphere(0.4, 40), (0.7, 0.3, 2.5)),
            (make.create_box(0.05, 2, 0.05), (0.1, -0.8, 2)),
        ):
            self.scene.add_triangles(mesh.translate(at))

    def cast(self, cal, directions=None):
        directions = rays(cal) if directions is None else directions
        matrix = np.array(cal.pose)
        ways = directions @ matrix[:3, :3].T
        starts = np.broadcast_to(matrix[:3, 3], ways.shape)
        both = np.concatenate((starts, ways), -1).astype(np.float32)
        met = self.scene.cast_rays(self.open3d.core.Tensor(both), nthreads=1)["t_hit"].numpy()
        return np.where(np.isfinite(met), met, 0)

    def co_visible(self, source, target, depth):
        """Whether the source sees what the target sees at each pixel, and whether something hides it from it."""
        points = in_frame(rays(target) * depth[..., None], target, source)
        u, v = np.moveaxis(pixels(points, source), -1, 0)
        width, height = source.size
        inside = (depth > 0) & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        met = self.cast(source, np.where(inside[..., None], points, (0, 0, 1)))
        return inside & (met > 0.995), inside & (met < 0.9)


@pytest.fixture(scope="module")
def scene():
    return Scene()


def tensor(array):
    return torch.from_numpy(np.asarray(array, np.float32))


def within_a_pixel(found, true):
    """Whether the depth found lies between those of the pixel and its neighbours, to a centimetre."""
    around = np.pad(true, 1, mode="edge")
    height, width = true.shape
    near = np.stack([around[i : i + height, j : j + width] for i in range(3) for j in range(3)])
    return (found > 0) & (found >= near.min(0) - CENTIMETRE) & (found <= near.max(0) + CENTIMETRE)


SOURCES = {"pinhole": camera(320, 240, 300), "barrel": camera(280, 210, 250, BARREL)}
TARGETS = {
    "the same": camera(320, 240, 300),
    "larger": camera(480, 360, 450),
    "smaller": camera(140, 100, 120),
    "translated": camera(300, 220, 290, at=(0.15, -0.05, 0.1)),
    "rotated": camera(320, 240, 300, angles=(0.05, -0.1, 0.3)),
    "all": camera(360, 200, 260, angles=(0.05, -0.1, 0.08), at=(0.12, -0.03, 0.02)),
    "barrel": camera(320, 240, 280, BARREL, angles=(0, 0.05, 0), at=(0.1, 0, 0)),
    "rational": camera(200, 150, 180, RATIONAL, at=(-0.1, 0.02, 0)),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_registered_depth_is_what_the_target_would_have_measured(scene, source, target):
    source, target = SOURCES[source], TARGETS[target]
    true = scene.cast(target)
    found = register_depth(tensor(scene.cast(source)), source, target)
    assert found.dtype == torch.float32
    assert found.shape == (target.size[1], target.size[0])
    seen, hidden = scene.co_visible(source, target, true)
    assert seen.mean() > 0.4
    good = within_a_pixel(found.numpy(), true)
    assert good[seen].mean() >= 0.99
    assert (np.abs(found.numpy() - true) <= CENTIMETRE)[seen].mean() >= 0.98
    assert hidden.sum() < 100 or ((found.numpy() > 0) & ~good)[hidden].mean() < 0.03


def test_depth_is_along_the_axis_not_along_the_ray():
    found = register_depth(torch.full((120, 160), 2.0, dtype=torch.float64), SMALL, SMALL)
    torch.testing.assert_close(found, torch.full((120, 160), 2.0), rtol=0, atol=1e-4)


def test_a_finer_target_has_no_holes_and_no_skin_between_near_and_far():
    depth = torch.full((60, 80), 3.0)
    depth[20:40, 30:50] = 1.0
    coarse, fine = camera(80, 60, 75), camera(640, 480, 600, at=(0.05, 0, 0))
    found = register_depth(depth, coarse, fine)
    near = (found - 1).abs() < 1e-3
    far = (found - 3).abs() < 1e-3
    assert bool((near | far | (found == 0)).all())
    columns = near.any(0).nonzero()[:, 0]
    rows = near.any(1).nonzero()[:, 0]
    square = near[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert bool(square.all())
    assert abs(square.shape[0] - 160) <= 2
    assert abs(square.shape[1] - 160) <= 2
    shift = 600 * 0.05
    assert columns[0] == pytest.approx(30 * 8 - shift, abs=2)
    gap = (found[240] == 0).nonzero()[:, 0]
    gap = gap[gap < 600]
    assert len(gap) == pytest.approx(shift * (1 - 1 / 3), abs=2)
    assert gap[0] > columns[-1]


def test_a_floor_seen_at_a_low_angle_stays_whole():
    source = replace(camera(160, 120, 150), pose=pose(at=(0, 0.3, 0)))
    target = camera(160, 120, 150)
    down = rays(source)[..., 1]
    depth = np.where(down > 0.02, 0.5 / np.where(down > 0.02, down, 1), 0)
    steps = depth[63:119] / depth[64:120]
    assert steps.max() > 1.2
    found = register_depth(tensor(depth), source, target).numpy()
    true = 0.8 / np.maximum(rays(target)[..., 1], 1e-9)
    inside = (true > depth[119].max()) & (true < 0.9 * depth.max())
    inside &= np.abs(rays(target)[..., 0]) < 0.3
    assert inside.sum() > 1000
    assert np.abs(found / true - 1)[inside].max() < 1e-3


def test_no_ray_slips_through_between_pixels(scene):
    source = camera(320, 240, 300)
    for target in (camera(400, 300, 375), camera(640, 480, 600)):
        found = register_depth(tensor(scene.cast(source)), source, target)
        assert (found.numpy() == 0)[scene.cast(target) > 0].sum() == 0


def test_a_tilted_surface_is_continued_to_its_border():
    source = camera(80, 60, 75)
    across = rays(source)[..., 0]
    depth = 2 / (1 + 1.5 * across)  # the plane z + 1.5 x = 2
    depth[:, :20] = depth[:, 60:] = 0
    target = camera(640, 480, 600)
    found = register_depth(tensor(depth), source, target).numpy()
    seen = found > 0
    assert np.flatnonzero(seen.all(0)).tolist() == list(range(160, 480))
    assert np.abs(found * (1 + 1.5 * rays(target)[..., 0]) / 2 - 1)[seen].max() < 1e-3


def test_what_is_one_pixel_wide_is_kept():
    depth = torch.zeros(60, 80)
    depth[:, 40] = 2.0
    found = register_depth(depth, camera(80, 60, 75), camera(320, 240, 300))
    assert found.count_nonzero(1).tolist() == [4] * 240


def test_sparse_depth_is_carried_point_by_point():
    rng = np.random.default_rng(0)
    depth = np.zeros((120, 160), np.float32)
    depth[::4, ::4] = rng.uniform(1, 5, (30, 40))
    source, target = SMALL, camera(60, 45, 50, at=(0.05, 0.013, 0))
    found = register_depth(tensor(depth), source, target).numpy()
    points = in_frame((rays(source) * depth[..., None])[depth > 0], source, target)
    true = np.full((45, 60), np.inf)
    for (u, v), z in zip(pixels(points, target), points[:, 2], strict=True):
        if 0 <= round(u) < 60 and 0 <= round(v) < 45:
            true[round(v), round(u)] = min(true[round(v), round(u)], z)
    landed = np.isfinite(true)
    assert landed.sum() > 500
    assert (found[landed] > 0).all()
    assert (np.abs(found - true) < CENTIMETRE)[landed].mean() > 0.9
    assert np.abs(found[found > 0][:, None] - points[:, 2]).min(1).max() < 1e-4


def test_depth_without_a_measurement_is_empty():
    for value in (0.0, -1.0, float("nan"), float("inf")):
        assert register_depth(torch.full((120, 160), value), SMALL, SMALL).count_nonzero() == 0
    depth = torch.full((120, 160), 2.0)
    depth[50:60, 70:80] = float("nan")
    found = register_depth(depth, SMALL, SMALL)
    assert bool((found[51:59, 71:79] == 0).all())
    assert found.count_nonzero() == 120 * 160 - 100


def test_a_calibration_holds_for_a_scaled_image():
    half = torch.full((60, 80), 2.0)
    half[:, 40:] = 4.0
    found = register_depth(half, SMALL, SMALL)
    torch.testing.assert_close(found, half.repeat_interleave(2, 0).repeat_interleave(2, 1), rtol=0, atol=1e-4)
    unsized = replace(camera(80, 60, 75), size=None)
    torch.testing.assert_close(register_depth(half, unsized, camera(80, 60, 75)), half, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ points


def test_points_fall_into_the_pixels_worked_out_by_hand():
    target = Calibration((8, 6), (10, 20, 3, 2))
    points = torch.tensor(
        [
            [0.0, 0, 2],  # (3, 2)
            [0.2, 0.1, 2],  # (4, 3)
            [0.1, 0.05, 1],  # the same pixel, nearer
            [-0.349, -0.124, 1],  # (-0.49, -0.48): in the first pixel
            [-0.351, 0, 1],  # out at the left
            [0.449, 0, 1],  # (7.49, 2): in the last column
            [0.451, 0, 1],
            [0, 0.174, 1],  # (3, 5.48): in the last row
            [0, 0, -2],
            [0, 0, 0],
            [float("nan"), 0, 1],
            [0, 0, float("inf")],
        ]
    )
    found = project_points(points, Calibration(), target)
    assert found.dtype == torch.float32
    expected = torch.zeros(6, 8)
    expected[2, 3], expected[3, 4], expected[0, 0], expected[2, 7], expected[5, 3] = 2, 1, 1, 1, 1
    torch.testing.assert_close(found, expected)
    assert project_points(points[:0], Calibration(), target).count_nonzero() == 0


def test_points_go_through_both_poses():
    source = Calibration(pose=((0, -1, 0, 0.5), (0, 0, -1, 0), (1, 0, 0, 0)))  # x ahead, y left, z up
    target = Calibration((8, 6), (10, 10, 3, 2), pose=pose(at=(0.3, 0, -1)))
    found = project_points(torch.tensor([[4.0, -0.3, 0.5]]), source, target)
    # in the rig (0.8, -0.5, 4), from the camera (0.5, -0.5, 5): pixel (4, 1)
    assert found[1, 4] == 5
    assert found.count_nonzero() == 1


@pytest.mark.parametrize("distortion", [BARREL[:4], BARREL, RATIONAL])
def test_points_are_distorted_as_opencv_does(distortion):
    target = camera(2000, 1500, 1500, distortion)
    rng = np.random.default_rng(0)
    points = np.concatenate((rng.uniform(-0.5, 0.5, (200, 2)), np.ones((200, 1))), 1)
    found = project_points(torch.from_numpy(points), Calibration(), target)
    column, row = np.floor(pixels(points, target) + 0.5).astype(int).T
    inside = (column >= 0) & (column < 2000) & (row >= 0) & (row < 1500)
    assert inside.mean() > 0.8
    assert bool((found[row[inside], column[inside]] == 1).all())
    assert found.count_nonzero() == inside.sum()


def test_a_lens_does_not_fold_what_is_far_aside_into_the_image():
    target = camera(160, 120, 150, (-0.3, 0, 0, 0))
    aside = torch.tensor([[1.5, 0.0, 1], [-1.6, 0.2, 1], [3.0, 0, 1]])
    assert (np.abs(by_opencv(aside.numpy()[:2, :2], target.distortion)) < 0.53).all()
    assert project_points(aside, Calibration(), target).count_nonzero() == 0


def test_pixels_that_the_lens_cannot_reach_stay_empty():
    wide = camera(160, 120, 60, (-0.2, 0, 0, 0))  # rays reach radius 0.86 in the image, its corner is at 1.6
    found = register_depth(torch.full((120, 160), 2.0), SMALL, wide)
    assert found[0, 0] == 0
    assert found[60, 80] == pytest.approx(2)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("frame", ["000000", "000001", "000002"])
def test_scanned_points_lie_on_the_labelled_objects(frame):
    from pathlib import Path

    folder = Path(__file__).parents[3] / "shared/data/kitti_sample/training"
    if not folder.is_dir():
        pytest.skip("the KITTI sample isn't here")
    file = folder / f"calib/{frame}.txt"
    points = np.fromfile(folder / f"velodyne/{frame}.bin", np.float32).reshape(-1, 4)[:, :3]
    target = replace(read_calibration(file, "kitti", "P2"), size=(1242, 375))
    depth = project_points(torch.from_numpy(points), read_calibration(file, "kitti", "Tr_velo_to_cam"), target).numpy()
    assert 0.02 < (depth > 0).mean() < 0.1
    for line in (folder / f"label_2/{frame}.txt").read_text().splitlines():
        name, *_, width, length, _, _, z, _ = line.split()
        if name == "DontCare":
            continue
        x1, y1, x2, y2 = (int(float(v)) for v in line.split()[4:8])
        middle = depth[y1 + (y2 - y1) // 4 : y2 - (y2 - y1) // 4, x1 + (x2 - x1) // 3 : x2 - (x2 - x1) // 3]
        half = max(float(width), float(length)) / 2 + 0.5
        on_it = np.abs(middle[middle > 0] - float(z)) < half
        assert len(on_it) > 0, line
        assert on_it.mean() > 0.6, line


# ------------------------------------------------------------------------------------------------------------ images


def paint(points):
    """Smooth colours (3, H, W) of places (H, W, 3) in the rig."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack((np.sin(2 * x) + z, np.cos(3 * y) - x, np.sin(x + y + z)))


@pytest.mark.parametrize(
    "source", [camera(320, 240, 280, at=(0.2, 0.05, 0)), camera(300, 240, 260, BARREL, at=(-0.2, 0, 0))]
)
def test_an_image_shows_the_same_place_after_the_warp(scene, source):
    target = camera(200, 150, 190, RATIONAL, angles=(0, 0.05, 0.1), at=(0, 0, 0.1))
    rig = Calibration()
    image = paint(in_frame(rays(source) * scene.cast(source)[..., None], source, rig))
    depth = scene.cast(target)
    warped, valid = warp_through_depth(tensor(image), source, target, tensor(depth))
    assert warped.shape == (3, 150, 200)
    assert warped.dtype == torch.float32
    assert valid.shape == (150, 200)
    assert valid.dtype == torch.bool
    seen, hidden = scene.co_visible(source, target, depth)
    assert valid.numpy()[seen].mean() > 0.99
    core = hidden[1:-1, 1:-1] & hidden[1:-1, :-2] & hidden[1:-1, 2:]
    core[-8:] = False  # there, what hides them lies below the target's view
    assert core.sum() > 300
    assert valid.numpy()[1:-1, 1:-1][core].mean() < 0.005
    expected = paint(in_frame(rays(target) * depth[..., None], target, rig))
    wrong = np.abs(warped.numpy() - expected).max(0)[seen & valid.numpy()]
    assert np.median(wrong) < 0.004
    assert np.percentile(wrong, 95) < 0.02  # at edges, colours of near and far mix


def test_what_a_nearer_object_hides_is_not_valid():
    depth = torch.full((120, 160), 4.0)
    depth[40:80, 60:100] = 1.0
    source = camera(160, 120, 150, at=(0.2, 0, 0))
    image = torch.ones(1, 120, 160)
    _, valid = warp_through_depth(image, source, SMALL, depth)
    # from the right by 0.2 m the near square moves 30 px, the wall 7.5: the wall behind it at its left is hidden
    row = valid[60].tolist()
    assert all(row[60:100])
    assert not any(row[39:59])
    assert all(row[10:36])
    assert all(row[101:159])
    assert bool(valid[20, 8:].all())
    assert not bool(valid[:, :7].any())  # left of the source's image


def test_places_without_depth_or_outside_the_image_are_not_valid():
    depth = torch.full((120, 160), 2.0)
    depth[:10] = 0
    depth[10:20] = float("nan")
    _, valid = warp_through_depth(torch.ones(2, 60, 80), SMALL, SMALL, depth)
    assert not bool(valid[:20].any())
    assert bool(valid[20:].all())
    away = camera(160, 120, 150, angles=(0, np.pi, 0))
    assert not bool(warp_through_depth(torch.ones(2, 60, 80), away, SMALL, depth)[1].any())


def test_a_finer_image_is_averaged_not_skipped():
    rows, columns = np.indices((480, 640))
    striped = tensor((columns + rows // 4) % 4 == 1)[
        None
    ]  # a quarter of the pixels, of which bilinear sees none or half
    warped, valid = warp_through_depth(striped, camera(640, 480, 600), SMALL, torch.full((120, 160), 2.0))
    assert bool(valid.all())
    assert (warped[:, 2:-2, 2:-2] - 0.25).abs().max() < 0.15
    warped, _ = warp_by_homography(striped, ((0.25, 0, -0.375), (0, 0.25, -0.375), (0, 0, 1)), (160, 120))
    assert (warped[:, 2:-2, 2:-2] - 0.25).abs().max() < 0.15


# ------------------------------------------------------------------------------------------------------- homographies


def test_a_homography_takes_own_pixels_to_those_of_the_reference():
    image = torch.arange(48).reshape(1, 6, 8).to(torch.uint8)
    warped, valid = warp_by_homography(image, ((1, 0, 2), (0, 1, 1), (0, 0, 1)), (9, 5))
    assert warped.dtype == torch.float32
    assert warped.shape == (1, 5, 9)
    torch.testing.assert_close(warped[0, 1:, 2:], image[0, :4, :7].float())
    expected = torch.zeros(5, 9, dtype=torch.bool)
    expected[1:, 2:] = True
    assert bool((valid == expected).all())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_homography_in_perspective_has_no_image_behind_its_horizon(sign):
    matrix = sign * np.array([[1.2, 0.1, 3], [0.05, 0.9, 2], [0.002, 0.01, 1]])
    rows, columns = np.indices((60, 80)).astype(np.float64)
    image = tensor(np.stack((columns, rows)))
    warped, valid = warp_by_homography(image, tuple(map(tuple, matrix.tolist())), (70, 50))
    assert bool(valid.any())
    seen = 0
    for v in range(0, 50, 7):
        for u in range(0, 70, 7):
            x, y, w = np.linalg.inv(matrix) @ (u, v, 1) * sign
            inside = w > 0 and -0.5 <= x / w < 79.5 and -0.5 <= y / w < 59.5
            assert bool(valid[v, u]) == inside
            if inside and 0 < x / w < 79 and 0 < y / w < 59:
                seen += 1
                assert warped[:, v, u].tolist() == pytest.approx([x / w, y / w], abs=0.3)
    assert seen > 20


def test_rows_beyond_the_horizon_of_a_homography_are_not_mirrored():
    steep = ((1, 0, 0), (0, -1, 0), (0, -0.02, 1))  # own row 50 is the horizon, row 59 comes out at 328
    _, valid = warp_by_homography(torch.ones(1, 60, 80), steep, (80, 400))
    assert not bool(valid[300:].any())
    assert bool(valid[0].all())


def test_nearest_does_not_mix():
    image = torch.tensor([[[1.0, 100.0], [1.0, 100.0]]])
    warped, _ = warp_by_homography(image, ((4, 0, 1.5), (0, 4, 1.5), (0, 0, 1)), (8, 8), "nearest")
    assert set(warped.unique().tolist()) == {1.0, 100.0}
    assert warped[0, 0].tolist() == [1.0] * 4 + [100.0] * 4


@pytest.mark.parametrize(
    "matrix",
    [
        ((1, 2, 3), (2, 4, 6), (0, 0, 1)),
        ((0, 0, 0), (0, 0, 0), (0, 0, 0)),
        ((float("nan"), 0, 0), (0, 1, 0), (0, 0, 1)),
        ((1, 0, 0), (0, 1, 0), (0, 0, float("inf"))),
    ],
)
def test_a_homography_that_cannot_be_inverted_is_refused(matrix):
    with pytest.raises(UserError, match=r"homography: .* can't be inverted; give 3 x 3"):
        warp_by_homography(torch.ones(1, 6, 8), matrix, (8, 6))


def test_a_far_shift_is_not_taken_for_a_singular_homography():
    _, valid = warp_by_homography(torch.ones(1, 60, 80), ((0.1, 0, 900), (0, 0.1, 5), (0, 0, 1)), (920, 20))
    assert valid.sum() == 48


# ------------------------------------------------------------------------------------------------------------ faults


def test_what_a_camera_lacks_is_named():
    depth, image, points = torch.ones(120, 160), torch.ones(1, 120, 160), torch.ones(5, 3)
    blind, unsized = Calibration((160, 120)), replace(SMALL, size=None)
    for lacking, call in (
        ("intrinsics of the sensor", lambda: register_depth(depth, blind, SMALL)),
        ("intrinsics of the reference camera", lambda: register_depth(depth, SMALL, blind)),
        ("size of the reference camera", lambda: register_depth(depth, SMALL, unsized)),
        ("intrinsics of the sensor", lambda: warp_through_depth(image, blind, SMALL, depth)),
        ("intrinsics of the reference camera", lambda: warp_through_depth(image, SMALL, blind, depth)),
        ("intrinsics of the reference camera", lambda: project_points(points, SMALL, blind)),
        ("size of the reference camera", lambda: project_points(points, SMALL, unsized)),
    ):
        with pytest.raises(UserError, match=f"^calibration: {lacking} is missing; give|^calibration: {lacking} are"):
            call()


def test_a_missing_system_library_is_one_line_with_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(UserError, match=r"libusb-1\.0-0 libgl1 libegl1 libx11-6") as caught:
        register_depth(torch.ones(120, 160), SMALL, SMALL)
    assert "\n" not in str(caught.value)
    project_points(torch.ones(5, 3), SMALL, SMALL)
    warp_by_homography(torch.ones(1, 6, 8), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (8, 6))
