"""Where detected objects are: distance, centre and extent of each, from depth in its box."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.errors import UserError, require
from mmfuse.images.geometry import load_open3d, points_of
from mmfuse.images.scenes import mounted, read_scene
from mmfuse.sample import Detections, Scene
from mmfuse.sensor import Calibration, Sensor

_BIN = 0.02  # width of the histogram's bins in log depth: 2 % of the distance
_GAP = 1  # one thing's bins differ by this at most
_NEARER = 0.5  # share of the heaviest thing's weight from which a nearer one is the object
_SIGMA = 0.25  # of the weight of a pixel by its place in the box, in shares of the box
_AHEAD = 0.1  # share by which 1 / z of an object exceeds that of what is behind it
_STRIP = 0.15  # width of the strips beside a box that show what is behind it, in shares of the box
_FEWEST_AHEAD = 0.05  # share of a box's pixels that must be ahead of that, or it tells nothing
_FEWEST = 3
_FEWEST_FOR_BOX = 16
_TRIMMED = 0.02  # share of the points cut off at either end of depth before their box is drawn


@dataclass(frozen=True)
class OrientedBox:
    """A box in the camera's frame: `centre` (3,), `size` (3,) in metres, sides along the columns of `axes`."""

    centre: NDArray[np.float64]
    size: NDArray[np.float64]
    axes: NDArray[np.float64]


@dataclass(frozen=True)
class Position:
    """Where one object is, by the `pixels` of depth that lie on what is seen of it.

    `distance` is metres from the camera to the middle of the seen surface along the ray (not z), `centre` that middle,
    x right, y down, z ahead, in metres: `centre[2]` is the depth. All are NaN where not known. `box` is around the seen
    surface, None where too few pixels tell.
    """

    distance: float
    centre: tuple[float, float, float]
    box: OrientedBox | None
    pixels: int

    @property
    def known(self) -> bool:
        """Whether depth tells where the object is."""
        return self.pixels > 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON: None for what isn't known, and how many depth pixels tell."""
        if not self.known:
            return {"distance": None, "depth_pixels": 0}
        told = {"distance": round(self.distance, 3), "centre": [round(v, 3) for v in self.centre]}
        extent = {} if self.box is None else {"extent": [round(float(v), 3) for v in self.box.size]}
        return told | extent | {"depth_pixels": self.pixels}

    def __str__(self) -> str:
        return f"{self.distance:.1f} m" if self.known else "distance unknown"


UNKNOWN = Position(math.nan, (math.nan,) * 3, None, 0)


def lift(found: Detections, depth: Tensor | NDArray[np.floating], calibration: Calibration) -> list[Position]:
    """Returns where each object of `found` is, in their order.

    `depth` is (H, W) z in metres, 0 or not finite where not measured, of the image that the boxes are in; `calibration`
    is its camera's, whose intrinsics are scaled to the depth's size. Pixels that lie no nearer than what is left and
    right of the box in their row are background, as ground is; the others are parted where depth jumps, weighted
    towards the middle of the box. The object is the heaviest part, or a nearer one that weighs at least half as much.
    With fewer than 3 pixels nothing is known, with fewer than 16 there is no oriented box (Open3D).

    Raises:
        UserError: depth isn't (H, W) floating, a box isn't finite or lies wholly outside of the depth image, the
            calibration has no intrinsics, or Open3D can't start.
    """
    depth = torch.as_tensor(depth).detach().cpu()
    shape = tuple(depth.shape)
    require(depth.ndim == 2 and depth.numel() > 0, "depth", shape, "give one image (H, W) in metres")
    require(
        depth.is_floating_point(),
        "depth",
        str(depth.dtype),
        "give floating metres; Sensor.metres turns counts into them",
    )
    boxes = found.boxes.detach().cpu().to(torch.float64)
    if not boxes.isfinite().all():
        raise UserError("boxes: some are not finite; give xyxy pixels")
    outside = (boxes[:, 2:] <= 0).any(1) | (boxes[:, 0] >= shape[1]) | (boxes[:, 1] >= shape[0])
    if outside.any():
        box = [round(v, 1) for v in boxes[outside][0].tolist()]
        raise UserError(
            f"boxes: {box} is outside of the depth image of {shape[1]} x {shape[0]} pixels; give both in one frame"
        )
    points = points_of(depth, calibration)
    return [_position(box, points) for box in boxes]


def depth_of(scene: Scene, sensors: Mapping[str, Sensor]) -> tuple[Tensor, Calibration] | None:
    """Returns depth (H, W) in metres in the frame of a scene's reference, and its camera; None if no sensor gives it.

    Raises:
        UserError: an image can't be read, the sensors can't be registered, or the camera isn't known.
    """
    m = next((m for m in scene.images if sensors[m].is_depth), None)
    if m is None:
        return None
    plain = {name: replace(s, encoding="metres", mean=(), std=()) if name == m else s for name, s in sensors.items()}
    mount = mounted(scene, plain)[m]
    camera = mount.calibration if mount.register == "none" else mount.onto
    if camera is None or camera.intrinsics is None:
        raise UserError(f"{m}: its camera isn't known, so depth gives no positions; give calibration.intrinsics")
    raw = read_scene(scene, plain)[m]
    return plain[m].metres(raw)[0][0], camera


def _position(box: Tensor, points: Tensor) -> Position:
    # Pixel i covers [i, i + 1] in a box's coordinates.
    left, top = (box[:2] - 0.5).ceil().clamp(min=0).long().tolist()
    right, bottom = (box[2:] - 0.5).ceil().clamp(min=0).long().tolist()
    inside = points[top:bottom, left:right]
    there = inside.isfinite().all(-1)
    if there.sum() < _FEWEST:
        return UNKNOWN
    middle, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2])
    rows, columns = there.nonzero().unbind(1)
    places = torch.stack((columns + left + 0.5, rows + top + 0.5), 1)
    weights = (-((places - middle) / size / _SIGMA).square().sum(1) / 2).exp()
    behind = _beside(points[top:bottom, :, 2], left, right)
    nearer = (inside[..., 2].reciprocal() > behind[:, None] * (1 + _AHEAD))[there]
    seen = inside[there]
    if nearer.sum() >= _FEWEST_AHEAD * len(seen):
        seen, weights = seen[nearer], weights[nearer]
    seen = seen[_object(seen[:, 2], weights)].to(torch.float64)
    if len(seen) < _FEWEST:
        return UNKNOWN
    x, y, z = seen.quantile(0.5, 0).tolist()
    return Position(float(seen.norm(dim=1).quantile(0.5)), (x, y, z), _oriented_box(seen), len(seen))


def _beside(depth: Tensor, left: int, right: int) -> Tensor:
    """Returns 1 / z (h,) of what goes on behind each row of a box, by the strips left and right of it in depth (h, W).

    Ground lies at about the same depth along a row. The farther strip counts; 0 where nothing is measured beside.
    """
    width = max(2, round(_STRIP * (right - left)))
    strips = depth[:, max(left - 1 - width, 0) : max(left - 1, 0)], depth[:, right + 1 : right + 1 + width]
    empty = depth.new_full((len(depth),), torch.nan)
    before, after = (s.nanmedian(1).values.reciprocal() if s.shape[1] else empty for s in strips)
    before, after = torch.where(before.isnan(), after, before), torch.where(after.isnan(), before, after)
    return torch.minimum(before, after).nan_to_num(0)


def _object(depth: Tensor, weights: Tensor) -> Tensor:
    """Returns which of the pixels in a box (N,) lie on the object."""
    bins = (depth.log() / _BIN).floor().long()
    filled, of = bins.unique(return_inverse=True)
    part = torch.cat((filled.new_zeros(1), (filled.diff() > _GAP).cumsum(0)))[of]
    heaviness = weights.new_zeros(int(part.max()) + 1).index_add(0, part, weights)
    chosen = (heaviness >= _NEARER * heaviness.max()).nonzero()[0]
    return part == chosen


def _oriented_box(points: Tensor) -> OrientedBox | None:
    low, high = points[:, 2].quantile(_TRIMMED), points[:, 2].quantile(1 - _TRIMMED)
    kept = points[(points[:, 2] >= low) & (points[:, 2] <= high)]
    if len(kept) < _FEWEST_FOR_BOX:
        return None
    open3d = load_open3d()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(kept.numpy()))
    box = cloud.get_oriented_bounding_box(robust=True)
    return OrientedBox(np.array(box.center), np.array(box.extent), np.array(box.R))
