"""Cameras, solids and rays: what each pixel of a scene of boxes, ellipsoids and rings shows.

The world is in metres: x right, y up, z ahead, the road at y = 0, the three cameras in one place above the origin.
Each ray keeps the nearest solid, so depth, labels and both pictures agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

NEAR, FAR = 2.0, 60.0

Array = NDArray[Any]
Shape = Literal["box", "ellipsoid", "ring"]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, `height`, 0), `focal` in pixels, looking along z and down by `pitch` radians.

    `size` is height and width; pixel (row, column) covers [column, column + 1] x [row, row + 1].
    """

    focal: float
    height: float
    pitch: float
    size: tuple[int, int]

    @property
    def origin(self) -> Array:
        """Position (3,)."""
        return np.array([0, self.height, 0], np.float32)

    @property
    def axes(self) -> Array:
        """Rows right, up and ahead of the camera in the world, (3, 3)."""
        sine, cosine = np.sin(self.pitch), np.cos(self.pitch)
        return np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]], np.float32)

    def project(self, points: Array) -> Array:
        """Turns world points (..., 3) into (..., 3): column, row, depth."""
        right, up, depth = np.moveaxis((points - self.origin) @ self.axes.T, -1, 0)
        rows, columns = self.size
        ahead = np.maximum(depth, 1e-6)
        return np.stack((columns / 2 + self.focal * right / ahead, rows / 2 - self.focal * up / ahead, depth), -1)

    def rays(self) -> Array:
        """World directions (3, H, W) through the pixel centres, of length 1 along the optical axis: t is depth."""
        rows, columns = self.size
        right = (np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / self.focal
        up = (rows / 2 - 0.5 - np.arange(rows, dtype=np.float32)) / self.focal
        sine, cosine = np.float32(np.sin(self.pitch)), np.float32(np.cos(self.pitch))
        y, z = up * cosine - sine, up * sine + cosine
        return np.stack(np.broadcast_arrays(right, y[:, None], z[:, None]))

    def finer(self, factor: int) -> "Camera":
        """Returns the same camera with pixels `factor` times as small."""
        return replace(self, focal=self.focal * factor, size=(self.size[0] * factor, self.size[1] * factor))


@dataclass(frozen=True)
class Look:
    """What sensors see of a surface: `colour` (N, 3) or (3,) reflectance, `celsius`, `glow` (N, 3) or (3,) light."""

    colour: Array
    celsius: Array | float
    glow: Array = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class Solid:
    """A shape with half extents `half` along the rows of `axes` about `centre`.

    A ring lies in its first two axes; its hole has `hole` of its radius. `look` may be a function of the points in the
    solid's own frame, (N, 3) metres. `owner` is the index of the object that it belongs to, -1 for scenery.
    """

    shape: Shape
    centre: Array
    half: Array
    look: Look | Callable[[Array], Look]
    axes: Array = field(default_factory=lambda: np.eye(3))
    owner: int = -1
    hole: float = 0.0

    def corners(self) -> Array:
        """Corners (8, 3) of the box around it."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        return self.centre + (signs * self.half) @ self.axes

    def cast(self, origin: Array, rays: Array) -> Array:
        """Returns the depth (...) at which rays (3, ...) from `origin` enter it, infinite where they miss."""
        start, way = self._unit(origin, rays)
        if self.shape == "box":
            inverse = 1 / (way + np.float32(1e-12))
            one, other = (-1 - start) * inverse, (1 - start) * inverse
            (x, y, z), (far_x, far_y, far_z) = np.minimum(one, other), np.maximum(one, other)
            depth = np.maximum(np.maximum(x, y), z)
            hit = depth < np.minimum(np.minimum(far_x, far_y), far_z)
        elif self.shape == "ellipsoid":
            a, b, c = dot(way, way), dot(way, start), dot(start, start) - 1
            inside = b**2 - a * c
            hit = inside > 0
            depth = (-b - np.sqrt(np.maximum(inside, 0))) / a
        else:
            depth = -start[2] / (way[2] + np.float32(1e-12))
            radius = (start[0] + depth * way[0]) ** 2 + (start[1] + depth * way[1]) ** 2
            hit = (radius < 1) & (radius > self.hole**2)
        return np.where(hit & (depth > 0.1), depth, np.float32(np.inf))

    def _unit(self, origin: Array, rays: Array) -> tuple[Array, Array]:
        into = (self.axes / self.half[:, None]).astype(np.float32)
        start = (into @ (origin - self.centre)).astype(np.float32)
        return start.reshape(3, *[1] * (rays.ndim - 1)), np.tensordot(into, rays, 1)

    def normals(self, local: Array, ray: Array) -> Array:
        """Returns the unit normals (N, 3) at points (N, 3) of its own frame, towards the rays (N, 3) that hit them."""
        axes, unit = self.axes.astype(np.float32), local / self.half.astype(np.float32)
        if self.shape == "ellipsoid":
            normal = (unit / self.half.astype(np.float32)) @ axes
            return normal / np.sqrt(dot(normal.T, normal.T))[:, None]
        if self.shape == "ring":
            return axes[2] * -np.sign(ray @ axes[2])[:, None]
        x, y, z = np.abs(unit).T
        side = np.where(x > np.maximum(y, z), 0, np.where(y > z, 1, 2))
        behind = local.ravel().take(3 * np.arange(len(side)) + side) < 0
        return np.concatenate((axes, -axes)).take(side + 3 * behind, 0)


def dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@dataclass(frozen=True)
class View:
    """What rays hit: `depth` (H, W) metres, infinite in the sky; `solid` (H, W) index, -1 in the sky.

    `owner` (H, W) is the object, -1 for none; `whole` counts the pixels of each object as if nothing hid it.
    """

    depth: Array
    solid: Array
    owner: Array
    whole: list[int]


def trace(camera: Camera, solids: list[Solid]) -> View:
    """Finds the nearest solid at each pixel."""
    rows, columns = camera.size
    rays = camera.rays()
    depth = np.full(camera.size, np.inf, np.float32)
    nearest = np.full(camera.size, -1, np.int16)
    owners = np.array([s.owner for s in solids] + [-1], np.int16)
    silhouettes = np.zeros((int(owners.max(initial=-1)) + 1, *camera.size), bool)
    for index, solid in enumerate(solids):
        corner = camera.project(solid.corners())
        if corner[:, 2].max() <= 0.1:
            continue
        window = (slice(0, rows), slice(0, columns))
        if corner[:, 2].min() > 0.1:
            left, top = np.floor(corner[:, :2].min(0)).astype(int)
            right, bottom = np.ceil(corner[:, :2].max(0)).astype(int)
            window = (slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0)))
        seen = depth[window]
        if not seen.size:
            continue
        reach = solid.cast(camera.origin, rays[(slice(None), *window)])
        if solid.owner >= 0:
            silhouettes[solid.owner][window] |= np.isfinite(reach)
        nearer = reach < seen
        seen[nearer] = reach[nearer]
        nearest[window][nearer] = index
    return View(depth, nearest, owners[nearest], [int(s.sum()) for s in silhouettes])
