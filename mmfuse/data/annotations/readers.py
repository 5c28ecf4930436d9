"""Readers: from the annotation files of a dataset to one record for each image."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

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
from mmfuse.data.annotations.records import Annotation, Objects, Reading, Record, make_record, objects_from
from mmfuse.data.annotations.sunrgbd import read_sunrgbd
from mmfuse.data.annotations.templates import placeholders
from mmfuse.errors import UserError, unknown_name
from mmfuse.files import read_regular

Parse = Callable[[bytes, tuple[int, int]], Iterable[Annotation]]


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


def read_each(parse: Parse, card: Card, split: str) -> Reading:
    """Reads a dataset that has one annotation file for each image, which `parse` turns into annotations.

    Entries count from 1, which is their id. A template of annotations without a placeholder is one file for
    all, whose lines begin with the entry.
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
            annotations = _annotations(parse, card, entry, m, card.modalities[m].whole(sizes[m]), reading)
            if annotations is not None:
                found[m] = objects_from(annotations, m, sizes[m], card, reading)
        if len(found) == len(labelled):
            objects = found.pop(card.reference)
            others = {m: other for m, other in found.items() if m in files}
            record = make_record(
                number, files, size, objects, others, entry.condition, entry.sequence, calibration, onto
            )
            reading.records.append(record)
    return reading


def _annotations(
    parse: Parse, card: Card, entry: Entry, modality: str, size: tuple[int, int], reading: Reading
) -> list[Annotation] | None:
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
        content = read_regular(path)
        if not placeholders(card.layout.annotations[modality] if card.layout else ""):
            content = formats.lines_of(content, entry.name)
        return [replace(annotation, where=f"{path}: {annotation.where}") for annotation in parse(content, size)]
    except OSError as error:
        reading.errors.append(f"{path}: {error.strerror}; make it readable")
    except UserError as error:
        text = str(error)
        reading.errors.append(text if path is None or str(path) in text else f"{path}: {text}")
    return None


PARSERS: dict[str, Parse] = {
    "voc": formats.pascal_voc,
    "bbgt": formats.bbgt,
    "yolo": formats.yolo,
    "kitti": formats.kitti,
    "vedai": formats.vedai,
    "centred": formats.centred,
}
"""What reads the annotation file of an image, by the reader's name."""

READERS: dict[str, Callable[[Card, str], Reading]] = {
    "coco": read_coco,
    **{name: partial(read_each, parse) for name, parse in PARSERS.items()},
    "sunrgbd": read_sunrgbd,
}
