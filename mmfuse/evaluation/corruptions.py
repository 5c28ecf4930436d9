"""What sensors suffer in the field, at severities 1 to 5, as functions of raw images.

After ImageNet-C (Hendrycks & Dietterich, "Benchmarking neural network robustness", ICLR 2019) and its use on detectors
(Michaelis et al., "Benchmarking robustness in object detection", 2019), for any sensor: a share of its range is what is
a share of 255 there. Strengths are ours where no source is named. Lengths in pixels are stated for images of 640
pixels' width and grow with the width.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.data.annotations.records import Record, own_objects
from mmfuse.data.transforms import STATED_WIDTH
from mmfuse.errors import UserError, unknown_name
from mmfuse.sensor import Sensor

SEVERITIES = 5
NOWHERE = torch.zeros(0, 4)
"""The boxes of an image without objects."""

_ABSOLUTE_ZERO = -273.15
_GAMMA = 2.2

_Change = Callable[[Tensor, Sensor, float, torch.Generator], Tensor]
_ObjectChange = Callable[[Tensor, Sensor, float, Tensor], Tensor]

UNSEEN = (
    *("frozen", "another_scene", "shift", "rotation"),
    *("blank_white", "constant"),
    *("fog", "lens_dirt"),
    *("agc", "range_cut"),
)
"""Corruptions that stay out of training, so that what a detector makes of faults that it never met can be measured.

They are kinds of their own, of which training sees no relative: images that are sound but of another time or place
(the first four), all of an image gone to one value (blank_white, constant; blank_black alone may be learnt), what lies
before a sensor (fog, lens_dirt), and processing (the last two).
"""


@dataclass(frozen=True)
class Corruption:
    """A fault of a sensor; `levels` are its strengths in `unit` at severities 1 to 5, `suits` tells which sensors."""

    name: str
    levels: tuple[float, float, float, float, float]
    unit: str
    suits: Callable[[Sensor], bool]

    @property
    def trainable(self) -> bool:
        """Whether training may use it; see `UNSEEN`."""
        return self.name not in UNSEEN


@dataclass(frozen=True)
class ImageCorruption(Corruption):
    """A fault that changes the pixels of each image."""

    change: _Change

    def __call__(self, image: Tensor, sensor: Sensor, severity: int, seed: int = 0, boxes: Tensor = NOWHERE) -> Tensor:
        """Returns a raw image (C, H, W) as it looks at `severity`, 0 (the image as it is) to 5.

        The result has the type of `image` and depends on the arguments alone. Chance is the same at all severities: a
        shift keeps its direction, holes grow. Gaps stay: NaN, and 0 in depth. `boxes` (N, 4) are the objects in it,
        xyxy as shares of its width and height; few corruptions ask for them.

        Raises:
            UserError: the severity isn't 0 to 5, or the corruption doesn't suit the sensor.
        """
        if severity not in range(SEVERITIES + 1):
            raise UserError(f"severity: {severity!r} is not allowed; use a whole number from 0 to {SEVERITIES}")
        if not self.suits(sensor):
            kind = f"{sensor.channels} channels of {sensor.encoding}"
            raise UserError(f"{self.name}: doesn't suit a sensor with {kind}; use another corruption")
        if severity == 0:
            return image
        state = np.random.SeedSequence([seed % 2**64, zlib.crc32(self.name.encode())]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        values = self._changed(image, sensor, self.levels[severity - 1], generator, boxes)
        if image.is_floating_point():
            return values.to(image.dtype)
        limits = torch.iinfo(image.dtype)
        return values.round().clamp(limits.min, limits.max).to(image.dtype)

    def _changed(
        self, image: Tensor, sensor: Sensor, level: float, generator: torch.Generator, boxes: Tensor
    ) -> Tensor:
        return self.change(image, sensor, level, generator)


@dataclass(frozen=True)
class ObjectCorruption(ImageCorruption):
    """A fault that changes how the objects of an image look."""

    change: _ObjectChange  # type: ignore[assignment]

    def _changed(
        self, image: Tensor, sensor: Sensor, level: float, generator: torch.Generator, boxes: Tensor
    ) -> Tensor:
        return self.change(image, sensor, level, boxes)


def faulty(image_ids: Sequence[int], severity: int, seed: int = 0) -> set[int]:
    """Returns which images a fault of whole images strikes: `severity` of 5, with those of lower severities."""
    ids = sorted(image_ids)
    order = np.random.default_rng([seed % 2**64, len(ids)]).permutation(len(ids))
    return {ids[i] for i in order[: round(len(ids) * severity / SEVERITIES)]}


def _any(sensor: Sensor) -> bool:
    return True


def _depth(sensor: Sensor) -> bool:
    return sensor.is_depth


def _intensity(sensor: Sensor) -> bool:
    return not sensor.is_depth


def _colour(sensor: Sensor) -> bool:
    return not sensor.is_depth and sensor.channels == 3


def _one_channel(sensor: Sensor) -> bool:
    return not sensor.is_depth and sensor.channels == 1


def _in_place(sensor: Sensor) -> bool:
    """Tells whether boxes of the reference lie in the raw image as they do in the reference's."""
    return sensor.register in ("none", "resize")


def _colour_in_place(sensor: Sensor) -> bool:
    return _colour(sensor) and _in_place(sensor)


def _one_channel_in_place(sensor: Sensor) -> bool:
    return _one_channel(sensor) and _in_place(sensor)


def _shift(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    angle = 2 * torch.pi * torch.rand((), generator=generator)
    _, height, width = image.shape
    length = level * width / STATED_WIDTH
    x = max(-width, min(width, round(length * float(angle.cos()))))
    y = max(-height, min(height, round(length * float(angle.sin()))))
    shifted = _fill(image, sensor)[:, None, None].repeat(1, height, width)
    part = image[:, max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
    shifted[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = part.to(torch.float32)
    return shifted


def _rotate(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    angle = torch.deg2rad(torch.tensor(level)) * _sign(generator)
    _, height, width = image.shape
    x = torch.arange(width) - (width - 1) / 2
    y = torch.arange(height)[:, None] - (height - 1) / 2
    from_x, from_y = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    grid = torch.stack((2 * from_x / max(width - 1, 1), 2 * from_y / max(height - 1, 1)), -1)
    fill = _fill(image, sensor)[:, None, None]
    above = (image.to(torch.float32) - fill)[None]
    return F.grid_sample(above, grid[None], sensor.interpolation, "zeros", align_corners=True)[0] + fill


def _expose(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    low, high = _span(image, sensor)
    share = (image.to(torch.float32) - low) / (high - low)
    return low + (high - low) * (share * 2 ** (level / _GAMMA)).clamp(max=1)


def _blur(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Averages over what was measured, which ends at the edges and at NaN; NaN stays where it is."""
    sigma = level * image.shape[2] / STATED_WIDTH
    along_y, along_x = (
        torch.exp(-(((places[:, None] - places) / sigma) ** 2) / 2) for places in map(torch.arange, image.shape[1:])
    )
    there = ~image.to(torch.float32).isnan()
    total = along_y @ torch.where(there, image.to(torch.float32), 0) @ along_x
    return torch.where(there, total / (along_y @ there.to(torch.float32) @ along_x), torch.nan)


def _fog(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Koschmieder's law with one transmission for the whole image: `t * image + (1 - t) * airlight`.

    The airlight is bright in colours, the 90th percentile of all channels; air is as warm as the mean of other images.
    """
    values = image.to(torch.float32)
    airlight = _quantiles(image, 0.9)[0] if _colour(sensor) else float(values.nanmean())
    return level * values + (1 - level) * airlight


def _gain(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Changes the gain about the middle of the range, by `1 + level` or its inverse, and the offset by half of that."""
    low, high = _span(image, sensor)
    gain = (1 + level) ** _sign(generator)
    middle = (low + high) / 2
    offset = _sign(generator) * level / 2 * (high - low)
    return (image.to(torch.float32) - middle) * gain + middle + offset


def _agc(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Shows 256 steps between limits that moved from the sensor's range towards the image's 1st and 99th percentile."""
    low, high = _span(image, sensor)
    own_low, own_high = _quantiles(image, 0.01, 0.99)
    bottom, top = low + level * (own_low - low), high + level * (own_high - high)
    share = ((image.to(torch.float32) - bottom) / max(top - bottom, 1e-6)).clamp(0, 1)
    return low + (high - low) * (255 * share).round() / 255


def _whiten(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    return _towards(_span(image, sensor)[1], image, sensor, level, generator)


def _blacken(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    return _towards(0.0 if sensor.is_depth else _span(image, sensor)[0], image, sensor, level, generator)


def _level_out(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    low, high = _span(image, sensor)
    value = low + (high - low) * float(torch.rand((), generator=generator))
    return _towards(value, image, sensor, level, generator)


def _towards(value: float, image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Brings all pixels `level` of the way to a value; of depth, which must not be mixed, that share all the way.

    Depth has no value where nothing was measured.
    """
    values = image.to(torch.float32)
    if not sensor.is_depth:
        return values + level * (value - values)
    reached = torch.rand(image.shape, generator=generator) < level
    return torch.where(reached & (sensor.metres(image)[1] > 0), value, values)


def _kill(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Sticks `level` of the pixels, and of the columns, at black or white; of depth they measure nothing."""
    _, height, width = image.shape
    low, high = (0.0, 0.0) if sensor.is_depth else _span(image, sensor)
    values = image.to(torch.float32)
    for rows in (height, 1):
        dead, side = torch.rand(2, rows, width, generator=generator)
        values = torch.where((dead < level) & ~values.isnan(), torch.where(side < 0.5, low, high), values)
    return values


def _soil(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Lays patches of dirt, out of focus, over `level` of the image, which hide nine tenths of what lies behind.

    Dirt is dark in colours; a window's is as warm as the mean of other images.
    """
    values = image.to(torch.float32)
    hills = _hills(8, image.shape[1], image.shape[2], generator)
    edge = hills.flatten().kthvalue(max(1, round((1 - level) * hills.numel()))).values
    hidden = 0.9 * ((hills - edge) / (0.25 * hills.std(correction=0).clamp(min=1e-6))).clamp(0, 1)
    mean = float(values.nanmean())
    low = _span(image, sensor)[0]
    dirt = low + (mean - low) / 4 if _colour(sensor) else mean
    return values + hidden * (dirt - values)


def _hide(image: Tensor, sensor: Sensor, level: float, boxes: Tensor) -> Tensor:
    """Takes `level` of what sets each object apart from what is behind it, which is drawn through from its box's rim.

    So objects become as warm as their surroundings, as at dawn and dusk, or take their colours. The largest go first,
    in whatever order the boxes come; where they overlap, rims show what is left of the other.
    """
    values = image.to(torch.float32, copy=True)
    _, height, width = image.shape
    size = boxes.new_tensor([width, height, width, height])
    for x1, y1, x2, y2 in sorted((boxes * size).round().int().tolist(), key=lambda b: (b[0] - b[2]) * (b[3] - b[1])):
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if x1 >= x2 or y1 >= y2:
            continue
        inside = values[:, y1:y2, x1:x2]
        behind = _drawn_through(values, x1, y1, x2, y2)
        values[:, y1:y2, x1:x2] = inside + level * (behind - inside)
    return values


def _drawn_through(values: Tensor, x1: int, y1: int, x2: int, y2: int) -> Tensor:
    """Returns (C, h, w): the mean of straight lines across a box, from rim to rim, along rows and along columns."""
    along_rows = _lines(values[:, y1:y2], x1, x2)
    along_columns = [line.mT for line in _lines(values[:, :, x1:x2].mT, y1, y2)]
    lines = along_rows + along_columns
    mean = values.nanmean()
    drawn = torch.stack(lines).mean(0) if lines else mean.expand(len(values), y2 - y1, x2 - x1)
    return torch.where(drawn.isnan(), mean, drawn)


def _lines(rows: Tensor, start: int, end: int) -> list[Tensor]:
    """Returns rows (C, h, W) between two places as straight lines (C, h, w), none where both rims lie outside."""
    rims = [rows[:, :, place] for place in (start - 1, end) if 0 <= place < rows.shape[2]]
    share = (torch.arange(end - start) + 1) / (end - start + 1)
    return [rims[0][..., None] * (1 - share) + rims[-1][..., None] * share] if rims else []


def _add_pattern(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    low, high = _span(image, sensor)
    _, height, width = image.shape
    columns, pixels = (torch.randn(1, rows, width, generator=generator) for rows in (1, height))
    return image.to(torch.float32) + level * (high - low) * (columns + pixels)


def _add_noise(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    low, high = _span(image, sensor)
    return image.to(torch.float32) + level * (high - low) * torch.randn(image.shape, generator=generator)


def _add_depth_noise(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    metres, valid = sensor.metres(image)
    inverse = 1 / torch.where(valid > 0, metres, sensor.far)
    nearest, farthest = 1 / sensor.near, 1 / sensor.far
    noisy = inverse + level * (nearest - farthest) * torch.randn(image.shape, generator=generator)
    noisy = noisy.clamp(inverse.clamp(max=farthest), inverse.clamp(min=nearest))
    raw = sensor.disparity[0] * noisy + sensor.disparity[1] if sensor.disparity else 1 / (noisy * sensor.unit)
    raw = raw if image.is_floating_point() else raw.clamp(min=1)
    return torch.where(valid > 0, raw, image.to(torch.float32))


def _make_holes(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Cuts out the highest `level` of smooth random hills, some 20 pixels wide at 640 pixels' width."""
    height, width = image.shape[1:]
    hills = _hills(32, height, width, generator).flatten()
    kept = torch.ones_like(hills)
    kept[hills.topk(round(level * hills.numel())).indices] = 0
    return torch.where(kept.view(height, width) > 0, image.to(torch.float32), 0)


def _hills(across: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Returns a smooth random landscape (H, W) with so many heights across its width."""
    coarse = torch.randn(1, 1, max(2, across * height // width), across, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bilinear")[0, 0]


def _cut_range(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Drops what is farther than `near * (far / near) ** level`."""
    farthest = sensor.near * (sensor.far / sensor.near) ** level
    return torch.where(sensor.metres(image)[0] > farthest, 0, image.to(torch.float32))


def _span(image: Tensor, sensor: Sensor) -> tuple[float, float]:
    """Returns black and white in raw values: the sensor's range, that of 8 bits, or the image's own extremes.

    Of depth they are near and far.
    """
    if sensor.is_depth:
        near, far = (
            sensor.disparity[0] / metres + sensor.disparity[1] if sensor.disparity else metres / sensor.unit
            for metres in (sensor.near, sensor.far)
        )
        return near, far
    if sensor.range:
        low, high = sensor.range
        if sensor.encoding == "celsius":
            low, high = ((v - _ABSOLUTE_ZERO) / sensor.unit for v in (low, high))
        return low, high
    if image.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = _quantiles(image, 0.001, 0.999)
    return low, max(high, low + 1e-6)


def _quantiles(image: Tensor, *shares: float) -> list[float]:
    values = image.to(torch.float32).numpy()
    finite = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(finite, shares)] if finite.size else [0.0] * len(shares)


def _fill(image: Tensor, sensor: Sensor) -> Tensor:
    """Returns the raw value of each channel (C,) outside the image: the sensor's fill, invalid for depth.

    The fill of intensity that is stretched image by image isn't raw: there it is the image's own mean.
    """
    if sensor.is_depth:
        return torch.zeros(len(image))
    if sensor.encoding in ("intensity", "celsius"):
        return torch.tensor(sensor.fill)
    return image.to(torch.float32).flatten(1).nanmean(1)


def _sign(generator: torch.Generator) -> int:
    return int(torch.randint(2, (), generator=generator)) * 2 - 1


_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)

MISSING = Corruption("missing", _SHARES, "of the images lack the sensor", _any)
FROZEN = Corruption("frozen", _SHARES, "of the images show the sensor's previous frame, whose bits are the same", _any)
ANOTHER_SCENE = Corruption("another_scene", _SHARES, "of the images show the sensor's frame of another scene", _any)

_WAYS = (0.5, 0.7, 0.85, 0.95, 1.0)
_APART = "of what sets objects apart from what is behind them"

CORRUPTIONS: tuple[Corruption, ...] = (
    MISSING,
    FROZEN,
    ANOTHER_SCENE,
    ImageCorruption("blank_white", _WAYS, "of the way to white", _any, _whiten),
    ImageCorruption("blank_black", _WAYS, "of the way to black, or to no depth", _any, _blacken),
    ImageCorruption("constant", _WAYS, "of the way to one value of the range", _any, _level_out),
    ImageCorruption("dead_pixels", (0.005, 0.01, 0.02, 0.05, 0.1), "of the pixels and of the columns", _any, _kill),
    ImageCorruption("shift", (4, 8, 15, 22, 30), "px in any direction, at 640 px width", _any, _shift),
    ImageCorruption("rotation", (1, 2.5, 5, 7.5, 10), "degrees, either way", _any, _rotate),
    ImageCorruption("under_exposure", (-1, -2, -3, -4, -5), "stops, at gamma 2.2", _colour, _expose),
    ImageCorruption("over_exposure", (0.5, 1, 1.5, 2, 3), "stops, at gamma 2.2", _colour, _expose),
    ImageCorruption("blur", (1, 2, 3, 4, 6), "px of sigma (ImageNet-C), at 640 px width", _intensity, _blur),
    ImageCorruption("fog", (0.7, 0.5, 0.35, 0.2, 0.1), "of the contrast left (Koschmieder)", _intensity, _fog),
    ImageCorruption("lens_dirt", (0.05, 0.1, 0.2, 0.35, 0.5), "of the image", _intensity, _soil),
    ObjectCorruption("camouflage", _WAYS, _APART, _colour_in_place, _hide),
    ObjectCorruption("crossover", _WAYS, _APART, _one_channel_in_place, _hide),
    ImageCorruption("gain", (0.1, 0.2, 0.3, 0.4, 0.5), "change of gain, half of it of offset", _one_channel, _gain),
    ImageCorruption("agc", _SHARES, "of the way to 8 bits over the image's own range", _one_channel, _agc),
    ImageCorruption(
        "nonuniformity",
        (0.01, 0.02, 0.04, 0.07, 0.1),
        "of the range: sigma of columns and of pixels",
        _one_channel,
        _add_pattern,
    ),
    ImageCorruption(
        "noise", (0.08, 0.12, 0.18, 0.26, 0.38), "of the range: sigma (ImageNet-C)", _intensity, _add_noise
    ),
    ImageCorruption(
        "depth_noise",
        (0.0025, 0.005, 0.01, 0.02, 0.04),
        "of the range of inverse depth: sigma, which grows with depth squared",
        _depth,
        _add_depth_noise,
    ),
    ImageCorruption("depth_holes", (0.1, 0.2, 0.35, 0.5, 0.7), "of the image", _depth, _make_holes),
    ImageCorruption("range_cut", (0.9, 0.8, 0.7, 0.6, 0.5), "of the way from near to far, in log", _depth, _cut_range),
)
"""All corruptions; pictures and tables keep this order.

Noise of depth follows Khoshelham & Elberink, "Accuracy and resolution of Kinect depth data" (Sensors 2012): its
error grows with depth squared. Columns and pixels are the fixed terms of the 3-D noise model of thermal cameras
(D'Agostino & Webb, 1991); the pattern is drawn anew for each image.
"""


def corrupt(image: Tensor, sensor: Sensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Returns a raw image (C, H, W) under the corruption of that name; see `ImageCorruption`.

    Raises:
        UserError: no corruption of images has the name, it doesn't suit the sensor, or the severity isn't 0 to 5.
    """
    known = {c.name: c for c in CORRUPTIONS if isinstance(c, ImageCorruption)}
    if name not in known:
        raise UserError(f"corruption: {unknown_name(name, known, 'corruption of images')}")
    return known[name](image, sensor, severity, seed)


def trainable(sensor: Sensor) -> tuple[Corruption, ...]:
    """Returns the corruptions that suit a sensor and may be used in training, "missing" first, those of objects last.

    All but "missing" are functions of raw images.
    """
    suiting = [c for c in CORRUPTIONS if c.trainable and c.suits(sensor)]
    return tuple(sorted(suiting, key=lambda c: isinstance(c, ObjectCorruption)))


def objects_in(record: Record, modality: str, sensor: Sensor) -> Tensor:
    """Returns the objects (N, 4) in the image of a modality, xyxy as shares of its width and height."""
    objects = own_objects(record, modality, sensor) or record
    size = np.array([record.width, record.height, record.width, record.height], np.float32)
    return torch.from_numpy(objects.boxes / size)
