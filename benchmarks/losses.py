"""Target assignment and loss with gradients, relative to effdet, in time and bytes written.

The outputs of the network come level by level, as effdet takes them, or joined as (B, A, K), as mmfuse's heads give
them; a row with the joining is there too. Losses and gradients are compared before anything is timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.counters import count
from benchmarks.reference import AnchorLabeler, Anchors, DetectionLoss, config, rows
from benchmarks.results import Bar, Row, count_rows, time_rows
from benchmarks.side_by_side import device, side_by_side
from mmfuse.model.anchors import PER_PLACE, anchors, grids
from mmfuse.model.losses import detection_loss
from mmfuse.sample import Targets
from mmfuse.scaling import PUBLISHED

TIME = {"mmfuse": Bar(0.15, 0.05)}
BYTES = {"mmfuse": Bar(0.25, 0.1)}


def measure(
    rounds: int = 11, size: str = "d0", side: int = 512, batch: int = 4, classes: int = 90, objects: int = 50
) -> list[Row]:
    """Times all ways and counts the bytes that they write."""
    found = sides(problem(size, side, batch, classes), objects)
    check(found)
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

    Each returns the losses (total, class, box) and the gradients of what is given: maps or joined.
    """
    batch, side = len(given.class_maps[0]), given.side
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, objects, 2, generator=generator) * side
    half = torch.exp(torch.rand(batch, objects, 2, generator=generator) * 4) * 2
    boxes = torch.cat((centre - half, centre + half), 2).to(device())
    labels = torch.randint(given.classes, (batch, objects), generator=generator).to(device())
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

    def ours(logits: Tensor, codes: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        losses = detection_loss(logits, codes, given.anchors, Targets(list(boxes), list(labels)), given.grids)
        return losses["total"], losses["class"], losses["box"], *torch.autograd.grad(losses["total"], leaves)

    return {
        "effdet": effdet,
        "mmfuse": lambda: ours(*joined, joined),
        "mmfuse again": lambda: ours(*joined, joined),
        "mmfuse, with the joining": lambda: ours(*given.joined(), maps),
    }


def check(found: dict[str, Callable[[], tuple[Tensor, ...]]]) -> None:
    """Compares the losses of all sides with effdet's, and the gradients where they are of the same maps.

    Raises:
        AssertionError: they differ.
    """
    expected = found["effdet"]()
    for side in found.values():
        got = side()
        alike = len(expected) if len(got) == len(expected) else 3
        for mine, theirs in zip(got[:alike], expected[:alike], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
