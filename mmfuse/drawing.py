"""Draws what was found onto images, at their own resolution, by Pillow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CLASS_COLOURS = ("#ff5a5f", "#3ddc97", "#4cc9f0", "#ffd166", "#c77dff", "#ff9f1c", "#f9a8d4", "#b8f35a")

Area = tuple[float, float, float, float]


def displayable(image: Tensor, sensor: Sensor) -> np.ndarray:
    """Turns a prepared image (C, H, W) into RGB (H, W, 3) uint8 for the eye.

    8-bit pixels stay as they are. Depth is coloured near (bright) to far (dark) with holes black; normals, HHA and
    colours are shown as they are. Other types are stretched from the 1st to the 99th percentile, one channel in heat
    colours.
    """
    if sensor.is_depth:
        if len(image) == 1:
            metres, valid = (x.numpy()[0] for x in sensor.metres(image))
            coloured = _coloured(_stretched(1 / metres.clip(sensor.near, sensor.far), valid > 0), "viridis")
        else:
            pixels, valid = image[:3].permute(1, 2, 0), image[3].numpy()
            coloured = ((pixels + 1) * 127.5 if sensor.encoding == "normals" else pixels).numpy()
        return np.where(valid[..., None] > 0, coloured, 0).astype(np.uint8)
    channels = image[:3] if len(image) >= 3 else image[:1]
    if image.dtype == torch.uint8:
        return channels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    values = channels.to(torch.float32).numpy()
    stretched = _stretched(values, np.isfinite(values))
    if len(channels) == 1:
        return _coloured(stretched[0], "inferno")
    return (stretched.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def pixels_of(images: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns tensors (C, H, W) of the tensors, arrays (H, W) or (H, W, C), or PIL images of one scene.

    Raises:
        UserError: there is none, one is something else, or their sizes differ.
    """
    from PIL import Image

    found = {}
    for m, image in images.items():
        if isinstance(image, Image.Image):
            plain = image.mode in ("L", "RGB", "F", "I") or image.mode.startswith("I;16")
            image = np.array(image if plain else image.convert("RGB"))
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
            image = image[None] if image.ndim == 2 else image.permute(2, 0, 1) if image.ndim == 3 else image
        if not isinstance(image, Tensor) or image.ndim != 3:
            shape = f" of {tuple(image.shape)}" if isinstance(image, Tensor) else ""
            raise UserError(
                f"draw: {m} is {type(image).__name__}{shape}; give a tensor (C, H, W), array (H, W, C) or PIL image"
            )
        found[m] = image.cpu()
    sizes = {m: f"{x.shape[2]}x{x.shape[1]}" for m, x in found.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"draw: the images are {sizes}; give some of one size, registered to each other")
    return found


def draw(
    images: Mapping[str, Tensor],
    sensors: Mapping[str, Sensor],
    boxes: Sequence[Sequence[float]],
    colours: Sequence[int],
    captions: Sequence[str],
    notes: Mapping[str, str],
) -> "Image":
    """Returns the prepared images (C, H, W) of one scene side by side, RGB, each with all boxes and its note, if any.

    `boxes` are xyxy pixels, `colours` their labels, best first. A caption lies outside of its box where there is room,
    and where it hides as little as may be of other boxes and captions.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(images.values())).shape[1:]
    gap = max(2, width // 200)
    picture = Image.new("RGB", (len(images) * (width + gap) - gap, height), "white")
    line = max(1, round(max(height, width) / 400))
    font = ImageFont.load_default(max(9, min(height, width) // 30))
    areas = [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]
    sizes = [_text_size(font, text) for text in captions]
    places = _placed(areas, sizes, (width, height), line)
    for number, (modality, image) in enumerate(images.items()):
        panel = Image.fromarray(np.ascontiguousarray(displayable(image, sensors[modality])))
        pen = ImageDraw.Draw(panel)
        for area, label in reversed(list(zip(areas, colours, strict=True))):
            _outline(pen, area, CLASS_COLOURS[label % len(CLASS_COLOURS)], line)
        for (x, y), (w, h), text, label in reversed(list(zip(places, sizes, captions, colours, strict=True))):
            pen.rectangle((x, y, x + w - 1, y + h - 1), fill=CLASS_COLOURS[label % len(CLASS_COLOURS)])
            pen.text((x + 2, y + h / 2), text, fill="black", font=font, anchor="lm")
        if modality in notes:
            w, h = _text_size(font, notes[modality])
            pen.rectangle((0, height - h, w, height), fill="black")
            pen.text((2, height - h / 2), notes[modality], fill="white", font=font, anchor="lm")
        picture.paste(panel, (number * (width + gap), 0))
    return picture


def _outline(pen: "ImageDraw", area: Area, colour: str, line: int) -> None:
    """Draws a box with a dark rim, so that it shows on bright and dark pixels."""
    x1, y1, x2, y2 = (round(v) for v in area)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=line + 2)
    pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _text_size(font: object, text: str) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text, anchor="lm")  # type: ignore[attr-defined]
    low, high = font.getbbox("Ag", anchor="lm")[1::2]  # type: ignore[attr-defined]
    return round(right - left) + 5, round(max(bottom, high) - min(top, low)) + 3


def _placed(
    areas: Sequence[Area], sizes: Sequence[tuple[int, int]], frame: tuple[int, int], line: int
) -> list[tuple[int, int]]:
    """Returns the top left corner of each caption: of the places around its box the first that hides the least."""
    found: list[tuple[int, int]] = []
    taken: list[Area] = []
    for own, size in zip(areas, sizes, strict=True):
        best, least = (0, 0), float("inf")
        for x, y in _around(own, size, line):
            x, y = min(max(x, 0), max(frame[0] - size[0], 0)), min(max(y, 0), max(frame[1] - size[1], 0))
            area = (x, y, x + size[0], y + size[1])
            hidden = 4 * sum(_shared(area, other) for other in taken) + sum(_shared(area, other) for other in areas)
            if hidden < least:
                best, least = (round(x), round(y)), hidden
        found.append(best)
        taken.append((*best, best[0] + size[0], best[1] + size[1]))
    return found


def _around(area: Area, size: tuple[int, int], line: int) -> Iterator[tuple[float, float]]:
    x1, y1, x2, y2 = area
    w, h = size
    rim = line + 1
    yield from ((x1, y1 - h - rim), (x2 - w, y1 - h - rim), (x1, y2 + rim), (x2 - w, y2 + rim))
    yield from ((x2 + rim, y1), (x1 - w - rim, y1), (x2 + rim, y2 - h), (x1 - w - rim, y2 - h), (x1, y1), (x1, y2 - h))


def _shared(a: Area, b: Area) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _stretched(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Maps the 1st to 99th percentile of the valid values to [0, 1]; where invalid the result is 0."""
    if not valid.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[valid], (1, 99))
    return np.clip((np.where(valid, values, low) - low) / max(high - low, 1e-6), 0, 1)


def _coloured(values: np.ndarray, colours: str) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[colours](values, bytes=True)[..., :3]
