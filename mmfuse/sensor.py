"""What one sensor delivers and how its raw pixels become network input; the same in training, prediction and export.

Three steps lead there. Files are read into *raw* images, in the sensor's own unit. *Preparing* does what needs the
whole image (`data.encodings`: percentiles, CLAHE, normals, HHA, colours) or the rig (`data.geometry`); for all other
sensors a prepared image is the raw one. *Encoding*, here, works pixel by pixel and thus on any part of an image.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmfuse.calibration import Calibration, Matrix
from mmfuse.errors import UserError, unknown_name

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
    their bytes "swapped". `gravity` is its direction in the rig, for hha; the camera's down where not given.

    `border` (left, top, right, bottom) pixels of the file show nothing and are cut off; all else, `calibration` too, is
    of the image within it. `register` brings the image to
    the frame of the reference camera `onto`: "resize" where both see the same, "homography" by a 3 x 3 matrix from own
    pixels to the reference's, "rig" by `calibration` through depth. `dtype` is the pixel type of the files, `mean` and
    `std` are those of the encoded channels on the training split; empty until measured.
    """

    channels: int
    encoding: Encoding = "intensity"
    unit: float = 0.001
    near: float = 0.5
    far: float = 20.0
    range: tuple[float, ...] = ()
    disparity: tuple[float, ...] = ()
    counts: Literal["plain", "rotated", "swapped"] = "plain"
    gravity: tuple[float, ...] = ()
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    register: Literal["none", "resize", "homography", "rig"] = "none"
    homography: Matrix = ()
    calibration: Calibration | None = None
    onto: Calibration | None = None
    dtype: Literal["", "uint8", "uint16", "float32"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("range", "disparity", "gravity", "border", "homography", "mean", "std"):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in getattr(self, name))
            object.__setattr__(self, name, value)  # a list where it was read from JSON
        for name in ("calibration", "onto"):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, Calibration(**value))
        if self.encoding not in get_args(Encoding):
            raise UserError(f"encoding: {unknown_name(self.encoding, get_args(Encoding), 'encoding')}")
        limits = self.range or (0.0, 1.0)
        for holds, name, fix in (
            (self.channels >= 1, "channels", "use at least 1"),
            (self.channels == 1 or (not self.is_depth and self.encoding != "celsius"), "channels", "use 1"),
            (not self.is_depth or 0 < self.near < self.far, "near, far", "use 0 < near < far (metres)"),
            (self.unit > 0, "unit", "use a positive number, metres per count or kelvin per count"),
            (len(limits) == 2 and limits[0] < limits[1], "range", "use [lowest, highest]"),
            (not self.range or self.encoding in ("intensity", "celsius"), "range", "leave it out for this encoding"),
            (bool(self.range) or self.encoding != "celsius", "range", "give [lowest, highest] in degrees Celsius"),
            (self.encoding != "celsius" or self.unit >= _LEAST_KELVIN, "unit", "give kelvin per count, such as 0.01"),
            (len(self.disparity) in (0, 2) and all(self.disparity[:1]), "disparity", "use [a, b] of a / (raw - b)"),
            (not self.disparity or self.is_depth, "disparity", "leave it out: this isn't depth"),
            (self.counts == "plain" or self.channels == 1, "counts", "use plain for several channels"),
            (len(self.gravity) in (0, 3) and any(self.gravity or (1,)), "gravity", "use a direction [x, y, z]"),
            (len(self.border) == 4 and min(self.border) >= 0, "border", "use [left, top, right, bottom] pixels"),
            (len(self.homography) in (0, 3) and all(len(r) == 3 for r in self.homography), "homography", "write 3 x 3"),
            (bool(self.homography) or self.register != "homography", "homography", "write 3 x 3 for this register"),
            (all(s > 0 for s in self.std), "std", "use positive numbers"),
        ):
            if not holds:
                value = (self.near, self.far) if name == "near, far" else getattr(self, name)
                shown = list(value) if isinstance(value, tuple) else value
                where = "" if name in ("border", "homography", "std", "gravity") else f" for encoding {self.encoding}"
                raise UserError(f"{name}: {shown!r} is not allowed{where}; {fix}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.encoded_channels:
                raise UserError(
                    f"{name}: {list(values)} has {len(values)} entries; give {self.encoded_channels} or none"
                )

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

    def whole(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the width and height of a file whose image within the border has `size`."""
        left, top, right, bottom = self.border
        return size[0] + left + right, size[1] + top + bottom

    def check_prepared(self, modality: str, image: Tensor) -> None:
        """Raises a UserError for an image (B, C, H, W) that is raw where it must be prepared, or of another type."""
        kind, whole, floating = str(image.dtype)[6:], self.encoding in WHOLE_IMAGE, image.is_floating_point()
        if whole and image.shape[1:2] == (self.channels,) and (self.is_depth or not floating):
            raise UserError(f"images: {modality} is raw; call mmfuse.prepare_scene, which {self.encoding} needs, first")
        if self.dtype and not whole and not floating and kind != self.dtype:
            raise UserError(
                f"images: {modality} is {kind}, but this sensor's files hold {self.dtype}; give such values"
            )

    def metres(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns depth in metres, 0 where it is invalid, and its validity, both float32 of the shape of `raw`."""
        values = raw.to(torch.float32)
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
