"""Target assignment and loss with gradients, relative to effdet, in time and bytes written.

The outputs of the network come level by level for effdet, and as (B, A, K) for mmfuse: as the heads of each give them.
Losses and gradients are compared before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.counters import count
from benchmarks.drawing import draw_objects
from benchmarks.reference import AnchorLabeler, Anchors, DetectionLoss, config, rows
from benchmarks.results import Bar, Row, count_rows, time_rows
from benchmarks.side_by_side import device, side_by_side
from mmfuse.model.heads import PER_PLACE, anchors, grids
from mmfuse.model.losses import detection_loss
from mmfuse.sample import Targets
from mmfuse.scaling import PUBLISHED

TIME = {"mmfuse": Bar(0.15, 0.05)}
BYTES = {"mmfuse": Bar(0.25, 0.1)}


def measure(
    rounds: int = 11, size: str = "d0", side: int = 512, batch: int = 4, classes: int = 90, objects: int = 50
) -> list[Row]:
    """Times all ways and counts the bytes that they write."""
    given = problem(size, side, batch, classes)
    found = sides(given, objects)
    check(given, found)
    written = {name: count(way).bytes.total() / 2**20 for name, way in found.items()}
    times = side_by_side(found, rounds)
    return [*time_rows(times, TIME), *count_rows("bytes written", "MiB", written, BYTES)]


@dataclass(frozen=True)
class Problem:
    """Outputs of a network of a published `size` for images of `side` pixels, level by level.

    `class_maps` are (B, 9 K, h, w), `box_maps` (B, 36, h, w), `anchors` (A, 4), `grids` the (h, w).
    """

    size: str
    side: int
    classes: int
    class_maps: list[Tensor]
    box_maps: list[Tensor]
    anchors: Tensor
    grids: list[tuple[int, int]]

    def joined(self) -> tuple[Tensor, Tensor]:
        """Returns class logits (B, A, K) and box codes (B, A, 4), as mmfuse's heads do."""
        return rows(self.class_maps, self.classes), rows(self.box_maps, 4)


def problem(size: str, side: int, batch: int, classes: int) -> Problem:
    """Returns random outputs, with probabilities around that from which a network starts."""
    published = PUBLISHED[size]
    shapes = grids(side, side, published.levels)
    generator = torch.Generator().manual_seed(0)
    class_maps, box_maps = (
        [
            (torch.randn(batch, PER_PLACE * n, *shape, generator=generator) * spread + mean).to(device())
            for shape in shapes
        ]
        for n, spread, mean in ((classes, 1.0, -4.6), (4, 0.1, 0.0))
    )
    grid = anchors(side, side, published.levels, published.anchor_scale, device())
    return Problem(size, side, classes, class_maps, box_maps, grid, shapes)


def sides(given: Problem, objects: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Returns effdet's way and ours, by name, for `objects` an image; effdet's is the first.

    Each returns the losses (total, class, box) and the gradients of what it is given: maps, or rows of anchors.
    """
    batch, side = len(given.class_maps[0]), given.side
    drawn = draw_objects(batch, objects, side, given.classes, torch.Generator().manual_seed(1))
    boxes, labels = (x.to(device()) for x in drawn)
    settings = config(given.size, side, given.classes)
    labeler = AnchorLabeler(Anchors.from_config(settings).to(device()), given.classes, match_threshold=0.5)
    criterion = DetectionLoss(settings)
    maps = [*given.class_maps, *given.box_maps]
    joined = given.joined()
    for leaf in (*maps, *joined):
        leaf.requires_grad_()

    def effdet() -> tuple[Tensor, ...]:
        wanted = labeler.batch_label_anchors([x[:, [1, 0, 3, 2]] for x in boxes], [x + 1 for x in labels])
        losses = criterion(given.class_maps, given.box_maps, *wanted)
        return *losses, *torch.autograd.grad(losses[0], maps)

    def ours() -> tuple[Tensor, ...]:
        losses = detection_loss(*joined, given.anchors, Targets(list(boxes), list(labels)), given.grids)
        return losses["total"], losses["class"], losses["box"], *torch.autograd.grad(losses["total"], joined)

    return {"effdet": effdet, "mmfuse": ours, "mmfuse again": ours}


def check(given: Problem, found: dict[str, Callable[[], tuple[Tensor, ...]]]) -> None:
    """Compares losses and gradients of all sides with effdet's.

    Raises:
        AssertionError: they differ.
    """
    total, *losses_and_maps = found["effdet"]()
    levels = len(given.grids)
    losses, maps = (total, *losses_and_maps[:2]), losses_and_maps[2:]
    expected = (*losses, rows(maps[:levels], given.classes), rows(maps[levels:], 4))
    for side in list(found.values())[1:]:
        for mine, theirs in zip(side(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
