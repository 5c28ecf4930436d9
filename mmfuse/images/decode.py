"""Makes a raw image, a tensor in the sensor's own type, of an image file or of what a program holds."""

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.files import open_regular
from mmfuse.images.tiff import Page, bands_of, pages_of
from mmfuse.sensor import Sensor

_MODES = {1: "L", 3: "RGB"}
_JPEG_MODES = {1: "GRAY", 3: "RGB"}
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
POINTS = (".bin", ".npy")
"""Suffixes of files that are looked for as images, and as points of a LiDAR."""

_ORIENTATION = 0x0112


def read_image(path: str | os.PathLike[str], sensor: Sensor) -> Tensor:
    """Reads the file of a sensor: (C, H, W) of its channels, uint8, uint16 or float32 as the file holds.

    An 8-bit file that isn't depth is turned into grey or colour where the sensor has one channel or three, without its
    alpha and palette; deeper files and depth must have the sensor's channels. An orientation tag (EXIF) is applied,
    then `sensor.border` is cut and `sensor.counts` undone. The result may lie in memory with its channels last.

    A .bin (KITTI: float32 x, y, z, reflectance) or .npy file (N, 3 or more) of a depth sensor in a rig holds points:
    they are returned as (N, 3) float32.

    Raises:
        UserError: the file is missing, too large, of another type than `sensor.dtype`, can't be decoded whole and in
            its own depth, or has other channels.
    """
    if Path(path).suffix.lower() in POINTS:
        return _of_type(_read_points(Path(path), sensor), path, sensor)
    return _of_type(_within_border(_decoded(path, sensor), path, sensor), path, sensor)


def raw_image(given: Any, modality: str, sensor: Sensor) -> Tensor:
    """Returns what `read_image` does of a file, of a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W).

    A sensor in a rig may also give points, rows x, y, z. What is given holds what a file of the sensor would, `border`
    and `counts` included; numbers that are neither uint8 nor uint16 become float32. A tensor stays on its device.

    Raises:
        UserError: as `read_image` does, or it is something else.
    """
    if isinstance(given, str | os.PathLike):
        return read_image(given, sensor)
    place = f"images: {modality}"
    if isinstance(given, Image.Image):
        with decoding(place):
            image = _as_tensor(_careful(given, place, sensor), place)
    elif isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        image = torch.from_numpy(np.ascontiguousarray(given, given.dtype.newbyteorder("=")))
        if image.ndim == 3 or (image.ndim == 2 and not _may_be_points(image, sensor)):
            image = (image if image.ndim == 3 else image[:, :, None]).permute(2, 0, 1)
    elif isinstance(given, Tensor):
        image = given
    else:
        kinds = "a tensor (C, H, W), an array (H, W, C) of numbers, a PIL image or a file"
        raise UserError(f"{place} is {type(given).__name__}; give {kinds}")
    if image.ndim == 2 and _may_be_points(image, sensor):
        return image.to(torch.float32)
    if image.ndim != 3 or 0 in image.shape:
        wanted = f"({sensor.channels}, H, W) or an array (H, W, {sensor.channels})"
        raise UserError(f"{place} has shape {tuple(given.shape)}; give a tensor {wanted}")
    if image.dtype == torch.bool:
        image = image.to(torch.uint8)
    if sensor.dtype and not image.is_floating_point():
        image = _of_type(image, place, sensor)
    image = image if image.dtype in (torch.uint8, torch.uint16) else image.to(torch.float32)
    return _within_border(image, place, sensor)


def _may_be_points(image: Tensor, sensor: Sensor) -> bool:
    return sensor.is_depth and sensor.register == "rig" and image.shape[1] == 3


def _within_border(image: Tensor, place: str | os.PathLike[str], sensor: Sensor) -> Tensor:
    """Returns an image (C, H, W) without the sensor's border, its counts undone, if it has the sensor's channels."""
    channels, height, width = image.shape
    if channels != sensor.channels:
        fix = f"the sensor has {sensor.channels}: mend the card or the image"
        raise UserError(f"{place}: has {channels} channels; {fix}")
    left, top, right, bottom = sensor.border
    if left + right >= width or top + bottom >= height:
        raise UserError(
            f"{place}: is {width} x {height}, of which border {list(sensor.border)} leaves nothing; mend it"
        )
    image = image[:, top : height - bottom, left : width - right]
    if sensor.counts != "plain":
        if image.dtype != torch.uint16:
            kind = str(image.dtype).removeprefix("torch.")
            raise UserError(f"{place}: holds {kind}, but {sensor.counts} counts have 16 bits; use counts: plain")
        pixels = image.numpy()
        pixels = pixels.byteswap() if sensor.counts == "swapped" else (pixels >> 3) | (pixels << 13)
        image = torch.from_numpy(pixels)
    return image


def _of_type(raw: Tensor, place: str | os.PathLike[str], sensor: Sensor) -> Tensor:
    kind = str(raw.dtype).removeprefix("torch.")
    if sensor.dtype and kind != sensor.dtype:
        fix = "give all files of a sensor one type, or mend its dtype"
        raise UserError(f"{place}: holds {kind}, but the sensor's files are {sensor.dtype}; {fix}")
    return raw


@contextmanager
def decoding(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what Pillow and the system raise of an image, which `place` names, into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PIL only warns of is either harmless or fails when decoding
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError:
        raise UserError(f"{place}: is not an image; give a PNG, JPEG, TIFF or WebP file") from None
    except OSError as error:
        raise UserError(f"{place}: can't be read: {error.strerror or error}; give a whole image file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million"
        raise UserError(
            f"{place}: has more than {limit} pixels; give a smaller image, or cut it into several"
        ) from None
    except (SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: can't be decoded: {error}; give a whole image file") from None


def _decoded(path: str | os.PathLike[str], sensor: Sensor) -> Tensor:
    """Returns the pixels (C, H, W) of an image file, of type uint8, uint16 or float32."""
    with decoding(path):
        with open_regular(path) as opened:
            content = np.fromfile(opened, np.uint8)
        whole = content.tobytes()
        if pages := pages_of(io.BytesIO(whole)):
            return _as_tensor(_of_tiff(whole, pages, path, sensor), path)
        with Image.open(io.BytesIO(whole)) as file:
            pixels = _fast(file, content, sensor)
            return _as_tensor(_careful(file, path, sensor) if pixels is None else pixels, path)


def _as_tensor(pixels: np.ndarray, place: str | os.PathLike[str]) -> Tensor:
    """Returns pixels (H, W) or (H, W, C) as (C, H, W); numbers that PIL gives 32 bits are uint16."""
    if pixels.dtype.kind in "iu" and pixels.dtype not in (np.uint8, np.uint16):
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise UserError(f"{place}: holds values outside 0 to 65535; write 16 bits without sign, or 32-bit float")
        pixels = pixels.astype(np.uint16)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32, copy=False)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)


def _fast(file: ImageFile.ImageFile, content: np.ndarray, sensor: Sensor) -> np.ndarray | None:
    """Decodes what torchvision decodes faster than PIL or, 16-bit colour, at all; None for the rest."""
    from torchvision.io import decode_jpeg, decode_png

    try:
        if file.format == "PNG" and ";16" in str(file.tile) and file.mode in ("RGB", "RGBA", "LA"):
            return decode_png(torch.from_numpy(content), "UNCHANGED").permute(1, 2, 0).numpy()
        mode = None if sensor.is_depth else _JPEG_MODES.get(sensor.channels)
        if mode and file.format == "JPEG" and file.mode in ("L", "RGB") and file.getexif().get(_ORIENTATION, 1) == 1:
            return decode_jpeg(torch.from_numpy(content), mode).permute(1, 2, 0).numpy()
    except RuntimeError:
        pass  # PIL says what is wrong
    return None


def _careful(file: Image.Image, path: str | os.PathLike[str], sensor: Sensor) -> np.ndarray:
    deep = file.mode in ("I", "F") or file.mode.startswith("I;16")
    if not deep and ";16" in str(getattr(file, "tile", "")):
        raise UserError(f"{path}: holds several 16-bit channels, which can't be read; write PNG, or a file for each")
    image = ImageOps.exif_transpose(file)
    if not deep and not sensor.is_depth and sensor.channels in _MODES:
        image = image.convert(_MODES[sensor.channels])
    elif image.mode in ("P", "PA"):
        raise UserError(f"{path}: has a palette, whose numbers measure nothing; write grey levels")
    return np.array(image)


def _of_tiff(content: bytes, pages: Sequence[Page], path: str | os.PathLike[str], sensor: Sensor) -> np.ndarray:
    """Returns the bands (H, W, C) of a TIFF, all in one page or one in each, as writers of many bands make it."""
    if len(pages) == 1:
        return _of_page(content, pages[0], path, sensor)
    alike = {(page.upright, page.bands, page.bits, page.kind) for page in pages}
    if len(pages) != sensor.channels or len(alike) > 1 or pages[0].bands != 1:
        fix = "write one page, or one of a single channel for each"
        raise UserError(f"{path}: holds {len(pages)} pages; the sensor has {sensor.channels} channels: {fix}")
    single = replace(sensor, channels=1, mean=(), std=())
    return np.concatenate([np.atleast_3d(_of_page(content, page, path, single)) for page in pages], -1)


def _of_page(content: bytes, page: Page, path: str | os.PathLike[str], sensor: Sensor) -> np.ndarray:
    if page.size[0] * page.size[1] > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise Image.DecompressionBombError
    if page.is_pillows:
        with suppress(UnidentifiedImageError), Image.open(io.BytesIO(content)) as file:
            file.seek(page.index)
            return _careful(file, path, sensor)
    if not page.is_plain:
        raise UserError(f"{path}: is {page.to_text()}, which can't be read; write it without a loss, or as PNG")
    bands = bands_of(content, page)
    if page.bands - len(page.alpha) == sensor.channels < page.bands:
        bands = np.delete(bands, page.alpha, -1)
    return bands


def _read_points(path: Path, sensor: Sensor) -> Tensor:
    if not sensor.is_depth or sensor.register != "rig":
        raise UserError(f"{path}: holds points; use a depth encoding and register: rig, or give an image")
    try:
        open_regular(path).close()
        if path.suffix.lower() == ".npy":
            points = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            points = np.fromfile(path, "<f4").reshape(-1, 4)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}; give a whole file") from None
    except (ValueError, EOFError) as error:
        fix = "give x, y, z and reflectance as float32 (.bin), or a .npy file of numbers"
        raise UserError(f"{path}: can't be decoded: {error}; {fix}") from None
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        shape = " x ".join(str(n) for n in points.shape)
        raise UserError(f"{path}: holds {shape} {points.dtype}; give N x 3 numbers or more columns: x, y, z in metres")
    return torch.from_numpy(points[:, :3].astype(np.float32))
