"""Faults that strike sensors in training, so that a detector learns what to make of a sensor that lies."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.data.annotations.records import Record
from mmfuse.data.samples import Change
from mmfuse.evaluation.corruptions import (
    NOWHERE,
    SEVERITIES,
    ImageCorruption,
    ObjectCorruption,
    objects_in,
    trainable,
)
from mmfuse.sensor import Sensor

_HIDDEN = 0.5
"""Share of the objects of an image that a fault of objects hides."""


@dataclass(frozen=True)
class Strikes:
    """Draws, for a `share` of the images that have several sensors, one of them and a fault of it.

    All sensors of the image, all faults of images that may be trained on and suit the sensor, and all severities are as
    likely; a sensor may also be missing. In as many others, as far as there are any (none at a share of 1), a fault of
    objects hides some of them from one sensor, if it has such a fault, so that a detector learns to find what one
    sensor alone shows. What an image suffers follows from the generator alone.
    """

    share: float

    def __call__(
        self, record: Record, sensors: Mapping[str, Sensor], generator: torch.Generator
    ) -> tuple[str, Change | None] | None:
        """Returns which modality is struck and how its raw image changes, None if it is missing; or None."""
        strikes, which, what, severity, seed = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        there = [m for m in sensors if m in record.files]
        if strikes >= 2 * self.share or len(there) < 2:
            return None
        modality = there[int(which * len(there))]
        sensor, hides = sensors[modality], strikes >= self.share
        faults = [c for c in trainable(sensor) if isinstance(c, ObjectCorruption) == hides]
        if not faults:
            return None
        fault = faults[int(what * len(faults))]
        if not isinstance(fault, ImageCorruption):
            return modality, None
        boxes = NOWHERE
        if hides:
            boxes = objects_in(record, modality, sensor)
            boxes = boxes[torch.rand(len(boxes), generator=generator) < _HIDDEN]
        return modality, Struck(fault, modality, sensor, 1 + int(severity * SEVERITIES), int(seed * 2**53), boxes)


@dataclass(frozen=True)
class Struck:
    """What a fault of one sensor does to the raw images of a scene, and to the objects `boxes` (N, 4) in them, xyxy as
    shares of width and height; see `samples.Change`.
    """

    fault: ImageCorruption
    modality: str
    sensor: Sensor
    severity: int
    seed: int
    boxes: Tensor

    def __call__(self, image_id: int, modality: str, raw: Tensor) -> Tensor:
        """Returns the raw image (C, H, W), changed if it is of the struck modality."""
        return self.fault(raw, self.sensor, self.severity, self.seed, self.boxes) if modality == self.modality else raw
