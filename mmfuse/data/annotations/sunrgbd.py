"""Reads SUN RGB-D: lists and boxes in MATLAB files, and for each view a folder with its images and calibration."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.data.annotations.cards import Card, inside
from mmfuse.data.annotations.draws import drawn
from mmfuse.data.annotations.layout import Entries, Entry, calibrations, reference_size
from mmfuse.data.annotations.matlab import as_list, read_mat
from mmfuse.data.annotations.patterns import matches
from mmfuse.data.annotations.records import Annotation, Reading, make_record, objects_from
from mmfuse.data.annotations.templates import fill
from mmfuse.errors import UserError

_ROOT = "SUNRGBD/"
_VARIABLE = "SUNRGBDMeta2DBB"
_LARGEST = (731, 531)

_Box = tuple[float, float, float, float]
_NO_BOX: _Box = (0.0, 0.0, 0.0, 0.0)
_BROKEN_BOX: _Box = (float("nan"), float("nan"), float("nan"), float("nan"))


def read_sunrgbd(card: Card, split: str) -> Reading:
    """Reads the views of a split, in the order of its list; they count from 1, which is their id.

    `file` of a split is a MATLAB file and, after a colon, its variable: `allsplit.mat:alltrain` or
    `allsplit.mat:trainvalsplit.val`. What follows SUNRGBD/ in the list is the entry. `files` of the layout end in a
    pattern that a single file fits, `annotations` name the MATLAB file of all boxes. Frames of one SUN3D scan are a
    sequence.

    Descriptions differ on whether boxes are x y w h or x1 y1 x2 y2. They are what more boxes of the whole file can be:
    x y w h inside the dataset's largest image, or corners with an area between them; x y w h if as many.

    Source: Song et al., SUN RGB-D, CVPR 2015, and its toolbox.

    Raises:
        UserError: the card lacks such a layout, or a MATLAB file can't be read.
    """
    layout = card.layout
    if layout is None or len(layout.annotations) != 1:
        raise UserError(f"{card.path}: layout.annotations: the reader 'sunrgbd' needs one, SUNRGBDMeta2DBB_v2.mat")
    maker = Entries(card, split)
    path = inside(card.root, next(iter(layout.annotations.values())), f"{card.path}: layout.annotations")
    known = _read_objects(path, path.stat().st_mtime_ns if path.is_file() else 0)
    reading, seen = Reading(), set[str]()
    chosen = [
        (number, name, where) for number, (name, where) in enumerate(_listed(card, split), 1) if maker.chosen(name)
    ]
    if not chosen:
        raise UserError(f"{card.path}: splits.{split}: no entry is found; check the split's rule")
    kept = drawn(card, split, [(name, _sequence(name)) for _, name, _ in chosen])
    for number, name, where in compress(chosen, kept):
        try:
            if name in seen:
                raise UserError(f"{where}: the entry {name!r} stands twice; remove one")
            seen.add(name)
            entry = _entry(maker, name, where)
            if name not in known.views and card.labels.unlabelled == "error":
                raise UserError(f"{where}: {name}: is missing in {path}; remove the entry or set labels.unlabelled")
            files = _files(card, entry)
            size = reference_size(card, files)
            found = calibrations(card, entry)
        except UserError as error:
            reading.errors.append(str(error))
            continue
        objects = objects_from(known.annotations(name), card.reference, size, card, reading)
        record = make_record(number, files, size, objects, {}, entry.condition, entry.sequence, *found)
        reading.records.append(record)
    return reading


def _listed(card: Card, split: str) -> Iterator[tuple[str, str]]:
    place, given = f"{card.path}: splits.{split}", card.pool(split).file
    file, _, variable = given.rpartition(":")
    if not file or not variable:
        raise UserError(f"{place}: file: {given!r} names no variable; write FILE.mat:alltrain")
    path = inside(card.root, file, place)
    outer, *inner = variable.split(".")
    value = read_mat(path, outer)[outer]
    for key in inner:
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{path}: {outer!r} has no {key!r}; check the split in {card.path}")
        value = value[key]
    for number, text in enumerate(as_list(value), 1):
        where = f"{path}: {variable}({number})"
        if not isinstance(text, str):
            raise UserError(f"{where}: is not a text; give a list of folders")
        yield _entry_name(text), where


def _entry(maker: Entries, name: str, where: str) -> Entry:
    tags = (tag for tag, pattern in maker.layout.conditions.items() if matches(pattern, name))
    values = {**maker.known, "entry": name}
    return Entry(name, values, where, maker.conditions.get(name, next(tags, None)), _sequence(name))


def _sequence(name: str) -> str | None:
    return name.rpartition("/")[0] if name.count("/") > 2 else None


def _files(card: Card, entry: Entry) -> dict[str, Path]:
    assert card.layout is not None
    files = {}
    for m in card.modalities:
        pattern, where = fill(card.layout.files[m], entry.values), f"{entry.where}: {entry.name}"
        folder, _, name = pattern.rpartition("/")
        inside(card.root, folder, where)
        found = sorted(path for path in (card.root / folder).glob(name) if path.name[0] != "." and path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{where}: {m}: {pattern} are {len(found)} files ({names}); keep one")
        if found:
            inside(card.root, found[0].relative_to(card.root).as_posix(), where)
            files[m] = found[0]
        elif card.missing == "error":
            fix = "add the file, remove the entry or set missing: allow"
            raise UserError(f"{where}: {m}: {card.root / pattern} is missing; {fix}")
    if not files:
        raise UserError(f"{entry.where}: {entry.name}: has no file of any sensor; remove the entry")
    return files


@dataclass(frozen=True)
class _Objects:
    """The objects of all views, by entry: each a name and the four numbers of its box, which are `corners` or sizes."""

    path: Path
    views: dict[str, list[tuple[str, _Box]]]
    corners: bool

    def annotations(self, entry: str) -> Iterator[Annotation]:
        for number, (name, (a, b, c, d)) in enumerate(self.views.get(entry, ()), 1):
            shown = f"{a:g} {b:g} {c:g} {d:g}"
            box = (a, b, c, d) if self.corners else (a, b, a + c, b + d)
            yield Annotation(name, box, shown, f"{self.path}: {entry}: object {number}")


@lru_cache(maxsize=1)
def _read_objects(path: Path, changed: int) -> _Objects:
    """Reads the file of all boxes; `changed` tells its versions apart."""
    views: dict[str, list[tuple[str, _Box]]] = {}
    for number, view in enumerate(as_list(read_mat(path, _VARIABLE)[_VARIABLE]), 1):
        name = view.get("sequenceName") if isinstance(view, dict) else None
        if not isinstance(name, str) or "groundtruth2DBB" not in view:
            fix = "give SUNRGBDMeta2DBB_v2.mat"
            raise UserError(f"{path}: {_VARIABLE}({number}): has no sequenceName or no groundtruth2DBB; {fix}")
        things = [thing for thing in as_list(view["groundtruth2DBB"]) if isinstance(thing, dict)]
        views[_entry_name(name)] = [(str(thing.get("classname", "")), _box(thing.get("gtBb2D"))) for thing in things]
    table = np.array([box for view in views.values() for _, box in view], np.float64).reshape(-1, 4)
    first, last = table[:, :2], table[:, 2:]
    as_sizes = (last > 0) & (first + last <= _LARGEST)
    as_corners = (last > first) & (last <= _LARGEST)
    return _Objects(path, views, bool(as_corners.all(1).sum() > as_sizes.all(1).sum()))


def _box(values: Any) -> _Box:
    try:
        numbers = np.asarray(values, np.float64).ravel().tolist()
    except (TypeError, ValueError):
        return _BROKEN_BOX
    if not numbers:
        return _NO_BOX
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else _BROKEN_BOX


def _entry_name(text: str) -> str:
    return text.rpartition(_ROOT)[2].strip("/")
