"""From files to samples: decoding, letterbox, and augmentation that moves all modalities of a sample alike."""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mmfuse import boxes as box_maths
from mmfuse.config import DataRecipe
from mmfuse.data.readers import Record
from mmfuse.errors import UserError
from mmfuse.sample import Sample
from mmfuse.sensor import Sensor

_SMALLEST_SIDE = 2.0
_SMALLEST_SHARE = 0.25
_MODES = {1: "L", 3: "RGB"}


def read_image(path: str | os.PathLike[str], sensor: Sensor) -> Tensor:
    """Reads the file of a sensor: (C, H, W) of its channels, uint8, uint16 or float32 as the file holds.

    An 8-bit intensity file is turned into grey or colour where the sensor has one channel or three; deeper files and
    depth must have the sensor's channels. An orientation tag (EXIF) is applied.

    Raises:
        UserError: the file is missing, can't be decoded whole and in its own depth, or has other channels.
    """
    try:
        with Image.open(path) as file:
            deep = file.mode in ("I", "F") or file.mode.startswith("I;16")
            if not deep and ";16" in str(file.tile):
                raise UserError(f"{path}: holds several 16-bit channels, which can't be read; write one file for each")
            image = ImageOps.exif_transpose(file)
            if not deep and sensor.encoding == "intensity" and sensor.channels in _MODES:
                image = image.convert(_MODES[sensor.channels])
            pixels = np.array(image)
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image; give a PNG, JPEG, TIFF or WebP file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}; give a whole image file") from None
    except (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: can't be decoded: {error}; give a whole image file") from None
    if pixels.dtype.kind in "iu" and pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise UserError(f"{path}: holds values outside 0 to 65535; write 16 bits without sign, or 32-bit float")
        pixels = pixels.astype(np.uint16)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    planes = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1).contiguous()
    if len(planes) != sensor.channels:
        fix = f"the sensor has {sensor.channels}: mend the card or the file"
        raise UserError(f"{path}: has {len(planes)} channels; {fix}")
    return planes


def size_problem(record: Record, images: Mapping[str, Tensor]) -> str | None:
    """Returns one line when the images (C, H, W) of a record differ in size, or from the size in the labels."""
    sizes = {m: f"{image.shape[2]} x {image.shape[1]}" for m, image in images.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{record.files[m]} is {size}" for m, size in sizes.items())
        return f"image {record.image_id}: {listed}; register them to one size"
    for m, size in sizes.items():
        if size != (labelled := f"{record.width} x {record.height}"):
            return (
                f"{record.files[m]}: is {size}, but image {record.image_id} is labelled as {labelled}; mend one of them"
            )
    return None


def load_sample(record: Record, sensors: Mapping[str, Sensor]) -> Sample:
    """Reads the images of those `sensors` that the record has, and its objects save crowds, at their own size.

    Raises:
        UserError: a file can't be read, or the sizes differ.
    """
    images = {m: read_image(record.files[m], sensor) for m, sensor in sensors.items() if m in record.files}
    if not images:
        raise UserError(
            f"image {record.image_id}: has no file for any of {', '.join(sensors)}; add one or remove the image"
        )
    if problem := size_problem(record, images):
        raise UserError(problem)
    kept = ~record.ignore
    return Sample(record.image_id, images, torch.from_numpy(record.boxes[kept]), torch.from_numpy(record.labels[kept]))


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
    """Scales, crops and flips a sample to `size` (H, W), all its modalities alike, and jitters colour.

    The scale is that of the letterbox times a factor from `recipe.scale_jitter`; an image that becomes larger than
    `size` is cropped at a random place, a smaller one lies at the top left corner (EfficientDet's training).
    Brightness, contrast and saturation change in colour images only: three channels of 8 bit. Objects of which less
    than a quarter is left, or less than 2 pixels on a side, are dropped. All randomness comes from `generator`. Boxes
    of the result can't be traced back to the file by `scale` alone.
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
    images = {}
    for m, image in sample.images.items():
        image = view.show(image, sensors[m])
        if recipe.color_jitter and image.dtype == torch.uint8 and image.shape[0] == 3:
            image = _jitter(image, strengths)
        images[m] = _pad(image, size, sensors[m])
    moved = view.move(sample.boxes)
    boxes = box_maths.clip(moved, view.out_height, view.out_width)
    sides = boxes[:, 2:] - boxes[:, :2]
    share = sides.prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
    kept = (sides >= _SMALLEST_SIDE).all(1) & (share >= _SMALLEST_SHARE)
    return Sample(sample.image_id, images, boxes[kept], sample.labels[kept], scale)


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
        bits = part.view(torch.int16) if part.dtype == torch.uint16 else part
        bits = bits.flip(-1) if self.flip else bits
        if sensor.interpolation == "nearest":
            rows = (2 * torch.arange(self.out_height) + 1) * self.height // (2 * self.out_height)
            columns = (2 * torch.arange(self.out_width) + 1) * self.width // (2 * self.out_width)
            return bits[:, rows][:, :, columns].view(image.dtype)
        part = bits.view(image.dtype)
        if part.shape[1:] == (self.out_height, self.out_width):
            return part
        values = part if part.dtype == torch.uint8 else part.to(torch.float32)
        shown = F.interpolate(values[None], (self.out_height, self.out_width), mode="bilinear", antialias=True)[0]
        return shown if image.is_floating_point() or shown.dtype == image.dtype else shown.round().to(image.dtype)

    def move(self, boxes: Tensor) -> Tensor:
        ratio = boxes.new_tensor([self.out_width / self.width, self.out_height / self.height] * 2)
        boxes = (boxes - boxes.new_tensor([self.left, self.top] * 2)) * ratio
        if self.flip:
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack((self.out_width - x2, y1, self.out_width - x1, y2), 1)
        return boxes


def _jitter(image: Tensor, strengths: list[float]) -> Tensor:
    brightness, contrast, saturation = strengths
    image = V.adjust_brightness(image, brightness)
    image = V.adjust_contrast(image, contrast)
    return V.adjust_saturation(image, saturation)


def _pad(image: Tensor, size: tuple[int, int], sensor: Sensor) -> Tensor:
    _, height, width = image.shape
    if (height, width) == size:
        return image.contiguous()
    fill = torch.tensor(sensor.fill, dtype=torch.float32)
    fill = fill if image.is_floating_point() else fill.round()
    padded = fill.to(image.dtype)[:, None, None].repeat(1, *size)
    padded[:, :height, :width] = image
    return padded
