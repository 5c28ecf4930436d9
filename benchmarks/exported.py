"""From a raw image to detections in ONNX Runtime, relative to effdet in PyTorch with the same weights.

effdet's image is normalised already. Detections are compared before anything is timed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import mmfuse
from benchmarks.reference import Anchors, _batch_detection, _post_process, config, pair
from benchmarks.results import Bar, Row, time_rows
from benchmarks.side_by_side import side_by_side
from mmfuse.exporting.parity import Tolerance, difference
from mmfuse.model.postprocess import DEFAULT
from mmfuse.sample import Detections

TIME = {"mmfuse, exported": Bar(0.42, 0.36)}
_TOLERANCE = Tolerance(0.98, 1e-3)

Sides = dict[str, Callable[[], Detections]]


def measure(rounds: int = 11, size: str = "d0", side: int = 512, classes: int = 90) -> list[Row]:
    """Times effdet, the exported detector, that again, and what `fast` makes of ours, from the raw image too."""
    found = sides(size, side, classes)
    check(found)
    found["mmfuse, exported, again"] = found["mmfuse, exported"]
    return time_rows(side_by_side(found, rounds), TIME)


def sides(size: str, side: int, classes: int) -> Sides:
    """Returns each way from one image to detections, effdet's first."""
    model, detector = pair(size, side, classes)
    raw = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    normalised = detector.normalise({"rgb": raw})["rgb"]
    anchors = Anchors.from_config(config(size, side, classes)).boxes
    levels, scale, sizes = len(detector.levels), torch.ones(1), torch.full((1, 2), float(side))
    with tempfile.TemporaryDirectory() as folder:
        exported = mmfuse.load(mmfuse.export(detector, Path(folder) / "detector.onnx", size=(side, side)).path)
    fast = detector.fast((side, side))

    @torch.inference_mode()
    def effdet() -> Detections:
        picked = _post_process(*model(normalised), levels, classes, DEFAULT.candidates)
        logits, codes, places, labels = picked
        (one,) = _batch_detection(1, logits, codes, anchors, places, labels, scale, sizes, DEFAULT.max_detections)
        return Detections(one[:, :4], one[:, 4], one[:, 5].long() - 1)

    return {
        "effdet": effdet,
        "mmfuse, fast": lambda: fast.find({"rgb": raw}, {})[0],
        "mmfuse, exported": lambda: exported.find({"rgb": raw}, {})[0],
    }


def check(found: Sides) -> None:
    """Compares the detections of all sides with effdet's.

    Raises:
        AssertionError: they differ.
    """
    expected = found["effdet"]()
    for name, way in found.items():
        problem = difference(expected, way(), _TOLERANCE, DEFAULT.iou_threshold, DEFAULT.max_detections)
        assert problem is None, f"{name} {problem}"
