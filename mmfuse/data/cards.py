"""Dataset cards: YAML that says where a paired dataset lies, what its sensors are and which files are which split."""

from dataclasses import dataclass
from pathlib import Path

from mmfuse.config import build, read_yaml
from mmfuse.errors import UserError
from mmfuse.sensor import Sensor


@dataclass(frozen=True)
class _CardFile:
    name: str
    root: str
    reader: str
    modalities: dict[str, Sensor]
    classes: tuple[str, ...]
    splits: dict[str, str]
    conditions: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Card:
    """One dataset. `root` is absolute, `splits` maps a split to its file below `root`, `path` is the card's own file.

    `conditions` lists the tags that images may carry; when it is empty any tag is allowed.
    """

    name: str
    root: Path
    reader: str
    modalities: dict[str, Sensor]
    classes: tuple[str, ...]
    splits: dict[str, str]
    conditions: tuple[str, ...]
    licence: str
    source: str
    notes: str
    path: Path


def load_card(path: str | Path, root: str | None = None) -> Card:
    """Reads a dataset card; `root` takes the place of the card's own, which is relative to the card's folder.

    Raises:
        UserError: the card or its root is missing, a key is unknown or wrong, a split file lies outside the root, or
            two splits are the same file.
    """
    path = Path(path)
    file = build(_CardFile, read_yaml(path), str(path))
    for key, names in (("modalities", file.modalities), ("classes", file.classes), ("splits", file.splits)):
        if not names or "" in names:
            raise UserError(f"{path}: {key}: {list(names)!r} is not allowed; name at least one, none of them empty")
    if len(set(file.classes)) < len(file.classes):
        raise UserError(f"{path}: classes: {list(file.classes)!r} names a class twice; remove one")
    folder = (Path(root) if root is not None else path.parent / file.root).resolve()
    if not folder.is_dir():
        raise UserError(f"{path}: root: {folder} is not a folder; put the dataset there, or give data.root")
    owners: dict[Path, str] = {}
    for split, name in file.splits.items():
        other = owners.setdefault(inside(folder, name, f"{path}: splits.{split}"), split)
        if other != split:
            raise UserError(f"{path}: splits: {other} and {split} are the same file {name!r}; give each its own images")
    return Card(
        name=file.name,
        root=folder,
        reader=file.reader,
        modalities=file.modalities,
        classes=file.classes,
        splits=file.splits,
        conditions=file.conditions,
        licence=file.licence,
        source=file.source,
        notes=file.notes,
        path=path,
    )


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
