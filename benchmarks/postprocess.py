"""From a network's outputs to detections, relative to effdet: `python -m benchmarks.postprocess`.

Detections are compared before anything is timed; see `benchmarks.losses` for the outputs.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence

import torch

from benchmarks.losses import Problem, problem
from benchmarks.side_by_side import side_by_side
from mmfuse.model.postprocess import DEFAULT, decode
from mmfuse.report.tables import markdown_table
from mmfuse.sample import Detections

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # effdet uses torch.jit.script
    from effdet.anchors import Anchors
    from effdet.bench import _batch_detection, _post_process


def sides(given: Problem) -> dict[str, Callable[[], list[Detections]]]:
    """Returns effdet's way and ours, by name; effdet's is the first."""
    device, batch, size = given.anchors.device, len(given.class_maps[0]), (given.side, given.side)
    anchors = Anchors.from_config(given.config).boxes.to(device)
    scale, sizes = torch.ones(batch, device=device), torch.tensor([size] * batch, dtype=torch.float32, device=device)
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
        "mmfuse, with the joining": lambda: decode(*given.joined(), given.anchors, size, DEFAULT),
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="d0")
    parser.add_argument("--side", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    found = sides(problem(options.size, options.side, options.batch, options.classes))
    check(found)
    rows = [
        (r.name, f"{r.milliseconds:.0f}", f"{r.median:.3f}", f"[{r.low:.3f}, {r.high:.3f}]")
        for r in side_by_side(found, options.rounds)
    ]
    print(markdown_table(("side", "ms", "time / effdet", "95 % interval"), rows))


if __name__ == "__main__":
    main()
