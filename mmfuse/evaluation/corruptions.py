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

from mmfuse.data.transforms import STATED_WIDTH
from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

SEVERITIES = 5
_ABSOLUTE_ZERO = -273.15
_GAMMA = 2.2

_Change = Callable[[Tensor, Sensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A fault of a sensor; `levels` are its strengths in `unit` at severities 1 to 5, `suits` tells which sensors."""

    name: str
    levels: tuple[float, float, float, float, float]
    unit: str
    suits: Callable[[Sensor], bool]


@dataclass(frozen=True)
class ImageCorruption(Corruption):
    """A fault that changes the pixels of each image."""

    change: _Change

    def __call__(self, image: Tensor, sensor: Sensor, severity: int, seed: int = 0) -> Tensor:
        """Returns a raw image (C, H, W) as it looks at `severity`, 0 (the image as it is) to 5.

        The result has the type of `image` and depends on the arguments alone. Chance is the same at all severities: a
        shift keeps its direction, holes grow. Gaps stay: NaN, and 0 in depth.

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
        values = self.change(image, sensor, self.levels[severity - 1], generator)
        if image.is_floating_point():
            return values.to(image.dtype)
        limits = torch.iinfo(image.dtype)
        return values.round().clamp(limits.min, limits.max).to(image.dtype)


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
    coarse = torch.randn(1, 1, max(2, 32 * height // width), 32, generator=generator)
    hills = F.interpolate(coarse, (height, width), mode="bilinear")[0, 0].flatten()
    kept = torch.ones_like(hills)
    kept[hills.topk(round(level * hills.numel())).indices] = 0
    return torch.where(kept.view(height, width) > 0, image.to(torch.float32), 0)


def _cut_range(image: Tensor, sensor: Sensor, level: float, generator: torch.Generator) -> Tensor:
    """Drops what is farther than `near * (far / near) ** level`."""
    farthest = sensor.near * (sensor.far / sensor.near) ** level
    return torch.where(sensor.metres(image)[0] > farthest, 0, image.to(torch.float32))


def _span(image: Tensor, sensor: Sensor) -> tuple[float, float]:
    """Returns black and white in raw values: the sensor's range, that of 8 bits, or the image's own extremes."""
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
FROZEN = Corruption("frozen", _SHARES, "of the images show the sensor's previous frame", _any)

CORRUPTIONS: tuple[Corruption, ...] = (
    MISSING,
    FROZEN,
    ImageCorruption("shift", (4, 8, 15, 22, 30), "px in any direction, at 640 px width", _any, _shift),
    ImageCorruption("rotation", (1, 2.5, 5, 7.5, 10), "degrees, either way", _any, _rotate),
    ImageCorruption("under_exposure", (-1, -2, -3, -4, -5), "stops, at gamma 2.2", _colour, _expose),
    ImageCorruption("over_exposure", (0.5, 1, 1.5, 2, 3), "stops, at gamma 2.2", _colour, _expose),
    ImageCorruption("blur", (1, 2, 3, 4, 6), "px of sigma (ImageNet-C), at 640 px width", _intensity, _blur),
    ImageCorruption("fog", (0.7, 0.5, 0.35, 0.2, 0.1), "of the contrast left (Koschmieder)", _intensity, _fog),
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
