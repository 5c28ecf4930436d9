"""Whether an exported file finds what the detector finds that it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.boxes import iou
from mmfuse.sample import Detections

_NEAR = 0.5


@dataclass(frozen=True)
class Tolerance:
    """How far a box may be from its partner: the least overlap, and the difference in score."""

    overlap: float
    score: float


TOLERANCES = {
    "fp32": (Tolerance(0.99, 1e-3), Tolerance(0.95, 1e-2)),
    "fp16": (Tolerance(0.99, 1e-2), Tolerance(0.95, 2e-2)),
}
"""By precision: of the same pixels, and of images that the file resizes itself, in which some 8-bit pixels are rounded
otherwise.
"""


def difference(
    expected: Detections, found: Detections, tolerance: Tolerance, iou_threshold: float, most: int
) -> str | None:
    """Says of one image how `found` isn't `expected`, within a tolerance; None where it is.

    Each box of either has a partner of its class in the other. One is let off that the score tells may be cut off at
    the end of the `most` best; and one that another of its class, as good or better, suppresses where it isn't. That
    one needs a partner itself, so somewhere two that overlap changed places for scores that are within the tolerance.
    """
    for ours, theirs, what in ((expected, found, "lacks"), (found, expected, "has, and shouldn't,")):
        least = float(theirs.scores[-1]) if len(theirs) >= most else 0.0
        for box, score, label in ours:
            apart = theirs.scores - score
            overlap = torch.where(theirs.labels == label, iou(box[None].double(), theirs.boxes.double()), 0.0)
            near = overlap >= tolerance.overlap
            if not (box[2:] > box[:2]).all():  # nothing overlaps a line
                near = (theirs.labels == label) & ((theirs.boxes - box).abs().amax(1) < _NEAR)
            suppressing = (overlap > iou_threshold - (1 - tolerance.overlap)) & (apart >= -tolerance.score)
            partner = near & (apart.abs() <= tolerance.score)
            if score > least + tolerance.score and not bool((partner | suppressing).any()):
                corners = ", ".join(f"{v:.1f}" for v in box.tolist())
                return f"{what} class {int(label)} with score {float(score):.4f} at {corners}"
    return None


def masks_of(modalities: Sequence[str]) -> list[dict[str, Tensor]]:
    """Returns what is tried: all sensors there, and without each in turn."""
    there = [dict.fromkeys(modalities, True)]
    if len(modalities) > 1:
        there += [{m: m != gone for m in modalities} for gone in modalities]
    return [{m: torch.tensor([one]) for m, one in each.items()} for each in there]


def told(mask: Mapping[str, Tensor]) -> str:
    """Says which sensors are missing, for a message."""
    gone = [m for m, one in mask.items() if not bool(one)]
    return f" without {', '.join(gone)}" if gone else ""
