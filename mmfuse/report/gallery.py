"""The images of a page's gallery: those that tell most, made small, with their objects and what each model found."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.annotations.records import Record
from mmfuse.drawing import displayable
from mmfuse.evaluation.curves import THRESHOLD
from mmfuse.evaluation.significance import Matches
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

MOST_IMAGES = 200
MOST_BYTES = 12_000_000
LONGEST_SIDE = 640
LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class Answers:
    """What one model found in the images of a split, as `detections` by image id and as its `matches` with objects."""

    name: str
    detections: Mapping[int, Detections]
    matches: Matches


@dataclass(frozen=True)
class Gallery:
    """Scenes in which two models differ, the largest win of `model` over `rival` first.

    Each of `scenes` is what a page's script reads: `name`, `condition`, `struck`, `size` (width, height), `ahead`, the
    errors that the model makes fewer than its rival, `images`, JPEG as data URIs by modality, `truth`, and what was
    `found` by each of `models`. Boxes are rows of x1, y1, x2, y2, then label and 1 where ignored for objects, and then
    score, label and 1 for a hit, 0 for none and -1 where it doesn't count for detections; beside them stand `notes_on`
    the sensors. `of` counts the images that they were chosen from.
    """

    model: str
    rival: str
    models: tuple[str, ...]
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    scenes: tuple[dict[str, Any], ...]
    of: int


def telling(ahead: np.ndarray) -> np.ndarray:
    """Returns the places of images, those in which two models differ most first; equal ones in an order drawn once."""
    drawn = np.random.default_rng(0).permutation(len(ahead))
    return np.lexsort((drawn, -np.abs(ahead)))


def make_gallery(
    records: Sequence[Record],
    answers: Sequence[Answers],
    pair: tuple[str, str],
    sensors: Mapping[str, Sensor],
    classes: Sequence[str],
    read: Callable[[Record], Mapping[str, Tensor]],
    most_bytes: int = MOST_BYTES,
) -> Gallery:
    """Chooses the images in which the two models named by `pair` differ most, as many as a page bears.

    They differ by the objects that a model misses plus the false detections that it makes, at a score of `THRESHOLD`
    and IoU 0.5. There are at most `MOST_IMAGES` of them, and of `most_bytes` together, but always one.

    Args:
        records: all images, whose objects are shown.
        answers: what each model found in them.
        pair: the names of a model and its rival.
        sensors: those to show, by modality.
        classes: the names of the labels.
        read: returns the prepared images (C, H, W) of a record by modality.
        most_bytes: of all images together, as JPEG files.

    Raises:
        UserError: an image can't be read.
    """
    by_id = sorted(records, key=lambda record: record.image_id)
    errors = {one.name: one.matches.errors(THRESHOLD) for one in answers}
    ahead = errors[pair[1]] - errors[pair[0]]
    left = most_bytes
    scenes: dict[int, dict[str, Any]] = {}
    for place in tqdm(telling(ahead)[:MOST_IMAGES].tolist(), desc="gallery", unit="image", leave=False):
        record = by_id[place]
        pictures = {m: jpeg(displayable(image, sensors[m])) for m, image in read(record).items()}
        left -= sum(map(len, pictures.values()))
        if scenes and left < 0:
            break
        truth = zip(
            record.boxes.astype(float).round(1).tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True
        )
        scenes[place] = {
            "name": ", ".join(dict.fromkeys(path.name for path in record.files.values())),
            "condition": record.condition,
            "struck": record.struck,
            "size": [record.width, record.height],
            "ahead": int(ahead[place]),
            "images": {m: "data:image/jpeg;base64," + base64.b64encode(p).decode() for m, p in pictures.items()},
            "truth": [[*box, label, int(ignore)] for box, label, ignore in truth],
            "found": [_found(one, record, place) for one in answers],
        }
    order = sorted(scenes, key=lambda place: -ahead[place])
    names = tuple(one.name for one in answers)
    shown = tuple(scenes[place] for place in order)
    return Gallery(*pair, names, tuple(sensors), tuple(classes), shown, len(records))


def notes_on(found: Detections) -> list[str]:
    """Returns what is to be told of sensors in one image: those that were left out, those that show other scenes."""
    notes = [f"{', '.join(found.dropped)} left out, doubted"] if found.dropped else []
    if found.disagreeing:
        several = len(found.disagreeing) > 1
        what = "show different scenes" if several else "shows another scene"
        notes.append(f"{' and '.join(found.disagreeing)} {what}")
    return notes


def jpeg(pixels: np.ndarray) -> bytes:
    """Returns RGB pixels (H, W, 3) uint8 as a JPEG file, made smaller where a side is longer than `LONGEST_SIDE`."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def _found(answers: Answers, record: Record, place: int) -> dict[str, Any]:
    """Returns the detections of one image, whose place is that in the ascending ids, and what became of each."""
    found = answers.detections.get(record.image_id, Detections.empty()).to("cpu")
    boxes, scores, labels = found.boxes.double().numpy(), found.scores.double().numpy(), found.labels.numpy()
    best_first = np.argsort(-scores, kind="stable")
    rows, objects = [], 0
    for label, ranking in enumerate(answers.matches.rankings):
        objects += int(ranking.objects[place])
        own = best_first[labels[best_first] == label]
        judged = np.flatnonzero(ranking.image == place)
        outcomes = np.where(ranking.ignored[0, judged], -1, ranking.hit[0, judged])
        for i, outcome in zip(own, outcomes.tolist(), strict=False):  # the last of too many aren't judged
            if scores[i] >= LOWEST_SCORE:
                rows.append([*boxes[i].round(1).tolist(), round(float(scores[i]), 3), label, outcome])
    return {
        "boxes": sorted(rows, key=lambda row: row[4]),
        "objects": objects,
        "notes": notes_on(found),
    }
