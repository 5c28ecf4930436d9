import math

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from mmfuse.errors import UserError
from mmfuse.images.encodings import prepare
from mmfuse.sensor import WHOLE_IMAGE, Calibration, Sensor

CAMERA = Calibration((64, 48), (60.0, 62.0, 31.0, 24.5))
NORMALS = Sensor(1, "normals", unit=1.0)
HHA = Sensor(1, "hha", unit=1.0)


def rays_of(camera: Calibration) -> np.ndarray:
    """Points of each pixel at depth 1: (H, W, 3)."""
    (width, height), (fx, fy, cx, cy) = camera.size, camera.intrinsics
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack(((x - cx) / fx, (y - cy) / fy, np.ones_like(x)), 2)


def depth_of(planes, camera: Calibration = CAMERA) -> torch.Tensor:
    """Depth (1, H, W) of the nearest of the planes (n, d) with n · p = d."""
    rays = rays_of(camera)
    with np.errstate(divide="ignore"):
        depths = [d / (rays @ np.asarray(n, float)) for n, d in planes]
    nearest = np.min([np.where(z > 0, z, np.inf) for z in depths], 0)
    return torch.from_numpy(nearest[None].astype(np.float32))


def tilted(pitch: float, roll: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Down, ahead and right of the world as a camera sees them that looks down by `pitch` and is rolled (degrees)."""
    p, r = math.radians(pitch), math.radians(roll)
    turn = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    down, ahead = np.array([0, math.cos(p), math.sin(p)]), np.array([0, -math.sin(p), math.cos(p)])
    return turn @ down, turn @ ahead, turn @ np.array([1.0, 0, 0])


# Slow and independent of the code under test: one pixel at a time, from the definitions.


def slow_stretched(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    low, high = np.percentile(channel[np.isfinite(channel)], (low, high))
    return np.clip((channel - low) / (high - low), 0, 1)


def slow_mapping(values: np.ndarray, bins: int, limit: float):
    """The clipped, cumulative histogram of some values in [0, 1], as a function."""
    counts = np.histogram(values, bins, (0, 1))[0] / len(values) if len(values) else np.full(bins, 1 / bins)
    shares, excess = np.minimum(counts, limit), np.maximum(counts - limit, 0).sum()
    while excess > 1e-12:
        room = shares < limit
        step = min(excess / room.sum(), (limit - shares[room]).min())
        shares[room] += step
        shares[shares > limit - 1e-15] = limit
        excess -= step * room.sum()
    return lambda v: np.interp(v, np.linspace(0, 1, bins + 1), np.concatenate(([0], shares.cumsum())))


def slow_clahe(channel: np.ndarray) -> np.ndarray:
    height, width = channel.shape
    values = slow_stretched(channel, 0.1, 99.9)
    rows, columns = min(8, height), min(8, width)
    tiles: dict[tuple[int, int], list[float]] = {(r, c): [] for r in range(rows) for c in range(columns)}
    for y in range(height):
        for x in range(width):
            if not np.isnan(values[y, x]):
                tiles[(2 * y + 1) * rows // (2 * height), (2 * x + 1) * columns // (2 * width)].append(values[y, x])
    maps = {tile: slow_mapping(np.array(v), 256, 3 / 256) for tile, v in tiles.items()}

    def between(pixel: int, pixels: int, count: int) -> list[tuple[int, float]]:
        centres = [(t + 0.5) * pixels / count - 0.5 for t in range(count)]
        if pixel <= centres[0]:
            return [(0, 1.0)]
        if pixel >= centres[-1]:
            return [(count - 1, 1.0)]
        t = max(i for i in range(count) if centres[i] <= pixel)
        share = (pixel - centres[t]) / (centres[t + 1] - centres[t])
        return [(t, 1 - share), (t + 1, share)]

    result = np.full(channel.shape, np.nan)
    for y in range(height):
        for x in range(width):
            if not np.isnan(values[y, x]):
                near = [(r, c, v * w) for r, v in between(y, height, rows) for c, w in between(x, width, columns)]
                result[y, x] = sum(weight * maps[r, c](values[y, x]) for r, c, weight in near)
    return result


def slow_normals(depth: np.ndarray, camera: Calibration, radius: int) -> np.ndarray:
    """Normals away from the camera (H, W, 3), NaN where there is none."""
    rays = rays_of(camera)
    result = np.full(rays.shape, np.nan)
    for y, x in zip(*np.nonzero(depth), strict=True):
        window = slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)
        there = depth[window] > 0
        a, b = rays[window][there], 1 / depth[window][there]
        if np.linalg.matrix_rank(a, tol=1e-6) == 3:
            n = np.linalg.lstsq(a, b, rcond=None)[0]
            result[y, x] = n / np.linalg.norm(n) * (1 if n @ rays[y, x] >= 0 else -1)
    return result


def slow_hha(depth: np.ndarray, camera: Calibration, gravity: np.ndarray) -> np.ndarray:
    coarse = slow_normals(depth, camera, 10)
    coarse = coarse[~np.isnan(coarse[..., 0])]
    for degrees in [45] * 5 + [15] * 5:
        cosine = np.abs(coarse @ gravity)
        floors, walls = coarse[cosine > np.cos(np.deg2rad(degrees))], coarse[cosine < np.sin(np.deg2rad(degrees))]
        values, vectors = np.linalg.eig(walls.T @ walls - floors.T @ floors)
        axis = vectors[:, values.argmin()]
        gravity = axis * np.sign(axis @ gravity)
    height = -100 * depth * (rays_of(camera) @ gravity)
    lowest = height[depth > 0].min()
    height -= lowest if lowest <= -90 else -130
    angle = np.degrees(np.arccos(np.clip(slow_normals(depth, camera, 3) @ gravity, -1, 1))) + 38
    valid = depth > 0
    with np.errstate(divide="ignore"):
        disparity = 31000 / np.maximum(100 * depth, 100)
    planes = (np.where(valid, disparity, 0), np.where(valid, height, 0), np.where(np.isnan(angle), 180, angle), valid)
    return np.clip(np.round(np.stack(planes)), 0, 255)


@pytest.mark.parametrize("encoding", ["intensity", "inverse_depth", "metres", "log_depth"])
def test_other_encodings_keep_the_raw_image(encoding):
    raw = torch.ones(1, 4, 5)
    assert prepare(raw, Sensor(1, encoding), None) is raw


@pytest.mark.parametrize("encoding", WHOLE_IMAGE)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (24, 30)])
def test_prepared_images_have_the_channels_of_the_sensor_and_encode_to_numbers(encoding, dtype, size):
    sensor = Sensor(1, encoding, unit=0.02)
    raw = torch.randint(0, 256, (1, *size), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = raw.clone()
    prepared = prepare(raw, sensor, CAMERA)
    assert prepared.shape == (sensor.prepared_channels, *size)
    assert prepared.dtype == (torch.uint8 if encoding in ("hha", "depth_colours") else torch.float32)
    encoded = sensor.encode(prepared[None])
    assert encoded.shape == (1, sensor.encoded_channels, *size)
    assert encoded.isfinite().all()
    assert torch.equal(raw, before)


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
def test_each_channel_is_stretched_by_itself(encoding):
    one, other = torch.rand(1, 20, 30), 5000 - 900 * torch.rand(1, 20, 30)
    both = prepare(torch.cat((one, other)), Sensor(2, encoding), None)
    torch.testing.assert_close(both[:1], prepare(one, Sensor(1, encoding), None))
    torch.testing.assert_close(both[1:], prepare(other, Sensor(1, encoding), None))


def test_percentiles_by_hand():
    raw = torch.arange(101.0).flip(0).reshape(1, 1, 101)
    stretched = prepare(raw, Sensor(1, "percentile"), None).flatten().flip(0)
    torch.testing.assert_close(stretched[[0, 1, 50, 99, 100]], torch.tensor([0, 0, 0.5, 1, 1]))
    torch.testing.assert_close(stretched[2], torch.tensor(1 / 98))


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
def test_sixteen_bits_are_kept(encoding):
    counts = (30_000 + torch.arange(2000)).to(torch.uint16)
    stretched = prepare(counts[torch.randperm(2000)].reshape(1, 40, 50), Sensor(1, encoding), None)
    assert stretched.unique().numel() > 1900
    if encoding == "percentile":
        ramp = prepare(counts.reshape(1, 40, 50), Sensor(1, encoding), None).flatten()
        assert (ramp[20:1980].diff() > 0).all()


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
def test_missing_pixels_stay_missing_and_change_nothing(encoding):
    raw = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1))
    raw[0, 0, :5] = torch.nan
    stretched = prepare(raw, Sensor(1, encoding), None)
    assert torch.equal(stretched.isnan(), raw.isnan())
    assert stretched.nan_to_num(0.5).min() >= 0
    assert stretched.nan_to_num(0.5).max() <= 1
    if encoding == "percentile":
        np.testing.assert_allclose(stretched[0], slow_stretched(raw[0].double().numpy(), 1, 99), atol=1e-6)


def test_infinite_pixels_are_the_highest_or_lowest():
    raw = torch.arange(100.0).reshape(1, 10, 10)
    raw[0, 4, 4:6] = torch.tensor([torch.inf, -torch.inf])
    assert prepare(raw, Sensor(1, "percentile"), None)[0, 4, 4:6].tolist() == [1, 0]


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (40, 33)])
def test_a_constant_image_is_grey(encoding, size):
    grey = prepare(torch.full((1, *size), 7321, dtype=torch.uint16), Sensor(1, encoding), None)
    torch.testing.assert_close(grey, torch.full((1, *size), 0.5), atol=0.01, rtol=0)


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
def test_an_image_without_any_measurement_has_none(encoding):
    assert prepare(torch.full((1, 9, 9), torch.nan), Sensor(1, encoding), None).isnan().all()


def test_rare_pixels_stand_out_of_an_otherwise_constant_image():
    raw = torch.full((1, 20, 20), 100.0)
    raw[0, 3, 3:5] = torch.tensor([99.0, 101.0])
    stretched = prepare(raw, Sensor(1, "percentile"), None)
    assert stretched[0, 3, 2:5].tolist() == [0.5, 0, 1]


@pytest.mark.parametrize("size", [(5, 3), (7, 20), (8, 8), (19, 30), (40, 33)])
def test_clahe_agrees_with_the_definition(size):
    rng = np.random.default_rng(0)
    image = 21_000 + 300 * rng.standard_normal(size) + 4000 * (np.arange(size[1]) > size[1] // 2)
    image[rng.random(size) < 0.05] = np.nan
    image[: size[0] // 3, : size[1] // 3] = np.nan
    image[-2:, -2:] = 23_000
    image = image.astype(np.float32)
    equalised = prepare(torch.from_numpy(image[None]), Sensor(1, "clahe"), None)[0]
    np.testing.assert_allclose(equalised, slow_clahe(image.astype(np.float64)), atol=2e-5)


def test_clahe_raises_local_contrast_but_not_above_its_limit():
    ramp = torch.linspace(0, 1, 256).expand(256, 256).clone()
    ramp[:64, :64] = 0.3 + 0.1 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    stretched = prepare(ramp[None], Sensor(1, "clahe"), None)[0]
    before, after = ramp[4:12, 4:12].std(), stretched[4:12, 4:12].std()
    assert 2.5 * before < after < 3.05 * before


def test_a_dead_pixel_does_not_flatten_the_image():
    raw = 7000 + 200 * torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    alive = prepare(raw, Sensor(1, "clahe"), None)
    raw[0, 40, 40] = 65535
    dead = prepare(raw, Sensor(1, "clahe"), None)
    assert dead.std() > 0.9 * alive.std()


@pytest.mark.parametrize("encoding", ["normals", "hha"])
@pytest.mark.parametrize("calibration", [None, Calibration((64, 48))])
def test_missing_intrinsics_are_one_line(encoding, calibration):
    with pytest.raises(
        UserError, match=rf"'{encoding}' needs the camera's intrinsics.*; give intrinsics: \[fx"
    ) as caught:
        prepare(torch.ones(1, 48, 64), Sensor(1, encoding), calibration)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.3, -0.8, 0.4), (-0.7, 0.1, 0.5), (0, 1, 0.8)])
def test_normals_of_a_plane(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = depth_of([(normal, 2.0)])
    depth[depth.isinf()] = 0
    *prepared, valid = prepare(depth, NORMALS, CAMERA)
    assert torch.equal(valid, (depth[0] > 0).float())
    assert valid.sum() > 1000
    found = torch.stack(prepared)[:, valid > 0].T.numpy()
    np.testing.assert_allclose(found, np.broadcast_to(-normal, found.shape), atol=2e-4)
    assert (found * rays_of(CAMERA)[valid.numpy() > 0]).sum(1).max() < 0


def test_normals_agree_with_least_squares_over_holes_noise_and_edges():
    rng = np.random.default_rng(0)
    depth = depth_of([((0.1, 0.9, 0.5), 1.3), ((0.2, 0, 1), 3.0)]).numpy()[0].astype(np.float64)
    depth[10:20, 10:20] = 1.1
    depth *= 1 + 0.01 * rng.standard_normal(depth.shape)
    depth[rng.random(depth.shape) < 0.6] = 0
    depth[30:, 40:][rng.random((18, 24)) < 0.9] = 0
    depth = depth.astype(np.float32)
    expected = -slow_normals(depth.astype(np.float64), CAMERA, 3)
    prepared = prepare(torch.from_numpy(depth[None]), NORMALS, CAMERA).numpy()
    assert 0 < np.isnan(expected[..., 0][depth > 0]).sum() < 100
    np.testing.assert_array_equal(prepared[3], ~np.isnan(expected[..., 0]))
    np.testing.assert_allclose(prepared[:3].transpose(1, 2, 0), np.nan_to_num(expected), atol=1e-3)


def test_a_normal_takes_three_points_off_a_line():
    rays, normal = rays_of(CAMERA), np.array([0.2, 0.3, 0.9])
    depth = 2 / (rays @ normal)
    line, triangle = np.zeros_like(depth, np.float32), np.zeros_like(depth, np.float32)
    for x, y in ((20, 20), (23, 21), (26, 22)):
        line[y, x] = depth[y, x]
    for x, y in ((20, 20), (23, 21), (22, 18)):
        triangle[y, x] = depth[y, x]
    assert prepare(torch.from_numpy(line[None]), NORMALS, CAMERA).count_nonzero() == 0
    found = prepare(torch.from_numpy(triangle[None]), NORMALS, CAMERA)[:, 20, 20]
    np.testing.assert_allclose(found, [*(-normal / np.linalg.norm(normal)), 1], atol=1e-4)


def test_a_normal_looks_at_the_camera_where_the_plane_misses_its_pixel():
    depth = torch.zeros(1, 48, 64)
    depth[0, 24:26, 28], depth[0, 24:26, 29], depth[0, 24:26, 31] = 0.2, 10.0, 10.0
    *normal, valid = prepare(depth, NORMALS, CAMERA)[:, 24, 31].tolist()
    assert valid == 1
    assert normal @ rays_of(CAMERA)[24, 31] < 0


def test_intrinsics_are_those_of_an_image_of_the_calibrated_size():
    normal = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
    small = CAMERA.scaled((40, 40))
    found = prepare(depth_of([(normal, 2.0)], small), NORMALS, CAMERA)
    np.testing.assert_allclose(found[:3, 20, 20], -normal, atol=1e-4)


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (20, 0), (-5, 5), (35, -8)])
def test_hha_of_a_room_seen_by_a_tilted_camera(pitch, roll):
    down, ahead, right = tilted(pitch, roll)
    camera = Calibration((160, 120), (80.0, 80.0, 79.5, 59.5))
    floor, far, side = 1.4, 3.0, 1.2
    depth = depth_of([(down, floor), (ahead, far), (right, side)], camera)
    points = rays_of(camera) * depth[0, :, :, None].numpy()
    on_floor, on_walls = (np.isclose(points @ n, d, atol=1e-4) for n, d in ((down, floor), (ahead, far)))
    disparity, height, angle, valid = prepare(depth, HHA, camera).numpy().astype(int)
    assert (valid == 1).all()
    np.testing.assert_allclose(disparity, np.clip(310 / depth[0].numpy(), 0, 255), atol=0.51)
    above_lowest = 100 * (floor - points @ down)
    assert abs(height - np.clip(above_lowest, 0, 255)).max() <= 3
    for flat, expected in ((on_floor, 38), (on_walls, 128)):
        inner = np.stack([np.roll(flat, (y, x), (0, 1)) for y in (-3, 0, 3) for x in (-3, 0, 3)]).all(0)
        inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
        assert inner.sum() > 500
        assert abs(angle[inner] - expected).max() <= 1


def test_hha_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    down, ahead, right = tilted(12, -4)
    depth = depth_of([(down, 1.1), (ahead, 2.5), (right, 0.8)]).numpy()[0].astype(np.float64)
    depth *= 1 + 0.005 * rng.standard_normal(depth.shape)
    depth[rng.random(depth.shape) < 0.2] = 0
    depth[:8, :30] = 0
    depth[3, 7] = 2.0
    depth = depth.astype(np.float32)
    prepared = prepare(torch.from_numpy(depth[None]), HHA, CAMERA).numpy()
    expected = slow_hha(depth.astype(np.float64), CAMERA, np.array([0.0, 1.0, 0.0]))
    assert prepared[2, 3, 7] == 180
    assert abs(prepared - expected).max() <= 1
    assert (prepared == expected).mean() > 0.98


def test_height_counts_from_130_cm_below_a_camera_that_sees_nothing_low():
    down, _, _ = tilted(40, 0)
    table = prepare(depth_of([(down, 0.6)]), HHA, CAMERA)
    assert (table[1] == 70).all()
    assert (table[2] == 38).all()


def test_gravity_of_the_rig_is_turned_into_the_camera():
    turn = ((0.0, 0.0, 1.0, 5.0), (1.0, 0.0, 0.0, 6.0), (0.0, 1.0, 0.0, 7.0))  # the camera's z is the rig's x
    camera = Calibration(CAMERA.size, CAMERA.intrinsics, pose=turn)
    floor = depth_of([((0.05, 0, 1), 2.0)])
    assert prepare(floor, HHA, camera)[2].float().median() in (127, 128, 129)
    aerial = Sensor(1, "hha", unit=1.0, gravity=(0.5, 0.0, 0.0))
    assert (prepare(floor, aerial, camera)[2] == 38).all()


@pytest.mark.parametrize("uneven", ["rows", "columns", "both", "nowhere"])
def test_gravity_stays_where_a_single_wall_tells_nothing(uneven):
    size = {"rows": (48, 1), "columns": (1, 64), "both": (48, 64), "nowhere": (1, 1)}[uneven]
    wall = (2 + 0.002 * torch.randn(size, generator=torch.Generator().manual_seed(0))).expand(1, 48, 64)
    _, height, angle, _ = prepare(wall, HHA, CAMERA).int()
    assert (angle - 128).abs().max() <= 8
    assert (height[:-8] > height[8:]).all()


@pytest.mark.parametrize("encoding", ["normals", "hha", "depth_colours"])
def test_without_any_depth_all_is_invalid(encoding):
    prepared = prepare(torch.zeros(1, 48, 64, dtype=torch.uint16), Sensor(1, encoding), CAMERA)
    angle = prepared[2].clone()
    prepared[2] = 0
    assert prepared.count_nonzero() == 0
    assert (angle == (180 if encoding == "hha" else 0)).all()


def test_depth_in_colours():
    sensor = Sensor(1, "depth_colours", unit=0.001, near=0.5, far=4.0, mean=(1.0,) * 4, std=(1.0,) * 4)
    raw = torch.tensor([0, 100, 500, 700, 977, 1500, 4000, 9000]).reshape(1, 1, 8).to(torch.uint16)
    prepared = prepare(raw, sensor, None)[:, 0].numpy()
    metres = np.clip(raw.numpy().flatten() / 1000, 0.5, 4)
    nearness = (1 / metres - 1 / 4) / (1 / 0.5 - 1 / 4)
    table = colormaps["jet"](np.linspace(0, 1, 256))
    expected = np.stack([np.interp(nearness, np.linspace(0, 1, 256), table[:, c] * 255) for c in range(3)])
    expected[:, 0] = 0
    assert abs(prepared[:3] - expected).max() <= 0.51
    assert prepared[3].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert prepared[:3, 1].tolist() == prepared[:3, 2].tolist() == [128, 0, 0]
    assert prepared[:3, 6].tolist() == prepared[:3, 7].tolist() == [0, 0, 128]
    fine = torch.linspace(500, 4000, 2000).reshape(1, 1, 2000)
    assert len(prepare(fine, sensor, None)[:, 0].unique(dim=1).T) > 600
