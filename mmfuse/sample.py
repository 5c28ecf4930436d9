"""The values that flow through the library: samples, batches, targets and detections.

Letters in shapes: B images, C channels, H W height and width, A anchors, K classes, N boxes, M modalities.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Objects of a batch: per image, `boxes` (N, 4) xyxy pixels of the network input and `labels` (N,) int64."""

    boxes: list[Tensor]
    labels: list[Tensor]

    def to(self, device: torch.device) -> "Targets":
        """Returns the targets on another device; the host doesn't wait for it."""
        counts = [len(x) for x in self.labels]
        boxes, labels = (to_device(torch.cat(x), device).split(counts) for x in (self.boxes, self.labels))
        return Targets(list(boxes), list(labels))


@dataclass(frozen=True)
class Sample:
    """One image of every sensor that is there, raw, with its objects.

    `images` maps a modality to its pixels (C, H, W) in the sensor's own type (uint8, uint16 or float32); a modality
    that is absent has no entry. `boxes` is (N, 4) xyxy pixels, `labels` (N,). `scale` is input pixels per original
    pixel: the letterbox keeps the top left corner, so `boxes / scale` are original pixels. `own` holds boxes and labels
    of modalities whose image shows the objects elsewhere than these.
    """

    image_id: int
    images: dict[str, Tensor]
    boxes: Tensor
    labels: Tensor
    scale: float = 1.0
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    `images` maps every modality of the recipe to (B, C, H, W), raw, zero where absent; `present` to (B,) bool;
    `scale` is (B,): input pixels per original pixel. `own` has the targets of modalities whose images show the objects
    elsewhere than `targets`.
    """

    image_ids: list[int]
    images: dict[str, Tensor]
    present: dict[str, Tensor]
    targets: Targets
    scale: Tensor
    own: dict[str, Targets] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on another device, but for `present`, which the detector reads on the host.

        The host doesn't wait for the device.
        """
        return Batch(
            self.image_ids,
            {m: x.to(device, non_blocking=True) for m, x in self.images.items()},
            self.present,
            self.targets.to(device),
            to_device(self.scale, device),
            {m: targets.to(device) for m, targets in self.own.items()},
        )


@dataclass(frozen=True)
class Detections:
    """Objects found in one image: `boxes` (N, 4) xyxy pixels, `scores` (N,) in (0, 1), best first, `labels` (N,).

    `doubt` says of each sensor that was judged how far its image is from what training saw, 1 where belief ends;
    `dropped` names those that were left out for it.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    doubt: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor | np.ndarray | Sequence[int] | slice | SupportsIndex) -> "Detections":
        """Returns those that a mask (N,) bool, indices (n,), a slice or a number names; a number gives one, (1, 4).

        Raises:
            IndexError: there are not so many, or a mask has another length.
        """
        if not isinstance(rows, slice):
            places = torch.as_tensor(rows, device=self.boxes.device)
            rows = places.to(torch.int64) if places.numel() == 0 and places.dtype != torch.bool else places
            if rows.ndim == 0:
                if rows.dtype == torch.bool or not -len(self) <= int(rows) < len(self):
                    raise IndexError(f"detections: {rows.item()} names none of {len(self)}; use a number below that")
                rows = rows[None]
        return replace(self, boxes=self.boxes[rows], scores=self.scores[rows], labels=self.labels[rows])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return zip(self.boxes, self.scores, self.labels, strict=True)

    def rescale(self, scale: float | Tensor) -> "Detections":
        """Returns the detections in original pixels, for an image that was letterboxed by `scale`."""
        return replace(self, boxes=self.boxes / scale)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Returns them as entries of a COCO results file: `bbox` is x, y, width, height, `category_id` label + 1.

        These are the categories of the COCO files that mmfuse writes.
        """
        columns = (x.tolist() for x in (self.boxes, self.scores, self.labels))
        return [
            {"image_id": image_id, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score, label in zip(*columns, strict=True)
        ]

    def to(self, device: torch.device | str) -> "Detections":
        """Returns the detections on another device."""
        boxes, scores, labels = (x.to(device) for x in (self.boxes, self.scores, self.labels))
        return replace(self, boxes=boxes, scores=scores, labels=labels)

    @staticmethod
    def empty() -> "Detections":
        """Returns the detections of an image in which nothing was found."""
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on another device. The host doesn't wait for CUDA; what runs there later waits for the copy."""
    if device.type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
