"""What is kept of a split's records, to say later what changed in them: little of each image."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfuse.data.annotations.records import Record, annotations_of, calibrations_of

_KINDS = ("objects were added or left out", "boxes moved", "classes changed", "files are others", "details changed")


def traces(records: Sequence[Record], root: Path) -> dict[str, str]:
    """Returns, by the name of each record's first file below `root`, how many objects it has and hashes of the rest."""
    found = {}
    for record in records:
        names = [(m, Path(os.path.relpath(file, root)).as_posix()) for m, file in sorted(record.files.items())]
        details = {m: annotations_of(objects) for m, objects in sorted(record.objects_of.items())}
        degrees = [None if x is None else x.tolist() for x in (record.ignore, record.occlusion, record.area)]
        parts = record.boxes.tolist(), record.labels.tolist(), names, [details, degrees, calibrations_of(record)]
        key = names[0][1] if names else f"image {record.image_id}"
        found[key] = " ".join([str(len(record.boxes)), *map(_hash, parts)])
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Returns in words how the traces of a split differ, each difference with how many images have it and an example.

    Of one image the first of those is told that there are: another number of objects, other boxes, classes, files.
    """
    found = []
    for state, names in (("are gone", before.keys() - after.keys()), ("were added", after.keys() - before.keys())):
        if names:
            found.append(f"{len(names)} images {state}, such as {min(names)}")
    by_kind: dict[str, list[str]] = {}
    for name in sorted(before.keys() & after.keys()):
        pairs = zip(_KINDS, before[name].split(), after[name].split(), strict=False)
        if kind := next((kind for kind, old, new in pairs if old != new), None):
            by_kind.setdefault(kind, []).append(name)
    found += [f"in {len(names)} images {kind}, such as {names[0]}" for kind, names in by_kind.items()]
    return found or ["its images come in another order, or lie in other folders"]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
