"""The values that flow through the library: samples, batches, targets and detections.

Letters in shapes: B images, C channels, H W height and width, A anchors, K classes, N boxes, M modalities.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from mmfuse.errors import UserError, unknown_name
from mmfuse.sensor import Calibration, Sensor


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
class Scene:
    """What the sensors of a rig saw at one moment, and what is known of the rig then.

    `images` maps a modality to a file, an array (H, W) or (H, W, C), a PIL image or a tensor (C, H, W), as the sensor
    gives it: 8 or 16 bit, or float, in its own unit; a sensor that failed has no entry. `calibration` by modality and
    `onto`, that of the reference camera, take the place of the sensors' own where given; `size` is width and height of
    the reference's image, for scenes that lack it. `name` and `image_id` are what results are told by.
    """

    images: Mapping[str, Any]
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    onto: Calibration | None = None
    size: tuple[int, int] | None = None
    name: str = ""
    image_id: int | None = None


@dataclass(frozen=True)
class Views:
    """Scenes as a detector is shown them: prepared, fitted into one size and stacked.

    `images` maps a modality to (B, C, H, W), zero where it is absent, `present` to (B,) bool. Of each scene `contents`
    (B, 2) is the height and width of what isn't padding, `scales` (B,) the pixels of the view per pixel of the scene,
    and `corners` (B, 2) what was cut off at its left and top: see `restore`. `figures` tell the unit of the images of a
    sensor, see `images.units.figures`.
    """

    images: dict[str, Tensor]
    present: dict[str, Tensor]
    contents: Tensor
    scales: Tensor
    corners: Tensor
    figures: dict[str, Tensor]

    def restore(self, found: "Sequence[Detections]") -> "list[Detections]":
        """Returns detections of the views in pixels of the scenes."""
        return [
            one if (scale, *corner) == (1, 0, 0) else one.rescale(scale).shifted(*corner)
            for one, scale, corner in zip(found, self.scales.tolist(), self.corners.tolist(), strict=True)
        ]


class Sight(Protocol):
    """How a detector sees: the size (H, W) at which it is shown images, and what makes views of scenes."""

    @property
    def sensors(self) -> Mapping[str, Sensor]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def views(
        self,
        scenes: "Scene | Mapping[str, Any] | Sequence[Scene | Mapping[str, Any]]",
        present: Mapping[str, Tensor] | None = None,
        *,
        resize: bool = True,
    ) -> Views:
        """Prepares scenes and fits them into the detector's size, or without `resize` into one that holds them all."""

    def at(self, size: tuple[int, int]) -> "Sight":
        """Returns how it sees at another size."""

    def read(self, modality: str, image: Any) -> Tensor:
        """Returns the raw image of a sensor."""

    def shown(self, scenes: Sequence[Scene], raw: Sequence[Mapping[str, Tensor]], *, resize: bool = True) -> Views:
        """Does what `views` does once the images of all scenes are read."""

    def check_units(self, views: Views) -> None:
        """Refuses views of images that can't be in their sensors' units; the host waits for the device they are on."""


@dataclass(frozen=True)
class Sample:
    """One image of every sensor that is there, raw, with its objects.

    `images` maps a modality to its pixels (C, H, W) in the sensor's own type (uint8, uint16 or float32); a modality
    that is absent has no entry. `boxes` is (N, 4) xyxy pixels, `labels` (N,). `scale` is input pixels per original
    pixel: the letterbox keeps the top left corner, so `boxes / scale` are original pixels; `content` is the height and
    width of what isn't padding, None for all. `own` holds boxes and labels of modalities whose image shows the objects
    elsewhere than these.
    """

    image_id: int
    images: dict[str, Tensor]
    boxes: Tensor
    labels: Tensor
    scale: float = 1.0
    content: tuple[float, float] | None = None
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    `images` maps every modality of the recipe to (B, C, H, W), raw, zero where absent; `present` to (B,) bool;
    `scale` is (B,): input pixels per original pixel; `contents` (B, 2) is the height and width of what isn't
    padding. `own` has the targets of modalities whose images show the objects elsewhere than `targets`.
    """

    image_ids: list[int]
    images: dict[str, Tensor]
    present: dict[str, Tensor]
    targets: Targets
    scale: Tensor
    contents: Tensor
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
            to_device(self.contents, device),
            {m: targets.to(device) for m, targets in self.own.items()},
        )


@dataclass(frozen=True)
class Detections:
    """Objects found in one image: `boxes` (N, 4) xyxy pixels, `scores` (N,) in (0, 1), best first, `labels` (N,).

    All are tensors on the detector's device, float32 but for int64 labels. `classes` are the names of all labels.
    `doubt` says of each sensor that was judged how far its image is from what training saw, 1 where belief ends;
    `dropped` names those that were left out for it, `disagreeing` those of which no other shows the same scene: a good
    image of another moment, or of another place. Where these are all that are left, each was looked at alone,
    unless nothing was to be left out, and scores are shared; see `doubt.second_look`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    doubt: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    disagreeing: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class of each object; its label in digits where the classes aren't known."""
        return [self.classes[k] if k < len(self.classes) else str(k) for k in self.labels.tolist()]

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

    def shifted(self, x: float, y: float) -> "Detections":
        """Returns the detections for an image whose corner lies so many pixels farther to the left and the top."""
        return replace(self, boxes=self.boxes + self.boxes.new_tensor([x, y, x, y]))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns an entry for each object, of plain values: `box` xyxy, `score`, `class` and `label`."""
        columns = (x.tolist() for x in (self.boxes, self.scores, self.labels))
        return [
            {"box": [round(v, 2) for v in box], "score": round(score, 4), "class": name, "label": label}
            for box, score, label, name in zip(*columns, self.names, strict=True)
        ]

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns `boxes` (N, 4) float32, `scores` (N,) float32 and `labels` (N,) int64 as arrays."""
        boxes, scores, labels = (x.cpu().numpy() for x in (self.boxes, self.scores, self.labels))
        return boxes, scores, labels

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Returns them as entries of a COCO results file: `bbox` is x, y, width, height.

        `category_ids` has that of each label; None counts from 1, as the COCO files do that mmfuse writes.
        """
        columns = (x.tolist() for x in (self.boxes, self.scores, self.labels))
        return [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(*columns, strict=True)
        ]

    def to_supervision(self) -> Any:
        """Returns them as `supervision.Detections`, class names under "class_name" of its data.

        Raises:
            UserError: supervision isn't installed.
        """
        try:
            import supervision  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("to_supervision: supervision isn't installed; run pip install supervision") from None
        boxes, scores, labels = self.numpy()
        names = np.array(self.names, dtype=str)
        return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels, data={"class_name": names})

    def draw(
        self,
        images: Mapping[str, Any],
        sensors: Mapping[str, Sensor] | None = None,
        captions: Sequence[str] | None = None,
    ) -> Any:
        """Returns a PIL image: the images of the scene by modality, at their own resolution, side by side, with boxes.

        An image is a tensor (C, H, W), an array (H, W) or (H, W, C) or a PIL image. Boxes have the colour of their
        class, and captions, by default class and score; a sensor that was left out or disagrees is told, and so is it
        where nothing was found. `sensors`, such as `detector.sensors`, say what the images measure; by default,
        intensities.

        Raises:
            UserError: there is no image, one is something else, sizes differ, or captions aren't one for each object.
        """
        from mmfuse.drawing import draw, pixels_of

        shown = pixels_of(images)
        known = sensors or {m: Sensor(len(x)) for m, x in shown.items()}
        if captions is None:
            captions = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        if len(captions) != len(self):
            raise UserError(f"captions: {len(captions)} of {len(self)} objects; give one for each")
        notes = {m: f"{m}: shows another scene" for m in self.disagreeing if m in shown}
        notes |= {m: f"{m}: not believed" for m in self.dropped if m in shown}
        if not len(self):
            notes = {m: f"nothing found; {notes[m]}" if m in notes else "nothing found" for m in shown}
        return draw(shown, known, self.boxes.tolist(), self.labels.tolist(), captions, notes)

    def to(self, device: torch.device | str) -> "Detections":
        """Returns the detections on another device."""
        boxes, scores, labels = (x.to(device) for x in (self.boxes, self.scores, self.labels))
        return replace(self, boxes=boxes, scores=scores, labels=labels)

    @staticmethod
    def empty() -> "Detections":
        """Returns the detections of an image in which nothing was found."""
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def check_masks(present: Mapping[str, Tensor], modalities: Collection[str], batch: int) -> None:
    """Refuses masks of presence that aren't (B,) bool of modalities that are known.

    Raises:
        UserError: one isn't.
    """
    for modality, mask in present.items():
        if modality not in modalities:
            raise UserError(f"present: {unknown_name(modality, modalities, 'modality of this detector')}")
        if mask.shape != (batch,) or mask.dtype != torch.bool:
            raise UserError(f"present: {modality} is {mask.dtype} {tuple(mask.shape)}; give torch.bool ({batch},)")


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on another device. The host doesn't wait for CUDA; what runs there later waits for the copy."""
    if device.type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
