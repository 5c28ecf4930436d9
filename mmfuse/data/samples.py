"""From records to samples: the images of every sensor, read and prepared, with the objects to learn."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from mmfuse.data.annotations.records import Objects, Record, own_objects
from mmfuse.errors import UserError
from mmfuse.images.scenes import read_scene
from mmfuse.sample import Sample, Scene
from mmfuse.sensor import Sensor


def size_problem(record: Record, images: Mapping[str, Tensor]) -> str | None:
    """Returns one line when the images (C, H, W) of a record differ in size, or from the size in the labels."""
    sizes = {m: f"{image.shape[2]} x {image.shape[1]}" for m, image in images.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{record.files[m]} is {size}" for m, size in sizes.items())
        return f"image {record.image_id}: {listed}; register them to one size, or set a sensor's 'register' in the card"
    for m, size in sizes.items():
        if size != (labelled := f"{record.width} x {record.height}"):
            return (
                f"{record.files[m]}: is {size}, but image {record.image_id} is labelled as {labelled}; mend one of them"
            )
    return None


Change = Callable[[int, str, Tensor], Tensor]
"""Takes an image id, a modality and its raw image (C, H, W), and returns a raw image of the same type and size."""


def read_record(record: Record, sensors: Mapping[str, Sensor], change: Change | None = None) -> dict[str, Tensor]:
    """Reads and prepares the images of those `sensors` that a record has; see `prepare_scene` for `change`.

    Raises:
        UserError: a file can't be read, or the sensors can't be registered.
    """
    files = {m: file for m, file in record.files.items() if m in sensors}
    scene = Scene(files, record.calibration, record.onto, (record.width, record.height))
    return read_scene(scene, sensors, None if change is None else partial(change, record.image_id))


Read = Callable[[Record, Mapping[str, Sensor]], dict[str, Tensor]]
"""What gives the prepared images of a record: `read_record`, or a cache of what it gives."""


def load_sample(record: Record, sensors: Mapping[str, Sensor], read: Read = read_record) -> Sample:
    """Reads the images of those `sensors` that the record has, and objects save crowds, at the size of the reference.

    Intensity is NaN where nothing was measured.

    Raises:
        UserError: a file can't be read, or the sizes differ.
    """
    images = read(record, sensors)
    if not images:
        raise UserError(
            f"image {record.image_id}: has no file for any of {', '.join(sensors)}; add one or remove the image"
        )
    if problem := size_problem(record, images):
        raise UserError(problem)
    own = {m: objects for m in images if (objects := own_objects(record, m, sensors[m])) is not None}
    return Sample(
        record.image_id,
        images,
        *_learnt(record),
        own={m: _learnt(objects) for m, objects in own.items()},
    )


def _learnt(objects: Record | Objects) -> tuple[Tensor, Tensor]:
    kept = ~objects.ignore
    return torch.from_numpy(objects.boxes[kept]), torch.from_numpy(objects.labels[kept])
