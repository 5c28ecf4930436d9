"""How a detector sees: from scenes, as sensors or files give them, to views of the one size that it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError, unknown_name
from mmfuse.images.decode import raw_image
from mmfuse.images.letterbox import letterbox, stacked
from mmfuse.images.scenes import corner_of, mounted, prepare_scene
from mmfuse.images.units import check_units, figures, unknown
from mmfuse.sample import Scene, Views, check_masks
from mmfuse.sensor import WHOLE_IMAGE, Sensor

Scenes = Scene | Mapping[str, Any] | Sequence[Scene | Mapping[str, Any]]


@dataclass(frozen=True)
class Sight:
    """The size (H, W) at which a detector of `sensors` sees: images are scaled to fit into it, and padded.

    Without scaling they are padded to multiples of `stride`.
    """

    sensors: Mapping[str, Sensor]
    size: tuple[int, int]
    stride: int

    def at(self, size: tuple[int, int]) -> "Sight":
        """Returns how it sees at another size."""
        return replace(self, size=size)

    def views(self, scenes: Scenes, present: Mapping[str, Tensor] | None = None, *, resize: bool = True) -> Views:
        """Prepares scenes, and fits them into the input size, or without `resize` into the least that holds them all.

        Several scenes may be of different sizes and have different sensors. A mapping of tensors (B, C, H, W) is a
        batch of scenes; `present` maps a modality to (B,) bool, False where a scene has no such sensor. What is on
        another device and needs no change stays there.

        Raises:
            UserError: an unknown modality, an image that its sensor can't have given, images of a scene that differ in
                size, a scene without any image.
        """
        if resize and not present and isinstance(scenes, Mapping) and self._is_as_shown(scenes):
            return self._as_given(scenes)
        listed = [one if isinstance(one, Scene) else Scene(one) for one in self._listed(scenes)]
        if not listed:
            raise UserError("images: no scene is given; give at least one")
        listed = self._there(listed, present or {})
        raw = [{m: self.read(m, image) for m, image in scene.images.items()} for scene in listed]
        return self.shown(listed, raw, resize=resize)

    def read(self, modality: str, image: Any) -> Tensor:
        """Returns the raw image of a sensor; see `decode.raw_image`."""
        return raw_image(image, modality, self.sensors[modality])

    def shown(self, scenes: Sequence[Scene], raw: Sequence[Mapping[str, Tensor]], *, resize: bool = True) -> Views:
        """Does what `views` does once the images of all scenes are read, at least one of each."""
        raw = [{m: self._at_hand(m, x, resize) for m, x in images.items()} for images in raw]
        shown = [self._prepared(scene, images) for scene, images in zip(scenes, raw, strict=True)]
        size = self.size
        if not resize:
            height, width = (max(x.shape[side] for images in shown for x in images.values()) for side in (1, 2))
            size = (height + -height % self.stride, width + -width % self.stride)
        fitted = [letterbox(images, size, self.sensors, None if resize else 1.0) for images in shown]
        own = {m: sensor for m, sensor in self.sensors.items() if any(m in images for images in raw)}
        images, there = stacked([images for images, _, _ in fitted], range(len(shown)), own)
        return Views(
            images,
            {m: torch.from_numpy(mask) for m, mask in there.items()},
            torch.tensor([content for _, _, content in fitted]),
            torch.tensor([scale for _, scale, _ in fitted], dtype=torch.float32),
            torch.tensor([corner_of(self.sensors)] * len(shown), dtype=torch.float32),
            {m: self._figures(m, [one[m] for one in raw if m in one]) for m, s in own.items() if s.seen},
        )

    def check_units(self, views: Views) -> None:
        """Refuses views of images that can't be in their sensors' units; see `units.check_units`."""
        check_units(views.figures, self.sensors)

    def _is_as_shown(self, images: Mapping[str, Any]) -> bool:
        """Whether these are a batch (B, C, H, W) of each sensor in which no pixel has to be changed or moved."""
        shapes = {m: tuple(getattr(x, "shape", ())) for m, x in images.items()}
        batch = next(iter(shapes.values()), ())[:1]
        return any(batch) and all(
            m in self.sensors
            and isinstance(x, Tensor)
            and x.dtype in self.sensors[m].shown_as_read
            and shapes[m] == (*batch, self.sensors[m].channels, *self.size)
            for m, x in images.items()
        )

    def _as_given(self, images: Mapping[str, Tensor]) -> Views:
        batch = len(next(iter(images.values())))
        return Views(
            dict(images),
            {m: torch.ones(batch, dtype=torch.bool) for m in images},
            torch.tensor([self.size] * batch, dtype=torch.float32),
            torch.ones(batch),
            torch.zeros(batch, 2),
            {
                m: figures(x, self.sensors[m])
                for m, x in images.items()
                if self.sensors[m].seen and x.dtype != torch.uint8
            },
        )

    @staticmethod
    def _listed(scenes: Scenes) -> Sequence[Scene | Mapping[str, Any]]:
        if isinstance(scenes, Scene):
            return [scenes]
        if not isinstance(scenes, Mapping):
            return scenes
        batched = {m: x for m, x in scenes.items() if isinstance(x, Tensor) and x.ndim == 4}
        if not batched:
            return [scenes]
        if len(batched) < len(scenes) or len({len(x) for x in batched.values()}) > 1:
            shapes = {m: tuple(getattr(x, "shape", ())) for m, x in scenes.items()}
            raise UserError(f"images: {shapes} aren't one batch; give (B, C, H, W) of one B for all, or (C, H, W)")
        return [{m: x[i] for m, x in batched.items()} for i in range(len(next(iter(batched.values()))))]

    def _there(self, scenes: Sequence[Scene], present: Mapping[str, Tensor]) -> list[Scene]:
        """Returns the scenes without the images of sensors that aren't there."""
        for modality in {m: None for scene in scenes for m in scene.images}:
            if modality not in self.sensors:
                raise UserError(f"images: {unknown_name(modality, self.sensors, 'modality of this detector')}")
        check_masks(present, self.sensors, len(scenes))
        gone = {m: (~mask).tolist() for m, mask in present.items()}
        left = []
        for row, scene in enumerate(scenes):
            images = {m: x for m, x in scene.images.items() if not (m in gone and gone[m][row])}
            if not images and scene.images:
                raise UserError(f"present: image {row} of the batch has no sensor at all; leave it out")
            if not images:
                raise UserError(f"images: is empty; give at least one of {', '.join(self.sensors)}")
            left.append(replace(scene, images=images))
        return left

    def _at_hand(self, modality: str, raw: Tensor, resize: bool) -> Tensor:
        """Returns a raw image, on the host if it isn't shown just as it is."""
        sensor = self.sensors[modality]
        fits = not resize or min(self.size[0] / raw.shape[-2], self.size[1] / raw.shape[-1]) == 1
        return raw if fits and sensor.encoding not in WHOLE_IMAGE and sensor.register == "none" else raw.cpu()

    def _prepared(self, scene: Scene, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the prepared images of a scene, all of one size."""
        prepared = prepare_scene(raw, mounted(scene, self.sensors), scene.size)
        sizes = {m: f"{x.shape[2]}x{x.shape[1]}" for m, x in prepared.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"images differ in size: {sizes}; give images of one size, registered to each other")
        return prepared

    def _figures(self, modality: str, images: Sequence[Tensor]) -> Tensor:
        """Returns what tells the units of the raw images of a sensor, (n, 5); integers of 8 bits can't be wrong."""
        told = [
            unknown(x) if x.ndim == 2 or x.dtype == torch.uint8 else figures(x, self.sensors[modality]) for x in images
        ]
        return torch.stack(told)
