"""Target assignment and loss with gradients, relative to effdet, in time and bytes: `python -m benchmarks.losses`.

The outputs of the network come level by level, as effdet takes them, or joined as (B, A, K), as mmfuse's heads give
them; a row with the joining is there too. Losses and gradients are compared before anything is timed.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.counters import count
from benchmarks.side_by_side import side_by_side
from mmfuse.model.anchors import PER_PLACE, anchors, grids
from mmfuse.model.losses import detection_loss
from mmfuse.report.tables import markdown_table
from mmfuse.sample import Targets
from mmfuse.scaling import PUBLISHED

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # effdet uses torch.jit.script
    from effdet import get_efficientdet_config
    from effdet.anchors import AnchorLabeler, Anchors
    from effdet.loss import DetectionLoss


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

    @property
    def config(self) -> object:
        """What effdet needs to know of the network."""
        config = get_efficientdet_config(f"tf_efficientdet_{self.size}")
        config.image_size, config.num_classes = (self.side, self.side), self.classes
        return config

    def joined(self) -> tuple[Tensor, Tensor]:
        """Returns class logits (B, A, K) and box codes (B, A, 4), as mmfuse's heads do."""
        return _rows(self.class_maps, self.classes), _rows(self.box_maps, 4)


def problem(size: str, side: int, batch: int, classes: int) -> Problem:
    """Returns random outputs, with probabilities around that from which a network starts."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    published = PUBLISHED[size]
    shapes = grids(side, side, published.levels)
    generator = torch.Generator().manual_seed(0)
    class_maps, box_maps = (
        [
            (torch.randn(batch, PER_PLACE * n, *shape, generator=generator) * spread + mean).to(device)
            for shape in shapes
        ]
        for n, spread, mean in ((classes, 1.0, -4.6), (4, 0.1, 0.0))
    )
    grid = anchors(side, side, published.levels, published.anchor_scale, device)
    return Problem(size, side, classes, class_maps, box_maps, grid, shapes)


def _rows(maps: list[Tensor], values: int) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in maps], 1)


def sides(given: Problem, objects: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Returns effdet's way and ours, by name, for `objects` an image; effdet's is the first.

    Each returns the losses (total, class, box) and the gradients of what is given: maps or joined.
    """
    device, batch, side = given.anchors.device, len(given.class_maps[0]), given.side
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(batch, objects, 2, generator=generator) * side
    half = torch.exp(torch.rand(batch, objects, 2, generator=generator) * 4) * 2
    boxes = torch.cat((centre - half, centre + half), 2).to(device)
    labels = torch.randint(given.classes, (batch, objects), generator=generator).to(device)
    labeler = AnchorLabeler(Anchors.from_config(given.config).to(device), given.classes, match_threshold=0.5)
    criterion = DetectionLoss(given.config)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of time and bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="d0")
    parser.add_argument("--side", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=90)
    parser.add_argument("--objects", type=int, default=50, help="in each image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    found = sides(problem(options.size, options.side, options.batch, options.classes), options.objects)
    check(found)
    written = {name: count(side).bytes.total() for name, side in found.items()}
    rows = []
    for r in side_by_side(found, options.rounds):
        time = (f"{r.milliseconds:.0f}", f"{r.median:.3f}", f"[{r.low:.3f}, {r.high:.3f}]")
        size = (f"{written[r.name] / 2**20:.0f}", f"{written[r.name] / written['effdet']:.3f}")
        rows.append((r.name, *time, *size))
    print(markdown_table(("side", "ms", "time / effdet", "95 % interval", "MiB written", "bytes / effdet"), rows))


if __name__ == "__main__":
    main()
