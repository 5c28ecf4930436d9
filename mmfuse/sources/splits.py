"""Scenes of a card's split or of a COCO file, with the calibration of each image."""

from pathlib import Path
from typing import Any

from mmfuse.data.annotations.cards import Card, inside
from mmfuse.data.annotations.coco import read_images
from mmfuse.data.annotations.readers import read_split
from mmfuse.errors import UserError
from mmfuse.files import resolved
from mmfuse.sample import Scene


def scenes_of_split(card: Card, split: str) -> list[Scene]:
    """Returns the scenes of a card's split, with the ids of its images.

    Raises:
        UserError: the split is unknown, or its files hold a mistake.
    """
    return [
        Scene(
            record.files,
            record.calibration,
            record.onto,
            (record.width, record.height),
            _below(card.root, next(iter(record.files.values()))),
            record.image_id,
        )
        for record in read_split(card, split)
    ]


def scenes_of_coco(path: Path, modalities: tuple[str, ...]) -> list[Scene]:
    """Returns the scenes of a COCO file's images, whose files lie below its folder; annotations aren't looked at.

    An image's `modalities` map each to its file; without them, where there is one modality, `file_name` is it.

    Raises:
        UserError: it is no COCO file, or an image names no file or one outside of the folder.
    """
    root = resolved(path.parent)
    scenes = []
    for image_id, image in read_images(path).items():
        where = f"{path}: image {image_id}"
        names = image.get("modalities", {modalities[0]: image.get("file_name")} if len(modalities) == 1 else None)
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise UserError(f"{where}: has no 'modalities'; map each of {', '.join(modalities)} to its file")
        files = {m: inside(root, name, where) for m, name in names.items() if m in modalities}
        if not files:
            raise UserError(f"{where}: has no file of {', '.join(modalities)}; remove the image")
        scenes.append(Scene(files, size=_size(image), name=next(iter(names.values())), image_id=image_id))
    return scenes


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if isinstance(width, int | float) and isinstance(height, int | float) else None


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
