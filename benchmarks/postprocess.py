"""From a network's outputs to detections, relative to effdet.

Detections are compared before anything is timed; see `benchmarks.losses` for the outputs.
"""

from collections.abc import Callable

import torch

from benchmarks.losses import Problem, problem
from benchmarks.reference import Anchors, _batch_detection, _post_process, config
from benchmarks.results import Bar, Row, time_rows
from benchmarks.side_by_side import device, side_by_side
from mmfuse.model.postprocess import DEFAULT, decode
from mmfuse.sample import Detections

TIME = {"mmfuse": Bar(0.5, 0.25)}


def measure(rounds: int = 11, size: str = "d0", side: int = 512, batch: int = 8, classes: int = 90) -> list[Row]:
    """Times all ways."""
    found = sides(problem(size, side, batch, classes))
    check(found)
    return time_rows(side_by_side(found, rounds), TIME)


def sides(given: Problem) -> dict[str, Callable[[], list[Detections]]]:
    """Returns effdet's way and ours, by name; effdet's is the first."""
    batch, size = len(given.class_maps[0]), (given.side, given.side)
    anchors = Anchors.from_config(config(given.size, given.side, given.classes)).boxes.to(device())
    scale, sizes = torch.ones(batch, device=device()), torch.tensor([size] * batch, dtype=torch.float32).to(device())
    joined = given.joined()

    def effdet() -> list[Detections]:
        picked = _post_process(given.class_maps, given.box_maps, len(given.grids), given.classes, DEFAULT.candidates)
        logits, codes, places, labels = picked
        found = _batch_detection(batch, logits, codes, anchors, places, labels, scale, sizes, DEFAULT.max_detections)
        return [Detections(one[:, :4], one[:, 4], one[:, 5].long() - 1) for one in found]

    def ours() -> list[Detections]:
        return decode(*joined, given.anchors, size, DEFAULT)

    return {
        "effdet": effdet,
        "mmfuse": ours,
        "mmfuse again": ours,
    }


def check(found: dict[str, Callable[[], list[Detections]]]) -> None:
    """Compares the detections of all sides with effdet's, box for box.

    Raises:
        AssertionError: they differ.
    """
    expected = found["effdet"]()
    for name, side in found.items():
        for mine, theirs in zip(side(), expected, strict=True):
            assert torch.equal(mine.labels, theirs.labels), name
            torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=1e-6)
            torch.testing.assert_close(mine.boxes, theirs.boxes, rtol=0, atol=1e-3)
