"""What every reader makes: one record for each image, from the objects that its annotation file names."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmfuse.data.annotations.cards import Card
from mmfuse.errors import unknown_name
from mmfuse.recipes import Recipe
from mmfuse.sensor import Calibration, Sensor

_TOO_LARGE = 1e9


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one image: `boxes` (N, 4), `labels`, `ignore`, `occlusion` and `area` (N,) as in `Record`.

    `size` is the width and height of the image in whose pixels the boxes are.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    size: tuple[int, int]
    occlusion: np.ndarray | None = None
    area: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """One image of every sensor, on disk, with its objects.

    `files` maps a modality to its file. `boxes` (N, 4) are xyxy pixels, float32, inside the image of `width` x `height`
    pixels; `labels` (N,) int64 count the card's classes from 0; `ignore` (N,) bool marks crowds and ignore regions,
    which are neither learnt nor scored. `condition` is a tag such as night; images of one `sequence` show the same
    scene. `occlusion` (N,) int64 is the dataset's own degree, -1 where not given, None if no object has one. `area`
    (N,) float64 are the pixels that each object covers as the dataset says, None if these are the areas of the boxes.
    All this is of the card's reference image; `objects_of` holds what was labelled on the images of other modalities.
    `calibration` has that of modalities whose sensor moved or changed from image to image, `onto` that of the reference
    if it did; the card's holds otherwise. `struck` names the modalities whose image a fault spoilt already, as far as
    the data says so.
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
    occlusion: np.ndarray | None = None
    objects_of: dict[str, Objects] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    onto: Calibration | None = None
    struck: tuple[str, ...] = ()
    area: np.ndarray | None = None


@dataclass(frozen=True)
class Annotation:
    """One object as an annotation file has it.

    `box` is xyxy pixels, NaN where the file has no number; `shown` is the box in the file's own words and `where` its
    place, both for messages. `area` is in pixels, None where the file has none.
    """

    label: str
    box: tuple[float, float, float, float]
    shown: str
    where: str
    ignore: bool = False
    occlusion: int | None = None
    area: float | None = None


@dataclass
class Reading:
    """What a reader found in a split: the good records, one line for each problem, and how many boxes were changed.

    `clipped` counts the boxes that reached more than a pixel out of their image, `left_out` the bad boxes that the card
    drops, `unknown` the names of objects that the card doesn't know.
    """

    records: list[Record] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    clipped: int = 0
    left_out: int = 0
    unknown: set[str] = field(default_factory=set)


def make_record(
    image_id: int,
    files: dict[str, Path],
    size: tuple[int, int],
    objects: Objects,
    objects_of: dict[str, Objects],
    condition: str | None,
    sequence: str | None,
    calibration: dict[str, Calibration] | None = None,
    onto: Calibration | None = None,
) -> Record:
    """Returns the record of an image of `size` (width, height)."""
    return Record(
        image_id,
        files,
        *size,
        objects.boxes,
        objects.labels,
        objects.ignore,
        condition,
        sequence,
        objects.occlusion,
        objects_of,
        calibration or {},
        onto,
        area=objects.area,
    )


def own_objects(record: Record, modality: str, sensor: Sensor) -> Objects | None:
    """Returns what was labelled on the image of a modality, in pixels of the record.

    None where nothing was, and where the image is warped into the reference frame, in which boxes can't follow.
    """
    objects = record.objects_of.get(modality)
    if objects is None or sensor.register not in ("none", "resize"):
        return None
    size = (record.width, record.height)
    scale = np.tile(np.divide(size, objects.size), 2).astype(np.float32)
    area = None if objects.area is None else objects.area * np.prod(np.divide(size, objects.size))
    return replace(objects, boxes=objects.boxes * scale, size=size, area=area)


def seen_alone(records: Iterable[Record], modality: str, sensor: Sensor) -> list[Record]:
    """Returns the records with a modality's own objects in place of the reference's, where it has some of its own."""
    found = []
    for record in records:
        own = own_objects(record, modality, sensor)
        if own is not None:
            values = {f.name: getattr(own, f.name) for f in fields(Objects) if f.name != "size"}
            record = replace(record, **values)
        found.append(record)
    return found


def objects_that_count(recipe: Recipe, card: Card, records: list[Record], seen: Sequence[str]) -> list[Record]:
    """Returns records with the objects that count for a detector that sees the modalities `seen`."""
    if recipe.data.boxes == "own" and len(seen) == 1:
        records = seen_alone(records, seen[0], card.modalities[seen[0]])
    return records


Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Returns at most so many of the items, evenly spaced, in their order."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def conditions_of(records: Iterable[Record]) -> list[str]:
    """Returns the conditions that occur, in the order of text."""
    return sorted({record.condition for record in records if record.condition is not None})


def objects_from(
    annotations: Iterable[Annotation], modality: str, size: tuple[int, int], card: Card, reading: Reading
) -> Objects:
    """Returns the objects that the card wants of an image of `size` (width, height), clipped to it.

    They are in pixels of the file of that modality, whose border is cut off. A region that is ignored for several
    classes stands once for each. Faults go to `reading`, an unknown name once.
    """
    rows: list[tuple[np.ndarray, int, bool, int | None, float]] = []
    for annotation in annotations:
        found = card.labels_of(annotation.label)
        if found is None and annotation.label not in reading.unknown:
            reading.unknown.add(annotation.label)
            problem = unknown_name(annotation.label, card.classes, f"class of {card.path}")
            reading.errors.append(f"{annotation.where}: {problem}; or name it in labels: aliases, ignored or dropped")
        if not found or not found[0]:
            continue
        box = _box(annotation, card.modalities[modality].border[:2], size, card, reading)
        if box is not None:
            labels, ignore = found
            area = float(areas_of(box)) if annotation.area is None else annotation.area
            rows += [(box, label, ignore or annotation.ignore, annotation.occlusion, area) for label in labels]
    occlusion = [-1 if row[3] is None else row[3] for row in rows]
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    area_of = np.array([row[4] for row in rows], np.float64)
    return Objects(
        boxes,
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], bool),
        size,
        np.array(occlusion, np.int64) if any(row[3] is not None for row in rows) else None,
        None if np.allclose(area_of, areas_of(boxes), rtol=1e-3) else area_of,
    )


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas (...,) float64 of xyxy boxes (..., 4)."""
    sides: np.ndarray = boxes[..., 2:].astype(np.float64) - boxes[..., :2]
    return sides.prod(-1)


def _box(
    annotation: Annotation, corner: tuple[int, int], size: tuple[int, int], card: Card, reading: Reading
) -> np.ndarray | None:
    x1, y1, x2, y2 = annotation.box
    if card.labels.one_based:
        x1, y1 = x1 - 1, y1 - 1
    x1, y1, x2, y2 = x1 - corner[0], y1 - corner[1], x2 - corner[0], y2 - corner[1]
    width, height = size
    inside_image = np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)], np.float32)
    problem = ""
    if not all(abs(v) < _TOO_LARGE for v in annotation.box):
        problem = "is not four finite numbers"
    elif not (x2 > x1 and y2 > y1):
        problem = "has no area"
    elif not (inside_image[2:] > inside_image[:2]).all():
        problem = f"lies outside the image of {width} x {height} pixels"
    if problem and card.labels.bad_boxes == "drop":
        reading.left_out += 1
        return None
    if problem:
        fix = "mend or remove it, or set labels.bad_boxes"
        reading.errors.append(f"{annotation.where}: box {annotation.shown} {problem}; {fix}")
        return None
    if max(-x1, -y1, x2 - width, y2 - height) > 1:
        reading.clipped += 1
    return inside_image


def split_digest(records: Sequence[Record]) -> str:
    """Returns the SHA-256, in hex, of the records: ids, files (wherever their folder lies) and objects."""
    files = [str(path) for record in records for path in record.files.values()]
    folder = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ""
    digest = hashlib.sha256()
    for record in records:
        names = [(m, Path(os.path.relpath(path, folder)).as_posix()) for m, path in sorted(record.files.items())]
        digest.update(json.dumps([record.image_id, names, record.boxes.tolist()]).encode())
        digest.update(json.dumps([record.labels.tolist(), record.ignore.tolist()]).encode())
        if record.occlusion is not None:
            digest.update(json.dumps({"occlusion": record.occlusion.tolist()}).encode())
        if record.area is not None:
            digest.update(json.dumps({"area": record.area.tolist()}).encode())
        if record.calibration or record.onto:
            digest.update(json.dumps(calibrations_of(record)).encode())
        if record.objects_of:
            others = {m: annotations_of(objects) for m, objects in sorted(record.objects_of.items())}
            digest.update(json.dumps({"objects_of": others}).encode())
    return digest.hexdigest()


def calibrations_of(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if record.calibration:
        values["calibration"] = {m: asdict(of) for m, of in sorted(record.calibration.items())}
    if record.onto:
        values["onto"] = asdict(record.onto)
    return values


def annotations_of(objects: Objects) -> list[dict[str, Any]]:
    areas = areas_of(objects.boxes) if objects.area is None else objects.area
    columns = (objects.boxes.tolist(), objects.labels.tolist(), objects.ignore.tolist(), areas.tolist())
    annotations = [
        {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": int(ignore),
        }
        for (x1, y1, x2, y2), label, ignore, area in zip(*columns, strict=True)
    ]
    if objects.occlusion is not None:
        for annotation, degree in zip(annotations, objects.occlusion.tolist(), strict=True):
            annotation["occlusion"] = degree
    return annotations
