"""Encodings that need the whole image: percentiles, CLAHE, surface normals, HHA and depth in colours."""

import functools
import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.sensor import WHOLE_IMAGE, Calibration, Sensor

_TILES = 8
_BINS = 256
_CLIP = 3.0
_NEAR_RADIUS, _GRAVITY_RADIUS = 3, 10
_GRAVITY_ANGLES = (45,) * 5 + (15,) * 5
_DOWN = (0.0, 1.0, 0.0)
_INERTIA = 1e-3

_Intrinsics = tuple[float, float, float, float]


def prepare(raw: Tensor, sensor: Sensor, calibration: Calibration | None) -> Tensor:
    """Returns the prepared image (sensor.prepared_channels, H, W) of a raw one (C, H, W).

    For an encoding that isn't one of `WHOLE_IMAGE` that is the raw image itself; `calibration` is of the camera in
    whose frame the image lies, at any size.

    - "percentile": float32; each channel's own 1st and 99th percentile become 0 and 1. NaN stays NaN. Where both are
      the same value, as in a constant image, it becomes 0.5, what is lower 0 and what is higher 1.
    - "clahe": float32 in [0, 1] at full bit depth; each channel is stretched likewise by its 0.1 and 99.9 percentiles,
      so that dead pixels don't count, and then equalised in 8 x 8 tiles with a gain of at most 3 (Zuiderveld, Graphics
      Gems IV, 1994).
    - "normals": float32; the unit normal towards the camera of the plane through a 7 x 7 window (least squares in
      inverse depth, Gupta et al., ECCV 2014), and validity. All is 0 where the window has no three points off a line.
    - "hha": uint8; disparity 31000 / cm, height in cm above the lowest point, the normal's angle to gravity in degrees
      + 38 or 180 where there is no normal (Gupta et al.), and validity 0 or 1. Gravity is refined from the sensor's.
    - "depth_colours": uint8; inverse depth in [near, far] as colours from blue, far, to red, near (the map "jet", as
      in Eitel et al., IROS 2015), and validity 0 or 1. All is 0 where depth is invalid.

    "normals" and "hha" take the camera for a pinhole: the lens's distortion is left out.

    Raises:
        UserError: "normals" or "hha" without intrinsics.
    """
    if sensor.encoding not in WHOLE_IMAGE:
        return raw
    if sensor.encoding == "percentile":
        return torch.stack([_stretched(channel, 1, 99) for channel in raw])
    if sensor.encoding == "clahe":
        return torch.stack([_equalised(_stretched(channel, 0.1, 99.9)) for channel in raw])
    if sensor.encoding == "depth_colours":
        return _coloured(raw, sensor)
    if calibration is None or calibration.intrinsics is None:
        problem = f"encoding: {sensor.encoding!r} needs the camera's intrinsics, which its calibration lacks"
        raise UserError(f"{problem}; give intrinsics: [fx, fy, cx, cy] or use another encoding")
    camera = calibration.scaled((raw.shape[2], raw.shape[1]))
    assert camera.intrinsics is not None
    metres, valid = sensor.metres(raw[0])
    if sensor.encoding == "normals":
        away, found = _normals(metres, valid, camera.intrinsics, _NEAR_RADIUS)
        return torch.cat((-away, found[None].to(torch.float32)))
    rotation = torch.tensor(camera.pose, dtype=torch.float64)[:3, :3]
    down = rotation.T @ torch.tensor(sensor.gravity, dtype=torch.float64) if sensor.gravity else torch.tensor(_DOWN)
    return _hha(metres, valid, camera.intrinsics, down.to(torch.float64))


def _stretched(values: Tensor, lowest: float, highest: float) -> Tensor:
    values = values.to(torch.float64)
    finite = values[values.isfinite()].numpy()
    low, high = np.percentile(finite, (lowest, highest)).tolist() if len(finite) else (0.0, 0.0)
    if high > low:
        return ((values - low) / (high - low)).clamp(0, 1).to(torch.float32)
    sides = 0.5 + 0.5 * (values > low).to(torch.float32) - 0.5 * (values < low).to(torch.float32)
    return torch.where(values.isnan(), torch.nan, sides)


def _equalised(values: Tensor) -> Tensor:
    rows, columns = (min(_TILES, n) for n in values.shape)
    own_row, *near_rows = _tiles(values.shape[0], rows)
    own_column, *near_columns = _tiles(values.shape[1], columns)
    levels = values.nan_to_num(0) * _BINS
    bins = levels.to(torch.int64).clamp(max=_BINS - 1)
    part = levels - bins
    places = (own_row[:, None] * columns + own_column) * _BINS + bins
    counts = torch.bincount(places[~values.isnan()], minlength=rows * columns * _BINS)
    shares = _clipped(counts.reshape(-1, _BINS).to(torch.float64))
    slopes = shares.to(torch.float32).flatten()
    starts = (shares.cumsum(1) - shares).to(torch.float32).flatten()
    result = torch.zeros_like(values)
    for row, row_weight in near_rows:
        for column, column_weight in near_columns:
            places = (row[:, None] * columns + column) * _BINS + bins
            mapped = torch.addcmul(starts[places], slopes[places], part)
            result.addcmul_(mapped, row_weight[:, None] * column_weight)
    return torch.where(values.isnan(), torch.nan, result.clamp(0, 1))


def _tiles(pixels: int, tiles: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns each pixel's own tile, and the two tiles whose centres are next to it with their weights."""
    place = (torch.arange(pixels, dtype=torch.float64) + 0.5) * tiles / pixels
    lower = (place - 0.5).floor()
    weight = (place - 0.5 - lower).to(torch.float32)
    lower = lower.to(torch.int64)
    near = ((lower.clamp(min=0), 1 - weight), ((lower + 1).clamp(max=tiles - 1), weight))
    return place.to(torch.int64), *near


def _clipped(counts: Tensor) -> Tensor:
    """Returns histograms (T, bins) as shares of at most `_CLIP / bins`; all bins take alike what is missing to 1."""
    total = counts.sum(1, keepdim=True)
    shares = counts / total.clamp(min=1)
    limit = _CLIP / _BINS
    low, high = torch.zeros_like(total), torch.full_like(total, limit)
    for _ in range(40):
        raised = (low + high) / 2
        over = (shares + raised).clamp(max=limit).sum(1, keepdim=True) > 1
        low, high = torch.where(over, low, raised), torch.where(over, raised, high)
    return (shares + low).clamp(max=limit)


def _coloured(raw: Tensor, sensor: Sensor) -> Tensor:
    nearness, valid = replace(sensor, encoding="inverse_depth", mean=(), std=()).encode(raw[None])[0]
    colours = _colours()
    places = nearness * (len(colours) - 1)
    lower = places.to(torch.int64).clamp(max=len(colours) - 2)
    mixed = torch.lerp(colours[lower], colours[lower + 1], (places - lower)[..., None]) * valid[..., None]
    return torch.cat((mixed.round().permute(2, 0, 1), valid[None])).to(torch.uint8)


@functools.cache
def _colours() -> Tensor:
    from matplotlib import colormaps

    return torch.from_numpy(colormaps["jet"](np.linspace(0, 1, 256))[:, :3] * 255).to(torch.float32)


def _normals(metres: Tensor, valid: Tensor, intrinsics: _Intrinsics, radius: int) -> tuple[Tensor, Tensor]:
    """Returns unit normals (3, H, W) that point away from the camera, 0 where there is none, and where there is one.

    A plane has 1 / z = a x + b y + c at x, y pixels from the window's centre: the sums of a least squares fit are
    those of the powers of x and y over the valid pixels, and of 1 / z times these.
    """
    height, width = metres.shape
    fx, fy, cx, cy = intrinsics
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    powers = torch.stack((torch.ones_like(offsets), offsets, offsets.square()))
    across, below = torch.zeros(5, 2, 1, len(offsets)), torch.zeros(9, 5, len(offsets), 1)
    across[range(5), (0, 0, 0, 1, 1), 0] = powers[[0, 1, 2, 0, 1]]
    below[range(9), (0, 0, 0, 1, 1, 2, 3, 3, 4), :, 0] = powers[[0, 1, 2, 0, 1, 0, 0, 1, 0]]
    inverse = torch.where(valid > 0, 1 / metres, 0)
    sums = F.conv2d(torch.stack((valid, inverse))[None], across, padding=(0, radius))
    n, y, yy, x, xy, xx, q, qy, qx = F.conv2d(sums, below, padding=(radius, 0))[0]
    xx, xy, yy, qx, qy = n * xx - x * x, n * xy - x * y, n * yy - y * y, n * qx - x * q, n * qy - y * q
    determinant = xx.to(torch.float64) * yy - xy.to(torch.float64).square()
    found = (determinant > 0) & (valid > 0)
    a, b = (yy * qx - xy * qy) / determinant, (xx * qy - xy * qx) / determinant
    c = (q - a * x - b * y) / n
    columns, rows = torch.arange(width), torch.arange(height)[:, None]
    normals = torch.stack((a * fx, b * fy, c + a * (cx - columns) + b * (cy - rows)))
    normals = normals * (torch.where(c < 0, -1, 1) / normals.square().sum(0).sqrt())
    return torch.where(found, normals, 0).to(torch.float32), found


def _hha(metres: Tensor, valid: Tensor, intrinsics: _Intrinsics, down: Tensor) -> Tensor:
    fx, fy, cx, cy = intrinsics
    coarse, usable = _normals(metres, valid, intrinsics, _GRAVITY_RADIUS)
    gravity = _gravity(coarse[:, usable].to(torch.float64), down)
    right, below, ahead = gravity.tolist()
    columns, rows = torch.arange(metres.shape[1]), torch.arange(metres.shape[0])[:, None]
    height = -100 * metres * (right * (columns - cx) / fx + below * (rows - cy) / fy + ahead)
    lowest = torch.where(valid > 0, height, torch.inf).min()
    height = height - (lowest if lowest <= -90 else -130)
    normals, found = _normals(metres, valid, intrinsics, _NEAR_RADIUS)
    cosine = torch.tensordot(gravity.to(torch.float32), normals, 1).clamp(-1, 1)
    angle = torch.where(found, cosine.acos().rad2deg() + 38, 180)
    disparity = 31000 / (100 * metres).clamp(min=100)
    return torch.stack((disparity * valid, height * valid, angle, valid)).round().clamp(0, 255).to(torch.uint8)


def _gravity(normals: Tensor, start: Tensor) -> Tensor:
    """Returns the unit direction that is most parallel to some normals (3, N) and square to others (Gupta et al.).

    The last direction counts a little itself: it stays where the normals tell nothing, as those of a single wall.
    """
    gravity = start / start.norm()
    for degrees in _GRAVITY_ANGLES:
        along = (gravity @ normals).abs()
        square = (along < math.sin(math.radians(degrees))).to(torch.float64)
        parallel = (along > math.cos(math.radians(degrees))).to(torch.float64)
        moments = (normals * (square - parallel)) @ normals.T
        moments -= _INERTIA * (normals.shape[1] + 1) * gravity.outer(gravity)
        axis = torch.linalg.eigh(moments).eigenvectors[:, 0]
        gravity = axis if axis @ gravity >= 0 else -axis
    return gravity
