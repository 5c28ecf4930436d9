"""Writes a card for a folder by looking at it: sensors, layout, labels and splits, with what was guessed marked so."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageSequence, UnidentifiedImageError

from mmfuse.data.annotations.cards import check_card
from mmfuse.data.annotations.layout import slashed
from mmfuse.data.annotations.readers import PARSERS
from mmfuse.data.annotations.records import Annotation, spread
from mmfuse.data.annotations.templates import fill
from mmfuse.data.checks.contents import is_coloured
from mmfuse.data.file_groups import SENSORS, Group, groups, identifier, names_in, placeholders_of, shared, split_of
from mmfuse.errors import UserError
from mmfuse.files import named_like, read_regular, write_whole
from mmfuse.images.decode import PICTURES, POINTS
from mmfuse.shipped import find
from mmfuse.strict_yaml import parse_yaml

_LOOKED_AT = 8
_SUNRGBD_BOXES = "SUNRGBDMeta2DBB_v2.mat"
_SPLITS = ("train", "val", "test")
_SHARE = 0.15
_LARGEST_LABEL = 2**20
_NO_IMAGES = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "segmentation", "semantic",
    "overlay", "overlays", "preview", "previews", "thumbnail", "thumbnails",
}  # fmt: skip


def new_card(card: str | Path, folder: str | Path) -> Path:
    """Looks at a folder and writes a card for it, in which comments mark what was guessed; returns the card's path.

    Sensors are told by words in the names of folders and files, such as rgb, visible, thermal, lwir, depth or velodyne,
    or by folders with files of the same names; what they give, by some of their images. Labels are looked for in every
    format that a reader knows, classes in all of them; splits in folders, lists and COCO files named train, val and
    test, and where there are none they are drawn. See it through, and let `mmfuse.check` go over it.

    Raises:
        UserError: the card is there already, the folder isn't, or holds no images with labels that are known.
    """
    path, folder = named_like(card, ".yaml", ".yml"), Path(folder)
    if path.exists():
        raise UserError(f"{path}: is there already; give another name, or remove it")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the one that the dataset lies in")
    names = names_in(folder)
    text = _sunrgbd(path, folder) if _SUNRGBD_BOXES in names else _looked(path, folder, names)
    try:
        check_card(text, path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{folder}: no card can be made of its names ({reason}); write it by hand") from None
    write_whole(path, text.encode())
    return path


def _sunrgbd(path: Path, folder: Path) -> str:
    """Returns the card of SUN RGB-D that comes along, for its folder."""
    text = find("card", "sun_rgbd").read_text()
    root = yaml.safe_dump({"root": _root(path, folder)})
    return "# This is SUN RGB-D, by its files: the card that comes along.\n" + re.sub("root: .*\n", root, text, count=1)


def _root(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(folder.resolve(), path.parent.resolve())).as_posix()
    except ValueError:  # on another drive
        return folder.resolve().as_posix()


@dataclass
class _Draft:
    """A card as it grows: `values` by key, and by key what was guessed of it."""

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    guesses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def guess(self, key: str, text: str) -> None:
        self.guesses[key].append(" ".join(text.split()))

    def to_text(self, path: Path) -> str:
        head = {"name": self.folder.resolve().name or "dataset", "root": _root(path, self.folder)}
        tail = {
            "licence": "not known yet; say under which terms the data may be used",
            "source": "not known yet; say where the data comes from",
        }
        keys = ("reader", "modalities", "classes", "layout", "labels", "missing", "splits", "conditions")
        lines = [f"# Written by mmfuse new; see what is marked as guessed, then: mmfuse check {path.name}"]
        for key, value in (head | {key: self.values[key] for key in keys if self.values.get(key)} | tail).items():
            lines += [f"# guessed: {guess}" for guess in self.guesses.get(key, ())]
            plain = json.loads(json.dumps({key: value}))  # of which YAML makes no aliases
            flow = None if isinstance(value, dict | list) else False
            lines.append(yaml.safe_dump(plain, sort_keys=False, default_flow_style=flow, width=110).rstrip())
        return "\n".join(lines) + "\n"


def _looked(path: Path, folder: Path, names: Sequence[str]) -> str:
    sensors = _sensors(folder, names)
    if not sensors:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in (*PICTURES, *POINTS))
        raise UserError(f"{folder}: holds no image ({kinds}); give the folder that the dataset lies in")
    draft = _Draft(folder)
    coco = _coco_files(folder, names)
    if any("modalities" in file.images[0] for file in coco):
        _from_named_coco(draft, [file for file in coco if "modalities" in file.images[0]])
    elif coco and (placed := _placed(coco, sensors)):
        _from_coco(draft, *placed, sensors)
    else:
        _from_labels(draft, names, sensors)
    return draft.to_text(path)


# ---- sensors


def _sensors(folder: Path, names: Sequence[str]) -> dict[str, Group]:
    """Returns the files of each sensor: of each the largest group, those whose names say a sensor first."""
    images = groups(
        n for n in names if n.lower().endswith(PICTURES) and not _NO_IMAGES & set(re.split("[-_./]", n.lower()))
    )
    points = [g for g in groups(name for name in names if name.lower().endswith(POINTS)) if g.sensor == "lidar"]
    found: dict[str, Group] = {}
    for group in sorted([*images, *points], key=lambda group: not group.sensor):
        said = group.sensor if group.sensor in SENSORS else ""
        if not group.sensor:
            if found and not any(shared(group, other) >= 0.5 for other in found.values()):
                continue
            said = "rgb" if _coloured(folder, group) else "grey"
            said = identifier(PurePosixPath(group.template).parent.name) if said in found else said
        found.setdefault(said or group.sensor, group)
    order = {sensor: i for i, sensor in enumerate(SENSORS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _some(folder: Path, group: Group) -> list[Path]:
    return [folder / name for name in spread(sorted(group.files.values()), _LOOKED_AT)]


def _coloured(folder: Path, group: Group) -> bool:
    for path in _some(folder, group):
        try:
            if is_coloured(path):
                return True
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            continue
    return False


def _add_sensors(draft: _Draft, sensors: Mapping[str, Sequence[Path]]) -> None:
    """Sets the modalities by what some files of each hold; the first is the reference."""
    modalities: dict[str, Any] = {}
    sizes: dict[str, set[tuple[int, int]]] = {}
    for m, paths in sensors.items():
        images = [image for path in paths if (image := _pixels(path)) is not None]
        sizes[m] = {(image.shape[1], image.shape[0]) for image in images}
        if m == "lidar":
            modalities[m] = {"channels": 1, "encoding": "inverse_depth", "unit": 1.0, "near": 2, "far": 80}
            modalities[m] |= {"register": "rig"}
            draft.guess("modalities", "lidar: points in metres, seen by the reference's camera from 2 to 80 m")
            continue
        if not images:
            raise UserError(f"{paths[0] if paths else m}: can't be read as an image, nor can others of {m}; mend it")
        modalities[m] = _sensor(draft, m, paths, images)
    first = next(iter(sensors))
    for m in list(sensors)[1:]:
        if sizes[m] and sizes[m] != sizes[first] and m != "lidar":
            modalities[m]["register"] = "resize"
            draft.guess(
                "modalities", f"{m}: has other sizes than {first} and is resized to it, as if both saw the same"
            )
    draft.values["modalities"] = modalities


def _sensor(draft: _Draft, m: str, paths: Sequence[Path], images: Sequence[np.ndarray]) -> dict[str, Any]:
    channels = (
        1 if all(image.ndim == 2 for image in images) else max(image.shape[2] for image in images if image.ndim > 2)
    )
    if channels == 3 and m != "rgb" and not any(is_coloured(path) for path in paths):
        channels = 1
        draft.guess("modalities", f"{m}: three equal channels, read as one")
    deep = any(image.dtype != np.uint8 for image in images)
    if not deep or channels > 1:
        if m == "depth":
            draft.guess("modalities", "depth: 8 bits, which may be a picture of depth; it is read as a grey image")
        elif m not in SENSORS:
            draft.guess("modalities", f"{m}: what it measures isn't known")
        return {"channels": channels}
    values = np.concatenate([image[np.isfinite(image) & (image != 0)].ravel() for image in images])
    if m == "depth" and values.size:
        return _depth(draft, values, whole=images[0].dtype != np.float32)
    if m == "thermal" and values.size and 20_000 < np.median(values) < 40_000:
        draft.guess(
            "modalities",
            f"{m}: counts about {np.median(values):.0f} may be hundredths of a kelvin; encoding: celsius, unit: 0.01, "
            "range: [lowest, highest] would read them so",
        )
    return {"channels": channels}


def _depth(draft: _Draft, values: np.ndarray, *, whole: bool) -> dict[str, Any]:
    unit = 0.001 if whole or np.median(values) > 200 else 1.0
    nearest, farthest = (float(v) * unit for v in np.percentile(values, (1, 99)))
    near, far = _two_digits(nearest * 0.8, down=True), _two_digits(farthest * 1.25, down=False)
    kind = "whole numbers" if whole else "numbers"
    draft.guess("modalities", f"depth: {kind} of {unit:g} m, 0 where nothing was measured; near and far hold 98 %")
    return {"channels": 1, "encoding": "inverse_depth", "unit": unit, "near": near, "far": max(far, 2 * near)}


def _two_digits(value: float, *, down: bool) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{(math.floor if down else math.ceil)(value / step) * step:.6g}")


def _pixels(path: Path) -> np.ndarray | None:
    if path.suffix.lower() in POINTS:
        return None
    try:
        with Image.open(path) as file:
            if file.mode in ("P", "LA", "RGBA", "CMYK", "YCbCr"):
                return np.asarray(file.convert("RGB"))
            pages = getattr(file, "n_frames", 1)
            if pages > 1:  # which are its bands
                return np.stack([np.asarray(page.convert("L")) for page in ImageSequence.Iterator(file)], -1)
            return np.asarray(file.convert("L") if file.mode == "1" else file)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


# ---- pairing


@dataclass(frozen=True)
class _Paired:
    """Sensors whose files have the values of those of the `reference`; with a `tolerance` only near ones, as times."""

    groups: dict[str, Group]
    reference: str
    tolerance: float | None = None


def _pair(draft: _Draft, sensors: Mapping[str, Group], reference: str) -> _Paired:
    main = sensors[reference]
    paired, tolerance, lacking = {reference: main}, None, False
    for m, group in sensors.items():
        if m == reference:
            continue
        if len(placeholders(group)) == len(placeholders(main)) and shared(main, group) >= 0.5:
            paired[m] = group
            lacking = lacking or main.values != group.values
        elif _are_times(main) and _are_times(group) and group.folders == main.folders:
            paired[m] = group
            tolerance = max(tolerance or 0.0, _gap(main) / 2)
        else:
            draft.guess("layout", f"{m} ({group.template}): left out, its names aren't those of {reference}")
    if tolerance is not None:
        draft.guess("layout", "names are times; frames at most half of the usual gap apart are a pair")
    elif lacking:
        draft.values["missing"] = "allow"
        draft.guess("missing", "some images lack a sensor")
    order = [m for m in sensors if m in paired]
    return _Paired({m: paired[m] for m in order}, reference, tolerance)


def placeholders(group: Group) -> list[str]:
    """Returns the names of a group's placeholders."""
    return placeholders_of(len(next(iter(group.files))[1]))


def _are_times(group: Group) -> bool:
    return all(len(values) == 1 and re.fullmatch(r"\d+(\.\d+)?", values[0]) for values in group.values)


def _gap(group: Group) -> float:
    times = sorted(float(values[0]) for values in group.values)
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _template(group: Group, paired: _Paired) -> str:
    return group.template if paired.tolerance is None else group.template.replace("{id}", "{time}")


def _add_layout(draft: _Draft, paired: _Paired, entry: str) -> None:
    layout: dict[str, Any] = {} if entry == "{id}" else {"entry": entry}
    layout["files"] = {m: _template(group, paired) for m, group in paired.groups.items()}
    if paired.tolerance is not None:
        layout["tolerance"] = float(f"{paired.tolerance:.6g}")
    draft.values["layout"] = layout
    folder = draft.folder
    _add_sensors(draft, {m: _some(folder, group) for m, group in paired.groups.items()})


# ---- splits


def _share_out(draft: _Draft, splits: dict[str, Any]) -> None:
    """Sets the splits, and draws those that are needed and aren't there."""
    if "train" not in splits:
        draft.guess("splits", f"none is named train; {next(iter(splits))} is taken for it")
        splits = {"train" if i == 0 else name: rule for i, (name, rule) in enumerate(splits.items())}
    if len(splits) == 1:
        splits |= {"val": _SHARE, "test": _SHARE}
        draft.guess("splits", "none was found, so val and test are drawn from all; neighbours in time belong together")
    elif "val" not in splits:
        splits = {"train": splits["train"], "val": _SHARE} | splits
        draft.guess("splits", "no val was found, so it is drawn from train")
    draft.values["splits"] = {name: splits[name] for name in sorted(splits, key=lambda name: _place(_SPLITS, name))}


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _by_split(names: Iterable[str]) -> dict[str, str]:
    """Returns the names that say one split, in their last part first, by that split; of several the first."""
    found: dict[str, str] = {}
    for name in names:
        parts = reversed(PurePosixPath(name).parts)
        if split := next((split for part in parts if (split := split_of(part))), None):
            found.setdefault(split, name)
    return found


# ---- COCO


@dataclass(frozen=True)
class _CocoFile:
    name: str
    images: list[dict[str, Any]]
    categories: list[str]


def _coco_files(folder: Path, names: Sequence[str]) -> list[_CocoFile]:
    found = []
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        try:
            values = json.loads(read_regular(folder / name))
            images, table, kinds = (values[key] for key in ("images", "annotations", "categories"))
            categories = [str(kind["name"]) for kind in sorted(kinds, key=lambda kind: int(kind["id"]))]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
        if isinstance(table, list) and isinstance(images, list) and images and all(isinstance(x, dict) for x in images):
            found.append(_CocoFile(name, images, categories))
    return found


def _coco_splits(draft: _Draft, files: Sequence[_CocoFile]) -> dict[str, Any]:
    """Sets the classes, and returns each split's file; files that name none are left out where others do."""
    named = _by_split(file.name for file in files) if len(files) > 1 else {}
    draft.values["reader"] = "coco"
    draft.values["classes"] = list(dict.fromkeys(name for file in files for name in file.categories))
    tags = {image["condition"] for file in files for image in file.images if isinstance(image.get("condition"), str)}
    if tags:
        draft.values["conditions"] = sorted(tags)
    if not named:
        named = {"train": files[0].name}
    for file in files:
        if file.name not in named.values():
            draft.guess("splits", f"{file.name} is left out")
    return dict(named)


def _from_named_coco(draft: _Draft, files: Sequence[_CocoFile]) -> None:
    """Fills in the card of COCO files whose images name a file for each sensor."""
    splits = _coco_splits(draft, files)
    paths: dict[str, list[Path]] = defaultdict(list)
    images = [image for file in files if file.name in splits.values() for image in file.images]
    counts = [0, 0]
    for image in images:
        given = image.get("modalities")
        if isinstance(given, dict):
            for m, name in given.items():
                paths[str(m)].append(draft.folder / slashed(str(name)))
            counts[len(given) < len(paths)] += 1
    if counts[1]:
        draft.values["missing"] = "allow"
        draft.guess("missing", "some images lack a sensor")
    _add_sensors(draft, {m: spread(found, _LOOKED_AT) for m, found in paths.items()})
    _share_out(draft, splits)


def _placed(
    files: Sequence[_CocoFile], sensors: Mapping[str, Group]
) -> tuple[str, dict[str, tuple[_CocoFile, str, str]]] | None:
    """Returns the sensor that COCO files are of and, by file, it with what comes before its names and its {folder}."""
    best: tuple[int, str, dict[str, tuple[_CocoFile, str, str]]] = (0, "", {})
    for m, group in sensors.items():
        keys = {name: folder for (folder, _), name in group.files.items()}
        placed = {}
        for file in files:
            name = slashed(str(file.images[0].get("file_name")))
            ends = [other for other in keys if other == name or other.endswith(f"/{name}")]
            if ends:
                near = max(ends, key=lambda other: len(_common(other, file.name)))
                placed[file.name] = (file, near.removesuffix(name), keys[near])
        if len(placed) > best[0]:
            best = len(placed), m, placed
    return (best[1], best[2]) if best[0] else None


def _common(one: str, other: str) -> str:
    """Returns the folders that two paths begin with."""
    return os.path.commonpath([f"/{PurePosixPath(name).parent}" for name in (one, other)])


def _from_coco(
    draft: _Draft, reference: str, placed: dict[str, tuple[_CocoFile, str, str]], sensors: Mapping[str, Group]
) -> None:
    """Fills in the card of plain COCO files: the entry is what they call an image."""
    paired = _pair(draft, sensors, reference)
    splits: dict[str, Any] = {}
    for split, name in _coco_splits(draft, [file for file, _, _ in placed.values()]).items():
        folder = placed[name][2]
        splits[split] = {"file": name} | ({"folder": folder} if "{folder}" in paired.groups[reference].template else {})
    before = next(iter(placed.values()))[1].count("/")
    entry = "/".join(_template(paired.groups[reference], paired).split("/")[before:])
    _add_layout(draft, paired, entry)
    if len(paired.groups) > 1:
        draft.values["labels"] = {"reference": reference}
    _share_out(draft, splits)


# ---- a label file for each image


@dataclass(frozen=True)
class _Labels:
    """Label files of one format; `single` names one that has the lines of all images."""

    reader: str
    group: Group
    single: str = ""


def _from_labels(draft: _Draft, names: Sequence[str], sensors: Mapping[str, Group]) -> None:
    labels = _labels(draft.folder, names, sensors)
    if labels is None:
        known = "COCO, Pascal VOC, YOLO, KITTI, KAIST's, VEDAI's, CVC-14's"
        raise UserError(f"{draft.folder}: holds images of {', '.join(sensors)}, but no labels ({known}); add them")
    owner = labels.group.sensor if labels.group.sensor in sensors else next(iter(sensors))
    paired = _pair(draft, sensors, owner)
    draft.values["reader"] = labels.reader
    splits, entry = _listed_splits(draft, names, paired)
    if not splits:
        splits = _folder_splits(paired)
    _add_layout(draft, paired, _entry(paired) if entry is None else entry)
    draft.values["layout"]["annotations"] = {owner: labels.single or _template(labels.group, paired)}
    if labels.group.sensor not in sensors and len(sensors) > 1:
        draft.guess("layout", f"the labels are of {owner}; no name says so")
    found = _annotations(draft.folder, labels)
    _add_classes(draft, names, labels.reader, sorted({one.label for one in found}))
    if not labels.single and paired.groups[owner].values - labels.group.values:
        draft.values.setdefault("labels", {})["unlabelled"] = "background"
        count = len(paired.groups[owner].values - labels.group.values)
        draft.guess(
            "labels", f"{count} of {len(paired.groups[owner].values)} images lack a label file, so hold no object"
        )
    _add_calibrations(draft, names, paired)
    _share_out(draft, splits)


def _labels(folder: Path, names: Sequence[str], sensors: Mapping[str, Group]) -> _Labels | None:
    """Returns the largest group of label files that are of these images."""
    texts = [name for name in names if name.lower().endswith((".txt", ".xml"))]
    images = {values for group in sensors.values() for values in group.values}
    stems = {values[-1] for values in images}
    found = []
    tops = {name.partition("/")[0] for name in texts}
    apart = [group for top in sorted(tops) for group in groups(n for n in texts if n.startswith(f"{top}/"))]
    for group in [*groups(texts), *apart]:
        own = replace(group, files={key: name for key, name in group.files.items() if key[1] in images})
        samples = [_content(folder / name) for name in spread(sorted(own.files.values()), 20)]
        kinds = {kind for content in samples if (kind := _format(content)) != ""}
        if len(kinds) == 1 and (kind := kinds.pop()) is not None:
            found.append(_Labels(kind, own))
        for name in group.files.values() if len(group.files) <= 2 else ():
            lines = [line.split() for line in _content(folder / name).splitlines() if line.strip()]
            if (
                lines
                and all(len(words) == 15 for words in lines)
                and sum(w[0] in stems for w in lines) * 2 > len(lines)
            ):
                found.append(_Labels("vedai", group, single=name))
    return max(
        found, key=lambda labels: (len(labels.group.values & images), labels.group.sensor in sensors), default=None
    )


def _content(path: Path) -> str:
    try:
        return "" if path.stat().st_size > _LARGEST_LABEL else read_regular(path).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _format(content: str) -> str | None:
    """Returns the reader of a label file, "" for an empty one, None for what isn't one."""
    lines = [line.split() for line in content.splitlines() if line.strip()]
    if not lines:
        return ""
    if content.lstrip().startswith("<"):
        return "voc" if "<annotation" in content[:2000] else None
    if " ".join(lines[0]) == "% bbGt version=3":
        return "bbgt"
    numbers = [[_number(word) for word in words] for words in lines]
    if all(len(row) >= 15 and row[0] is None and None not in row[1:] for row in numbers):
        return "kitti"
    if any(None in row for row in numbers):
        return None
    rows = [[value for value in row if value is not None] for row in numbers]
    if all(len(row) in (14, 15) for row in rows):
        return "vedai"
    if all(
        (len(row) == 5 or len(row) >= 7) and row[0] == int(row[0]) and all(-0.5 <= v <= 1.5 for v in row[1:])
        for row in rows
    ):
        return "yolo"
    return "centred" if all(len(row) >= 5 and max(row[:4]) > 1.5 and row[4] == int(row[4]) for row in rows) else None


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _annotations(folder: Path, labels: _Labels) -> list[Annotation]:
    found: list[Annotation] = []
    for name in [labels.single] if labels.single else labels.group.files.values():
        try:
            found += PARSERS[labels.reader](read_regular(folder / name), (1, 1))
        except (OSError, UserError):
            continue
    return found


def _add_classes(draft: _Draft, names: Sequence[str], reader: str, said: Sequence[str]) -> None:
    """Sets the classes and what other names mean, given all names in the label files."""
    labels: dict[str, Any] = {}
    if reader == "yolo":
        numbers = [int(name) for name in said if name.isdecimal()]
        classes = _listed_classes(draft.folder, names)
        missing = range(len(classes), max(numbers, default=0) + 1)
        if missing:
            draft.guess("classes", "the label files have numbers alone; write their names, in this order")
        classes += [f"class_{i}" for i in missing]
    elif reader in ("vedai", "centred"):
        labels["aliases"] = {name: f"class_{name}" for name in said}
        classes = list(labels["aliases"].values())
        draft.guess("classes", "the label files have numbers alone; write what they mean, here and under aliases")
    else:
        unsure = {name: name.partition("?")[0] for name in said if "?" in name}
        ignored = {name: [base] for name, base in unsure.items() if base in said}
        classes = [name for name in said if name not in ignored and name != "DontCare"]
        if "DontCare" in said:
            ignored["DontCare"] = list(classes)
        if ignored:
            labels["ignored"] = ignored
            draft.guess("labels", f"{', '.join(ignored)} are regions to ignore")
        draft.guess("classes", "all names in the label files; leave out, or put under dropped, what isn't wanted")
    if not classes:
        raise UserError(f"{draft.folder}: none of its label files has an object; add some")
    draft.values["classes"] = classes
    if labels:
        draft.values["labels"] = labels


def _listed_classes(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns the names in a list or a data.yaml such as YOLO's tools write; none where there is neither."""
    for name in names:
        path = PurePosixPath(name)
        content = _content(folder / name)
        if path.name in ("classes.txt", "obj.names", "labels.txt") or path.suffix == ".names":
            return [line.strip() for line in content.splitlines() if line.strip()]
        if path.suffix in (".yaml", ".yml"):
            try:
                listed = parse_yaml(content, name)["names"]
                return [str(v) for v in (listed if isinstance(listed, list) else [listed[i] for i in sorted(listed)])]
            except (TypeError, KeyError, ValueError):
                continue
    return []


def _entry(paired: _Paired) -> str:
    if paired.tolerance is not None:
        return "{time}"
    return "/".join(f"{{{name}}}" for name in placeholders(paired.groups[paired.reference]))


def _listed_splits(draft: _Draft, names: Sequence[str], paired: _Paired) -> tuple[dict[str, Any], str | None]:
    """Returns the splits that lists of entries name, and the template of these entries; nothing if there are none."""
    lists = {}
    for name in names:
        lines = _content(draft.folder / name).split("\n") if name.lower().endswith(".txt") else []
        entries = [slashed(line.strip()) for line in lines if line.strip()]
        if entries and not any(" " in entry for entry in entries):
            lists[name] = entries
    for template, folders in _entry_templates(paired).items():
        fitting = {
            name: entries
            for name, entries in lists.items()
            if sum(e in folders for e in entries) * 5 >= 4 * len(entries)
        }
        largest_first = sorted(fitting, key=lambda name: (-len(fitting[name]), name))
        named = _by_split(name for name in largest_first if split_of(PurePosixPath(name).name))
        if "train" in named:
            for name in largest_first:
                if name not in named.values():
                    draft.guess("splits", f"the list {name} is left out")
            uses = "{folder}" in template or any("{folder}" in g.template for g in paired.groups.values())
            splits = {}
            for split, name in named.items():
                inside = next(folders[e] for e in fitting[name] if e in folders)
                splits[split] = {"file": name} | ({"folder": inside} if uses else {})
            return splits, template
    return {}, None


def _entry_templates(paired: _Paired) -> dict[str, dict[str, str]]:
    """Returns the ways to name an image: by id, by a file's name or path; with the split's folder of each entry."""
    found: dict[str, dict[str, str]] = {}
    if paired.tolerance is not None:
        return found
    for m in (paired.reference, *paired.groups):
        group = paired.groups[m]
        names, whole = placeholders(group), PurePosixPath(group.template)
        for template in (
            "/".join(f"{{{name}}}" for name in names), whole.name.removesuffix(whole.suffix), whole.name,
            group.template.removesuffix(whole.suffix), group.template, f"./{group.template}",
        ):  # fmt: skip
            if all(f"{{{name}}}" in template for name in names):
                found.setdefault(
                    template,
                    {
                        fill(template, dict(zip(names, values, strict=True)) | {"folder": folder}): folder
                        for folder, values in group.files
                    },
                )
    return found


def _folder_splits(paired: _Paired) -> dict[str, Any]:
    folders = paired.groups[paired.reference].folders
    if folders == [""]:
        return {"train": {}}
    return {split_of(folder) or folder: {"folder": folder} for folder in folders}


def _add_calibrations(draft: _Draft, names: Sequence[str], paired: _Paired) -> None:
    """Names KITTI's calibration files where there are points; without any, points can't be seen from a camera."""
    if "lidar" not in paired.groups:
        return
    images = paired.groups[paired.reference]
    for group in groups(name for name in names if name.lower().endswith(".txt")):
        content = _content(draft.folder / next(iter(group.files.values())))
        if "Tr_velo_to_cam:" in content and group.values & images.values:
            keys = {paired.reference: "P2", "lidar": "Tr_velo_to_cam"}
            template = _template(group, paired)
            draft.values["layout"]["calibrations"] = {
                m: {"file": template, "format": "kitti", "key": key} for m, key in keys.items()
            }
            return
    del draft.values["modalities"]["lidar"], draft.values["layout"]["files"]["lidar"]
    draft.guess("modalities", "lidar: left out, as no calibration was found that says how the camera sees its points")
