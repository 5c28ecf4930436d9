"""How one sensor of a rig sees what another has measured: points, depth and images moved between calibrated cameras.

Camera frames are x right, y down, z ahead, in metres; depth is z, not the length of the ray, and 0 where there is
none. The centre of the top left pixel is (0, 0). Lenses follow OpenCV's model (Brown 1966, rational radial part).
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.sensor import Calibration, Matrix

_JUMP = 0.03  # share of 1 / z by which neighbours on one surface may differ
_SHADOW = 0.03  # share of its distance that something must lie nearer to hide a place
_OVERLAP = 1.002  # without it a few rays slip through between patches, by rounding
_NEWTON_STEPS = 12
_LARGEST_ANGLE = 89.9
_SINGULAR = 1e9


def project_points(points: Tensor, source: Calibration, target: Calibration) -> Tensor:
    """Returns the depth (H, W) that the camera `target` sees of `points` (N, 3) in the frame of `source`, in metres.

    Of several points in a pixel the nearest wins; those that aren't finite, or not ahead of the camera, are left out.

    Raises:
        UserError: the target has no intrinsics or no size.
    """
    camera = _camera(target, "the reference camera")
    return _z_buffer(_moved(points.to(torch.float64), source, target), camera)


def register_depth(depth: Tensor, source: Calibration, target: Calibration) -> Tensor:
    """Returns depth (H, W), which `source` sees, as the camera `target` sees it: (H', W') float32.

    Each pixel is a patch of surface that meets its neighbours where they lie on the same surface, and ends at its own
    border where depth jumps; rays of the target find the nearest patch (Open3D, Embree). Patches that fall between the
    rays, as of sparse depth, are projected as points. What the source doesn't see is 0.

    Raises:
        UserError: a camera has no intrinsics, the target has no size, or Open3D can't start.
    """
    own = _camera(source.scaled((depth.shape[1], depth.shape[0])), "the sensor")
    camera = _camera(target, "the reference camera")
    depth = depth.to(torch.float32)
    found = _cast(_surface(depth, own, camera), _rays(camera))
    points = _moved((_rays(own) * depth[..., None])[_measured(depth)].to(torch.float64), own, camera)
    return torch.where(found.isfinite(), found, _z_buffer(points, camera))


def warp_through_depth(image: Tensor, source: Calibration, target: Calibration, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns an image (C, H, W) of `source` as the camera `target` sees it, by the depth (H', W') of the target.

    The result is (C, H', W') float32, interpolated bilinearly, and its validity (H', W') bool: where there is depth,
    inside the image, and nothing nearer hides the place from the source.

    Raises:
        UserError: a camera has no intrinsics, or Open3D can't start.
    """
    own = _camera(source.scaled((image.shape[2], image.shape[1])), "the sensor")
    camera = _camera(target.scaled((depth.shape[1], depth.shape[0])), "the reference camera")
    depth = depth.to(torch.float32)
    points = _moved(_points(depth, camera), camera, own)
    warped, inside = _sampled(image, _pixels(points, own), "bilinear")
    reached = _cast(_surface(depth, camera, own), points)
    return warped, inside & (reached >= 1 - _SHADOW)


def points_of(depth: Tensor, calibration: Calibration) -> Tensor:
    """Returns the points (H, W, 3) float32 that a camera measured as depth (H, W), in its own frame, in metres.

    NaN where depth isn't positive and finite, or where the lens can't have put a ray.

    Raises:
        UserError: the camera has no intrinsics.
    """
    camera = _camera(calibration.scaled((depth.shape[1], depth.shape[0])), "the camera")
    return _points(depth.to(torch.float32), camera)


def warp_by_homography(
    image: Tensor, homography: Matrix, size: tuple[int, int], interpolation: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Returns an image (C, H, W) in a frame of `size` (width, height): (C, H', W') float32, and where it is valid.

    `homography` takes own pixels (x, y, 1) to the frame's; `interpolation` is "bilinear" or "nearest". Valid, (H', W')
    bool, is what lies inside the image.

    Raises:
        UserError: the homography can't be inverted.
    """
    matrix = np.array(homography, np.float64)
    units = [np.diag([*shape, 1.0]) for shape in (size, (image.shape[2], image.shape[1]))]
    if not np.isfinite(matrix).all() or not np.linalg.cond(np.linalg.inv(units[0]) @ matrix @ units[1]) < _SINGULAR:
        raise UserError(f"homography: {matrix.tolist()} can't be inverted; give 3 x 3 from own to reference pixels")
    middle = matrix[2] @ [(image.shape[2] - 1) / 2, (image.shape[1] - 1) / 2, 1]
    back = torch.from_numpy(np.linalg.inv(matrix) * (-1 if middle < 0 else 1))
    x, y, w = (_grid(size) @ back[:, :2].T + back[:, 2]).unbind(-1)
    pixels = torch.stack((x, y), -1) / torch.where(w > 0, w, torch.nan)[..., None]
    return _sampled(image, pixels.to(torch.float32), interpolation)


@dataclass(frozen=True)
class _Camera:
    """A calibration that lacks nothing."""

    size: tuple[int, int]
    focal: tuple[float, float]
    centre: tuple[float, float]
    distortion: tuple[float, ...]
    pose: Matrix


def _camera(calibration: Calibration, whose: str) -> _Camera:
    if calibration.intrinsics is None:
        raise UserError(f"calibration: intrinsics of {whose} are missing; give [fx, fy, cx, cy]")
    if calibration.size is None:
        raise UserError(f"calibration: size of {whose} is missing; give [width, height] in pixels")
    fx, fy, cx, cy = calibration.intrinsics
    return _Camera(calibration.size, (fx, fy), (cx, cy), calibration.distortion, calibration.pose)


def _measured(depth: Tensor) -> Tensor:
    return (depth > 0) & depth.isfinite()


def _moved(points: Tensor, source: Calibration | _Camera, target: Calibration | _Camera) -> Tensor:
    """Takes points (..., 3) from the frame of one sensor to that of another."""
    pose = torch.tensor(np.linalg.inv(target.pose) @ np.array(source.pose)).to(points.dtype)
    x, y, z = points.unbind(-1)
    return x[..., None] * pose[:3, 0] + y[..., None] * pose[:3, 1] + z[..., None] * pose[:3, 2] + pose[:3, 3]


# -------------------------------------------------------------------------------------------------------- the lens


def _grid(size: tuple[int, int], start: float = 0.0) -> Tensor:
    """Returns (x, y) (H, W, 2) of pixel centres, counted from `start`."""
    x, y = (torch.arange(n, dtype=torch.float64) + start for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


@functools.lru_cache(maxsize=8)
def _rays(camera: _Camera, corners: bool = False) -> Tensor:
    """Returns (x, y, 1) (H, W, 3) along the ray of each pixel, or (H + 1, W + 1, 3) of the pixels' corners.

    NaN where the lens can't have put a ray. Not to be changed: it is kept for the next image.
    """
    width, height = camera.size
    pixels = _grid((width + 1, height + 1), -0.5) if corners else _grid((width, height))
    seen = (pixels - pixels.new_tensor(camera.centre)) / pixels.new_tensor(camera.focal)
    x, y = _undistorted(seen, camera.distortion).unbind(-1)
    return torch.stack((x, y, torch.ones_like(x)), -1).to(torch.float32)


def _pixels(points: Tensor, camera: _Camera) -> Tensor:
    """Returns the pixels (..., 2) of points (..., 3) in the camera's frame, NaN where it can't see them."""
    across = points[..., :2] / torch.where(points[..., 2] > 0, points[..., 2], torch.nan)[..., None]
    return _distorted(across, camera.distortion) * across.new_tensor(camera.focal) + across.new_tensor(camera.centre)


def _distorted(across: Tensor, distortion: tuple[float, ...]) -> Tensor:
    """Returns where the lens puts directions (..., 2) = (x / z, y / z), NaN beyond its reach."""
    if not distortion:
        return across
    x, y = across.unbind(-1)
    _, _, p1, p2 = distortion[:4]
    square = x * x + y * y
    radial = _radial(square, distortion)[0]
    moved = torch.stack(
        (
            x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
            y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
        ),
        -1,
    )
    return torch.where((square < _reach(distortion) ** 2)[..., None], moved, torch.nan)


def _undistorted(seen: Tensor, distortion: tuple[float, ...]) -> Tensor:
    """Inverts `_distorted` by Newton's method, which also converges where the fixed-point iteration crawls."""
    if not distortion:
        return seen
    x, y = seen.unbind(-1)
    _, _, p1, p2 = distortion[:4]
    for _ in range(_NEWTON_STEPS):
        square = x * x + y * y
        radial, slope = _radial(square, distortion)
        off_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x) - seen[..., 0]
        off_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y - seen[..., 1]
        xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
        xy = 2 * (x * y * slope + p1 * x + p2 * y)
        yy = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
        determinant = xx * yy - xy * xy
        x, y = x - (yy * off_x - xy * off_y) / determinant, y - (xx * off_y - xy * off_x) / determinant
    across = torch.stack((x, y), -1)
    solved = ((_distorted(across, distortion) - seen).abs() < 1e-6).all(-1)
    return torch.where(solved[..., None], across, torch.nan)


def _radial(square: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Returns the radial factor at the squared radius, and its derivative."""
    k1, k2, _, _, k3, k4, k5, k6 = (*distortion, *(0.0,) * (8 - len(distortion)))
    below = 1 + square * (k4 + square * (k5 + square * k6))
    radial = (1 + square * (k1 + square * (k2 + square * k3))) / below
    slope = k1 + square * (2 * k2 + square * 3 * k3) - radial * (k4 + square * (2 * k5 + square * 3 * k6))
    return radial, slope / below


@functools.lru_cache(maxsize=16)
def _reach(distortion: tuple[float, ...]) -> float:
    """Returns the radius up to which the lens keeps the order of rays; further out the polynomial folds them back."""
    radius = torch.linspace(0, _LARGEST_ANGLE, 10_000, dtype=torch.float64).deg2rad().tan()
    moved = radius * _radial(radius.square(), distortion)[0]
    folds = (moved.diff() <= 0).nonzero()
    return float(radius[folds[0]]) if len(folds) else float("inf")


# ----------------------------------------------------------------------------------------------------- the pictures


def _z_buffer(points: Tensor, camera: _Camera) -> Tensor:
    """Returns the least z (H, W) float32 of points (N, 3), in the camera's frame, that fall into each pixel."""
    width, height = camera.size
    column, row = (_pixels(points, camera) + 0.5).floor().unbind(-1)
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height) & points.isfinite().all(-1)
    index = row[seen].long() * width + column[seen].long()
    nearest = points.new_full((height * width,), torch.inf).scatter_reduce(0, index, points[seen, 2], "amin")
    return torch.where(nearest.isfinite(), nearest, 0).to(torch.float32).view(height, width)


def _sampled(image: Tensor, pixels: Tensor, interpolation: str) -> tuple[Tensor, Tensor]:
    """Reads an image (C, H, W) at `pixels` (H', W', 2): (C, H', W') float32, and which lie inside, (H', W') bool.

    An image that is finer than the result is shrunk first, so that no pixel of it is skipped.
    """
    values = image.to(torch.float32)
    size = pixels.new_tensor((image.shape[2], image.shape[1]))
    shares = (pixels + 0.5) / size
    inside = ((shares >= 0) & (shares < 1)).all(-1)
    steps = [(step := pixels.diff(dim=d).norm(dim=-1))[step.isfinite()] for d in (0, 1)]
    coarser = min(float(s.median()) if len(s) else 1.0 for s in steps)
    if interpolation == "bilinear" and coarser > 1:
        shape = [max(1, round(n / coarser)) for n in image.shape[1:]]
        values = F.interpolate(values[None], shape, mode="bilinear", antialias=True)[0]
    places = torch.where(inside[..., None], 2 * shares - 1, 0)
    read = F.grid_sample(values[None], places[None], interpolation, padding_mode="border", align_corners=False)
    return read[0], inside


# ------------------------------------------------------------------------------------------------------ the surface


def _points(depth: Tensor, camera: _Camera) -> Tensor:
    return _rays(camera) * torch.where(_measured(depth), depth, torch.nan)[..., None]


def _surface(depth: Tensor, camera: _Camera, viewer: _Camera) -> Any:
    """Returns a scene of all that a camera measured as depth (H, W), in the frame of `viewer`, for `_cast`."""
    open3d = load_open3d()
    middle, grid = _rays(camera)[:, :, None], _rays(camera, corners=True)
    corners = torch.stack((grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]), 2)
    corners = middle + _OVERLAP * (corners - middle)
    vertices = corners / _inverse_at_corners(depth)[..., None]
    patches = _moved(vertices[vertices.isfinite().all(-1).all(-1)], camera, viewer)
    triangles = 4 * np.arange(len(patches), dtype=np.uint32)[:, None] + np.array([0, 1, 2, 0, 2, 3], np.uint32)
    scene = open3d.t.geometry.RaycastingScene(nthreads=torch.get_num_threads())
    if len(patches):
        scene.add_triangles(
            open3d.core.Tensor(patches.reshape(-1, 3).numpy()), open3d.core.Tensor(triangles.reshape(-1, 3))
        )
    return scene


def _cast(scene: Any, directions: Tensor) -> Tensor:
    """Returns the multiple (H, W) of each direction (H, W, 3) from the viewer at which it meets the scene, or inf."""
    open3d = load_open3d()
    there = directions.isfinite().all(-1)
    rays = torch.cat((torch.zeros_like(directions), directions), -1)[there]
    met = torch.full(there.shape, torch.inf)
    if len(rays):
        hits = scene.cast_rays(open3d.core.Tensor(rays.numpy()), nthreads=torch.get_num_threads())
        met[there] = torch.from_numpy(hits["t_hit"].numpy())
    return met


def _inverse_at_corners(depth: Tensor) -> Tensor:
    """Returns 1 / z (H, W, 4) at the corners of each pixel, clockwise from the top left, NaN without depth.

    1 / z is linear over the image of a plane. So each pixel is continued to its corners by its slope, and at a corner
    the mean is taken over the pixels that lie on one surface there.
    """
    inverse = torch.where(_measured(depth), 1 / depth, torch.nan)
    beside, below = _joined(inverse), _joined(inverse.T).T
    half_x, half_y = _slope(inverse, beside) / 2, _slope(inverse.T, below.T).T / 2
    around = F.pad(torch.stack((inverse, half_x, half_y)), (1, 1, 1, 1), value=torch.nan)
    value, half_x, half_y = around.nan_to_num()
    continued = torch.stack(
        (
            (value + half_x + half_y)[:-1, :-1],
            (value - half_x + half_y)[:-1, 1:],
            (value - half_x - half_y)[1:, 1:],
            (value + half_x - half_y)[1:, :-1],
        )
    )
    beside, below = F.pad(beside, (1, 1, 1, 1)), F.pad(below, (1, 1, 1, 1))
    edges = torch.stack((beside[:-1], below[:, 1:], beside[1:], below[:, :-1]))
    edges = edges | (edges.sum(0) >= 3)
    top, right, bottom, left = edges
    falling, rising = (top & right) | (bottom & left), (right & bottom) | (left & top)
    own = torch.ones_like(top)
    same = (
        (own, top, falling, left),
        (top, own, right, rising),
        (falling, right, own, bottom),
        (left, rising, bottom, own),
    )
    weights = torch.stack([torch.stack(row) for row in same], 1)
    mean = sum(weight * value for weight, value in zip(weights, continued, strict=True)) / weights.sum(0)
    bottom_right, bottom_left, top_left, top_right = mean
    corners = torch.stack((top_left[:-1, :-1], top_right[:-1, 1:], bottom_right[1:, 1:], bottom_left[1:, :-1]), -1)
    return corners.clamp(inverse[..., None] / 2, inverse[..., None] * 2)


def _joined(inverse: Tensor) -> Tensor:
    """Returns whether each pixel and the next in its row lie on one surface, (H, W - 1).

    They do if 1 / z jumps little, or just as much as one step before or after: the surface is steep.
    """
    step = inverse.diff(dim=1)
    limit = _JUMP * torch.maximum(inverse[:, 1:], inverse[:, :-1])
    bend = F.pad(step.diff(dim=1).abs(), (1, 1), value=torch.nan)
    return (step.abs() <= limit) | (bend[:, :-1] <= limit) | (bend[:, 1:] <= limit)


def _slope(inverse: Tensor, joined: Tensor) -> Tensor:
    """Returns the change of 1 / z to the joined neighbours in the row, (H, W): the lesser where the surface bends."""
    step = torch.where(joined, inverse.diff(dim=1), torch.nan)
    before, after = F.pad(step, (1, 0), value=torch.nan), F.pad(step, (0, 1), value=torch.nan)
    lesser = torch.where(before.abs() < after.abs(), before, after)
    lesser = torch.where(before * after < 0, 0, lesser)
    return torch.where(after.isnan(), before, lesser).nan_to_num()


def load_open3d() -> Any:
    try:
        import open3d
    except (ImportError, OSError) as error:
        reason, packages = " ".join(str(error).split()), "libusb-1.0-0 libgl1 libegl1 libx11-6"
        raise UserError(f"open3d: can't be loaded: {reason}; install it and the system packages {packages}") from None
    return open3d
