"""Whether an exported file finds what the detector finds that it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.boxes import iou
from mmfuse.sample import Detections


@dataclass(frozen=True)
class Tolerance:
    """How far a box may be from its partner: the least overlap, and the difference in score."""

    overlap: float
    score: float


TOLERANCES = {"fp32": Tolerance(0.99, 1e-3), "fp16": Tolerance(0.9, 2e-2)}


def difference(
    expected: Detections, found: Detections, tolerance: Tolerance, iou_threshold: float, most: int
) -> str | None:
    """Says of one image how `found` isn't `expected`, within a tolerance; None where it is.

    Each box of either has a partner of its class in the other. One is let off where the score tells that it may be cut
    off at the end of the `most` best, or that a rival, which overlaps it as much as suppresses, may have been taken for
    the better of the two.
    """
    for ours, theirs, what in ((expected, found, "lacks"), (found, expected, "has, and shouldn't,")):
        least = float(theirs.scores[-1]) if len(theirs) >= most else 0.0
        for box, score, label in ours:
            alike = (theirs.labels == label) & ((theirs.scores - score).abs() <= tolerance.score)
            overlap = iou(box[None].double(), theirs.boxes.double())
            if bool((alike & (overlap >= tolerance.overlap)).any()) or score <= least + tolerance.score:
                continue
            if bool((alike & (overlap >= iou_threshold - (1 - tolerance.overlap))).any()):
                continue
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
