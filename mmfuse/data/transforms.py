"""Letterbox, and augmentation that moves all modalities of a sample alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmfuse import boxes as box_maths
from mmfuse.images.resizing import resized
from mmfuse.recipes import DataRecipe
from mmfuse.sample import Sample
from mmfuse.sensor import Sensor

STATED_WIDTH = 640
"""Width of the images for which lengths in pixels are stated; they grow with the width."""

_SMALLEST_SIDE = 2.0
_SMALLEST_SHARE = 0.25
_GREY = (0.2989, 0.587, 0.114)


def letterbox(
    images: Mapping[str, Tensor], boxes: Tensor, size: tuple[int, int], sensors: Mapping[str, Sensor]
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Scales images (C, h, w) of one size, and boxes, to fit into `size` (H, W) at the top left corner.

    What is left at the right and the bottom holds `Sensor.fill`. Returns images (C, H, W) of the same types, boxes in
    their pixels, and the scale: pixels of the result per pixel of the image.
    """
    height, width = next(iter(images.values())).shape[1:]
    scale = min(size[0] / height, size[1] / width)
    view = _View(0, 0, height, width, max(1, round(height * scale)), max(1, round(width * scale)))
    return {m: _pad(view.show(x, sensors[m]), size, sensors[m]) for m, x in images.items()}, boxes * scale, scale


def augment(
    sample: Sample,
    size: tuple[int, int],
    sensors: Mapping[str, Sensor],
    recipe: DataRecipe,
    generator: torch.Generator,
) -> Sample:
    """Scales, crops and flips a sample to `size` (H, W), all its modalities alike, moves some, and jitters colour.

    The scale is that of the letterbox times a factor from `recipe.scale_jitter`; an image that becomes larger than
    `size` is cropped at a random place, a smaller one lies at the top left corner (EfficientDet's training).
    Brightness, contrast and saturation change in colour images only: three channels of 8 bit. They are torchvision's,
    but rounded and clipped once, after all three. Objects of which less than a quarter is left, or less than 2 pixels
    on a side, are dropped. All randomness comes from `generator`. Boxes of the result can't be traced back to the file
    by `scale` alone.

    Where there are several `sensors`, those of `recipe.shift` and `recipe.rotation` are then moved, each by itself:
    turned about the middle of the image and shifted, evenly over a disc. The objects stay where the others show them,
    and `own` says where the moved image does.
    """
    across, down, zoom, flip, *colour = torch.rand(7, generator=generator).tolist()
    height, width = next(iter(sample.images.values())).shape[1:]
    low, high = recipe.scale_jitter
    scale = (low + (high - low) * zoom) * min(size[0] / height, size[1] / width)
    h, w = (min(n, max(1, round(room / scale))) for n, room in ((height, size[0]), (width, size[1])))
    view = _View(
        top=int(down * (height - h + 1)),
        left=int(across * (width - w + 1)),
        height=h,
        width=w,
        out_height=min(size[0], max(1, round(h * scale))),
        out_width=min(size[1], max(1, round(w * scale))),
        flip=flip < recipe.hflip,
    )
    strengths = [1 + recipe.color_jitter * (2 * c - 1) for c in colour]
    moves = {}
    for m in sensors if len(sensors) > 1 else ():
        reach, most = recipe.shift.get(m, 0.0), recipe.rotation.get(m, 0.0)
        if reach or most:
            far, turn, rotation = torch.rand(3, generator=generator).tolist()
            length = reach * far**0.5 * width * scale / STATED_WIDTH
            x, y = length * math.cos(2 * math.pi * turn), length * math.sin(2 * math.pi * turn)
            middle = view.move(torch.tensor([[width, height, width, height]]) / 2)[0, :2].tolist()
            moves[m] = _Move(x, y, most * (2 * rotation - 1), (middle[0], middle[1]))
    images = {}
    for m, image in sample.images.items():
        image = view.show(image, sensors[m])
        if m in moves:
            image = moves[m].show(image, sensors[m])
        if recipe.color_jitter and image.dtype == torch.uint8 and image.shape[0] == 3:
            image = _jitter(image, *strengths)
        images[m] = _pad(image, size, sensors[m])
    labelled = sample.own if recipe.boxes == "own" else {}
    own = {}
    for m in images:
        if m in labelled or m in moves:
            boxes, labels = labelled.get(m, (sample.boxes, sample.labels))
            boxes = view.move(boxes)
            own[m] = view.cut(moves[m].move(boxes) if m in moves else boxes, labels)
    return Sample(sample.image_id, images, *view.cut(view.move(sample.boxes), sample.labels), scale, own)


@dataclass(frozen=True)
class _Move:
    """A turn by `angle` degrees, clockwise, about the point `middle` (x, y), and a shift after it, in pixels."""

    x: float
    y: float
    angle: float
    middle: tuple[float, float]

    def show(self, image: Tensor, sensor: Sensor) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2.functional import affine_image

        values, mode = image.to(torch.float32), InterpolationMode(sensor.interpolation)
        shown = affine_image(
            values, self.angle, [self.x, self.y], 1.0, [0.0, 0.0], mode, list(sensor.fill), list(self.middle)
        )
        if sensor.encoding == "normals":
            shown = torch.cat((torch.einsum("ij,jhw->ihw", self._turn, shown[:2]), shown[2:]))
        return shown if image.is_floating_point() else shown.round().to(image.dtype)

    def move(self, boxes: Tensor) -> Tensor:
        """Moves the centres; sizes stay, since what is in a box isn't a box."""
        centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        middle = boxes.new_tensor(self.middle)
        centres = (centres - middle) @ self._turn.T + middle + boxes.new_tensor([self.x, self.y])
        return torch.cat((centres - half, centres + half), 1)

    @property
    def _turn(self) -> Tensor:
        angle = math.radians(self.angle)
        return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@dataclass(frozen=True)
class _View:
    """A part of an image, in whole pixels, and the size at which it is shown."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int
    flip: bool = False

    def show(self, image: Tensor, sensor: Sensor) -> Tensor:
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        shown = resized(part, (self.out_height, self.out_width), sensor.interpolation).numpy()
        if self.flip and sensor.encoding == "normals":
            shown = np.concatenate((-shown[:1], shown[1:]))
        return torch.from_numpy(np.ascontiguousarray(shown[..., ::-1] if self.flip else shown))

    def move(self, boxes: Tensor) -> Tensor:
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


def _jitter(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    values = image.to(torch.float32)
    shift = (values[0] * _GREY[0]).add_(values[1], alpha=_GREY[1]).add_(values[2], alpha=_GREY[2])
    mean = shift.mean().item()
    shift.mul_(brightness * contrast * (1 - saturation)).add_(brightness * (1 - contrast) * mean + 0.5)
    torch.add(shift, values, alpha=brightness * contrast * saturation, out=values).clamp_(0, 255)
    return values.to(torch.int16).to(torch.uint8)  # several times as fast as straight to 8 bit


def _pad(image: Tensor, size: tuple[int, int], sensor: Sensor) -> Tensor:
    _, height, width = image.shape
    if (height, width) == size:
        return image.contiguous()
    fill = torch.tensor(sensor.fill, dtype=torch.float32)
    fill = (fill if image.is_floating_point() else fill.round()).to(image.dtype)[:, None, None]
    padded = torch.empty(len(image), *size, dtype=image.dtype)
    padded[:, :height, :width] = image
    padded[:, height:] = fill
    padded[:, :height, width:] = fill
    return padded
