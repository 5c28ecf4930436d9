"""What a TIFF holds, by its tags, and the pixels of those that Pillow can't read or reads in part: bands of any depth.

Source: TIFF revision 6.0, Adobe, 1992, and its technical notes 1 and 3 on tiles and predictors.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

TURNED = (5, 6, 7, 8)
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 1024
_KINDS = {1: "u", 2: "i", 3: "f"}
_PREDICTED = (5, 8, 32946, 34925, 50000)
_LOSSLESS = (1, 32773, *_PREDICTED)
_TYPES = {("u", 8), ("i", 8), ("f", 16), *((kind, bits) for kind in "uif" for bits in (16, 32, 64))}
_REDUCED, _MASK = 1, 4


@dataclass(frozen=True)
class Page:
    """One image of a TIFF: `size` is width and height as stored, `bits` and `kind` are of a number of a band.

    `kind` is u, i or f, or empty where bands differ or hold something else; `alpha` tells which bands are opacity.
    `nodata` is the value that GDAL's tag says means "not measured", in the words of the file, empty for none.
    """

    index: int
    size: tuple[int, int]
    bands: int
    bits: int
    kind: str
    alpha: tuple[int, ...]
    photometric: int
    compression: int
    predictor: int
    planes: bool
    orientation: int
    order: str
    tile: tuple[int, int]
    tiled: bool
    rows: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    nodata: str

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as it is to be shown."""
        return self.size[::-1] if self.orientation in TURNED else self.size

    @property
    def is_plain(self) -> bool:
        """Whether the bands can be read here: whole numbers or floats of one kind, packed without a loss."""
        return (self.kind, self.bits) in _TYPES and self.photometric in (0, 1, 2) and self.compression in _LOSSLESS

    @property
    def is_pillows(self) -> bool:
        """Whether Pillow reads all of it as it is."""
        if self.bits < 8 or not self.is_plain:
            return self.bands <= 4
        if self.planes:
            return False
        if self.bits == 8:
            return self.kind == "u" and self.bands - len(self.alpha) in (1, 3)
        return self.bands == 1 and self.photometric != 0 and (self.kind, self.bits) in (("u", 16), ("f", 32))

    def to_text(self) -> str:
        """Returns what it holds, in words."""
        kinds = {"u": "whole numbers", "i": "whole numbers with a sign", "f": "floats"}
        kind = kinds.get(self.kind, "mixed or other numbers")
        return f"a TIFF of {self.bands} bands of {self.bits} bits ({kind}, compression {self.compression})"


def pages_of(file: BinaryIO) -> list[Page]:
    """Returns the images of a TIFF, without smaller copies and masks; none where the file is something else.

    Raises:
        ValueError: its tags are damaged.
    """
    file.seek(0)
    head = file.read(16)
    if head[:4] not in _MAGIC:
        return []
    found: list[Page] = []
    seen: set[int] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow leaves out is missed where it is needed
            directory = ImageFileDirectory_v2(head[: 16 if b"+" in head[:4] else 8])
            while directory.next and directory.next not in seen and len(seen) < _MOST_PAGES:
                seen.add(directory.next)
                file.seek(directory.next)
                directory.reset()
                directory.load(file)
                if not directory.get(254, 0) & (_REDUCED | _MASK):
                    found.append(_page(len(seen) - 1, directory, "<" if head[:1] == b"I" else ">"))
    except (TypeError, KeyError, IndexError, ValueError, struct.error, SyntaxError, OverflowError, OSError) as error:
        raise ValueError(f"its TIFF tags are damaged ({' '.join(str(error).split())[:80]})") from None
    if not found:
        raise ValueError("its TIFF tags name no image")
    return found


def _page(index: int, tags: Any, order: str) -> Page:
    width, height, bands = int(tags[256]), int(tags[257]), int(tags.get(277, 1))
    if min(width, height, bands) < 1:
        raise ValueError(f"{width} x {height} pixels of {bands} bands")
    bits, kinds, extra = (tuple(map(int, tags.get(tag, given))) for tag, given in ((258, (1,)), (339, (1,)), (338, ())))
    alike = len(set(bits)) == 1 and len(set(kinds)) == 1
    first = bands - len(extra)
    compression, tiled = int(tags.get(259, 1)), 324 in tags
    tile = (int(tags[322]), int(tags[323])) if tiled else (width, height)
    if min(tile) < 1:
        raise ValueError(f"tiles of {tile[0]} x {tile[1]}")
    return Page(
        index,
        (width, height),
        bands,
        int(max(bits)),
        _KINDS.get(kinds[0], "") if alike else "",
        tuple(first + i for i, meaning in enumerate(extra) if meaning in (1, 2)),
        int(tags.get(262, 1)),
        compression,
        int(tags.get(317, 1)) if compression in _PREDICTED else 1,
        tags.get(284, 1) == 2,
        int(tags.get(274, 1)),
        order,
        tile,
        tiled,
        int(min(tags.get(278, height), height)),
        tuple(map(int, tags[324 if tiled else 273])),
        tuple(map(int, tags[325 if tiled else 279])),
        str(tags.get(42113, "")).strip("\0 "),
    )


def bands_of(content: bytes, page: Page) -> np.ndarray:
    """Returns the pixels (H, W, C) of a page that `is_plain`, upright, in the numbers of the file.

    White as the lowest value is turned round, which floats can't be.

    Raises:
        ValueError: it is cut short, or floats have white as the lowest value.
        OSError, SyntaxError: its packing is damaged.
    """
    planes = page.bands if page.planes else 1
    each = len(page.offsets) // planes
    ends = [start + count for start, count in zip(page.offsets, page.counts, strict=True)]
    if not each or max(ends) > len(content):
        raise ValueError("the file is cut short")
    parts = [_plane(content, page, slice(i * each, (i + 1) * each)) for i in range(planes)]
    pixels = np.concatenate(parts, -1)[: page.size[1], : page.size[0]]
    if page.photometric == 0:
        if page.kind != "u":
            raise ValueError("white is the lowest of its values (MinIsWhite), so what they measure isn't known")
        pixels = ~pixels
    return np.ascontiguousarray(_turned(pixels, page.orientation))


def _plane(content: bytes, page: Page, part: slice) -> np.ndarray:
    """Returns (H, W, C) of the bands that lie together, whole tiles where there are tiles.

    Pillow unpacks them as if each byte were a pixel of grey.
    """
    bands, size = 1 if page.planes else page.bands, page.bits // 8
    width, height = page.tile
    whole = [-(-side // step) * step for side, step in zip(page.size, page.tile, strict=True)]
    row, counts = bands * size, page.counts[part]
    if page.compression == 1 and sum(counts) < whole[0] * whole[1] * row:
        raise ValueError("the file is cut short")
    values = {256: whole[0] * row, 257: whole[1], 258: 8, 259: page.compression, 262: 1, 277: 1}
    values |= {322: width * row, 323: height} if page.tiled else {278: page.rows}
    places = (324, 325) if page.tiled else (273, 279)
    as_bytes = _with_directory(content, values, dict(zip(places, (page.offsets[part], counts), strict=True)))
    with Image.open(io.BytesIO(as_bytes), formats=["TIFF"]) as file:
        packed = np.array(file).reshape(whole[1], whole[0] // width, width, bands, size)
    if page.predictor == 3:
        sums = packed.reshape(*packed.shape[:2], -1, bands).cumsum(2, np.uint8)
        numbers = sums.reshape(*packed.shape[:2], size, width * bands).swapaxes(2, 3).copy().view(f">f{size}")
    else:
        bits = packed.view(f"{page.order}u{size}").astype(f"u{size}")
        if page.predictor == 2:
            bits = bits.cumsum(2, bits.dtype)
        numbers = bits.view(f"{page.kind}{size}")
    return numbers.reshape(whole[1], whole[0], bands).astype(f"{page.kind}{size}")


def _with_directory(content: bytes, values: dict[int, int], lists: dict[int, tuple[int, ...]]) -> bytes:
    """Returns a little-endian TIFF of the same data, behind which lie these tags in place of its own."""
    behind, entries = bytearray(), []
    start = len(content) + len(content) % 2
    for tag, numbers in lists.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        place = struct.pack("<I", start + len(behind)) if len(numbers) > 1 else packed
        behind += packed if len(numbers) > 1 else b""
        entries.append(struct.pack("<HHI", tag, 4, len(numbers)) + place)
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    head = b"II*\0" + struct.pack("<I", start + len(behind))
    return head + content[8:] + bytes(len(content) % 2) + behind + directory


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    turned: np.ndarray = pixels[::rows, ::columns]
    return turned
