"""Faults that strike sensors in training, so that a detector learns what to make of a sensor that lies."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.data.annotations.records import Record
from mmfuse.data.samples import Change
from mmfuse.evaluation.corruptions import SEVERITIES, ImageCorruption, trainable
from mmfuse.sensor import Sensor


@dataclass(frozen=True)
class Strikes:
    """Draws, for a `share` of the images that have several sensors, one of them and a fault of it.

    All sensors of the image, all faults that may be trained on and suit the sensor, and all severities are as likely; a
    sensor may also be missing. What an image suffers follows from the generator alone.
    """

    share: float

    def __call__(
        self, record: Record, sensors: Mapping[str, Sensor], generator: torch.Generator
    ) -> tuple[str, Change | None] | None:
        """Returns which modality is struck and how its raw image changes, None if it is missing; or None."""
        strikes, which, what, severity, seed = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        there = [m for m in sensors if m in record.files]
        if strikes >= self.share or len(there) < 2:
            return None
        modality = there[int(which * len(there))]
        faults = trainable(sensors[modality])
        fault = faults[int(what * len(faults))]
        if not isinstance(fault, ImageCorruption):
            return modality, None
        struck = Struck(fault, modality, sensors[modality], 1 + int(severity * SEVERITIES), int(seed * 2**53))
        return modality, struck


@dataclass(frozen=True)
class Struck:
    """What a fault of one sensor does to the raw images of a scene; see `samples.Change`."""

    fault: ImageCorruption
    modality: str
    sensor: Sensor
    severity: int
    seed: int

    def __call__(self, image_id: int, modality: str, raw: Tensor) -> Tensor:
        """Returns the raw image (C, H, W), changed if it is of the struck modality."""
        return self.fault(raw, self.sensor, self.severity, self.seed) if modality == self.modality else raw
