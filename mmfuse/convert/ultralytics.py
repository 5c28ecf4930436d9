"""Makes a card from the data.yaml of a dataset in Ultralytics' layout: images/ and beside it labels/ in YOLO text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfuse.data.annotations.cards import inside
from mmfuse.data.annotations.formats import decode
from mmfuse.data.annotations.layout import slashed
from mmfuse.errors import UserError
from mmfuse.files import read_regular, resolved
from mmfuse.strict_yaml import read_yaml

_SPLITS = ("train", "val", "test")
_IMAGES = r".*\.(?i:avif|bmp|dng|heic|heif|jp2|jpe?g|mpo|png|tiff?|webp)"


def card_values(path: Path) -> dict[str, Any]:
    """Returns the plain values of a card with one modality, `image`, of the file's `channels` (3 if it names none).

    Read are `path`, `names`, `channels`, and of `train`, `val` and `test` a folder of images or a .txt list of images
    in one folder. Sensors that are stacked in one file are one modality of so many channels; where they shall be told
    apart, give each its own files, as in datasets/ultralytics_yolo.yaml.

    Source: https://docs.ultralytics.com/datasets/detect

    Raises:
        UserError: the file can't be read, one of these is missing or wrong, or the images lie in folders that no single
            template of a card names.
    """
    values = read_yaml(path)
    root = resolved(path.parent / str(values.get("path") or ""))
    if not root.is_dir():
        raise UserError(f"{path}: path: {root} is not a folder; write it relative to the folder of {path.name}")
    channels = values.get("channels", 3)
    if type(channels) is not int or channels < 1:
        raise UserError(f"{path}: channels: {channels!r} is not allowed; use at least 1")
    names = _names(values.get("names"), path)
    sources = {s: _source(root, values[s], f"{path}: {s}") for s in _SPLITS if values.get(s)}
    if not sources:
        raise UserError(f"{path}: names neither train, val nor test; add the folders of their images")
    before, after, folders = _common([source.folder for source in sources.values()], path)
    leads = {source.lead for source in sources.values() if source.file} or {""}
    if len(leads) > 1:
        raise UserError(f"{path}: the lists begin with {' and '.join(map(repr, sorted(leads)))}; write them alike")
    image = "/".join(part for part in (before, "images", after, "{id}.{ext}") if part)
    label = "/".join(part for part in (before, "labels", after, "{id}.txt") if part)
    splits = {
        split: {"file": source.file, "folder": folder, "only": _IMAGES}
        for (split, source), folder in zip(sources.items(), folders, strict=True)
    }
    return {
        "name": root.name,
        "root": str(root),
        "reader": "yolo",
        "modalities": {"image": {"channels": channels}},
        "classes": list(names.values()),
        "layout": {
            "entry": _literal(*leads) + image,
            "files": {"image": image},
            "annotations": {"image": label},
        },
        "labels": {"aliases": names, "unlabelled": "background"},
        "splits": splits,
        "source": str(path),
        "notes": "Written by mmfuse convert ultralytics.",
    }


@dataclass(frozen=True)
class _Source:
    """Where the images of a split lie: the `folder` below the root, and the list `file`, whose lines add `lead`."""

    folder: str
    file: str = ""
    lead: str = ""


def _names(given: object, path: Path) -> dict[str, str]:
    """Returns the name of each class by its number in the label files."""
    names = given if isinstance(given, dict) else dict(enumerate(given)) if isinstance(given, list) else {}
    if not all(str(number).isdecimal() for number in names):
        raise UserError(f"{path}: names: {given!r} is not allowed; map the number of each class to its name")
    texts = {str(int(number)): str(names[number]).strip() for number in sorted(names, key=int)}
    if not texts or not all(texts.values()) or len(set(texts.values())) < len(texts):
        raise UserError(f"{path}: names: {given!r} is not allowed; give each class a name of its own")
    for number, name in texts.items():
        if name in texts:
            raise UserError(f"{path}: names: {name!r} names the class {number} and numbers another; rename it")
    return texts


def _source(root: Path, given: object, where: str) -> _Source:
    if not isinstance(given, str):
        raise UserError(f"{where}: {given!r} is not a path; give one folder, or a .txt list of images")
    name = given.removeprefix("../") if not (root / given).exists() else given  # as Ultralytics mends Roboflow's paths
    place = inside(root, name, where)
    if place.is_dir():
        if inner := sorted(entry.name for entry in place.iterdir() if entry.is_dir()):
            raise UserError(f"{where}: {place} has a folder in it, {inner[0]!r}; give one without, or a .txt list")
        return _Source(place.relative_to(root).as_posix())
    if place.suffix != ".txt" or not place.is_file():
        raise UserError(f"{where}: {place} is neither a folder nor a .txt list; check the path")
    try:
        lines = [slashed(line.strip()) for line in decode(read_regular(place)).splitlines() if line.strip()]
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    parents = sorted({line.rpartition("/")[0] for line in lines})
    if len(parents) != 1:
        raise UserError(f"{place}: lists images of {len(parents)} folders; list those of one")
    lead = next((lead for lead in ("./", f"{root.as_posix()}/") if parents[0].startswith(lead)), "")
    return _Source(parents[0].removeprefix(lead), place.relative_to(root).as_posix(), lead)


def _common(folders: Sequence[str], path: Path) -> tuple[str, str, list[str]]:
    """Returns what templates have before and after `images`, and what {folder} in it stands for in each split."""
    parts = [f"/{folder}/".rpartition("/images/") for folder in folders]
    for folder, (_, found, _) in zip(folders, parts, strict=True):
        if not found:
            raise UserError(f"{path}: the folder {folder!r} has no part named images; put the images into one")
    befores, afters = ([part[side].strip("/") for part in parts] for side in (0, 2))
    for varying, other in ((afters, befores), (befores, afters)):
        if len(set(other)) == 1 and (all(varying) or not any(varying)):
            same, folder = _literal(other[0]), "{folder}" if varying[0] else ""
            return (same, folder, varying) if varying is afters else (folder, same, varying)
    raise UserError(f"{path}: no template fits the folders {', '.join(folders)}; let them differ in one place")


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
