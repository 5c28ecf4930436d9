"""Readers: from the annotation files of a dataset to one record for each image, and on to COCO ground truth."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmfuse.recipes import plain
from mmfuse.data.annotations import formats
from mmfuse.data.annotations.cards import Card
from mmfuse.data.annotations.coco import read_coco
from mmfuse.data.annotations.layout import (
    Entry,
    calibrations,
    entries_of,
    entry_files,
    entry_path,
    modality_size,
    reference_size,
)
from mmfuse.data.annotations.records import Mark, Objects, Reading, Record, make_record, objects_from
from mmfuse.data.annotations.sunrgbd import read_sunrgbd
from mmfuse.data.annotations.templates import placeholders
from mmfuse.errors import UserError, unknown_name

Parse = Callable[[bytes, tuple[int, int]], Iterable[Mark]]


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
        UserError: nothing can be read: the split or the reader is unknown, or the split's file is missing or of
            another format.
    """
    if split not in card.splits:
        raise UserError(f"{card.path}: {unknown_name(split, card.splits, 'split')}")
    if card.reader not in READERS:
        raise UserError(f"{card.path}: reader: {unknown_name(card.reader, READERS, 'reader')}")
    return READERS[card.reader](card, split)


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
        if record.calibration or record.onto:
            digest.update(json.dumps(_calibration(record)).encode())
        if record.objects_of:
            others = {m: _annotations(objects) for m, objects in sorted(record.objects_of.items())}
            digest.update(json.dumps({"objects_of": others}).encode())
    return digest.hexdigest()


def coco_ground_truth(records: Sequence[Record], classes: Sequence[str]) -> dict[str, Any]:
    """Returns the records as a COCO dictionary, whose category id is label + 1 and whose annotation ids start at 1."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        size = (record.width, record.height)
        objects = Objects(record.boxes, record.labels, record.ignore, size, record.occlusion)
        for annotation in _annotations(objects):
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
        if record.objects_of:
            image["objects_of"] = {m: _annotations(objects) for m, objects in record.objects_of.items()}
            for m, table in image["objects_of"].items():
                _uncut(table, card, m)
        image |= _calibration(record)
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


def _calibration(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if record.calibration:
        values["calibration"] = {m: asdict(of) for m, of in sorted(record.calibration.items())}
    if record.onto:
        values["onto"] = asdict(record.onto)
    return values


def _annotations(objects: Objects) -> list[dict[str, Any]]:
    columns = (objects.boxes.tolist(), objects.labels.tolist(), objects.ignore.tolist())
    annotations = [
        {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(ignore),
        }
        for (x1, y1, x2, y2), label, ignore in zip(*columns, strict=True)
    ]
    if objects.occlusion is not None:
        for annotation, degree in zip(annotations, objects.occlusion.tolist(), strict=True):
            annotation["occlusion"] = degree
    return annotations


def _read_each(parse: Parse, card: Card, split: str) -> Reading:
    """Reads a dataset that has one annotation file for each image; entries count from 1, which is their id.

    A template of annotations without a placeholder is one file for all, whose lines begin with the entry.
    """
    if card.layout is None or not card.layout.annotations:
        raise UserError(f"{card.path}: layout.annotations: the reader {card.reader!r} needs it; add its template")
    reading = Reading()
    labelled = card.layout.annotations
    for number, entry in enumerate(entries_of(card, split, reading), 1):
        files = entry_files(card, entry, reading)
        if files is None:
            continue
        try:
            size = reference_size(card, files)
            sizes = {m: size if m == card.reference else modality_size(card, files, m, size) for m in labelled}
            calibration, onto = calibrations(card, entry)
        except UserError as error:
            reading.errors.append(str(error))
            continue
        found: dict[str, Objects] = {}
        for m in labelled:
            marks = _marks(parse, card, entry, m, card.modalities[m].whole(sizes[m]), reading)
            if marks is not None:
                found[m] = objects_from(marks, m, sizes[m], card, reading)
        if len(found) == len(labelled):
            objects = found.pop(card.reference)
            others = {m: other for m, other in found.items() if m in files}
            record = make_record(
                number, files, size, objects, others, entry.condition, entry.sequence, calibration, onto
            )
            reading.records.append(record)
    return reading


def _marks(
    parse: Parse, card: Card, entry: Entry, modality: str, size: tuple[int, int], reading: Reading
) -> list[Mark] | None:
    path = None
    try:
        path = entry_path(card, entry, f"annotations.{modality}")
        if path is None:
            raise UserError(f"{entry.where}: {entry.name}: there is no pair in the card's map; add it")
        if not os.path.isfile(path):
            if card.labels.unlabelled == "background":
                return []
            fix = "add it, remove the entry or set labels.unlabelled"
            raise UserError(f"{entry.where}: {entry.name}: the annotation file {path} is missing; {fix}")
        content = path.read_bytes()
        if not placeholders(card.layout.annotations[modality] if card.layout else ""):
            content = formats.lines_of(content, entry.name)
        return [replace(mark, where=f"{path}: {mark.where}") for mark in parse(content, size)]
    except OSError as error:
        reading.errors.append(f"{path}: {error.strerror}; make it readable")
    except UserError as error:
        text = str(error)
        reading.errors.append(text if path is None or str(path) in text else f"{path}: {text}")
    return None


READERS: dict[str, Callable[[Card, str], Reading]] = {
    "coco": read_coco,
    "voc": partial(_read_each, formats.pascal_voc),
    "bbgt": partial(_read_each, formats.bbgt),
    "yolo": partial(_read_each, formats.yolo),
    "kitti": partial(_read_each, formats.kitti),
    "vedai": partial(_read_each, formats.vedai),
    "centred": partial(_read_each, formats.centred),
    "sunrgbd": read_sunrgbd,
}
