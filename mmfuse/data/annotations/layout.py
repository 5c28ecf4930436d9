"""The entries of a split and where the files of each one lie, by the templates of a card's layout."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

from PIL import Image

from mmfuse.data.annotations.calibration_files import read_calibration
from mmfuse.data.annotations.cards import Card, Layout, Split, inside
from mmfuse.data.annotations.draws import drawn
from mmfuse.data.annotations.formats import decode
from mmfuse.data.annotations.patterns import LONGEST_NAME, matches
from mmfuse.data.annotations.records import Reading
from mmfuse.data.annotations.templates import fill, matcher, placeholders, wildcard
from mmfuse.data.annotations.timestamps import match
from mmfuse.errors import UserError
from mmfuse.files import open_regular, read_regular
from mmfuse.images.decode import decoding
from mmfuse.images.tiff import TURNED, pages_of
from mmfuse.sensor import Calibration

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Entry:
    """One image of each sensor: its `name` in lists, what the placeholders stand for, and where it is named.

    `values_of` has what stands for modalities whose frames have a time of their own; None where none is near.
    """

    name: str
    values: Mapping[str, str]
    where: str
    condition: str | None
    sequence: str | None
    values_of: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)


class Entries:
    """Makes the entries of one split from their names; see `Layout`."""

    def __init__(self, card: Card, split: str) -> None:
        """Reads the card's map of pairs and its lists of conditions.

        Raises:
            UserError: the card has no layout, or one of these files can't be read.
        """
        if card.layout is None:
            raise UserError(f"{card.path}: layout: the reader {card.reader!r} needs it; say where the files lie")
        self.layout, self.rule = card.layout, card.pool(split)
        self.known = {"folder": _folder(self.rule)}
        self.pattern = matcher(self.layout.entry, self.known, {})
        self.pairs = _read_pairs(card, self.layout)
        self.conditions: dict[str, str] = {}
        for tag, file in self.layout.condition_lists.items():
            for name, where in _listed(card, file, f"{card.path}: layout.condition_lists.{tag}"):
                other = self.conditions.setdefault(name, tag)
                if other != tag:
                    raise UserError(f"{where}: {name!r} is {tag}, and {other} in another list; keep it in one")

    def make(self, name: str, where: str) -> Entry:
        """Returns the entry of a name.

        Raises:
            UserError: the name doesn't fit the card's template.
        """
        if len(name) > LONGEST_NAME:
            raise UserError(f"{where}: the entry has {len(name)} characters; use at most {LONGEST_NAME}")
        found = self.pattern.fullmatch(name)
        if found is None:
            raise UserError(f"{where}: {name!r} doesn't fit the entry {self.layout.entry!r} of the card; mend one")
        values = {**self.known, **found.groupdict(), "entry": name}
        partner = self.pairs.get(Path(name).name)
        if partner is not None:
            values["pair"] = partner
        tags = (tag for tag, pattern in self.layout.conditions.items() if matches(pattern, name))
        sequence = fill(self.layout.sequence, values) if self.layout.sequence else None
        return Entry(name, values, where, self.conditions.get(name, next(tags, None)), sequence)

    def chosen(self, name: str) -> bool:
        """Whether the split's rule takes the entry."""
        rule = self.rule
        fits = not rule.only or matches(rule.only, name)
        return bool(fits and (not rule.first or name >= rule.first) and (not rule.last or name <= rule.last))


def entries_of(card: Card, split: str, reading: Reading) -> list[Entry]:
    """Returns the entries of a split: those of its list, in that order, or else all whose files are found, sorted.

    Faults of single entries go to `reading`.

    Raises:
        UserError: the list can't be read, or no entry is left.
    """
    maker = Entries(card, split)
    rule, place = maker.rule, f"{card.path}: splits.{split}"
    named = _listed(card, rule.file, place) if rule.file else _found(card, maker)
    entries: dict[str, Entry] = {}
    for name, where in named:
        try:
            if name in entries:
                raise UserError(f"{where}: the entry {name!r} stands twice; remove one")
            entry = maker.make(name, where)
        except UserError as error:
            reading.errors.append(str(error))
        else:
            if maker.chosen(name):
                entries[name] = entry
    if not entries and not reading.errors:
        raise UserError(f"{place}: no entry is found; check the root, the layout and the split's rule")
    kept = drawn(card, split, [(entry.name, entry.sequence) for entry in entries.values()])
    listed = list(compress(entries.values(), kept))
    if maker.layout.tolerance is None:
        return listed
    return _with_times(card, listed, maker.layout.tolerance, reading)


def entry_files(card: Card, entry: Entry, reading: Reading) -> dict[str, Path] | None:
    """Returns the file of each modality of an entry; None, with the faults in `reading`, if one is lacking."""
    files, wrong = {}, False
    for m in card.modalities:
        try:
            path = entry_path(card, entry, f"files.{m}")
        except UserError as error:
            reading.errors.append(str(error))
            wrong = True
            continue
        if path is not None and os.path.isfile(path):
            files[m] = path
        elif card.missing == "error":
            lacking = "there is no pair in the card's map" if path is None else f"{path} is missing"
            fix = "add the file, remove the entry or set missing: allow"
            reading.errors.append(f"{entry.where}: {entry.name}: {m}: {lacking}; {fix}")
            wrong = True
    if not files and not wrong:
        reading.errors.append(f"{entry.where}: {entry.name}: has no file of any sensor; remove the entry")
    return None if wrong or not files else files


def entry_path(card: Card, entry: Entry, key: str) -> Path | None:
    """Returns the path that the template `key` of the layout gives for an entry, None where it has no pair.

    Raises:
        UserError: the path leaves the root.
    """
    assert card.layout is not None
    template = card.layout.templates[key]
    values = entry.values_of.get(key.partition(".")[2], entry.values)
    if values is None or ("pair" in placeholders(template) and "pair" not in values):
        return None
    name = fill(template, values)
    inside(card.root, name, f"{entry.where}: {entry.name}")
    return card.root / name


def calibrations(card: Card, entry: Entry) -> tuple[dict[str, Calibration], Calibration | None]:
    """Returns an entry's own calibrations by modality, and that of the reference; see `Record`.

    Raises:
        UserError: a file is missing or holds something else.
    """
    assert card.layout is not None
    found = {}
    for m, of in card.layout.calibrations.items():
        path = entry_path(card, entry, f"calibrations.{m}")
        if path is None:
            raise UserError(
                f"{entry.where}: {entry.name}: {m}: there is no calibration for it; add it to the card's map"
            )
        found[m] = read_calibration(path, of.format, of.key)
    return found, found.get(card.reference)


def reference_size(card: Card, files: Mapping[str, Path]) -> tuple[int, int]:
    """Returns width and height of the frame of the reference, from an image that lies in it or its calibration.

    Raises:
        UserError: such an image can't be read, or there is none and no calibrated size.
    """
    lying = [m for m in (card.reference, *card.modalities) if m in files and card.modalities[m].register == "none"]
    if lying:
        return image_size(files[lying[0]], card.modalities[lying[0]].border)
    calibration = card.modalities[card.reference].calibration
    if calibration is None or calibration.size is None:
        some = next(iter(files.values()))
        raise UserError(
            f"{some}: has no image of {card.reference} beside it; give modalities.{card.reference}.calibration.size"
        )
    return calibration.size


def modality_size(card: Card, files: Mapping[str, Path], modality: str, size: tuple[int, int]) -> tuple[int, int]:
    """Returns width and height of a modality's own image; `size` where it has no file.

    Raises:
        UserError: it can't be read.
    """
    return image_size(files[modality], card.modalities[modality].border) if modality in files else size


def image_size(path: Path, border: tuple[int, int, int, int] = (0, 0, 0, 0)) -> tuple[int, int]:
    """Returns width and height of an image file, turned upright as its orientation tag (EXIF) says, within `border`.

    Raises:
        UserError: it can't be read, isn't an image or a larger one than is read, or nothing of it is left.
    """
    with decoding(path), open_regular(path) as file:
        if pages := pages_of(file):
            width, height = pages[0].upright
        else:
            with Image.open(file) as image:
                turned = image.getexif().get(_ORIENTATION) in TURNED
                width, height = image.size[::-1] if turned else image.size
    left, top, right, bottom = border
    if width <= left + right or height <= top + bottom:
        raise UserError(f"{path}: is {width} x {height}, so nothing is left within the border {list(border)}; mend it")
    return width - left - right, height - top - bottom


def slashed(name: str) -> str:
    """Returns a name out of a list with the separators of Windows as slashes."""
    return name.replace("\\", "/")


def _listed(card: Card, file: str, place: str) -> Iterator[tuple[str, str]]:
    path = inside(card.root, file, place)
    try:
        text = decode(read_regular(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path in the card") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty; list one entry a line or remove it from the card")
    return ((slashed(line), f"{path}:{number}") for number, line in lines)


def _found(card: Card, maker: Entries) -> Iterable[tuple[str, str]]:
    layout = maker.layout
    lengths = placeholders(layout.entry)
    names: dict[str, str] = {}
    for m, template in layout.files.items():
        if layout.tolerance is not None and m != card.reference:
            continue
        template = template.replace("{entry}", layout.entry)
        if not lengths.keys() <= {*placeholders(template), "folder"}:
            continue
        fits = matcher(template, maker.known, lengths)
        for path in card.root.glob(wildcard(template, maker.known)):
            found = fits.fullmatch(path.relative_to(card.root).as_posix())
            if found:
                names.setdefault(fill(layout.entry, maker.known | found.groupdict()), str(card.path))
    return sorted(names.items())


def _with_times(card: Card, entries: list[Entry], tolerance: float, reading: Reading) -> list[Entry]:
    """Gives each entry the times of the other sensors' frames; leaves out, and counts, those that lack one."""
    assert card.layout is not None
    groups: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        rest = {name: text for name, text in entry.values.items() if name not in ("time", "entry", "pair")}
        groups.setdefault(tuple(rest.items()), []).append(entry)
    found: dict[str, dict[str, Mapping[str, str] | None]] = {entry.name: {} for entry in entries}
    for m, template in card.layout.files.items():
        if m == card.reference or "time" not in placeholders(template):
            continue
        for others, group in groups.items():
            known = dict(others)
            fits = matcher(template, known, {})
            names = (path.relative_to(card.root).as_posix() for path in card.root.glob(wildcard(template, known)))
            times = [fit["time"] for fit in map(fits.fullmatch, sorted(names)) if fit]
            indices = match([_time(e.values["time"], e.where) for e in group], [_time(t, m) for t in times], tolerance)
            for entry, index in zip(group, indices, strict=True):
                found[entry.name][m] = None if index is None else {**entry.values, "time": times[index]}
    for m in sorted({m for of in found.values() for m in of}):
        if lacking := sum(of[m] is None for of in found.values()):
            kept = "absent there" if card.missing == "allow" else "left out"
            reading.warnings.append(
                f"{m}: {lacking} of {len(entries)} images have no frame within {tolerance:g}; {kept}"
            )
    whole = [e for e in entries if card.missing == "allow" or None not in found[e.name].values()]
    if not whole:
        raise UserError(
            f"{card.path}: layout.tolerance: no image has a frame of every sensor within {tolerance:g}; raise it"
        )
    return [replace(entry, values_of=found[entry.name]) for entry in whole]


def _time(text: str, where: str) -> float:
    try:
        return int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        raise UserError(f"{where}: the time {text!r} is not a number; name the files by their time") from None


def _folder(rule: Split) -> str:
    return rule.folder if rule.folder is not None else Path(rule.file).parent.as_posix() if rule.file else "."


def _read_pairs(card: Card, layout: Layout) -> dict[str, str]:
    if not layout.pairs:
        return {}
    path = inside(card.root, layout.pairs, f"{card.path}: layout.pairs")
    try:
        values = json.loads(decode(read_regular(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path in the card") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}; write it anew") from None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise UserError(f"{path}: is not a mapping of names to names; write one")
    return {**{v: k for k, v in values.items()}, **values}
