"""Dataset cards: YAML that says where a paired dataset lies, what its sensors are and which files are which split."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmfuse.data.annotations.patterns import check_pattern
from mmfuse.data.annotations.templates import placeholders
from mmfuse.errors import UserError, require, unknown_name
from mmfuse.files import require_name, resolved
from mmfuse.recipes import Recipe
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import build, parse_yaml, read_yaml

Metric = Literal["miss_rate", "voc_11_point", "voc_area"]


@dataclass(frozen=True)
class Split:
    """Which entries are one split.

    `file` is COCO JSON or a list with an entry a line; without it, all entries whose files are found. Of these are
    taken those that the pattern `only` matches whole, from `first` to `last` in the order of text. `folder` is what
    `{folder}` stands for, the file's folder if left out. Or `share`, alone, is the part of the images of train that is
    drawn from these, by `seed` (see `draws.drawn`). `images` and `boxes` (without ignored ones) are the published
    counts, which `check` compares.
    """

    file: str = ""
    folder: str | None = None
    only: str = ""
    first: str = ""
    last: str = ""
    share: float | None = None
    seed: int = 0
    images: int | None = None
    boxes: int | None = None

    def __post_init__(self) -> None:
        check_pattern(self.only, "only")
        fix = "use a part of train's images, such as 0.2"
        require(self.share is None or 0 < self.share < 1, "share", self.share, fix)
        if self.share is not None and (self.file or self.folder or self.selects):
            raise UserError(f"share: {self.share} is drawn from train; leave file, folder, only, first and last out")
        require(self.share is not None or not self.seed, "seed", self.seed, "leave it out where there is no share")

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
            check_pattern(pattern, f"conditions.{tag}")

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
    """A card as its file has it; see `Card`."""

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

    def __post_init__(self) -> None:
        for key in ("modalities", "classes", "splits"):
            names = list(getattr(self, key))
            require(names and "" not in names, key, names, "name at least one, none of them empty")
        for key in ("modalities", "splits"):
            for name in getattr(self, key):
                require_name(name, key)
        self._check_shares()
        self._check_labels()
        if self.layout is not None:
            self._check_layout(self.layout)
            return
        for name, split in self.splits.items():
            if not split.file and split.share is None:
                raise UserError(f"splits.{name}: the key 'file' is missing; add it")
            if split.selects:
                fix = "add it, or give the split a file of its own"
                raise UserError(f"splits.{name}: only, first and last need a layout; {fix}")

    def _check_shares(self) -> None:
        shares = {name: split.share for name, split in self.splits.items() if split.share is not None}
        if "train" in shares:
            raise UserError(
                f"splits.train: {shares['train']}: train is what the others leave; remove it, or give its file"
            )
        if shares and "train" not in self.splits:
            raise UserError(f"splits.{min(shares)}: is a share of train, which is missing; add it")
        total = sum(shares.values())
        require(total < 1, "splits", dict(shares), "leave a part for train: shares must add up to less than 1")

    def _check_labels(self) -> None:
        labels = self.labels
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"classes: {list(self.classes)!r} names a class twice; remove one")
        known = [*self.classes, *labels.aliases, *labels.ignored, *labels.dropped]
        for name in known:
            if known.count(name) > 1:
                places = "classes, aliases, ignored and dropped"
                raise UserError(f"labels: {name!r} stands in two of {places}; keep it in one")
        targets: dict[str, tuple[str, ...]] = {f"aliases.{name}": (target,) for name, target in labels.aliases.items()}
        targets |= {f"ignored.{name}": classes for name, classes in labels.ignored.items()}
        for key, classes in targets.items():
            _require_known(classes, self.classes, f"labels.{key}", "class")
        if labels.reference is not None:
            _require_known([labels.reference], self.modalities, "labels.reference", "modality")
        _require_known(labels.source, self.modalities, "labels.source", "modality")
        if labels.reference is not None and self.modalities[labels.reference].register != "none":
            fix = "set none or another reference"
            raise UserError(f"modalities.{labels.reference}.register: the reference can't be moved; {fix}")
        if all(sensor.register != "none" for sensor in self.modalities.values()):
            raise UserError("modalities: register: none lies in the reference frame; set one to none")

    def _check_layout(self, layout: Layout) -> None:
        _require_known(layout.files, self.modalities, "layout.files", "modality")
        _require_known(layout.annotations, self.modalities, "layout.annotations", "modality")
        _require_known(layout.calibrations, self.modalities, "layout.calibrations", "modality")
        reference = self.labels.reference
        if layout.annotations and reference is not None and reference not in layout.annotations:
            fix = "add them or name another"
            raise UserError(f"labels.reference: {reference!r} has no annotations in the layout; {fix}")
        for m in self.modalities:
            if m not in layout.files:
                raise UserError(f"layout.files: there is none for the modality {m!r}; add its template")
        if self.conditions:
            _require_known(layout.tags, self.conditions, "layout.conditions", "condition")
        needing = [key for key, template in layout.templates.items() if "folder" in placeholders(template)]
        for name, split in self.splits.items():
            if needing and split.folder is None and not split.file and split.share is None:
                raise UserError(f"splits.{name}: the key 'folder' is missing, which layout.{needing[0]} needs; add it")


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

    def pool(self, split: str) -> Split:
        """Returns which entries a split is drawn from: its own, or those of train where it is a share of these."""
        return self.splits["train" if self.splits[split].share is not None else split]

    @property
    def label_source(self) -> tuple[str, ...]:
        """The modalities that the boxes were drawn on; see `Labels`."""
        return self.labels.source or (self.reference,)

    def labels_of(self, name: str) -> tuple[tuple[int, ...], bool] | None:
        """Returns the labels that an object of this name in the files gets, and whether it is an ignore region.

        None if the card doesn't know the name. The numbers of a YOLO file count the classes from 0, in their order,
        unless the card says what names mean.
        """
        labels = self.labels
        numbered = self.reader == "yolo" and not (labels.aliases or labels.ignored or labels.dropped)
        name = labels.aliases.get(name, name)
        if name in self.classes:
            return (self.classes.index(name),), False
        if numbered and name.isdecimal() and int(name) < len(self.classes):
            return (int(name),), False
        if name in labels.ignored:
            return tuple(self.classes.index(c) for c in labels.ignored[name]), True
        return ((), False) if name in labels.dropped or labels.unknown == "drop" else None


def load_card(path: str | Path, root: str | None = None) -> Card:
    """Reads a dataset card; `root` takes the place of the card's own, which is relative to the card's folder.

    A split that is text is that file, one that is a number that share of train. Where there are shares alone, train is
    all that the layout finds besides.

    Raises:
        UserError: the card or its root is missing, a key is unknown or wrong, a split file lies outside the root, or
            two splits are the same.
    """
    path = Path(path)
    file = _built(read_yaml(path), path)
    folder = resolved(Path(root) if root is not None else path.parent / file.root)
    if not folder.is_dir():
        raise UserError(f"{path}: root: {folder} is not a folder; put the dataset there, or give --root or data.root")
    owners: dict[tuple[Path, Split], str] = {}
    for name, split in file.splits.items():
        if split.share is not None:
            continue
        rule = replace(split, file="", folder=None if split.file else split.folder, images=None, boxes=None)
        other = owners.setdefault((inside(folder, split.file, f"{path}: splits.{name}"), rule), name)
        if other != name:
            shared = f"the same file {split.file!r}" if split.file else "the same entries"
            raise UserError(f"{path}: splits: {other} and {name} are {shared}; give each its own images")
    labels, modalities = file.labels, file.modalities
    if file.layout and file.layout.annotations and not labels.reference:
        labels = replace(labels, reference=next(iter(file.layout.annotations)))
    conditions = file.conditions or (file.layout.tags if file.layout else ())
    card = Card(**{**vars(file), "root": folder, "path": path, "conditions": conditions, "labels": labels})
    onto = modalities[card.reference].calibration
    moved = {m: replace(sensor, onto=onto) for m, sensor in modalities.items() if sensor.register != "none"}
    return replace(card, modalities=modalities | moved)


def check_card(text: str, place: str | Path) -> None:
    """Raises a UserError unless a text is a card, as far as it can be told without looking at its files."""
    values = parse_yaml(text, str(place))
    _built(values if isinstance(values, dict) else {}, Path(place))


def _built(values: dict[str, Any], path: Path) -> _CardFile:
    if isinstance(splits := values.get("splits"), dict):
        values = values | {"splits": _written_out(splits)}
    return build(_CardFile, values, str(path))


def _written_out(splits: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, split in splits.items():
        number = isinstance(split, int | float) and not isinstance(split, bool)
        found[name] = {"share": split} if number else {"file": split} if isinstance(split, str) else split
    alone = bool(found) and all(isinstance(split, dict) and "share" in split for split in found.values())
    return {"train": {}, **found} if alone and "train" not in found else found


def card_of(recipe: Recipe) -> Card:
    """Returns the card of a recipe.

    Raises:
        UserError: it can't be read, or lacks a modality that the recipe names.
    """
    if not Path(recipe.card).exists():
        raise UserError(
            f"{recipe.card}: the recipe's card does not exist; check the path, or give --card where it moved"
        )
    card = load_card(recipe.card, recipe.data.root)
    named = {"modalities": recipe.modalities, "data.shift": recipe.data.shift, "data.rotation": recipe.data.rotation}
    for key, modalities in named.items():
        for modality in modalities:
            if modality not in card.modalities:
                raise UserError(f"{key}: {unknown_name(modality, card.modalities, f'modality of {card.path}')}")
    return card


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


def _require_known(names: Iterable[str], known: Iterable[str], place: str, what: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{place}: {unknown_name(name, known, what)}")
