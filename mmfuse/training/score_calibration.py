"""Fits how the scores of a `BoxEnsemble`'s members become probabilities, on a validation split."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from mmfuse.data.annotations.records import Record
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.significance import match
from mmfuse.model.detector import CLASS_PRIOR
from mmfuse.model.ensemble import CLAMP, BoxEnsemble
from mmfuse.sample import Batch, Detections

LEAST_SLOPE = 0.01
"""A member's slope is at least this, so that its better boxes stay its better ones."""

_AT_ONCE = 32


def collect_calibrated(
    ensemble: BoxEnsemble, batches: Iterable[Batch], records: Sequence[Record], *, progress: str | None = None
) -> dict[int, Detections]:
    """Calibrates the ensemble on `records`, whose images `batches` hold, and returns what it then finds in them.

    As `evaluation.inference.collect` returns it. The members run once: their detections are calibrated, then merged.
    That costs a millisecond an image and member (CPU, matching) more than to collect them uncalibrated.

    Raises:
        UserError: a box or a score isn't finite.
    """
    found: dict[str, dict[int, Detections]] = {m: {} for m in ensemble.modalities}
    for batch in tqdm(batches, desc=progress, disable=progress is None, unit="batch", leave=False):
        for modality, theirs in found.items():
            theirs |= collect(ensemble.member(modality), [batch])
    calibrate(ensemble, found, records)
    merged: dict[int, Detections] = {}
    ids = list(found[ensemble.modalities[0]])
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        lists = {m: [theirs[i].to(ensemble.prior.device) for i in some] for m, theirs in found.items()}
        merged |= {i: one.to("cpu") for i, one in zip(some, ensemble.merge(lists), strict=True)}
    return merged


def calibrate(ensemble: BoxEnsemble, found: Mapping[str, Mapping[int, Detections]], records: Sequence[Record]) -> None:
    """Sets slopes, offsets and prior from what each member found, by modality and image id, in original pixels.

    A member's slope and offset make its own boxes on all `records` most likely (Platt scaling): a box is a hit if it
    finds an object at IoU 0.5 by COCO's matching, and counts neither way if it finds one to ignore. A member without
    any hit is taken at its word.

    The prior is the share of hits among the boxes of all other members, as log-odds. In ProbEn (ECCV 2022, equations 2
    to 4) independent detectors give p(y|a) p(y|b) / p(y), where p(y) is what is known of a box before either is asked,
    and each p(y|.) has it in it. Here a box is one of a member's candidates, so that is the share of hits among them;
    a member that can't tell hits from others then says just that share, and leaves the odds of the others as they are.

    Raises:
        UserError: a box or a score isn't finite.
    """
    slopes, offsets, hits, boxes = [], [], 0, 0
    for modality in ensemble.modalities:
        scores, hit = _candidates(found[modality], records, ensemble.classes)
        slope, offset = platt(scores, hit)
        slopes.append(slope)
        offsets.append(offset)
        if hit.any():
            hits, boxes = hits + int(hit.sum()), boxes + len(hit)
    ensemble.slopes.copy_(torch.tensor(slopes))
    ensemble.offsets.copy_(torch.tensor(offsets))
    ensemble.prior.fill_(math.log((hits + 1) / (boxes - hits + 1)) if hits else CLASS_PRIOR)


def platt(scores: Tensor, hit: Tensor) -> tuple[float, float]:
    """Returns slope and offset of the log-odds of `scores` (N,) that make `hit` (N,) bool most likely.

    They are 1 and 0 if there is no hit. With Platt's targets (1999), (h + 1) / (h + 2) for h hits and 1 / (n + 2) for n
    others, the optimum is finite. Where its slope is below `LEAST_SLOPE`, that is the slope, with the offset that is
    then most likely: the optimum under the bound, as the likelihood is concave.
    """
    hits = int(hit.sum())
    if not hits:
        return 1.0, 0.0
    logits = scores.double().logit(CLAMP)
    targets = torch.where(hit, (hits + 1) / (hits + 2), 1 / (len(hit) - hits + 2)).double()
    slope, offset = _most_likely(logits, targets)
    return (slope, offset) if slope > LEAST_SLOPE else _most_likely(logits, targets, LEAST_SLOPE)


def _most_likely(logits: Tensor, targets: Tensor, fixed_slope: float | None = None) -> tuple[float, float]:
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [line], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        slope = line[0] if fixed_slope is None else fixed_slope
        value = binary_cross_entropy_with_logits(slope * logits + line[1], targets)
        value.backward()
        return value

    optimizer.step(loss)
    slope, offset = line.tolist()
    return fixed_slope or slope, offset


def _candidates(
    found: Mapping[int, Detections], records: Sequence[Record], classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Returns scores (N,) of all boxes that count, and whether each finds an object at IoU 0.5, COCO's first."""
    rankings = match(records, found, classes).rankings
    counts = ~np.concatenate([ranking.ignored[0] for ranking in rankings])
    scores = np.concatenate([ranking.score for ranking in rankings])
    hit = np.concatenate([ranking.hit[0] for ranking in rankings])
    return torch.from_numpy(scores[counts]), torch.from_numpy(hit[counts])
