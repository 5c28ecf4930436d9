"""What one sensor delivers and how its raw pixels become network input; the same in training, scores and prediction.

Three steps lead there. Files are read into *raw* images, in the sensor's own unit. *Preparing* does what needs the
whole image (`images.encodings`: percentiles, CLAHE, normals, HHA, colours) or the rig (`images.geometry`);
for all other sensors a prepared image is the raw one. *Encoding*, here, works pixel by pixel and thus on any part of an
image.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmfuse.errors import UserError, require, unknown_name

Matrix = tuple[tuple[float, ...], ...]

IDENTITY: Matrix = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_DISTORTIONS = (0, 4, 5, 8)


@dataclass(frozen=True)
class Calibration:
    """A camera, or a sensor that gives points (which has a pose alone).

    `size` is width and height in pixels, `intrinsics` fx, fy, cx, cy for an image of that size; the centre of the top
    left pixel is (0, 0). `distortion` is k1, k2, p1, p2[, k3[, k4, k5, k6]] as OpenCV has them, empty for none. `pose`
    (3 x 4 or 4 x 4) takes points of the sensor, in metres, to the rig: x right, y down, z ahead for a camera.
    """

    size: tuple[int, int] | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    distortion: tuple[float, ...] = ()
    pose: Matrix = IDENTITY

    def __post_init__(self) -> None:
        for name in ("size", "intrinsics", "distortion"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))  # a list where it was JSON
        rows = tuple(tuple(float(v) for v in row) for row in self.pose)
        if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
            raise UserError(f"pose: {[list(row) for row in rows]} is not 3 x 4 or 4 x 4; write its rows")
        rows = (*rows[:3], IDENTITY[3])
        object.__setattr__(self, "pose", rows)
        rotation = [row[:3] for row in rows[:3]]
        products = [sum(a * b for a, b in zip(p, q, strict=True)) for p in rotation for q in rotation]
        identity = (1, 0, 0, 0, 1, 0, 0, 0, 1)
        orthogonal = all(abs(v - one) < 1e-2 for v, one in zip(products, identity, strict=True))
        if not orthogonal or _determinant(rotation) < 0:
            raise UserError(f"pose: {rotation} is not a rotation; write rotation and translation (metres) side by side")
        size, camera, fix = self.size, self.intrinsics, "use [fx, fy, cx, cy], fx and fy > 0"
        require(size is None or min(size) >= 1, "size", size, "use [width, height] in pixels")
        require(camera is None or len(camera) == 4, "intrinsics", camera, fix)
        require(camera is None or min(camera[:2]) > 0, "intrinsics", camera, fix)
        fix = "use k1, k2, p1, p2[, k3[, k4, k5, k6]]"
        require(len(self.distortion) in _DISTORTIONS, "distortion", self.distortion, fix)

    def scaled(self, size: tuple[int, int]) -> "Calibration":
        """Returns the calibration of the same camera for an image resized to `size` (width, height)."""
        if self.size is None or self.size == size or self.intrinsics is None:
            return Calibration(size, self.intrinsics, self.distortion, self.pose)
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        fx, fy, cx, cy = self.intrinsics
        centre = ((cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5)
        return Calibration(size, (fx * x, fy * y, *centre), self.distortion, self.pose)


def _determinant(m: list[tuple[float, ...]]) -> float:
    (a, b, c), (d, e, f), (g, h, i) = m
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


Encoding = Literal[
    "intensity", "celsius", "percentile", "clahe",
    "inverse_depth", "metres", "log_depth", "normals", "hha", "depth_colours",
]  # fmt: skip
DEPTH = ("inverse_depth", "metres", "log_depth", "normals", "hha", "depth_colours")
WHOLE_IMAGE = {"percentile": 1, "clahe": 1, "normals": 4, "hha": 4, "depth_colours": 4}
"""Encodings that need the whole image, and the channels of what is prepared for them: depth has validity last."""

_ABSOLUTE_ZERO = -273.15
_LEAST_KELVIN = 200 / 65535


@dataclass(frozen=True)
class Sensor:
    """One modality's sensor.

    `channels` counts those of the file. `encoding` says what the network sees.

    - "intensity": each channel as it is; with a `range` (raw values), clipped to it and scaled to [0, 1]. Files deeper
      than 8 bit get the range of the training split, its 0.1 and 99.9 percentiles, where none is given.
    - "celsius": raw values times `unit` are kelvin; clipped to `range` (degrees Celsius) and scaled to [0, 1].
    - "percentile", "clahe": stretched by the image's own percentiles, or by local histograms, to [0, 1].
    - "inverse_depth" (`1 / metres` clipped to [`near`, `far`], scaled to [0, 1]), "metres" and "log_depth" (clipped
      likewise), "normals", "hha", "depth_colours": depth, with a last channel of validity.

    Depth is raw values times `unit` in metres, or with a `disparity` (a, b) it is a / (raw - b); 0 and what isn't
    finite is invalid. `counts` undoes what some files do to 16-bit numbers: "rotated" by 3 bits (SUN RGB-D) or with
    their bytes "swapped". `nodata` lists the raw values that mean "not measured". `gravity` is its direction in the
    rig, for hha; the camera's down where not given.

    `border` (left, top, right, bottom) pixels of the file show nothing and are cut off; all else, `calibration` too, is
    of the image within it. `register` brings the image to
    the frame of the reference camera `onto`: "resize" where both see the same, "homography" by a 3 x 3 matrix from own
    pixels to the reference's, "rig" by `calibration` through depth. `dtype` is the pixel type of the files, `mean` and
    `std` are those of the encoded channels on the training split, `seen` the 0.1 and 99.9 percentiles of raw values
    there; empty until measured. `gaps` tells whether images there have pixels where nothing was measured.
    """

    channels: int
    encoding: Encoding = "intensity"
    unit: float = 0.001
    near: float = 0.5
    far: float = 20.0
    range: tuple[float, ...] = ()
    disparity: tuple[float, ...] = ()
    counts: Literal["plain", "rotated", "swapped"] = "plain"
    nodata: tuple[float, ...] = ()
    gravity: tuple[float, ...] = ()
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    register: Literal["none", "resize", "homography", "rig"] = "none"
    homography: Matrix = ()
    calibration: Calibration | None = None
    onto: Calibration | None = None
    dtype: Literal["", "uint8", "uint16", "float32"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    seen: tuple[float, ...] = ()
    gaps: bool = False

    def __post_init__(self) -> None:
        for name in ("range", "disparity", "nodata", "gravity", "border", "homography", "mean", "std", "seen"):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in getattr(self, name))
            object.__setattr__(self, name, value)  # a list where it was read from JSON
        for name in ("calibration", "onto"):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, Calibration(**value))
        if self.encoding not in get_args(Encoding):
            raise UserError(f"encoding: {unknown_name(self.encoding, get_args(Encoding), 'encoding')}")
        celsius, kind = self.encoding == "celsius", f"for encoding {self.encoding}"
        require(self.channels >= 1, "channels", self.channels, "use at least 1")
        if self.is_depth or celsius:
            require(self.channels == 1, "channels", self.channels, f"use 1 {kind}")
        require(self.unit > 0, "unit", self.unit, "use a positive number, metres per count or kelvin per count")
        if celsius:
            require(self.range, "range", self.range, f"give [lowest, highest] in degrees Celsius {kind}")
            require(self.unit >= _LEAST_KELVIN, "unit", self.unit, f"give kelvin per count, such as 0.01, {kind}")
        if self.range:
            require(len(self.range) == 2, "range", self.range, "use [lowest, highest]")
            require(self.range[0] < self.range[-1], "range", self.range, "use [lowest, highest]")
            require(self.encoding in ("intensity", "celsius"), "range", self.range, f"leave it out {kind}")
        if self.is_depth:
            require(0 < self.near < self.far, "near, far", (self.near, self.far), "use 0 < near < far (metres)")
        if self.disparity:
            require(self.is_depth, "disparity", self.disparity, "leave it out: this isn't depth")
            require(len(self.disparity) == 2, "disparity", self.disparity, "use [a, b] of a / (raw - b)")
            require(self.disparity[0] != 0, "disparity", self.disparity, "use [a, b] of a / (raw - b)")
        if self.counts != "plain":
            require(self.channels == 1, "counts", self.counts, "use plain for several channels")
        if self.gravity:
            require(len(self.gravity) == 3, "gravity", self.gravity, "use a direction [x, y, z]")
            require(any(self.gravity), "gravity", self.gravity, "use a direction [x, y, z]")
        require(len(self.border) == 4, "border", self.border, "use [left, top, right, bottom] pixels")
        require(min(self.border) >= 0, "border", self.border, "use [left, top, right, bottom] pixels")
        if self.register == "homography":
            require(self.homography, "homography", self.homography, "write 3 x 3 for this register")
        if self.homography:
            square = len(self.homography) == 3 and all(len(row) == 3 for row in self.homography)
            require(square, "homography", self.homography, "write 3 x 3")
        require(len(self.seen) in (0, 2), "seen", self.seen, "use [lowest, highest]")
        require(all(s > 0 for s in self.std), "std", self.std, "use positive numbers")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.encoded_channels:
                found = f"{list(values)} has {len(values)} entries"
                raise UserError(f"{name}: {found}; give {self.encoded_channels} or none")

    @property
    def is_depth(self) -> bool:
        """Whether it measures distance."""
        return self.encoding in DEPTH

    @property
    def prepared_channels(self) -> int:
        """Channels of a prepared image."""
        return self.channels if self.encoding not in WHOLE_IMAGE else max(self.channels, WHOLE_IMAGE[self.encoding])

    @property
    def encoded_channels(self) -> int:
        """Channels after encoding, which the backbone reads."""
        return 2 if self.is_depth and self.encoding not in WHOLE_IMAGE else self.prepared_channels

    @property
    def interpolation(self) -> str:
        """How images of this sensor may be resized: depth must not be mixed over an edge."""
        return "nearest" if self.is_depth else "bilinear"

    @property
    def fill(self) -> tuple[float, ...]:
        """Prepared value of each channel outside the image: the mean, which encodes to zero; invalid for depth."""
        if self.is_depth or not self.mean:
            return (0.0,) * self.prepared_channels
        if not self.range:
            return self.mean
        low, high = self.range
        values = (low + mean * (high - low) for mean in self.mean)
        return tuple((v - _ABSOLUTE_ZERO) / self.unit if self.encoding == "celsius" else v for v in values)

    @property
    def shown_as_read(self) -> tuple[torch.dtype, ...]:
        """Types of raw images whose pixels the detector is shown just as they are, but for their scale."""
        changed = self.nodata or any(self.border) or self.counts != "plain" or self.encoding in WHOLE_IMAGE
        if changed or self.register != "none":
            return ()
        integers = (torch.uint8, torch.uint16)
        return tuple(kind for kind in integers if self.dtype in ("", str(kind).removeprefix("torch.")))

    def whole(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the width and height of a file whose image within the border has `size`."""
        left, top, right, bottom = self.border
        return size[0] + left + right, size[1] + top + bottom

    def measured(self, raw: Tensor) -> Tensor:
        """Returns raw pixels in which those of a value of `nodata` are NaN, or 0 of depth in its own type.

        Intensity of a sensor with such values becomes float32, whether or not these pixels have any.
        """
        if not self.nodata:
            return raw
        values = raw.to(torch.float32)
        missing = torch.isin(values, values.new_tensor(self.nodata))
        return raw.where(~missing, 0) if self.is_depth else values.masked_fill(missing, torch.nan)

    def metres(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns depth in metres, 0 where it is invalid, and its validity, both float32 of the shape of `raw`."""
        values = self.measured(raw).to(torch.float32)
        metres = self.disparity[0] / (values - self.disparity[1]) if self.disparity else values * self.unit
        valid = (metres > 0) & metres.isfinite() & (values != 0)
        return torch.where(valid, metres, 0), valid.to(torch.float32)

    def encode(self, prepared: Tensor) -> Tensor:
        """Turns prepared pixels (B, C, H, W) into float32 (B, encoded_channels, H, W), not yet normalised."""
        if self.encoding in WHOLE_IMAGE:
            return prepared.to(torch.float32)
        if not self.is_depth:
            values = prepared.to(torch.float32)
            if self.encoding == "celsius":
                values = values * self.unit + _ABSOLUTE_ZERO
            if not self.range:
                return values
            low, high = self.range
            return ((values - low) / (high - low)).clamp(0, 1)
        metres, valid = self.metres(prepared)
        clipped = torch.where(valid > 0, metres, self.far).clamp(self.near, self.far)
        if self.encoding == "inverse_depth":
            clipped = (1 / clipped - 1 / self.far) / (1 / self.near - 1 / self.far)
        elif self.encoding == "log_depth":
            clipped = clipped.log()
        return torch.cat((clipped * valid, valid), dim=1)

    def without_gaps(self, prepared: Tensor) -> Tensor:
        """Returns prepared pixels (..., C, H, W) in which NaN, where there is no measurement, is the fill."""
        if self.is_depth or not prepared.is_floating_point():
            return prepared
        return torch.where(prepared.isnan(), prepared.new_tensor(self.fill)[:, None, None], prepared)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON or YAML; `Sensor(**values)` reads them back."""
        return asdict(self)
