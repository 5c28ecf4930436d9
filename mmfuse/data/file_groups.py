"""Which files of a folder belong together, as their names tell: by sensor, by split, and by the image they are of."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_SENSORS = {
    "rgb": "rgb visible vis visual color colour eo co image_2 image_02",
    "thermal": "thermal ir infrared lwir tir fir therm previewdata",
    "nir": "nir",
    "swir": "swir",
    "depth": "depth disparity disp",
    "lidar": "lidar velodyne points",
    "event": "event events",
}
_SENSOR_OF = {word: sensor for sensor, words in _SENSORS.items() for word in words.split()}
SENSORS = tuple(_SENSORS)
_SPLIT = re.compile("(?P<train>train(ing)?)|(?P<val>val(id(ation)?)?|dev)|(?P<test>test(ing)?)", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(rf"({_SPLIT.pattern})(20\d\d)?", re.IGNORECASE)
_MOST_SENSORS = 8

Values = tuple[str, ...]
"""What the placeholders of a template stand for, but for the split's folder: folders that vary, and the id."""


@dataclass(frozen=True)
class Group:
    """Files that one template names, by (folder, values); `sensor` is a word of their names, "" where none tells."""

    sensor: str
    template: str
    files: Mapping[tuple[str, Values], str]

    @property
    def values(self) -> set[Values]:
        """The values of all files."""
        return {values for _, values in self.files}

    @property
    def folders(self) -> list[str]:
        """What stands for {folder}; a single "" where the template has none."""
        return sorted({folder for folder, _ in self.files})


def names_in(folder: Path) -> list[str]:
    """Returns the paths of all files below a folder, without hidden ones and what can't stand in a template."""
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name[0] not in "._")
        above = Path(place).relative_to(folder)
        found += [(above / name).as_posix() for name in sorted(files) if name[0] not in "._"]
    return [name for name in found if not set(name) & set("{}\n\r\\")]


def split_of(name: str) -> str | None:
    """Returns "train", "val" or "test" where a name says one of them, and not several."""
    said = {match.lastgroup for match in _SPLIT.finditer(name)}
    return said.pop() if len(said) == 1 else None


def placeholders_of(count: int) -> list[str]:
    """Returns the names of so many placeholders, the last of which is the id."""
    return [f"part{i}" for i in range(1, count)] + ["id"]


def groups(names: Iterable[str]) -> list[Group]:
    """Sorts files into groups, the largest first.

    Words for sensors and splits stand as folders or, of sensors, at either end of a name. Where no word tells the
    sensors apart, folders do that hold files of the same names, unless they are numbered.
    """
    shapes: dict[tuple[str, tuple[str | None, ...], str], list[_Shape]] = defaultdict(list)
    for name in names:
        shape = _Shape.of(name)
        shapes[shape.sensor, shape.fixed, shape.end].append(shape)
    found = [group for alike in shapes.values() for group in _groups(alike)]
    return sorted(found, key=lambda group: (-len(group.files), group.template))


def shared(one: Group, other: Group) -> float:
    """Returns the share of the values of the smaller group that are the other's, too."""
    return len(one.values & other.values) / min(len(one.values), len(other.values))


@dataclass(frozen=True)
class _Shape:
    """A file's name, taken apart; `fixed` has each folder as a template, None where it may vary, and the id's name."""

    name: str
    sensor: str
    folder: str
    dirs: tuple[str, ...]
    fixed: tuple[str | None, ...]
    end: str
    id: str

    @classmethod
    def of(cls, name: str) -> "_Shape":
        path = PurePosixPath(name)
        dirs, stem = path.parts[:-1], path.name.removesuffix(path.suffix)
        folder = next((part for part in dirs if _SPLIT_FOLDER.fullmatch(part)), "") or _split_in(dirs)
        templates = [_with_folder(part, folder) for part in dirs]
        words = [(part, _SENSOR_OF.get(part.lower())) for part in dirs]
        words += [(part, _SENSOR_OF.get(token)) for part in dirs for token in _tokens(part)]
        part, sensor = next(((p, s) for p, s in words if s), ("", None))
        before, number, after = "", stem, ""
        if sensor is None:
            before, number, after, sensor = _at_ends(stem)
        hole = "{id}" if number else ""
        fixed = [t if "{folder}" in t or (part and p == part) else None for p, t in zip(dirs, templates, strict=True)]
        return cls(
            name, sensor or "", folder, tuple(templates), tuple(fixed), f"{before}{hole}{after}{path.suffix}", number
        )


def _split_in(dirs: Sequence[str]) -> str:
    """Returns the split that the beginning or end of a folder's name says, as it stands there."""
    for part in dirs:
        words = re.split("[-_]", part)
        for word in (words[0], words[-1]) if len(words) > 1 else ():
            if _SPLIT_FOLDER.fullmatch(word):
                return word
    return ""


def _with_folder(part: str, folder: str) -> str:
    if folder and (part.startswith(folder) or part.endswith(folder)):
        return part.replace(folder, "{folder}", 1)
    return part


def _tokens(text: str) -> list[str]:
    return re.split("[-_ .]", text.lower())


def _at_ends(stem: str) -> tuple[str, str, str, str | None]:
    """Returns what stands before the id in a name, the id, what stands after, and the sensor of which that is a word.

    The id is empty where the whole name is such a word.
    """
    if sensor := _SENSOR_OF.get(stem.lower()):
        return stem, "", "", sensor
    after = re.fullmatch("(.+)([-_.][A-Za-z]+)", stem)
    if after and (sensor := _SENSOR_OF.get(after[2][1:].lower())):
        return "", after[1], after[2], sensor
    before = re.fullmatch("([A-Za-z]+[-_.])(.+)", stem)
    if before and (sensor := _SENSOR_OF.get(before[1][:-1].lower())):
        return before[1], before[2], "", sensor
    return "", stem, "", None


def _groups(alike: Sequence[_Shape]) -> list[Group]:
    """Makes the groups of files of one shape."""
    sensor, depth = alike[0].sensor, len(alike[0].dirs)
    columns = [{shape.dirs[i] for shape in alike} for i in range(depth)]
    varying = [i for i in range(depth) if len(columns[i]) > 1]
    apart = next((i for i in varying if not sensor and _are_sensors(alike, i)), None)
    if apart is not None:
        parts: dict[str, list[_Shape]] = defaultdict(list)
        for shape in alike:
            parts[shape.dirs[apart]].append(shape)
        return [
            Group(identifier(value), group.template, group.files)
            for value, part in parts.items()
            for group in _groups(part)
        ]
    named, end = bool(alike[0].id), alike[0].end
    if varying and len({shape.id for shape in alike}) == 1 < len(alike):  # a folder for each image
        named, end = False, end.replace("{id}", alike[0].id)
    if not named and not varying:
        varying = [depth - 1] if depth else []
    names = iter(placeholders_of(len(varying) + named))
    template = [f"{{{next(names)}}}" if i in varying else alike[0].dirs[i] for i in range(depth)]
    files = {(shape.folder, (*(shape.dirs[i] for i in varying), *([shape.id] * named))): shape.name for shape in alike}
    return [Group(sensor, "/".join([*template, end]), files)]


def _are_sensors(alike: Sequence[_Shape], place: int) -> bool:
    """Whether the folders at a place hold files of the same names, and aren't one folder's with other numbers."""
    rest: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for shape in alike:
        rest[shape.dirs[place]].add((*shape.dirs[:place], *shape.dirs[place + 1 :], shape.folder, shape.id))
    plain = {re.sub(r"\d+", "", value) for value in rest}
    if len(rest) > _MOST_SENSORS or (len(plain) == 1 and not plain.pop().lower().startswith("cam")):
        return False
    largest = max(rest.values(), key=len)
    return all(len(one & largest) * 2 >= len(one) for one in rest.values())


def identifier(text: str) -> str:
    """Returns a name of letters, digits and _ for a sensor that only a folder's name tells."""
    name = re.sub(r"\W|^(?=\d)", "_", text.replace("{folder}", ""), flags=re.ASCII).strip("_").lower()
    return name or "image"
