"""Shows a part of an image at a size, and fits the images of a scene into one input size: the letterbox."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmfuse import boxes as box_maths
from mmfuse.errors import UserError
from mmfuse.images.resizing import resized
from mmfuse.sample import to_device
from mmfuse.sensor import Sensor

_SMALLEST_SIDE = 2.0
_SMALLEST_SHARE = 0.25


def letterbox(
    images: Mapping[str, Tensor], size: tuple[int, int], sensors: Mapping[str, Sensor], scale: float | None = None
) -> tuple[dict[str, Tensor], float, tuple[float, float]]:
    """Scales images (C, h, w) of one size to fit into `size` (H, W) at the top left corner, or by `scale` if given.

    What is left at the right and the bottom holds `Sensor.fill`, and so do gaps, NaN. But an image without a measured
    pixel, and one with gaps that its sensor hadn't in training, stays as it is, so that it isn't believed. Returns
    images (C, H, W) of the same types, the scale, pixels of the result per pixel of the image, and the height and width
    of what isn't padding, not rounded, so that boxes that are clipped to it lie in the image.
    """
    images = {m: _without_gaps(x, sensors[m]) for m, x in images.items()}
    height, width = next(iter(images.values())).shape[1:]
    scale = scale or min(size[0] / height, size[1] / width)
    view = View.whole(height, width, scale)
    shown = {m: pad(view.show(x, sensors[m]), size, sensors[m]) for m, x in images.items()}
    return shown, scale, (height * scale, width * scale)


def _without_gaps(image: Tensor, sensor: Sensor) -> Tensor:
    filled = sensor.without_gaps(image)
    if filled is image:
        return image
    has_none = sensor.register in ("none", "resize") and not (sensor.gaps or sensor.nodata)
    gaps = image.isnan()
    return torch.where(gaps.any() if has_none else gaps.all(), image, filled)


@dataclass(frozen=True)
class View:
    """A part of an image, in whole pixels, and the size at which it is shown."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int
    flip: bool = False

    @staticmethod
    def whole(height: int, width: int, scale: float) -> "View":
        """Returns the view of a whole image at a scale, at least one pixel high and wide."""
        return View(0, 0, height, width, max(1, round(height * scale)), max(1, round(width * scale)))

    def show(self, image: Tensor, sensor: Sensor) -> Tensor:
        """Returns what is shown of an image (C, H, W) of the sensor."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        shown = resized(part, (self.out_height, self.out_width), sensor.interpolation)
        if not self.flip:
            return shown.contiguous()
        values = shown.numpy()
        if sensor.encoding == "normals":
            values = np.concatenate((-values[:1], values[1:]))
        return torch.from_numpy(np.ascontiguousarray(values[..., ::-1]))

    def move(self, boxes: Tensor) -> Tensor:
        """Returns boxes (N, 4) of the image in pixels of what is shown."""
        ratio = boxes.new_tensor([self.out_width / self.width, self.out_height / self.height] * 2)
        boxes = (boxes - boxes.new_tensor([self.left, self.top] * 2)) * ratio
        if self.flip:
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack((self.out_width - x2, y1, self.out_width - x1, y2), 1)
        return boxes

    def cut(self, moved: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Clips moved boxes to what is shown, and leaves out those of which too little is left."""
        boxes = box_maths.clip(moved, self.out_height, self.out_width)
        sides = boxes[:, 2:] - boxes[:, :2]
        share = sides.prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
        kept = (sides >= _SMALLEST_SIDE).all(1) & (share >= _SMALLEST_SHARE)
        return boxes[kept], labels[kept]


def pad(image: Tensor, size: tuple[int, int], sensor: Sensor) -> Tensor:
    """Returns an image (C, h, w) at the top left corner of one of `size` (H, W) that holds the sensor's fill."""
    _, height, width = image.shape
    if (height, width) == size:
        return image.contiguous()
    fill = torch.tensor(sensor.fill, dtype=torch.float32)
    fill = to_device((fill if image.is_floating_point() else fill.round()).to(image.dtype)[:, None, None], image.device)
    padded = image.new_empty(len(image), *size)
    padded[:, :height, :width] = image
    padded[:, height:] = fill
    padded[:, :height, width:] = fill
    return padded


def stacked(
    scenes: Sequence[Mapping[str, Tensor]], names: Sequence[object], sensors: Mapping[str, Sensor]
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Stacks the images (C, H, W) of scenes to (B, C, H, W), zero where one is absent, and (B,) bool of who is there.

    Raises:
        UserError: those of a sensor are of several types; the message tells the `names` of the scenes.
    """
    height, width = next(iter(next(scene for scene in scenes if scene).values())).shape[1:]
    images, there = {}, {}
    for m, sensor in sensors.items():
        own = [scene[m] for scene in scenes if m in scene]
        kinds = {x.dtype for x in own} or {torch.uint8}
        if len(kinds) > 1:
            listed = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise UserError(f"{m}: images {list(names)} mix {listed}; give all images of a sensor one bit depth")
        device = own[0].device if own else torch.device("cpu")
        absent = torch.zeros(sensor.prepared_channels, height, width, dtype=kinds.pop(), device=device)
        images[m] = default_collate([scene.get(m, absent) for scene in scenes])
        there[m] = np.array([m in scene for scene in scenes])
    return images, there
