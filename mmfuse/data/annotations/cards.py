"""Dataset cards: YAML that says where a paired dataset lies, what its sensors are and which files are which split."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mmfuse.data.annotations.templates import placeholders
from mmfuse.errors import UserError, unknown_name
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import build, read_yaml

Metric = Literal["miss_rate", "voc_11_point", "voc_area"]


@dataclass(frozen=True)
class Split:
    """Which entries are one split.

    `file` is COCO JSON or a list with an entry a line; without it, all entries whose files are found. Of these are
    taken those that the pattern `only` matches whole, from `first` to `last` in the order of text. `folder` is what
    `{folder}` stands for, the file's folder if left out. `images` and `boxes` (without ignored ones) are the published
    counts, which `check` compares.
    """

    file: str = ""
    folder: str | None = None
    only: str = ""
    first: str = ""
    last: str = ""
    images: int | None = None
    boxes: int | None = None

    def __post_init__(self) -> None:
        _check_pattern(self.only, "only")

    @property
    def selects(self) -> bool:
        """Whether entries of the file are left out."""
        return bool(self.only or self.first or self.last)


@dataclass(frozen=True)
class CalibrationFile:
    """Where a sensor's calibration lies: a template as in `Layout`, the file's format, and the key in it (KITTI)."""

    file: str
    format: Literal["kitti", "sunrgbd", "open3d"]
    key: str = ""


@dataclass(frozen=True)
class Layout:
    """Where the files of each entry lie; an *entry* is one image of each sensor, such as a line of a list file.

    `entry` is its template: its placeholders (`{id}`, `{name:2}` for two characters) stand in `files` and
    `annotations`, the templates of each modality's images and annotation files. There, `{folder}` is the split's,
    `{entry}` the whole entry, and `{pair}` what the JSON file `pairs` maps the entry's file name to, in either
    direction. `calibrations` are for sensors whose place or lens changes from image to image. With a `tolerance` each
    sensor has frames of its own: `{time}`, a number, is the entry's for the reference and the nearest one, at most that
    far off, for the others. A tag of `condition_lists` goes to the entries in its list file, one of `conditions` to
    those that its pattern matches whole; `sequence` is a template.
    """

    files: dict[str, str]
    annotations: dict[str, str] = field(default_factory=dict)
    entry: str = "{id}"
    pairs: str = ""
    calibrations: dict[str, CalibrationFile] = field(default_factory=dict)
    tolerance: float | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    condition_lists: dict[str, str] = field(default_factory=dict)
    sequence: str = ""

    def __post_init__(self) -> None:
        known = placeholders(self.entry)
        for name in ("entry", "pair"):
            if name in known:
                raise UserError(f"entry: {{{name}}} is made from the whole entry; use another name, such as {{id}}")
        for key, template in self.templates.items():
            for name in placeholders(template):
                if name not in (*known, "folder", "entry", "pair"):
                    allowed = [*known, "folder", "entry", "pair"]
                    raise UserError(f"{key}: {unknown_name(name, allowed, 'placeholder')}")
                if name == "pair" and not self.pairs:
                    raise UserError(f"{key}: {{pair}} needs 'pairs', the JSON file that maps names to names; add it")
        if self.tolerance is not None and ("time" not in known or not self.tolerance >= 0):
            raise UserError(f"tolerance: {self.tolerance!r} needs {{time}} in 'entry' and can't be negative; mend one")
        if "pair" in placeholders(self.sequence):
            raise UserError("sequence: {pair} is not known of every entry; use another placeholder")
        for tag, pattern in self.conditions.items():
            _check_pattern(pattern, f"conditions.{tag}")

    @property
    def tags(self) -> tuple[str, ...]:
        """All conditions that it tells apart."""
        return tuple(dict.fromkeys([*self.conditions, *self.condition_lists]))

    @property
    def templates(self) -> dict[str, str]:
        """All templates that an entry fills, by their key in the card."""
        files = {f"files.{m}": template for m, template in self.files.items()}
        annotations = {f"annotations.{m}": template for m, template in self.annotations.items()}
        calibrations = {f"calibrations.{m}": of.file for m, of in self.calibrations.items()}
        return files | annotations | calibrations | ({"sequence": self.sequence} if self.sequence else {})


@dataclass(frozen=True)
class Labels:
    """What the annotation files mean.

    Boxes lie on the image of the modality `reference`: by default the first of `annotations`, else on all alike. They
    were drawn looking at the images of `source`, which is the reference where left out; results name it.
    `aliases` maps a name in the files to a class; `ignored` one to the classes for which it is an ignore region;
    objects of those `dropped` are left out. Any other name is an error or left out (`unknown`). `one_based` corners
    count pixels from 1 and include the last. An image without an annotation file (`unlabelled`) is an error or
    background; boxes without area or outside their image (`bad_boxes`) are errors or left out.
    """

    reference: str | None = None
    source: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unknown: Literal["error", "drop"] = "error"
    one_based: bool = False
    unlabelled: Literal["error", "background"] = "error"
    bad_boxes: Literal["error", "drop"] = "error"


@dataclass(frozen=True)
class _CardFile:
    name: str
    root: str
    reader: str
    modalities: dict[str, Sensor]
    classes: tuple[str, ...]
    splits: dict[str, Split]
    conditions: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    notes: str = ""
    layout: Layout | None = None
    labels: Labels = field(default_factory=Labels)
    missing: Literal["error", "allow"] = "error"
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Card:
    """One dataset. `root` is absolute, `path` is the card's own file; all other paths are relative to `root`.

    `conditions` lists the tags that images may carry; when it is empty any tag is allowed. Without a `layout`, the
    annotation file itself names the images. `missing` says whether an image may lack some of its sensors' files.
    `metrics` are scored beside COCO's AP, where the field reports them.
    """

    name: str
    root: Path
    reader: str
    modalities: dict[str, Sensor]
    classes: tuple[str, ...]
    splits: dict[str, Split]
    conditions: tuple[str, ...]
    licence: str
    source: str
    notes: str
    path: Path
    layout: Layout | None = None
    labels: Labels = field(default_factory=Labels)
    missing: Literal["error", "allow"] = "error"
    metrics: tuple[Metric, ...] = ()

    @property
    def reference(self) -> str:
        """The modality in whose frame all others are, or are brought."""
        own = (m for m, sensor in self.modalities.items() if sensor.register == "none")
        return self.labels.reference or next(own)

    @property
    def label_source(self) -> tuple[str, ...]:
        """The modalities that the boxes were drawn on; see `Labels`."""
        return self.labels.source or (self.reference,)

    def labels_of(self, name: str) -> tuple[tuple[int, ...], bool] | None:
        """Returns the labels that an object of this name in the files gets, and whether it is an ignore region.

        None if the card doesn't know the name.
        """
        name = self.labels.aliases.get(name, name)
        if name in self.classes:
            return (self.classes.index(name),), False
        if name in self.labels.ignored:
            return tuple(self.classes.index(c) for c in self.labels.ignored[name]), True
        return ((), False) if name in self.labels.dropped or self.labels.unknown == "drop" else None


def load_card(path: str | Path, root: str | None = None) -> Card:
    """Reads a dataset card; `root` takes the place of the card's own, which is relative to the card's folder.

    A split that is text is that file.

    Raises:
        UserError: the card or its root is missing, a key is unknown or wrong, a split file lies outside the root, or
            two splits are the same.
    """
    path = Path(path)
    values = read_yaml(path)
    if isinstance(splits := values.get("splits"), dict):
        values["splits"] = {k: {"file": v} if isinstance(v, str) else v for k, v in splits.items()}
    file = build(_CardFile, values, str(path))
    for key, names in (("modalities", file.modalities), ("classes", file.classes), ("splits", file.splits)):
        if not names or "" in names:
            raise UserError(f"{path}: {key}: {list(names)!r} is not allowed; name at least one, none of them empty")
    for problem in (*_label_problems(file), *_layout_problems(file)):
        raise UserError(f"{path}: {problem}")
    folder = (Path(root) if root is not None else path.parent / file.root).resolve()
    if not folder.is_dir():
        raise UserError(f"{path}: root: {folder} is not a folder; put the dataset there, or give data.root")
    owners: dict[tuple[Path, Split], str] = {}
    for name, split in file.splits.items():
        rule = replace(split, file="", folder=None if split.file else split.folder, images=None, boxes=None)
        other = owners.setdefault((inside(folder, split.file, f"{path}: splits.{name}"), rule), name)
        if other != name:
            shared = f"the same file {split.file!r}" if split.file else "the same entries"
            raise UserError(f"{path}: splits: {other} and {name} are {shared}; give each its own images")
    labels = file.labels
    if file.layout and file.layout.annotations and not labels.reference:
        labels = replace(labels, reference=next(iter(file.layout.annotations)))
    card = Card(
        name=file.name,
        root=folder,
        reader=file.reader,
        modalities=file.modalities,
        classes=file.classes,
        splits=file.splits,
        conditions=file.conditions or (file.layout.tags if file.layout else ()),
        licence=file.licence,
        source=file.source,
        notes=file.notes,
        path=path,
        layout=file.layout,
        labels=labels,
        missing=file.missing,
        metrics=file.metrics,
    )
    onto = card.modalities[card.reference].calibration
    moved = {m: replace(s, onto=onto) for m, s in card.modalities.items() if s.register != "none"}
    return replace(card, modalities={**card.modalities, **moved})


def inside(root: Path, name: str, where: str) -> Path:
    """Returns the resolved path of `name` below the resolved `root`.

    Raises:
        UserError: the path leaves `root`, by being absolute, by `..` or through a symbolic link.
    """
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):
        raise UserError(f"{where}: {name!r} is not a path; give one relative to {root}") from None
    if not path.is_relative_to(root):
        raise UserError(f"{where}: {name!r} leads out of {root}; keep the files below the root")
    return path


def _label_problems(file: _CardFile) -> Iterator[str]:
    labels = file.labels
    if len(set(file.classes)) < len(file.classes):
        yield f"classes: {list(file.classes)!r} names a class twice; remove one"
    known = [*file.classes, *labels.aliases, *labels.ignored, *labels.dropped]
    for name in known:
        if known.count(name) > 1:
            yield f"labels: {name!r} stands in two of classes, aliases, ignored and dropped; keep it in one"
    targets = {f"aliases.{name}": (target,) for name, target in labels.aliases.items()}
    for key, classes in (targets | {f"ignored.{name}": classes for name, classes in labels.ignored.items()}).items():
        for target in classes:
            if target not in file.classes:
                yield f"labels.{key}: {unknown_name(target, file.classes, 'class')}"
    if labels.reference is not None and labels.reference not in file.modalities:
        yield f"labels.reference: {unknown_name(labels.reference, file.modalities, 'modality')}"
    for m in labels.source:
        if m not in file.modalities:
            yield f"labels.source: {unknown_name(m, file.modalities, 'modality')}"
    if labels.reference in file.modalities and file.modalities[labels.reference or ""].register != "none":
        yield f"modalities.{labels.reference}: register: the reference can't be moved; set none or another reference"
    if all(sensor.register != "none" for sensor in file.modalities.values()):
        yield "modalities: register: none lies in the reference frame; set one to none"


def _layout_problems(file: _CardFile) -> Iterator[str]:
    layout = file.layout
    for name, split in file.splits.items():
        if layout is None and not split.file:
            yield f"splits.{name}: the key 'file' is missing; add it"
        if layout is None and split.selects:
            yield f"splits.{name}: only, first and last need a layout; add it, or give the split a file of its own"
    if layout is None:
        return
    for key, names in (
        ("files", layout.files),
        ("annotations", layout.annotations),
        ("calibrations", layout.calibrations),
    ):
        for m in names:
            if m not in file.modalities:
                yield f"layout.{key}: {unknown_name(m, file.modalities, 'modality')}"
    reference = file.labels.reference
    if layout.annotations and reference is not None and reference not in layout.annotations:
        yield f"labels.reference: {reference!r} has no annotations in the layout; add them or name another"
    for m in file.modalities:
        if m not in layout.files:
            yield f"layout.files: there is none for the modality {m!r}; add its template"
    for tag in layout.tags:
        if file.conditions and tag not in file.conditions:
            yield f"layout.conditions: {unknown_name(tag, file.conditions, 'condition')}"
    needing = [key for key, template in layout.templates.items() if "folder" in placeholders(template)]
    for name, split in file.splits.items():
        if needing and split.folder is None and not split.file:
            yield f"splits.{name}: the key 'folder' is missing, which layout.{needing[0]} needs; add it"


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}; mend it") from None
