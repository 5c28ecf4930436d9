"""Annotation files of one image: each function turns a file's bytes into the objects that it names.

Coordinates are made xyxy pixels; what names mean, and which boxes are good, is for the card and `records` to say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from mmfuse.data.annotations.records import Annotation
from mmfuse.errors import UserError

_NAN = float("nan")


def pascal_voc(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """Pascal VOC XML: `bndbox`, or the box around a `polygon` of x1, y1 … x4, y4; `difficult` ones are ignored.

    Raises:
        UserError: the file isn't whole XML of this kind, or has a document type, which could name entities.
    """
    root = _parse_xml(content)
    if root.tag != "annotation":
        raise UserError(f"is no Pascal VOC annotation but <{root.tag}>; give the annotation file")
    for number, thing in enumerate(root.findall("object"), 1):
        polygon, corners = thing.find("polygon"), thing.find("bndbox")
        if polygon is not None:
            shown = [polygon.findtext(f"{axis}{i}", "") for i in (1, 2, 3, 4) for axis in "xy"]
            box = bounds(_numbers(shown))
        else:
            shown = [
                "" if corners is None else corners.findtext(key, "").strip() for key in ("xmin", "ymin", "xmax", "ymax")
            ]
            box = _four(_numbers(shown))
        difficult = thing.findtext("difficult", "0").strip() == "1"
        yield Annotation(thing.findtext("name", "").strip(), box, " ".join(shown), f"object {number}", difficult)


def bbgt(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """Text of Dollár's toolbox, as KAIST's: a header, then `label x y w h occluded …` from the top left corner.

    Raises:
        UserError: the header is missing or of another version.
    """
    lines = _lines(content)
    header = next(lines, (0, [], ""))[2]
    if header != "% bbGt version=3":
        raise UserError(f"begins with {header!r} and not with '% bbGt version=3'; give that format")
    for number, words, line in lines:
        x, y, w, h = _four(_numbers(words[1:5]))
        yield Annotation(words[0], (x, y, x + w, y + h), line, f"line {number}", occlusion=_degree(words[5:6]))


def yolo(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """YOLO text: `class x_centre y_centre w h`, or a polygon `class x1 y1 x2 y2 x3 y3 …` (the box around its corners).

    Both are in parts of the image's width and height.
    """
    width, height = size
    for number, words, line in _lines(content):
        values = _numbers(words[1:])
        x1, y1, x2, y2 = bounds(values) if len(values) >= 6 else _centred(*_four(values))
        box = x1 * width, y1 * height, x2 * width, y2 * height
        yield Annotation(words[0], box, line, f"line {number}")


def kitti(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """KITTI `label_2` text: `type truncated occluded alpha x1 y1 x2 y2 h w l x y z ry`."""
    for number, words, line in _lines(content):
        box = _four(_numbers(words[4:8] if len(words) >= 15 else []))
        yield Annotation(words[0], box, line, f"line {number}", occlusion=_degree(words[2:3]))


def vedai(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """VEDAI text: `x_c y_c angle class contained occluded x1 x2 x3 x4 y1 y2 y3 y4`; the box around the corners.

    In the file of all images a line is `id x_c y_c angle x1 x2 x3 x4 y1 y2 y3 y4 class contained occluded`.
    """
    for number, words, line in _lines(content):
        if len(words) == 15:
            words = [*words[1:4], *words[12:], *words[4:12]]
        corners = _numbers(words[6:] if len(words) == 14 else [])
        box = bounds([value for pair in zip(corners[:4], corners[4:], strict=True) for value in pair])
        label = (words[3].lstrip("0") or "0") if len(words) > 3 else ""
        yield Annotation(label, box, line, f"line {number}", occlusion=_degree(words[5:6]))


def centred(content: bytes, size: tuple[int, int]) -> Iterator[Annotation]:
    """CVC-14 text: `x_centre y_centre w h class …` in pixels, with any number of blanks between."""
    for number, words, line in _lines(content):
        x, y, w, h = _four(_numbers(words[:4]))
        yield Annotation(words[4] if len(words) > 4 else "", _centred(x, y, w, h), line, f"line {number}")


def bounds(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the box around corners given as x1 y1 x2 y2 …, NaN unless there are three of finite numbers."""
    xs, ys = values[::2], values[1::2]
    if len(xs) < 3 or len(xs) != len(ys) or any(v != v for v in values):
        return _four([])
    return min(xs), min(ys), max(xs), max(ys)


def mask_bounds(rle: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Returns the box around a mask in COCO's run lengths, `size` (H, W) and `counts`, NaN where they aren't whole.

    `counts` alternate between pixels outside and inside, column by column, as numbers or in COCO's text.
    """
    from pycocotools import mask

    size, counts = rle.get("size"), rle.get("counts")
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    if not (isinstance(size, list) and len(size) == 2 and isinstance(runs, list)):
        return _four([])
    whole = all(type(n) is int and 0 <= n < 2**31 for n in (*size, *runs))
    if not whole or not 0 < size[0] * size[1] == sum(runs) < 2**31:
        return _four([])
    x, y, w, h = mask.toBbox(mask.frPyObjects({"size": size, "counts": runs}, *size)).tolist()
    return x, y, x + w, y + h


def _run_lengths(text: str) -> list[int]:
    """Returns the numbers of COCO's text: 5 bits a character from the lowest, from the fourth on as differences to the
    last but one; none where it ends too early, where pycocotools reads on.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii", "replace"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return [] if shift else runs


def lines_of(content: bytes, name: str) -> bytes:
    """Returns the lines of a text file that begin with a word, and empty ones in place of all others."""
    word = name.encode()
    return b"\n".join(line if line.split(None, 1)[:1] == [word] else b"" for line in content.splitlines())


def decode(content: bytes) -> str:
    """Returns the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: it isn't UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _lines(content: bytes) -> Iterator[tuple[int, list[str], str]]:
    for number, line in enumerate(decode(content).splitlines(), 1):
        if words := line.split():
            yield number, words, line.strip()


def _numbers(words: Iterable[str]) -> list[float]:
    def number(word: str) -> float:
        try:
            return float(word)
        except ValueError:
            return _NAN

    return [number(word) for word in words]


def _four(values: Sequence[float]) -> tuple[float, float, float, float]:
    return (values[0], values[1], values[2], values[3]) if len(values) == 4 else (_NAN, _NAN, _NAN, _NAN)


def _centred(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _degree(words: Sequence[str]) -> int:
    values = _numbers(words)
    return int(values[0]) if values and abs(values[0]) < 100 else -1


def _parse_xml(content: bytes) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(name: str, *_: object) -> None:
        raise UserError(f"declares the document type {name!r}, which could expand or fetch entities; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag)
    parser.CharacterDataHandler = lambda data: builder.data(data)
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ParseError, ValueError, LookupError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"is not XML: {error}; write it anew") from None
