"""Renders the embedded paired set: street scenes that RGB, thermal and depth cameras see in their own way.

The world is in metres: x right, y up, z ahead, the road at y = 0, the three cameras in one place above the origin.
Everything is a box, an ellipsoid or a ring, and each ray keeps the nearest, so depth, labels and both pictures agree.

Some objects show in one sensor only, for the reasons that hold on a street: at night the unlit are lost in the RGB
noise, and what has cooled to the air's temperature is lost in thermal; a hot day hides people in thermal, fog and low
sun hide them in RGB. Posters are people in RGB only; panes that mirror a warm passer-by are people in thermal only.
"""

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mmfuse.recipes import save_yaml, write_whole
from mmfuse.errors import UserError

CLASSES = ("person", "car", "bicycle")
COUNTS = {"train": 320, "val": 64, "test": 160}
OVERSAMPLING = 2
NEAR, FAR = 2.0, 60.0
COUNT_AT_ZERO, COUNTS_PER_DEGREE = 7000, 40
SMALLEST_SHARE, SMALLEST_AREA, SMALLEST_SIDE = 0.35, 40, 5

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
            a, b, c = _dot(way, way), _dot(way, start), _dot(start, start) - 1
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
            return normal / np.sqrt(_dot(normal.T, normal.T))[:, None]
        if self.shape == "ring":
            return axes[2] * -np.sign(ray @ axes[2])[:, None]
        x, y, z = np.abs(unit).T
        side = np.where(x > np.maximum(y, z), 0, np.where(y > z, 1, 2))
        behind = local.ravel().take(3 * np.arange(len(side)) + side) < 0
        return np.concatenate((axes, -axes)).take(side + 3 * behind, 0)


def _dot(a: Array, b: Array) -> Array:
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


@dataclass(frozen=True)
class Light:
    """A soft pool of light about `centre` (3,), `reach` metres wide; of shade where `colour` is negative."""

    centre: Array
    reach: float
    colour: Array


@dataclass(frozen=True)
class Scene:
    """A street and its weather. `labels` and `shows_in` have one entry for each object.

    `air` is its temperature in degrees Celsius, `fog` the share of light lost per metre, `glare` the strength of a low
    sun at `glare_at` (column, row in shares of the picture), `sun` the direction to it.
    """

    camera: Camera
    condition: Literal["day", "night"]
    solids: list[Solid]
    labels: list[int]
    shows_in: list[tuple[str, ...]]
    lights: list[Light]
    air: float
    ambient: Array
    sun: Array
    sunlight: Array
    sky: Array
    sky_celsius: float
    fog: float
    glare: float
    glare_at: tuple[float, float]


@dataclass(frozen=True)
class Pictures:
    """One scene as the sensors deliver it: `rgb` (H, W, 3) uint8, `thermal` and `depth` (H, W) uint16.

    `boxes` (N, 4) are xyxy pixels of what is visible, `labels` (N,), `areas` (N,) pixels, `shows_in` the sensors that
    were given a fair chance to see each.
    """

    rgb: Array
    thermal: Array
    depth: Array
    boxes: Array
    labels: list[int]
    areas: list[float]
    shows_in: list[tuple[str, ...]]


def render(scene: Scene, rng: np.random.Generator) -> Pictures:
    """Takes the pictures of a scene; `rng` is the sensors' noise."""
    fine = scene.camera.finer(OVERSAMPLING)
    view = trace(fine, scene.solids)
    light, celsius = _shade(scene, fine, view, rng)
    boxes, kept, areas = _visible(view)
    return Pictures(
        _photograph(scene, light, rng),
        _counts(celsius, rng),
        _depth(view, rng),
        boxes,
        [scene.labels[k] for k in kept],
        areas,
        [scene.shows_in[k] for k in kept],
    )


def _visible(view: View) -> tuple[Array, list[int], list[float]]:
    boxes, kept, areas = [], [], []
    for index, whole in enumerate(view.whole):
        rows, columns = np.nonzero(view.owner == index)
        area = len(rows) / OVERSAMPLING**2
        if len(rows) < SMALLEST_SHARE * whole or area < SMALLEST_AREA:
            continue
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / OVERSAMPLING
        if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_SIDE:
            boxes.append(box)
            kept.append(index)
            areas.append(area)
    return np.array(boxes, np.float32).reshape(-1, 4), kept, areas


def _shade(scene: Scene, camera: Camera, view: View, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns light (H, W, 3) and temperature (H, W) at the pixels of `camera`."""
    rows, columns = camera.size
    rays = np.ascontiguousarray(camera.rays().reshape(3, -1).T)
    depth, solid = view.depth.ravel(), view.solid.ravel()
    sky = scene.sky.astype(np.float32)
    light = sky * (1 - 0.45 * (3 * rays[:, 1:2]).clip(0, 1))
    celsius = scene.sky_celsius + (scene.air - scene.sky_celsius) * np.exp(-12 * np.maximum(rays[:, 1], 0))
    grain = _smooth(rng.standard_normal((256, 256), np.float32), 1.5)
    grain /= grain.std()

    centres = np.array([lamp.centre for lamp in scene.lights], np.float32).reshape(-1, 3)
    nearness = np.array([1 / lamp.reach**2 for lamp in scene.lights], np.float32)
    slopes, offsets = 2 * (centres.T * nearness), (centres**2).sum(1) * nearness
    pools = np.array([lamp.colour for lamp in scene.lights], np.float32).reshape(-1, 3)
    order = np.argsort(solid, kind="stable")
    bounds = np.searchsorted(solid[order], np.arange(len(scene.solids) + 1))
    for index, item in enumerate(scene.solids):
        pixels = order[bounds[index] : bounds[index + 1]]
        if not len(pixels):
            continue
        ray, far = rays.take(pixels, 0), depth.take(pixels)[:, None]
        points = camera.origin + far * ray
        local = (points - item.centre.astype(np.float32)) @ item.axes.T.astype(np.float32)
        look = item.look(local) if callable(item.look) else item.look
        normal = item.normals(local, ray)
        where = (points * 9).astype(np.int32)
        rough = grain[(where[:, 0] + where[:, 1] * 3) & 255, (where[:, 2] + where[:, 1] * 5) & 255]
        reached = scene.ambient.astype(np.float32) * (0.75 + 0.25 * normal[:, 1:2])
        gap = np.maximum(np.abs((centres - item.centre) @ item.axes.T) - item.half, 0)
        felt = (gap**2).sum(1) * nearness < 9
        if felt.any():
            away = _dot(points.T, points.T)[:, None] * nearness[felt] - points @ slopes[:, felt] + offsets[felt]
            reached += np.exp(-away) @ pools[felt]
        reached += np.maximum(normal @ scene.sun.astype(np.float32), 0)[:, None] * scene.sunlight.astype(np.float32)
        colour = look.colour.astype(np.float32, copy=False) * (1 + 0.08 * rough[:, None])
        seen = colour * np.maximum(reached, 0) + look.glow.astype(np.float32, copy=False)
        if scene.fog:
            seen = sky + (seen - sky) * np.exp(-scene.fog * far)
        light[pixels] = seen
        warmth = look.celsius + (0.35 if item.owner < 0 else 0.15) * rough
        celsius[pixels] = scene.air + (warmth - scene.air) * np.exp(-far[:, 0] / 400)
    return light.reshape(rows, columns, 3), celsius.reshape(rows, columns)


def _photograph(scene: Scene, light: Array, rng: np.random.Generator) -> Array:
    light = _smooth(_shrink(light), 0.45)
    rows, columns = light.shape[:2]
    light = light + 0.6 * _smooth(np.maximum(light - 0.8, 0), 3)
    if scene.glare:
        down, across = np.ogrid[:rows, :columns]
        away = np.hypot(across / columns - scene.glare_at[0], (down / rows - scene.glare_at[1]) * rows / columns)
        light = light + scene.glare * np.exp(-((away / 0.35) ** 2))[..., None] * np.array([1, 0.93, 0.8], np.float32)
    read, shot = (0.009, 0.035) if scene.condition == "night" else (0.004, 0.02)
    noise = rng.standard_normal(light.shape, np.float32)
    light = light + noise * np.sqrt(read**2 + shot**2 * np.minimum(light, 1))
    return (255 * np.clip(light, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def _counts(celsius: Array, rng: np.random.Generator) -> Array:
    celsius = _smooth(_shrink(celsius), 0.7)
    rows, columns = celsius.shape
    celsius = celsius + 0.12 * rng.standard_normal(columns, np.float32)
    drift = _smooth(rng.standard_normal((rows // 4 + 1, columns // 4 + 1), np.float32), 6)
    celsius = celsius + 6 * drift.repeat(4, 0).repeat(4, 1)[:rows, :columns]
    celsius = celsius + 0.25 * rng.standard_normal((rows, columns), np.float32)
    return np.clip(COUNT_AT_ZERO + COUNTS_PER_DEGREE * celsius + 0.5, 0, 65535).astype(np.uint16)


def _depth(view: View, rng: np.random.Generator) -> Array:
    """Returns stereo-like millimetres: error grows with depth squared; edges, smooth patches and the sky are holes."""
    metres = view.depth[::OVERSAMPLING, ::OVERSAMPLING]
    hole = ~(metres < FAR)
    metres = np.where(hole, FAR, metres)
    step = np.zeros_like(hole)
    jump = np.abs(np.diff(metres, axis=1)) > 0.08 * metres[:, 1:]
    step[:, 1:] |= jump
    jump = np.abs(np.diff(metres, axis=0)) > 0.12 * metres[1:]
    step[1:] |= jump
    hole |= step & (rng.random(hole.shape) < 0.7)
    patches = _smooth(rng.standard_normal(hole.shape, np.float32), 2.5)
    hole |= patches > (2.4 - 0.02 * metres) * patches.std()
    noisy = metres + (0.01 + 0.0012 * metres**2) * rng.standard_normal(hole.shape, np.float32)
    return np.where(hole, 0, np.clip(1000 * noisy + 0.5, 1, 65535)).astype(np.uint16)


def _shrink(fine: Array) -> Array:
    steps = range(OVERSAMPLING)
    total = sum((fine[i::OVERSAMPLING, j::OVERSAMPLING] for i in steps for j in steps), np.float32(0))
    return np.asarray(total / np.float32(OVERSAMPLING**2))


def _smooth(image: Array, sigma: float) -> Array:
    """Gaussian blur over the first two axes."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(image.dtype)
    for axis in (0, 1):
        lines = np.moveaxis(image, axis, 0)
        padded = np.pad(lines, [(reach, reach)] + [(0, 0)] * (image.ndim - 1), mode="edge")
        lines = sum((w * padded[k : k + len(lines)] for k, w in enumerate(kernel)), np.zeros_like(lines))
        image = np.moveaxis(lines, 0, axis)
    return image


# ----------------------------------------------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Place:
    """Where a thing stands: its foot (3,) and its heading, radians from z towards x; it builds solids in that frame."""

    foot: Array
    heading: float
    owner: int = -1

    @property
    def axes(self) -> Array:
        """Rows right, up and ahead of the thing in the world."""
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])

    def solid(
        self,
        shape: Shape,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        look: Look | Callable[[Array], Look],
        turn: Array | None = None,
        hole: float = 0.0,
    ) -> Solid:
        """Puts a shape at `centre` of this frame, its axes turned by the rows of `turn`."""
        axes = self.axes if turn is None else turn @ self.axes
        return Solid(shape, self.foot + np.array(centre) @ self.axes, np.array(half), look, axes, self.owner, hole)

    def rod(self, start: tuple[float, ...], end: tuple[float, ...], thick: float, look: Look, shape: Shape) -> Solid:
        """Puts a long shape between two points of this frame; `thick` is its half width."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / np.linalg.norm(b - a)
        aside = np.cross(along, [1, 0, 0] if abs(along[0]) < 0.8 else [0, 0, 1])
        aside /= np.linalg.norm(aside)
        turn = np.stack((aside, along, np.cross(aside, along)))
        x, y, z = (a + b) / 2
        return self.solid(shape, (x, y, z), (thick, float(np.linalg.norm(b - a)) / 2, thick), look, turn)


@dataclass(frozen=True)
class Warmth:
    """Degrees Celsius of a thing's parts: `rest` what stays near the air, `core` what heats itself."""

    rest: float
    core: float

    def mix(self, share: float) -> float:
        """Temperature of a part that is `share` core."""
        return self.rest + share * (self.core - self.rest)


_CLOTHES = np.array(
    [[0.5, 0.08, 0.07], [0.08, 0.15, 0.42], [0.1, 0.3, 0.12], [0.55, 0.5, 0.42], [0.05, 0.05, 0.06], [0.6, 0.42, 0.08]]
)
_SKIN = np.array([[0.55, 0.36, 0.26], [0.38, 0.23, 0.15], [0.2, 0.12, 0.08]])
_PAINT = np.array(
    [[0.55, 0.04, 0.04], [0.05, 0.1, 0.4], [0.6, 0.6, 0.6], [0.05, 0.05, 0.06], [0.28, 0.3, 0.32], [0.5, 0.38, 0.05]]
)


def person(place: Place, warmth: Warmth, rng: np.random.Generator, riding: bool = False) -> list[Solid]:
    """A person of 1.55 to 1.9 m, walking, or seated on the bicycle at the same place."""
    tall = rng.uniform(1.55, 1.9)
    top = Look(rng.choice(_CLOTHES), warmth.mix(0.65))
    trousers = Look(rng.choice(_CLOTHES) * 0.6, warmth.mix(0.5))
    skin = Look(rng.choice(_SKIN), warmth.mix(1))
    hair = Look(rng.choice([0.3, 1.0]) * np.array([0.12, 0.08, 0.05]), warmth.mix(0.7))
    if riding:
        hip, neck = np.array([0, 1.0, -0.2]), np.array([0, 1.5, 0.08])
        feet = [(-0.11, 0.2, -0.1), (0.11, 0.45, 0.1)]
        knees = [(-0.11, 0.62, 0.1), (0.11, 0.85, 0.2)]
        hands = [(-0.25, 1.0, 0.42), (0.25, 1.0, 0.42)]
    else:
        stride = rng.uniform(0.02, 0.32)
        hip, neck = np.array([0, 0.5 * tall, 0]), np.array([0, 0.83 * tall, 0.03])
        feet = [(-0.1, 0.0, -stride), (0.1, 0.0, stride)]
        knees = [(-0.1, 0.27 * tall, -0.3 * stride), (0.1, 0.27 * tall, 0.7 * stride)]
        hands = [(-0.3, 0.47 * tall, stride), (0.3, 0.47 * tall, -stride)]
    head = tuple(neck + np.array([0, 0.1 * tall, 0.03]))
    body = [
        place.solid("ellipsoid", head, (0.1, 0.14, 0.11), skin),
        place.solid("ellipsoid", (head[0], head[1] + 0.05, head[2] - 0.03), (0.105, 0.11, 0.11), hair),
        place.rod(tuple(hip - [0, 0.08, 0]), (0, neck[1] + 0.03, neck[2]), 0.19, top, "ellipsoid"),
    ]
    for side, (foot, knee, hand) in enumerate(zip(feet, knees, hands, strict=True)):
        shoulder = (0.2 * (2 * side - 1), neck[1] - 0.06, neck[2])
        body += [
            place.rod(
                (0.8 * knee[0], hip[1] + 0.1, hip[2]), (knee[0], knee[1] - 0.1, knee[2]), 0.095, trousers, "ellipsoid"
            ),
            place.rod((knee[0], knee[1] + 0.1, knee[2]), foot, 0.07, trousers, "ellipsoid"),
            place.rod(shoulder, hand, 0.06, top, "ellipsoid"),
        ]
    return body


def car(place: Place, warmth: Warmth, rng: np.random.Generator, lamps: bool = False) -> list[Solid]:
    """A car of about 4.2 m, heading along its frame's z; with `lamps` its head and tail lights are on."""
    wide, long, tall = rng.uniform(0.8, 0.92), rng.uniform(1.85, 2.3), rng.uniform(0.26, 0.42)
    paint = rng.choice(_PAINT) * rng.uniform(0.8, 1.2)
    front, back = Look(paint, warmth.mix(0.9)), Look(paint, warmth.mix(0.3))
    glass = Look(np.array([0.05, 0.07, 0.09]), warmth.mix(0.15))
    tyre, rim = Look(np.full(3, 0.03), warmth.mix(0.7)), Look(np.full(3, 0.4), warmth.mix(0.8))
    white = Look(np.full(3, 0.7), warmth.mix(0.4), np.array([4.0, 3.8, 3.2]) * lamps)
    red = Look(np.array([0.45, 0.03, 0.03]), warmth.mix(0.3), np.array([1.6, 0.06, 0.05]) * lamps)
    cabin = 0.95 + tall
    body = [
        place.solid("box", (0, 0.62, -0.3 * long), (wide, 0.35, 0.7 * long), back),
        place.solid("box", (0, 0.58, 0.7 * long), (wide, 0.31, 0.3 * long), front),
        place.solid("box", (0, cabin, -0.2 * long), (0.88 * wide, tall, 0.5 * long), back),
        place.solid("box", (0, cabin, -0.2 * long), (0.89 * wide, 0.68 * tall, 0.44 * long), glass),
        place.solid("box", (0, cabin, -0.2 * long), (0.78 * wide, 0.68 * tall, 0.51 * long), glass),
    ]
    upright = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])
    for side in (-1, 1):
        for end in (-0.62, 0.62):
            for look, radius, out in ((tyre, 0.34, 0.01), (rim, 0.2, 0.02)):
                centre = (side * (wide + out), 0.34, end * long)
                body.append(place.solid("ring", centre, (radius, radius, 1), look, upright))
        body.append(place.solid("box", (side * 0.72 * wide, 0.68, long), (0.17, 0.09, 0.03), white))
        body.append(place.solid("box", (side * 0.76 * wide, 0.74, -long), (0.13, 0.11, 0.03), red))
    return body


def bicycle(place: Place, warmth: Warmth, rng: np.random.Generator, lamps: bool = False) -> list[Solid]:
    """A bicycle heading along its frame's z; with `lamps` its front and rear lights are on."""
    frame = Look(rng.choice(_PAINT), warmth.mix(0.7))
    dark = Look(np.full(3, 0.03), warmth.mix(1))
    radius = rng.uniform(0.32, 0.36)
    upright = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])
    rear, hub, pedals = (0, radius, -0.52), (0, radius, 0.54), (0, 0.3, -0.06)
    saddle, stem = (0, 0.88, -0.2), (0, 0.85, 0.4)
    tubes = [(rear, pedals), (rear, saddle), (pedals, saddle), (pedals, stem), (saddle, stem), (stem, hub)]
    parts = [place.rod(a, b, 0.03, frame, "box") for a, b in tubes]
    parts += [place.solid("ring", end, (radius, radius, 1), dark, upright, hole=0.82) for end in (rear, hub)]
    parts += [
        place.rod((-0.27, 1.0, 0.36), (0.27, 1.0, 0.36), 0.025, dark, "box"),
        place.rod(stem, (0, 1.0, 0.36), 0.025, frame, "box"),
        place.solid("ellipsoid", (0, 0.95, -0.22), (0.09, 0.05, 0.14), dark),
        # Tyres seen end on have a width.
        *[place.solid("box", end, (0.025, radius, 0.03), dark) for end in (rear, hub)],
    ]
    if lamps:
        parts.append(place.solid("box", (0, 0.9, 0.44), (0.05, 0.05, 0.03), Look(np.ones(3), 0, np.full(3, 3.0))))
        red = Look(np.ones(3), warmth.rest, np.array([1.5, 0.05, 0.05]))
        parts.append(place.solid("box", (0, 0.72, -0.6), (0.05, 0.05, 0.03), red))
    return parts


def _figure(local: Array, tall: float) -> Array:
    """Returns for points (N, 3) of an upright picture which part of a drawn person they show.

    0 nothing, 1 skin, 2 coat, 3 trousers; the person stands at y = 0, facing.
    """
    x, y = np.abs(local[:, 0]) / tall, local[:, 1] / tall
    part = np.zeros(len(local), np.int8)
    part[(y > 0) & (y < 0.5) & (x > 0.015) & (x < 0.1)] = 3
    part[(x / 0.15) ** 2 + ((y - 0.66) / 0.21) ** 2 < 1] = 2
    part[(x / 0.065) ** 2 + ((y - 0.92) / 0.08) ** 2 < 1] = 1
    return part


def poster(place: Place, celsius: float, rng: np.random.Generator) -> Solid:
    """A board of 0.9 m x 1.9 m with a person printed on it: a person to RGB only, flat and as cold as the street."""
    paper = rng.uniform(0.25, 0.7, 3)
    inks = np.stack([paper, rng.choice(_SKIN), rng.choice(_CLOTHES), rng.choice(_CLOTHES) * 0.6])
    tall = rng.uniform(1.6, 1.85)

    def look(local: Array) -> Look:
        return Look(inks[_figure(local + np.array([0, tall / 2, 0]), tall)], celsius)

    return place.solid("box", (0, 1.0, 0), (0.45, 0.95, 0.05), look)


def mirror(place: Place, celsius: float, shine: float, rng: np.random.Generator) -> Solid:
    """A dark pane of 0.9 m x 1.9 m that mirrors someone `shine` degrees warmer: a person to thermal only."""
    tall = rng.uniform(1.6, 1.85)
    warm = celsius + shine * np.array([0, 1, 0.65, 0.5])

    def look(local: Array) -> Look:
        return Look(np.array([0.06, 0.08, 0.1]), warm[_figure(local + np.array([0, tall / 2, 0]), tall)])

    return place.solid("box", (0, 1.0, 0), (0.45, 0.95, 0.05), look)


# -------------------------------------------------------------------------------------------------- how it is arranged


@dataclass(frozen=True)
class _Weather:
    name: str
    condition: Literal["day", "night"]
    share: float
    both: float
    rgb_only: float


# Shares of scenes, and of the objects in them that both sensors, or RGB alone, can see; the rest show in thermal alone.
_WEATHERS = (
    _Weather("hot", "day", 0.30, 0.20, 0.80),
    _Weather("cool", "day", 0.10, 0.80, 0.20),
    _Weather("fog", "day", 0.05, 0.40, 0.0),
    _Weather("glare", "day", 0.05, 0.40, 0.0),
    _Weather("night", "night", 0.50, 0.22, 0.22),
)


def build_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Makes up a street; `size` is the pictures' height and width."""
    weather = _WEATHERS[rng.choice(len(_WEATHERS), p=[w.share for w in _WEATHERS])]
    night, hot = weather.condition == "night", weather.name == "hot"
    camera = Camera(size[1] * rng.uniform(0.85, 1.0), rng.uniform(1.45, 1.9), rng.uniform(0.0, 0.09), size)
    air = rng.uniform(3, 14) if night else rng.uniform(29, 36) if hot else rng.uniform(6, 18)
    road, kerb = rng.uniform(3.2, 4.8), rng.uniform(1.8, 3.0)
    solids = _street(rng, road, kerb, air, 0.5 if night else 1.0, night)

    labels: list[int] = []
    shows_in: list[tuple[str, ...]] = []
    lights: list[Light] = []
    taken: list[tuple[float, float, float]] = []

    def free_spot(label: int, reach: float, near: float, far: float) -> Array | None:
        """Finds a foot in the picture, where its kind belongs and nothing stands."""
        for _ in range(12):
            z = near * (far / near) ** rng.random() ** 1.1
            x = rng.uniform(-0.46, 0.46) * size[1] / camera.focal * z
            limit = road - 0.9 if label == 1 else road + kerb - 0.4
            if abs(x) < limit and all((x - a) ** 2 + (z - b) ** 2 > (reach + r) ** 2 for a, b, r in taken):
                taken.append((x, z, reach))
                return np.array([x, 0.0 if abs(x) < road else 0.12, z])
        return None

    for _ in range(int(rng.integers(3, 8))):
        label = int(rng.choice(3, p=[0.42, 0.32, 0.26]))
        foot = free_spot(label, (0.35, 1.5, 0.7)[label], (4.2, 7.5, 4.2)[label], (19, 30, 13)[label])
        if foot is None:
            continue
        draw = rng.random()
        mode: tuple[str, ...] = ("rgb", "thermal")
        if draw > weather.both:
            mode = ("rgb",) if draw < weather.both + weather.rgb_only else ("thermal",)
        warmth = _warmth(rng, label, air, "thermal" in mode, hot)
        lamps = False
        if night and "rgb" in mode:
            lamps = label > 0 and rng.random() < 0.5
            tint = np.array([1.0, 0.8, 0.5]) if rng.random() < 0.6 else np.array([0.9, 0.95, 1.0])
            side = rng.uniform(-0.6, 0.6)
            centre = foot + np.array([side, rng.uniform(0.8, 1.6), -rng.uniform(0.3, 1.2)])
            lights.append(Light(centre, rng.uniform(1.3, 2.0) + (label == 1), tint * rng.uniform(0.25, 0.8)))
        if not night:
            lights.append(Light(foot, (0.5, 1.7, 0.6)[label], np.full(3, -0.35)))
        along = rng.choice([0, np.pi]) + rng.normal(0, 0.15)
        heading = (
            rng.uniform(-np.pi, np.pi),
            along if rng.random() < 0.65 else rng.choice([-1, 1]) * rng.uniform(0.9, 2.2),
            rng.choice([-1, 1]) * rng.uniform(0.6, 2.5),
        )[label]
        place = Place(foot, float(heading), len(labels))
        labels.append(label)
        shows_in.append(mode)
        if label == 0:
            solids += person(place, warmth, rng)
        elif label == 1:
            solids += car(place, warmth, rng, lamps)
        else:
            solids += bicycle(place, warmth, rng, lamps)
            if rng.random() < 0.35:
                rider = Place(foot, place.heading, len(labels))
                labels.append(0)
                shows_in.append(mode)
                solids += person(rider, _warmth(rng, 0, air, "thermal" in mode, hot), rng, riding=True)

    solids += _clutter(rng, free_spot, air, hot, lights if night else None)

    sun = np.array([rng.uniform(-1, 1), rng.uniform(0.5, 1.2), rng.uniform(-0.8, 0.5)])
    if night:
        level = rng.uniform(0.006, 0.016)
        ambient, sunlight, sky = level * np.array([0.8, 0.9, 1.2]), np.zeros(3), 0.6 * level * np.array([0.7, 0.8, 1.2])
    elif hot:
        ambient, sunlight, sky = np.array([0.38, 0.42, 0.5]), np.array([0.9, 0.82, 0.7]), np.array([0.45, 0.65, 0.95])
    else:
        ambient, sunlight, sky = np.full(3, 0.75), np.full(3, 0.2), np.array([0.72, 0.76, 0.8])
    return Scene(
        camera,
        weather.condition,
        solids,
        labels,
        shows_in,
        lights,
        air,
        ambient,
        sun / np.linalg.norm(sun),
        sunlight,
        sky,
        air - rng.uniform(4, 14),
        rng.uniform(0.14, 0.24) if weather.name == "fog" else 0.0,
        rng.uniform(2.5, 4.0) if weather.name == "glare" else 0.0,
        (rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.5)),
    )


def _warmth(rng: np.random.Generator, label: int, air: float, shows: bool, hot: bool) -> Warmth:
    if not shows:
        rest = air + rng.normal(0, 0.3)
        return Warmth(rest, rest + rng.normal(0, 0.3))
    if label == 0:
        return Warmth(air - 1, air - rng.uniform(5, 9)) if hot else Warmth(air + 2, rng.uniform(30, 34))
    if label == 1:
        rest = air + rng.uniform(0.5, 3)
        return Warmth(rest, rest + rng.uniform(6, 22))
    rest = air + rng.uniform(1, 3)
    return Warmth(rest, rest + rng.uniform(3, 7))


def _street(rng: np.random.Generator, road: float, kerb: float, air: float, spread: float, night: bool) -> list[Solid]:
    """Road, pavements and houses; `road` and `kerb` are the road's half width and the pavement's width in metres."""
    asphalt = rng.uniform(0.09, 0.2) * np.array([1, 1, 1.04])
    phase, warm = rng.uniform(0, 6), air + rng.normal(0, 0.4 * spread, 4)

    def surface(local: Array) -> Look:
        x, z = local[:, 0], local[:, 2] + phase
        line = ((np.abs(x) < 0.07) & (_share(z, 6) < 0.5)) | (np.abs(np.abs(x) - road + 0.25) < 0.06)
        return Look(np.where(line[:, None], 0.6, asphalt), warm[0] + 0.2 * line)

    solids = [Solid("box", np.array([0, -0.5, 300.5]), np.array([300, 0.5, 300]), surface)]
    for side in (-1, 1):
        slab = rng.uniform(0.25, 0.4) * np.array([1, 0.98, 0.93])

        def paving(local: Array, slab: Array = slab) -> Look:
            joint = (_share(local[:, 2], 0.8) < 0.05) | (_share(local[:, 0], 0.8) < 0.05)
            return Look(np.where(joint[:, None], 0.6, 1) * slab, warm[1])

        middle = side * (road + 20)
        solids.append(Solid("box", np.array([middle, 0, 80.5]), np.array([20, 0.12, 80]), paving))
        z = 0.5
        while z < 70:
            deep, gap = rng.uniform(7, 18), rng.choice([0.0, 0.0, rng.uniform(2, 5)])
            solids.append(_house(rng, side, road + kerb + rng.uniform(0, 0.6), z, deep, warm[2], spread, night))
            z += deep + gap
    if rng.random() < 0.6:
        wall = Look(rng.uniform(0.2, 0.5, 3), warm[3])
        solids.append(Solid("box", np.array([0, 4, rng.uniform(45, 80)]), np.array([60, rng.uniform(2, 9), 2]), wall))
    return solids


def _share(along: Array, period: float) -> Array:
    """Returns how far along its period each point is, in [0, 1)."""
    turns = along / np.float32(period)
    return turns - np.floor(turns)


def _house(
    rng: np.random.Generator, side: int, edge: float, z: float, deep: float, air: float, spread: float, night: bool
) -> Solid:
    wall = rng.uniform(0.22, 0.6) * np.array([1, rng.uniform(0.75, 1), rng.uniform(0.55, 1)])
    celsius = air + rng.normal(0, 0.6 * spread)
    pitch, lit = rng.uniform(2, 3.2), rng.random((16, 16)) < 0.2 * night
    tall = rng.uniform(4, 14)

    def look(local: Array) -> Look:
        along, up = local[:, 2] + deep / 2, local[:, 1] + tall / 2
        window = (_share(along, pitch) > 0.35) & (np.abs(_share(up, 2.9) - 0.6) < 0.25)
        on = window & lit[(along / pitch).astype(int) & 15, (up / 2.9).astype(int) & 15]
        colour = np.stack((wall, [0.1, 0.13, 0.17])).astype(np.float32)[window.astype(np.int8)]
        return Look(colour, celsius + 0.5 * spread * window, on[:, None] * np.array([0.35, 0.25, 0.12], np.float32))

    return Solid("box", np.array([side * (edge + 6), tall / 2, z + deep / 2]), np.array([6, tall / 2, deep / 2]), look)


def _clutter(
    rng: np.random.Generator,
    free_spot: Callable[[int, float, float, float], Array | None],
    air: float,
    hot: bool,
    lights: list[Light] | None,
) -> list[Solid]:
    """Things that are no objects: poles, bins, bushes, trees, warm boxes, posters and mirrors; lamps at night."""
    solids = []
    kinds = rng.choice(7, rng.integers(3, 8), p=[0.16, 0.14, 0.16, 0.12, 0.14, 0.16, 0.12])
    for kind in kinds:
        foot = free_spot(0, 0.6, 6.5, 24)
        if foot is None:
            continue
        place = Place(foot, rng.normal(0, 0.4))
        near_air = air + rng.normal(0, 0.5)
        if kind == 0:
            solids.append(place.solid("box", (0, 2.2, 0), (0.06, 2.2, 0.06), Look(np.full(3, 0.3), near_air)))
            if lights is not None:
                lights.append(Light(foot + np.array([0, 2.5, 0]), rng.uniform(1.5, 3), np.array([0.5, 0.4, 0.25])))
                lamp = Look(np.ones(3), air + 12, np.array([3.0, 2.5, 1.6]))
                solids.append(place.solid("ellipsoid", (0, 4.3, 0), (0.25, 0.12, 0.25), lamp))
        elif kind == 1:
            paint = rng.uniform(0.05, 0.4, 3)
            half = (rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.65), 0.3)
            solids.append(place.solid("box", (0, half[1], 0), half, Look(paint, near_air)))
        elif kind in (2, 3):
            leaves = Look(np.array([0.07, 0.2, 0.05]) * rng.uniform(0.6, 1.5), near_air - 0.5)
            up = 0.4 if kind == 2 else 3.2
            if kind == 3:
                trunk = Look(np.array([0.15, 0.1, 0.06]), near_air)
                solids.append(place.solid("box", (0, 1.2, 0), (0.12, 1.3, 0.12), trunk))
            for _ in range(3):
                x, y, z = rng.normal(0, 0.25, 3) * (1 if kind == 2 else 2)
                radius = rng.uniform(0.3, 0.5) * (1 if kind == 2 else 2.4)
                solids.append(place.solid("ellipsoid", (x, up + abs(y), z), (radius, radius, radius), leaves))
        elif kind == 4:
            half = (rng.uniform(0.15, 0.5), rng.uniform(0.2, 0.8), 0.2)
            grey = Look(np.full(3, rng.uniform(0.15, 0.5)), air + rng.uniform(4, 18) * (-0.5 if hot else 1))
            solids.append(place.solid("box", (0, half[1], 0), half, grey))
        elif kind == 5:
            solids.append(poster(place, near_air, rng))
            if lights is not None and rng.random() < 0.6:
                lights.append(
                    Light(foot + np.array([0, 1.2, -0.8]), 1.4, rng.uniform(0.2, 0.6) * np.array([1, 0.95, 0.9]))
                )
        else:
            shine = -rng.uniform(3, 8) if hot else max(rng.uniform(28, 33) - air, 4) * rng.uniform(0.4, 0.8)
            solids.append(mirror(place, near_air, shine, rng))
    return solids


# --------------------------------------------------------------------------------------------------- the set on disk


def draw(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[Scene, Pictures]:
    """Makes image `index` of a split; nothing else decides what it shows."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    scene = build_scene(rng, size)
    return scene, render(scene, rng)


def generate(
    root: Path, counts: dict[str, int] | None = None, seed: int = 0, size: tuple[int, int] = (192, 256)
) -> Path:
    """Writes the set below `root` and returns its card, `root/card.yaml`, which is there only when all else is.

    `counts` maps a split to its number of images, `COUNTS` if not given; `size` is height and width. RGB is JPEG,
    thermal PNG of 16-bit counts (7000 at 0 degrees Celsius, 40 a degree), depth PNG of 16-bit millimetres, 0 a hole.
    An annotation's `shows_in` names the sensors that can see the object.

    Raises:
        UserError: a count, the size or the seed is out of range, or `root` can't be written.
    """
    counts = COUNTS if counts is None else counts
    if not counts or min(counts.values()) < 1:
        raise UserError(
            f"counts: {counts!r} leaves a split empty; give at least 1 image for each of at least one split"
        )
    if min(size) < 64:
        raise UserError(f"size: {size!r} is too small for the scenes; give a height and width of at least 64 pixels")
    if seed < 0:
        raise UserError(f"seed: {seed!r} is negative; give 0 or more")
    card = root / "card.yaml"
    try:
        card.unlink(missing_ok=True)
        with tqdm(total=sum(counts.values()), desc=f"drawing {root.name}", unit="image") as bar:
            for split, count in counts.items():
                _write_split(root, split, count, seed, size, bar)
        save_yaml(card, _card(counts, seed, size))
    except OSError as error:
        raise UserError(f"{error.filename or root}: {error.strerror}; give a folder that can be written") from None
    return card


def _write_split(root: Path, split: str, count: int, seed: int, size: tuple[int, int], bar: Any) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene, pictures = draw(seed, split, index, size)
        stem = f"{split}/{index + 1:06d}"
        files = {"rgb": f"rgb/{stem}.jpg", "thermal": f"thermal/{stem}.png", "depth": f"depth/{stem}.png"}
        _write_image(root / files["rgb"], pictures.rgb, format="JPEG", quality=95)
        _write_image(root / files["thermal"], pictures.thermal, format="PNG", compress_level=1)
        _write_image(root / files["depth"], pictures.depth, format="PNG", compress_level=1)
        images.append(
            {
                "id": index + 1,
                "file_name": files["rgb"],
                "modalities": files,
                "width": size[1],
                "height": size[0],
                "condition": scene.condition,
            }
        )
        for box, label, area, shows_in in zip(
            pictures.boxes.tolist(), pictures.labels, pictures.areas, pictures.shows_in, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": area,
                    "iscrowd": 0,
                    "shows_in": list(shows_in),
                }
            )
        bar.update()
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    listing = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(root / f"{split}.json", json.dumps(listing).encode())


def _write_image(path: Path, pixels: Array, **options: Any) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, **options)
    write_whole(path, content.getvalue())


def _card(counts: dict[str, int], seed: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": "Synthetic streets",
        "root": ".",
        "reader": "coco",
        "modalities": {
            "rgb": {"channels": 3},
            "thermal": {"channels": 1},
            "depth": {"channels": 1, "encoding": "inverse_depth", "unit": 0.001, "near": NEAR, "far": FAR},
        },
        "classes": list(CLASSES),
        "splits": {split: f"{split}.json" for split in counts},
        "conditions": ["day", "night"],
        "source": "rendered by mmfuse.embedded.dataset",
        "notes": f"seed {seed}, {size[0]} x {size[1]} pixels, "
        + ", ".join(f"{count} {split}" for split, count in counts.items()),
    }
