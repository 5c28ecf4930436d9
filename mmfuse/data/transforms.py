"""Augmentation that moves all modalities of a sample alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.images.letterbox import View, pad
from mmfuse.recipes import DataRecipe
from mmfuse.sample import Sample
from mmfuse.sensor import Sensor

STATED_WIDTH = 640
"""Width of the images for which lengths in pixels are stated; they grow with the width."""

_GREY = (0.2989, 0.587, 0.114)


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
    view = View(
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
        images[m] = pad(image, size, sensors[m])
    labelled = sample.own if recipe.boxes == "own" else {}
    own = {}
    for m in images:
        if m in labelled or m in moves:
            boxes, labels = labelled.get(m, (sample.boxes, sample.labels))
            boxes = view.move(boxes)
            own[m] = view.cut(moves[m].move(boxes) if m in moves else boxes, labels)
    content = float(view.out_height), float(view.out_width)
    return Sample(sample.image_id, images, *view.cut(view.move(sample.boxes), sample.labels), scale, content, own)


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


def _jitter(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    values = image.to(torch.float32)
    shift = (values[0] * _GREY[0]).add_(values[1], alpha=_GREY[1]).add_(values[2], alpha=_GREY[2])
    mean = shift.mean().item()
    shift.mul_(brightness * contrast * (1 - saturation)).add_(brightness * (1 - contrast) * mean + 0.5)
    torch.add(shift, values, alpha=brightness * contrast * saturation, out=values).clamp_(0, 255)
    return values.to(torch.int16).to(torch.uint8)  # several times as fast as straight to 8 bit
