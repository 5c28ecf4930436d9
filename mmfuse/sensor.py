"""What one sensor delivers and how its raw pixels become network input; the same in training, prediction and export."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError

ENCODINGS = ("intensity", "inverse_depth")


@dataclass(frozen=True)
class Sensor:
    """One modality's sensor.

    `channels` counts those of the file. `encoding` is "intensity" (each channel as it is: light, or a linear function
    of temperature) or "inverse_depth" (one channel `1 / metres` clipped to [`near`, `far`] and scaled to [0, 1], one
    channel validity). `unit` is metres per count (depth only); a count of 0 or a value that isn't finite is invalid.
    `mean` and `std` are those of the encoded channels on the training split; empty until measured.
    """

    channels: int
    encoding: str = "intensity"
    unit: float = 0.001
    near: float = 0.5
    far: float = 20.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"encoding: {self.encoding!r} is unknown; use one of {', '.join(ENCODINGS)}")
        if self.channels < 1:
            raise UserError(f"channels: {self.channels!r} is not allowed; use at least 1")
        if self.encoding == "inverse_depth":
            if self.channels != 1:
                raise UserError(f"channels: {self.channels!r} is not allowed for inverse_depth; use 1")
            if not 0 < self.near < self.far:
                raise UserError(f"near, far: {self.near!r}, {self.far!r} is not a range; use 0 < near < far (metres)")
            if not self.unit > 0:
                raise UserError(f"unit: {self.unit!r} is not allowed; use a positive number (metres per count)")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)  # a list where it was read from JSON
            if values and len(values) != self.encoded_channels:
                raise UserError(
                    f"{name}: {list(values)} has {len(values)} entries; give {self.encoded_channels} or none"
                )
        if any(not s > 0 for s in self.std):
            raise UserError(f"std: {list(self.std)} is not allowed; use positive numbers")

    @property
    def encoded_channels(self) -> int:
        """Channels after encoding, which the backbone reads."""
        return 2 if self.encoding == "inverse_depth" else self.channels

    @property
    def interpolation(self) -> str:
        """How images of this sensor may be resized: depth must not be mixed over an edge."""
        return "nearest" if self.encoding == "inverse_depth" else "bilinear"

    @property
    def fill(self) -> tuple[float, ...]:
        """Raw value of each channel outside the image: the mean, which encodes to zero; invalid for depth."""
        return (0.0,) * self.channels if self.encoding == "inverse_depth" or not self.mean else self.mean

    def encode(self, raw: Tensor) -> Tensor:
        """Turns raw pixels (B, C, H, W) of any type into float32 (B, encoded_channels, H, W), not yet normalised."""
        values = raw.to(torch.float32)
        if self.encoding == "intensity":
            return values
        metres = values * self.unit
        valid = (metres > 0) & metres.isfinite()
        inverse = 1 / torch.where(valid, metres, self.far).clamp(self.near, self.far)
        scaled = (inverse - 1 / self.far) / (1 / self.near - 1 / self.far)
        return torch.cat((scaled * valid, valid.to(torch.float32)), dim=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON or YAML; `Sensor(**values)` reads them back."""
        return asdict(self)
