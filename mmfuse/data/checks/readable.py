"""Whether the images that are to be scored can be read, before the time for a training is spent."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mmfuse.data.annotations.layout import image_size
from mmfuse.data.annotations.records import Record, spread
from mmfuse.data.parallel import each
from mmfuse.data.samples import Read, load_sample
from mmfuse.errors import UserError
from mmfuse.images.decode import POINTS
from mmfuse.sensor import Sensor

MOST_DECODED = 256


def require_readable(
    records: Sequence[Record], sensors: Mapping[str, Sensor], read: Read, workers: int | None = None
) -> None:
    """Reads at most 256 of the records, evenly spaced, and of the others the headers of their files.

    `workers` processes do so, None for the cores to spare.

    Raises:
        UserError: an image has no file of any sensor, or a file is missing, can't be read or has another size than the
            labels say; where only the header is read, the rest of a file may still be broken.
    """
    whole = {record.image_id for record in spread(records, MOST_DECODED)}
    loads = partial(_load, sensors=sensors, read=read, whole=whole)
    for error in each(loads, records, workers, "trying the files of val"):
        if error is not None:
            raise UserError(str(error))


def _load(record: Record, sensors: Mapping[str, Sensor], read: Read, whole: set[int]) -> None:
    load_sample(record, sensors, read if record.image_id in whole else _headers)


def _headers(record: Record, sensors: Mapping[str, Sensor]) -> dict[str, Tensor]:
    """Returns images without pixels, of the sizes (H, W) that they will have in the frame of the reference."""
    images = {}
    for m in sensors.keys() & record.files.keys():
        size = (record.width, record.height)
        if record.files[m].suffix.lower() not in POINTS:
            own = image_size(record.files[m], sensors[m].border)
            size = own if sensors[m].register == "none" else size
        images[m] = torch.empty(sensors[m].channels, *size[::-1], device="meta")
    return images
