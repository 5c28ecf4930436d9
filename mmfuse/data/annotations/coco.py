"""COCO JSON: the reader of a split, and what writes records as ground truth, splits and cards."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from mmfuse.data.annotations.cards import Card, inside
from mmfuse.data.annotations.draws import drawn
from mmfuse.data.annotations.formats import bounds, decode, mask_bounds
from mmfuse.data.annotations.layout import (
    Entries,
    Entry,
    calibrations,
    entry_files,
    image_size,
    slashed,
)
from mmfuse.data.annotations.records import (
    Annotation,
    Objects,
    Reading,
    Record,
    annotations_of,
    calibrations_of,
    make_record,
    objects_from,
)
from mmfuse.errors import UserError, unknown_name
from mmfuse.files import read_regular
from mmfuse.sensor import Calibration
from mmfuse.strict_yaml import build, plain

_NAN = float("nan")


def read_coco(card: Card, split: str) -> Reading:
    """Reads COCO JSON; categories are matched by name, and one that the file doesn't list by its id as a name.

    Without a layout, an image's `modalities` map each to its file below the root, and it may have a `condition`, a
    `sequence`, `calibration` (of modalities) and `onto` (of the reference) as in `Record`, and `objects_of`: for other
    modalities, their own annotations; `struck` lists modalities as in `Record`. With one, `file_name` is the entry. An
    annotation without a `bbox` is the box around its `segmentation`: polygons, or a mask in run lengths (RLE). It may
    have an `occlusion`, and an `area`, by which COCO tells small from large; its box's holds otherwise. `iscrowd` and
    `ignore` are 0 or 1; objects of either are neither learnt nor scored.
    """
    useless = {
        "labels.one_based": card.labels.one_based,
        "layout.annotations": card.layout and card.layout.annotations,
        "layout.tolerance": card.layout and card.layout.tolerance is not None,
    }
    for key in (key for key, given in useless.items() if given):
        raise UserError(f"{card.path}: {key}: has no use for COCO JSON; remove it")
    path = inside(card.root, card.pool(split).file, f"{card.path}: splits.{split}")
    maker = Entries(card, split) if card.layout else None
    tables, has_nan = _read_json(path)
    reading = Reading()

    def wrong(message: str) -> None:
        reading.errors.append(f"{path}: {message}")

    names = _category_names(tables["categories"], wrong)
    images = _images(tables["images"], wrong)
    annotations: dict[int, list[Annotation]] = {image_id: [] for image_id in images}
    seen = set()
    for raw in tables["annotations"]:
        number, image_id = raw.get("id"), raw.get("image_id")
        if not _is_int(number) or number in seen:
            wrong(f"annotation {number!r}: its id is not a whole number of its own; give it one")
            continue
        seen.add(number)
        if not _is_int(image_id) or image_id not in images:
            wrong(f"annotation {number}: there is no image {image_id!r}; remove the annotation or add the image")
        elif annotation := _annotation(raw, names, card, f"{path}: annotation {number}", reading.errors):
            annotations[image_id].append(annotation)
    if 0 in seen:
        reading.warnings.append(f"{path}: annotation 0: pycocotools loses a match of the id 0; count ids from 1")

    chosen: list[tuple[int, Entry | None]] = []
    for image_id, image in images.items():
        try:
            entry = maker.make(slashed(str(image.get("file_name"))), f"{path}: image {image_id}") if maker else None
        except UserError as error:
            reading.errors.append(str(error))
            continue
        if not (maker and entry) or maker.chosen(entry.name):
            chosen.append((image_id, entry))
    kept = drawn(card, split, [_name(card, images[image_id], entry) for image_id, entry in chosen]) if chosen else []
    for image_id, entry in compress(chosen, kept):
        image, where = images[image_id], f"{path}: image {image_id}"
        files = entry_files(card, entry, reading) if entry else _named_files(card, image, where, reading)
        size = _size(image, card, where, reading)
        tags = _tags(card, image, entry, where, reading)
        if size is None:
            continue
        objects = objects_from(annotations[image_id], card.reference, size, card, reading)
        try:
            found = calibrations(card, entry) if entry else _calibrations(card, image, where)
        except UserError as error:
            reading.errors.append(str(error))
            continue
        if files is not None:
            others = _objects_of(card, image, names, files, where, reading)
            record = make_record(image_id, files, size, objects, others, *tags, *found)
            reading.records.append(replace(record, struck=_struck(card, image, where, reading)))
    if not tables["images"]:
        wrong("holds no image; add some or remove the split from the card")
    elif not chosen and not reading.errors:
        wrong(f"none of its images is in the split; check splits.{split} of {card.path}")
    if has_nan and not reading.errors and not reading.left_out:
        wrong("holds NaN or Infinity, which JSON has no word for; write numbers")
    return reading


def read_images(path: Path) -> dict[int, dict[str, Any]]:
    """Returns the images of a COCO file by their ids, as they are in it.

    Raises:
        UserError: it can't be read, or an image has no id of its own.
    """
    table = _json(path)[0].get("images")
    if not _is_table(table) or not table:
        raise UserError(f"{path}: 'images' is not a list of mappings; write COCO JSON")
    wrong: list[str] = []
    images = _images(table, wrong.append)
    if wrong:
        raise UserError(f"{path}: {wrong[0]}")
    return images


def _category_names(categories: list[dict[str, Any]], wrong: Callable[[str], None]) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        number, name = category.get("id"), category.get("name")
        if not _is_int(number) or number in names:
            wrong(f"category {name!r}: the id {number!r} is not a whole number of its own; give it one")
        else:
            names[number] = str(name)
    return names


def _images(table: list[dict[str, Any]], wrong: Callable[[str], None]) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for image in table:
        image_id = image.get("id")
        if not _is_int(image_id) or image_id in images:
            wrong(f"image {image_id!r}: its id is not a whole number of its own; give it one")
        else:
            images[image_id] = image
    return images


def _annotation(
    raw: dict[str, Any], names: dict[int, str], card: Card, where: str, errors: list[str]
) -> Annotation | None:
    category_id, bbox, occlusion, area = (raw.get(key) for key in ("category_id", "bbox", "occlusion", "area"))
    name = names.get(category_id, str(category_id)) if _is_int(category_id) else ""
    if not _is_int(category_id) or (category_id not in names and card.labels_of(name) is None):
        errors.append(f"{where}: there is no category {category_id!r}; add it to the categories")
        return None
    box = (_NAN, _NAN, _NAN, _NAN)
    if isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(v) and abs(v) < 1e9 for v in bbox):
        x, y, w, h = bbox
        box = (x, y, x + w, y + h)
    elif not bbox:
        shape = raw.get("segmentation")
        box = mask_bounds(shape) if isinstance(shape, dict) else bounds(_corners(shape))
    ignore = False
    for key in ("iscrowd", "ignore"):
        given = raw.get(key, 0)
        if given not in (0, 1):
            fix = "mend it, since what is 1 is neither learnt nor scored"
            errors.append(f"{where}: {key}: {given!r} is not 0 or 1; {fix}")
            return None
        ignore |= bool(given)
    degree = occlusion if _is_int(occlusion) and abs(occlusion) < 100 else None
    if box[0] == box[0] and not (area is None or (_is_number(area) and 0 <= area < 1e18)):
        errors.append(f"{where}: area: {area!r} is not a count of pixels; mend it, or remove it for that of the box")
        return None
    return Annotation(name, box, repr(bbox), where, ignore, degree, None if area is None else float(area))


def _corners(polygons: object) -> list[float]:
    """Returns the numbers x1 y1 x2 y2 … of all polygons of an annotation, none where they aren't such."""
    polygons = polygons if isinstance(polygons, list) else []
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
        return []
    values = [value for polygon in polygons for value in polygon]
    return values if all(_is_number(value) and abs(value) < 1e9 for value in values) else []


def _size(image: dict[str, Any], card: Card, where: str, reading: Reading) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    left, top, right, bottom = card.modalities[card.reference].border
    width, height = (int(n) if isinstance(n, float) and n.is_integer() else n for n in (width, height))
    if _is_int(width) and _is_int(height) and width > left + right and height > top + bottom:
        return width - left - right, height - top - bottom
    fix = "give the image's size"
    reading.errors.append(f"{where}: width {width!r} and height {height!r} are not both pixels; {fix}")
    return None


def _name(card: Card, image: dict[str, Any], entry: Entry | None) -> tuple[str, str | None]:
    """Returns the names of an image and of its sequence, by which it is drawn into a split."""
    if entry and card.layout:
        own = entry.sequence if card.layout.sequence else image.get("sequence")
        return entry.name, None if own is None else str(own)
    files = image.get("modalities")
    files = files if isinstance(files, dict) else {}
    file = next((files[m] for m in (card.reference, *card.modalities) if m in files), image.get("file_name"))
    sequence = image.get("sequence")
    return PurePosixPath(slashed(str(file))).as_posix(), None if sequence is None else str(sequence)


def _tags(
    card: Card, image: dict[str, Any], entry: Entry | None, where: str, reading: Reading
) -> tuple[str | None, str | None]:
    condition, sequence = image.get("condition"), image.get("sequence")
    if entry and card.layout:
        condition = entry.condition if card.layout.tags else condition
        sequence = entry.sequence if card.layout.sequence else sequence
    if condition is not None and card.conditions and condition not in card.conditions:
        reading.errors.append(f"{where}: {unknown_name(condition, card.conditions, f'condition of {card.path}')}")
    return None if condition is None else str(condition), None if sequence is None else str(sequence)


def _struck(card: Card, image: dict[str, Any], where: str, reading: Reading) -> tuple[str, ...]:
    struck = image.get("struck", [])
    if not isinstance(struck, list):
        reading.errors.append(f"{where}: struck {struck!r} is not a list; name the modalities that a fault struck")
        return ()
    return tuple(m for m in card.modalities if m in struck)


def _objects_of(
    card: Card,
    image: dict[str, Any],
    names: dict[int, str],
    files: dict[str, Path],
    where: str,
    reading: Reading,
) -> dict[str, Objects]:
    tables = image.get("objects_of", {})
    if not isinstance(tables, dict) or not all(m in files and _is_table(table) for m, table in tables.items()):
        reading.errors.append(f"{where}: 'objects_of' doesn't map modalities of the image to annotations; mend it")
        return {}
    objects = {}
    for m, table in tables.items():
        places = [f"{where}: objects_of.{m}[{i}]" for i in range(len(table))]
        annotations = [
            _annotation(raw, names, card, place, reading.errors) for raw, place in zip(table, places, strict=True)
        ]
        try:
            size = image_size(files[m], card.modalities[m].border)
        except UserError as error:
            reading.errors.append(str(error))
        else:
            objects[m] = objects_from([annotation for annotation in annotations if annotation], m, size, card, reading)
    return objects


def _calibrations(card: Card, image: dict[str, Any], where: str) -> tuple[dict[str, Calibration], Calibration | None]:
    own = image.get("calibration", {})
    if not isinstance(own, dict) or not own.keys() <= card.modalities.keys():
        raise UserError(f"{where}: 'calibration' doesn't map modalities of the card to calibrations; mend it")
    found = {m: build(Calibration, values, where, f"calibration.{m}") for m, values in own.items()}
    onto = image.get("onto")
    return found, None if onto is None else build(Calibration, onto, where, "onto")


def _named_files(card: Card, image: dict[str, Any], where: str, reading: Reading) -> dict[str, Path] | None:
    names = image.get("modalities")
    if not isinstance(names, dict):
        found = f" but a file_name {image['file_name']!r}" if "file_name" in image else ""
        fix = "map each modality to its file, or give the card a layout whose entry is the file_name"
        reading.errors.append(f"{where}: has no 'modalities'{found}; {fix}")
        return None
    files, wrong = {}, False
    for m in card.modalities:
        name = names.get(m)
        if name is None and card.missing == "allow":
            continue
        try:
            if not isinstance(name, str) or not name:
                raise UserError(f"{where}: has no file for the modality {m!r}; add it or remove the image")
            name = slashed(name)
            inside(card.root, name, where)
        except UserError as error:
            reading.errors.append(str(error))
            wrong = True
        else:
            files[m] = card.root / name
    if not files and not wrong:
        reading.errors.append(f"{where}: has no file of any sensor; remove the image")
    return None if wrong or not files else files


def _read_json(path: Path) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    values, has_constants = _json(path)
    for key in ("images", "annotations", "categories"):
        if not _is_table(values.get(key)):
            raise UserError(f"{path}: {key!r} is not a list of mappings; write COCO JSON")
    return values, has_constants


def _json(path: Path) -> tuple[dict[str, Any], bool]:
    """Returns the mapping that a JSON file holds, and whether it has NaN or Infinity, which aren't JSON."""
    constants: list[str] = []

    def keep_constant(text: str) -> float:
        constants.append(text)
        return float(text.replace("Infinity", "inf"))

    try:
        values = json.loads(decode(read_regular(path)), parse_constant=keep_constant)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path in the card") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}; write it anew") from None
    return values if isinstance(values, dict) else {}, bool(constants)


def _is_table(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def coco_ground_truth(records: Sequence[Record], classes: Sequence[str]) -> dict[str, Any]:
    """Returns the records as a COCO dictionary, whose category id is label + 1 and whose annotation ids start at 1."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        size = (record.width, record.height)
        objects = Objects(record.boxes, record.labels, record.ignore, size, record.occlusion, record.area)
        for annotation in annotations_of(objects):
            annotations.append({"id": len(annotations) + 1, "image_id": record.image_id, **annotation})
    return {
        "info": {},
        "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
    }


def coco_split(card: Card, records: Sequence[Record]) -> dict[str, Any]:
    """Returns records of a card as a COCO dictionary that the reader `coco` turns back into the same records.

    Files are relative to the card's root, boxes in the pixels of the files. `coco_card` makes the card to go with it.
    """
    truth = coco_ground_truth(records, card.classes)
    _uncut(truth["annotations"], card, card.reference)
    for image, record in zip(truth["images"], records, strict=True):
        image["width"], image["height"] = card.modalities[card.reference].whole((record.width, record.height))
        names = {m: path.relative_to(card.root).as_posix() for m, path in record.files.items()}
        image |= {"file_name": names.get(card.labels.reference or "", next(iter(names.values()))), "modalities": names}
        tags = {"condition": record.condition, "sequence": record.sequence}
        image |= {key: value for key, value in tags.items() if value is not None}
        if record.struck:
            image["struck"] = list(record.struck)
        if record.objects_of:
            image["objects_of"] = {m: annotations_of(objects) for m, objects in record.objects_of.items()}
            for m, table in image["objects_of"].items():
                _uncut(table, card, m)
        image |= calibrations_of(record)
    return truth


def _uncut(annotations: list[dict[str, Any]], card: Card, modality: str) -> None:
    """Moves boxes from the image within the border to the whole file."""
    left, top, *_ = card.modalities[modality].border
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + left, y + top, w, h]


def coco_card(card: Card, files: dict[str, str]) -> dict[str, Any]:
    """Returns the plain values of a COCO card of the same dataset; `files` maps each split to its JSON file."""
    values = {
        "name": card.name,
        "root": str(card.root),
        "reader": "coco",
        "modalities": {m: sensor.to_dict() for m, sensor in card.modalities.items()},
        "classes": card.classes,
        "splits": files,
        "conditions": card.conditions,
        "licence": card.licence,
        "source": card.source,
        "notes": card.notes,
        "labels": {"reference": card.labels.reference, "source": card.labels.source},
        "missing": card.missing,
        "metrics": card.metrics,
    }
    result: dict[str, Any] = plain(values)
    return result
