"""Draws street scenes: weather, road, houses, and who is there.

Some objects show in one sensor only, for the reasons that hold on a street: at night the unlit are lost in the RGB
noise, and what has cooled to the air's temperature is lost in thermal; a hot day hides people in thermal, fog and low
sun hide them in RGB. Posters are people in RGB only; panes that mirror a warm passer-by are people in thermal only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmfuse.embedded.solids import Array, Camera, Look, Solid
from mmfuse.embedded.things import Place, Warmth, bicycle, car, mirror, person, poster


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

    @property
    def struck(self) -> tuple[str, ...]:
        """The sensors that the weather washes out: fog and a low sun leave RGB without objects of its own."""
        return ("rgb",) if self.fog or self.glare else ()


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
