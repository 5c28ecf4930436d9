"""Readers: from the annotation files of a dataset to one record for each image, and on to COCO ground truth."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mmfuse.data.cards import Card, inside
from mmfuse.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Record:
    """One image of every sensor, on disk, with its objects.

    `files` maps a modality to its file. `boxes` (N, 4) are xyxy pixels, float32, inside the image of `width` x `height`
    pixels; `labels` (N,) int64 count the card's classes from 0; `ignore` (N,) bool marks crowds, which are neither
    learnt nor scored. `condition` is a tag such as night; images of one `sequence` show the same scene.
    """

    image_id: int
    files: dict[str, Path]
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    condition: str | None = None
    sequence: str | None = None


@dataclass
class Reading:
    """What a reader found in a split: the good records, one line for each problem, and how many boxes were cut.

    `clipped` counts the boxes that reached more than a pixel out of their image.
    """

    records: list[Record] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    clipped: int = 0


def read_split(card: Card, split: str) -> list[Record]:
    """Reads the records of a split, in the order of its file. Boxes are clipped to their image.

    Raises:
        UserError: the split or the card's reader is unknown, or its file holds a mistake.
    """
    reading = scan_split(card, split)
    if reading.errors:
        more = f" ({len(reading.errors) - 1} more: see mmfuse check {card.path})" if len(reading.errors) > 1 else ""
        raise UserError(reading.errors[0] + more)
    return reading.records


def scan_split(card: Card, split: str) -> Reading:
    """Reads a split and collects its problems in place of stopping at the first.

    Raises:
        UserError: nothing can be read: the split or the reader is unknown, or the file is missing or isn't COCO JSON.
    """
    if split not in card.splits:
        raise UserError(f"{card.path}: {unknown_name(split, card.splits, 'split')}")
    if card.reader not in READERS:
        raise UserError(f"{card.path}: reader: {unknown_name(card.reader, READERS, 'reader')}")
    return READERS[card.reader](card, inside(card.root, card.splits[split], f"{card.path}: splits.{split}"))


def split_digest(records: Sequence[Record]) -> str:
    """Returns the SHA-256, in hex, of the records: ids, files (wherever their folder lies), boxes, labels, crowds."""
    files = [str(path) for record in records for path in record.files.values()]
    folder = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ""
    digest = hashlib.sha256()
    for record in records:
        names = [(m, Path(os.path.relpath(path, folder)).as_posix()) for m, path in sorted(record.files.items())]
        digest.update(json.dumps([record.image_id, names, record.boxes.tolist()]).encode())
        digest.update(json.dumps([record.labels.tolist(), record.ignore.tolist()]).encode())
    return digest.hexdigest()


def coco_ground_truth(records: Sequence[Record], classes: Sequence[str]) -> dict[str, Any]:
    """Returns the records as a COCO dictionary, whose category id is label + 1 and whose annotation ids start at 1."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for (x1, y1, x2, y2), label, ignore in zip(
            record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    return {
        "info": {},
        "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
    }


def _read_coco(card: Card, path: Path) -> Reading:
    """Reads COCO JSON whose images name a file for each modality, below the root; categories are matched by name.

    The areas in the file aren't used: an object's area is that of its box.
    """
    tables, has_nan = _read_json(path)
    reading = Reading()

    def wrong(message: str) -> None:
        reading.errors.append(f"{path}: {message}")

    labels: dict[int, int | None] = {}
    category_names: dict[int, object] = {}
    for category in tables["categories"]:
        number, name = category.get("id"), category.get("name")
        if not _is_int(number) or number in labels:
            wrong(f"category {name!r}: the id {number!r} is not a whole number of its own; give it one")
            continue
        labels[number] = card.classes.index(name) if name in card.classes else None
        category_names[number] = name

    images: dict[int, dict[str, Any]] = {}
    sizeless = set()
    for image in tables["images"]:
        image_id, width, height, condition = (image.get(key) for key in ("id", "width", "height", "condition"))
        if not _is_int(image_id) or image_id in images:
            wrong(f"image {image_id!r}: its id is not a whole number of its own; give it one")
            continue
        images[image_id] = image
        if not (_is_int(width) and _is_int(height) and width > 0 and height > 0):
            wrong(f"image {image_id}: width {width!r} and height {height!r} are not both pixels; give the image's size")
            sizeless.add(image_id)
        if condition is not None and card.conditions and condition not in card.conditions:
            wrong(f"image {image_id}: {unknown_name(condition, card.conditions, f'condition of {card.path}')}")

    objects: dict[int, list[tuple[dict[str, Any], int]]] = {image_id: [] for image_id in images}
    annotation_ids = set()
    foreign = set()
    for annotation in tables["annotations"]:
        number, image_id, category_id = (annotation.get(key) for key in ("id", "image_id", "category_id"))
        if not _is_int(number) or number in annotation_ids:
            wrong(f"annotation {number!r}: its id is not a whole number of its own; give it one")
            continue
        annotation_ids.add(number)
        if not _is_int(image_id) or image_id not in images:
            wrong(f"annotation {number}: there is no image {image_id!r}; remove the annotation or add the image")
        elif not _is_int(category_id) or category_id not in labels:
            wrong(f"annotation {number}: there is no category {category_id!r}; add it to the categories")
        elif (label := labels[category_id]) is None:
            if category_id not in foreign:
                wrong(f"category {unknown_name(category_names[category_id], card.classes, f'class of {card.path}')}")
            foreign.add(category_id)
        else:
            objects[image_id].append((annotation, label))

    for image_id, image in images.items():
        record = None if image_id in sizeless else _record(card, path, image, objects[image_id], reading)
        if record is not None:
            reading.records.append(record)
    if not tables["images"]:
        wrong("holds no image; add some or remove the split from the card")
    if has_nan and not reading.errors:
        wrong("holds NaN or Infinity, which JSON has no word for; write numbers")
    return reading


READERS: dict[str, Callable[[Card, Path], Reading]] = {"coco": _read_coco}


def _read_json(path: Path) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    constants: list[str] = []

    def keep_constant(text: str) -> float:
        constants.append(text)
        return float(text.replace("Infinity", "inf"))

    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=keep_constant)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path in the card") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}; write it anew") from None
    for key in ("images", "annotations", "categories"):
        table = values.get(key) if isinstance(values, dict) else None
        if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
            raise UserError(f"{path}: {key!r} is not a list of mappings; write COCO JSON")
    return values, bool(constants)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _record(
    card: Card, path: Path, image: dict[str, Any], objects: list[tuple[dict[str, Any], int]], reading: Reading
) -> Record | None:
    files = _image_files(card, image, f"{path}: image {image['id']}", reading)
    boxes = [_box(annotation, image["width"], image["height"], path, reading) for annotation, _ in objects]
    good = [
        (box, label, bool(a.get("iscrowd"))) for box, (a, label) in zip(boxes, objects, strict=True) if box is not None
    ]
    condition, sequence = image.get("condition"), image.get("sequence")
    if files is None:
        return None
    return Record(
        image["id"],
        files,
        image["width"],
        image["height"],
        np.array([box for box, _, _ in good], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in good], np.int64),
        np.array([crowd for _, _, crowd in good], bool),
        None if condition is None else str(condition),
        None if sequence is None else str(sequence),
    )


def _image_files(card: Card, image: dict[str, Any], where: str, reading: Reading) -> dict[str, Path] | None:
    names = image.get("modalities")
    if not isinstance(names, dict):
        reading.errors.append(f"{where}: has no 'modalities'; map each modality to its file")
        return None
    files = {}
    for modality in card.modalities:
        name = names.get(modality)
        if not isinstance(name, str) or not name:
            reading.errors.append(f"{where}: has no file for the modality {modality!r}; add it or remove the image")
            continue
        try:
            inside(card.root, name, where)
        except UserError as error:
            reading.errors.append(str(error))
        else:
            files[modality] = card.root / name
    return files if len(files) == len(card.modalities) else None


def _box(annotation: dict[str, Any], width: int, height: int, path: Path, reading: Reading) -> np.ndarray | None:
    where, box = f"{path}: annotation {annotation['id']}", annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in box):
        reading.errors.append(f"{where}: bbox {box!r} is not four finite numbers; give x, y, width, height in pixels")
        return None
    x, y, w, h = box
    inside_image = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)], np.float32)
    if not (w > 0 and h > 0):
        reading.errors.append(f"{where}: bbox {box!r} has no area; mend or remove it")
        return None
    if not (inside_image[2:] > inside_image[:2]).all():
        fix = "mend or remove it"
        reading.errors.append(f"{where}: bbox {box!r} lies outside the image of {width} x {height} pixels; {fix}")
        return None
    reading.clipped += max(-x, -y, x + w - width, y + h - height) > 1
    return inside_image
