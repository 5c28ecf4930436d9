"""Whether the objects of a split can be learnt and found: how many count, and how many are left at an input size."""

from collections.abc import Sequence

import torch

from mmfuse.data.annotations.records import Record
from mmfuse.images.letterbox import View


def objects(records: Sequence[Record]) -> int:
    """Returns how many objects count: all but crowds and ignore regions."""
    return int(sum((~record.ignore).sum() for record in records))


def too_small(records: Sequence[Record], size: tuple[int, int], zoom: float = 1.0) -> int:
    """Returns how many of the objects that count training leaves out as too small, seen at an input size (H, W).

    `zoom` enlarges what is fitted into that size, as `DataRecipe.scale_jitter` does.
    """
    lost = 0
    for record in records:
        boxes = torch.from_numpy(record.boxes[~record.ignore])
        scale = zoom * min(size[0] / record.height, size[1] / record.width)
        view = View.whole(record.height, record.width, scale)
        lost += len(boxes) - len(view.cut(view.move(boxes), torch.from_numpy(record.labels[~record.ignore]))[0])
    return lost
