"""What stands in a street: people, cars, bicycles, and what looks like people to one sensor alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmfuse.embedded.solids import Array, Look, Shape, Solid

CLASSES = ("person", "car", "bicycle")


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
