"""How RGB, thermal and depth cameras see a scene, each in its own way."""

from dataclasses import dataclass

import numpy as np

from mmfuse.embedded.solids import FAR, Array, Camera, View, dot, trace
from mmfuse.embedded.street import Scene

OVERSAMPLING = 2
COUNT_AT_ZERO, COUNTS_PER_DEGREE = 7000, 40
SMALLEST_SHARE, SMALLEST_AREA, SMALLEST_SIDE = 0.35, 40, 5


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
            away = dot(points.T, points.T)[:, None] * nearness[felt] - points @ slopes[:, felt] + offsets[felt]
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
