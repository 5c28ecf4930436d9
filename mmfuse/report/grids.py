"""Grids of images of all sensors with boxes, a row for each image: a batch as it is learnt, and what is found."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mmfuse.drawing import draw
from mmfuse.files import write_whole
from mmfuse.sample import Batch, Detections, Sample
from mmfuse.sensor import Sensor

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 4
WIDEST = 640
"""Pixels: of a wider image every second, third … is shown."""


def batch_grid(
    batch: Batch, sensors: Mapping[str, Sensor], classes: Sequence[str], path: Path, *, most: int = 8
) -> None:
    """Writes the first images of a batch as the network is given them, each sensor with the objects to learn on it.

    A sensor that an image lacks has none, and is named.
    """
    rows = []
    for i in range(min(most, len(batch))):
        row = []
        for m, sensor in sensors.items():
            targets = batch.own.get(m, batch.targets)
            boxes, labels = targets.boxes[i], targets.labels[i]
            if batch.present[m][i]:
                row.append(_panel(batch.images[m][i], sensor, boxes, labels, [classes[k] for k in labels.tolist()], m))
            else:
                row.append(_panel(batch.images[m][i], sensor, boxes[:0], labels[:0], [], f"{m}: missing"))
        rows.append(row)
    _write(rows, path)


def found_grid(
    samples: Sequence[Sample],
    found: Sequence[Detections],
    sensors: Mapping[str, Sensor],
    classes: Sequence[str],
    path: Path,
    *,
    threshold: float,
) -> None:
    """Writes a row for each image: its sensors with the objects, then with the detections from a threshold on.

    All have the same sensors.
    """
    rows = []
    for sample, one in zip(samples, found, strict=True):
        kept = one[one.scores >= threshold]
        scores = [
            f"{classes[k]} {score:.2f}" for k, score in zip(kept.labels.tolist(), kept.scores.tolist(), strict=True)
        ]
        objects, answers = [], []
        for m, image in sample.images.items():
            boxes, labels = sample.own.get(m, (sample.boxes, sample.labels))
            names = [classes[k] for k in labels.tolist()]
            objects.append(_panel(image, sensors[m], boxes, labels, names, f"{m}: objects"))
            note = "not believed" if m in one.dropped else "shows another scene" if m in one.disagreeing else "found"
            answers.append(_panel(image, sensors[m], kept.boxes, kept.labels, scores, f"{m}: {note}"))
        rows.append(objects + answers)
    _write(rows, path)


def _panel(image: Tensor, sensor: Sensor, boxes: Tensor, labels: Tensor, captions: Sequence[str], note: str) -> "Image":
    """Returns a prepared image (C, H, W) with boxes (N, 4) xyxy pixels, no wider than `WIDEST`."""
    step = -(-image.shape[2] // WIDEST)
    shown = {"": image[:, ::step, ::step].cpu()}
    return draw(shown, {"": sensor}, (boxes / step).tolist(), labels.tolist(), captions, {"": note})


def _write(rows: Sequence[Sequence["Image"]], path: Path) -> None:
    """Writes pictures in rows as a PNG file; those of one column are of one width."""
    from PIL import Image

    widths = [max(row[i].width if i < len(row) else 0 for row in rows) for i in range(max(map(len, rows)))]
    heights = [max(one.height for one in row) for row in rows]
    size = sum(widths) + GAP * (len(widths) - 1), sum(heights) + GAP * (len(heights) - 1)
    picture = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, one in enumerate(row):
            picture.paste(one, (sum(widths[:x]) + GAP * x, sum(heights[:y]) + GAP * y))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    write_whole(path, buffer.getvalue())
