"""A gallery of made-up images in which it is known what each model finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmfuse.data.annotations.records import Record
from mmfuse.evaluation.significance import match
from mmfuse.report.gallery import Answers, make_gallery
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
CLASSES = ("person", "car")
BOXES = np.array([[4, 6, 24, 40], [30, 10, 60, 30]], np.float32)


def record(image_id, *, objects=2, condition="day", ignore=(), lacks=(), name=None):
    """An image of 64 x 48 pixels with some of BOXES, the first a person, the second a car."""
    files = {m: Path(f"/data/{m}/{name or image_id}.png") for m in SENSORS if m not in lacks}
    ignored = np.array([i in ignore for i in range(objects)], bool)
    return Record(image_id, files, 64, 48, BOXES[:objects], np.arange(objects), ignored, condition)


def detections(boxes, scores, labels, **more):
    return Detections(
        torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), torch.tensor(labels).long(), **more
    )


NOTHING_FOUND = Detections.empty()
ALL_FOUND = detections(BOXES, [0.9, 0.35], [0, 1])
ONE_FALSE = detections([[40, 30, 60, 46]], [0.6], [1])


def read(record):
    return {m: torch.full((s.channels, 48, 64), 90 if m == "rgb" else 30, dtype=torch.uint8)
            for m, s in SENSORS.items() if m in record.files}  # fmt: skip


def staged(records, found, pair=("both", "thermal"), classes=CLASSES, **options):
    """A gallery of `records`, of which `found` has by model what it finds, by image id."""
    answers = [Answers(name, of, match(records, of, classes)) for name, of in found.items()]
    return make_gallery(records, answers, pair, SENSORS, classes, read, **options)


def six_scenes():
    """Two wins (by 3 and 2 errors), two ties and two losses (by 1 and 3) of `both` over `thermal`."""
    records = [record(i, condition="night" if i % 2 else "day", lacks=("rgb",) if i == 5 else ()) for i in range(6)]
    half = ALL_FOUND[:1]
    both = {0: ALL_FOUND, 1: ALL_FOUND, 2: half, 3: NOTHING_FOUND, 4: half, 5: ONE_FALSE}
    thermal = {0: ONE_FALSE, 1: NOTHING_FOUND, 2: half, 3: NOTHING_FOUND, 4: ALL_FOUND, 5: ALL_FOUND}
    rgb = dict.fromkeys(range(6), ALL_FOUND) | {0: replace(ALL_FOUND, dropped=("rgb",), disagreeing=("rgb",))}
    return staged(records, {"rgb": rgb, "thermal": thermal, "both": both})
