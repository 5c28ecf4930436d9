"""Tests the fusion weights of a trained run as an explanation: a modality's share beside what AP loses without it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import eval_loader
from mmfuse.environment import environment
from mmfuse.errors import UserError
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import CellShares, Correlation, ShareGroup, Shares, write_json
from mmfuse.evaluation.score import evaluate
from mmfuse.files import write_whole
from mmfuse.model.checkpoint import load
from mmfuse.model.detector import FusionDetector
from mmfuse.model.fusion import Merge
from mmfuse.model.nodes import outputs_of
from mmfuse.model.pyramid import Pyramid, propagated
from mmfuse.report.charts import share_panels
from mmfuse.report.run_page import write_run_page
from mmfuse.report.tables import shares_markdown
from mmfuse.run import Run
from mmfuse.sample import Batch

FEWEST_PAIRS = 3
TIE = 1e-6
"""Shares, and differences of AP, that are as near as this have one rank: they differ by rounding."""


def shares(run: str | Path | Run, *, split: str = "test") -> Shares:
    """Writes `shares-SPLIT.json`, `.md` and `.png` into the run folder: each modality's share and its worth.

    `report.html` there shows all that this verb and `robustness` found of the detector, on any split.

    A modality's share of a pyramid's node is what the weights give it, multiplied along the graph (see
    `model.pyramid.propagated`). Where images have weights of their own ("gated", "gated_spatial") they are those that
    each image of the split got, averaged over places, padding included; images that lack a sensor don't count. Its
    worth, ΔAP, is the AP of all sensors less the AP without this one, by `evaluate`. Both are given for the whole split
    and each condition, with the correlation of their ranks: see `rank_correlation`.

    Raises:
        UserError: the run or the split doesn't exist; the detector has one modality, or merges them without weights; no
            image has all of its sensors.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    recipe = run.recipe
    detector = load(run.best)
    detector.fusion_shares()
    names = detector.modalities
    if len(names) == 1:
        raise UserError(
            f"{run.folder}: has one modality, {names[0]}, which has no share to show; give a run of several"
        )
    evaluation = evaluate(run, split=split)
    assert isinstance(evaluation.detector, FusionDetector)
    detector = evaluation.detector
    pyramid = detector.pyramid
    images = [record for record in evaluation.records if all(m in record.files for m in names)]
    by_image = any(merge.by_image for merge in pyramid.merges)
    if by_image:
        if not images:
            raise UserError(
                f"{split}: no image has all of {', '.join(names)}, so there are no shares; use another split"
            )
        size, batch, data = detector.input_size, recipe.train.batch_size, recipe.data
        loader = eval_loader(images, detector.sensors, size, batch, data.workers, ImageCache().images)
        weights = measured_weights(detector, loader, f"weighing {recipe.name}")
    else:
        weights = [merge.shares()[None] for merge in pyramid.merges]
    found = torch.stack(propagated(pyramid.graph, weights, names))
    lost = {m: evaluate(run, split=split, without=[m]).scores for m in names}

    def group(condition: str | None) -> ShareGroup:
        rows = [i for i, r in enumerate(images) if condition in (None, r.condition)] if by_image else [0]
        by_level = map(tuple, found[list(outputs_of(pyramid.graph).values())][:, rows].mean(1).T.tolist())
        shown = dict(zip(names, by_level, strict=True)) if rows else None
        ap, without = _ap(evaluation.scores, condition), {m: _ap(scores, condition) for m, scores in lost.items()}
        return ShareGroup(
            images=len(rows) if by_image else None,
            shares=shown,
            mean_share=None if shown is None else {m: mean(values) for m, values in shown.items()},
            ap=ap,
            ap_without=without,
            delta_ap={m: None if ap is None or left is None else ap - left for m, left in without.items()},
        )

    whole, per_condition = group(None), {c: group(c) for c in evaluation.scores.per_condition}
    pairs = [
        (one.mean_share[m], delta)
        for one in per_condition.values() or [whole]
        for m, delta in one.delta_ap.items()
        if one.mean_share and delta is not None
    ]
    result = Shares(
        split=split,
        digest=evaluation.digest,
        detector=run.digest,
        name=recipe.name,
        modalities=names,
        levels=tuple(pyramid.levels),
        by_image=by_image,
        left_out=len(evaluation.records) - len(images) if by_image else None,
        whole=whole,
        cells=_by_cell(pyramid, found.mean(1)),
        per_condition=per_condition,
        correlation=rank_correlation(pairs),
        environment=environment(next(detector.parameters()).device),
    )
    path = run.folder / f"shares-{split}.json"
    write_json(path, result)
    write_whole(path.with_suffix(".md"), shares_markdown(result).encode())
    share_panels(result, path.with_suffix(".png"))
    write_run_page(run.folder, result.detector)
    return result


def measured_weights(detector: FusionDetector, batches: Iterable[Batch], progress: str | None = None) -> list[Tensor]:
    """Returns for each node the weights (B, n) of its merged inputs in every image of `batches`, adding up to 1.

    Weights of places are averaged. All images have all sensors. `progress` is as for `collect`.
    """
    seen: list[list[Tensor]] = [[] for _ in detector.pyramid.merges]
    with ExitStack() as hooks:
        for merge, rows in zip(detector.pyramid.merges, seen, strict=True):
            hooks.enter_context(merge.register_forward_hook(_recorder(rows)))
        collect(detector, batches, progress=progress)
    return [torch.cat(rows) for rows in seen]


def _recorder(rows: list[Tensor]) -> Callable[[Merge, tuple[Sequence[Tensor], Tensor | None], Tensor], None]:
    def record(merge: Merge, arguments: tuple[Sequence[Tensor], Tensor | None], merged: Tensor) -> None:
        there = torch.ones(1, merge.count, device=merged.device)
        weights = merge.weights(arguments[0], there).float().abs().flatten(2).mean(2)
        rows.append((weights / weights.sum(1, keepdim=True)).expand(len(merged), -1).cpu())

    return record


def _by_cell(pyramid: Pyramid, found: Tensor) -> tuple[CellShares, ...]:
    """Returns the shares after each cell, given those of each node (nodes, M)."""
    last = {(node.cell, node.level): index for index, node in enumerate(pyramid.graph)}
    cells = sorted({cell for (cell, _), index in last.items() if len(pyramid.reached[index]) > 1})
    places = {cell: [last.get((cell, level)) for level in pyramid.levels] for cell in cells}
    return tuple(
        CellShares(
            cell,
            {
                m: tuple(None if place is None else float(found[place, i]) for place in places[cell])
                for i, m in enumerate(pyramid.channels)
            },
        )
        for cell in cells
    )


def _ap(scores: Scores, condition: str | None) -> float | None:
    if condition is None:
        return scores.ap
    ap = scores.per_condition[condition]["ap"]
    return None if ap is None else float(ap)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Returns Spearman's rank correlation of pairs of share and ΔAP; ties get their mean rank.

    It isn't defined for fewer than 3 pairs, or where one of both is the same in all.
    """
    if len(pairs) < FEWEST_PAIRS:
        return Correlation(None, len(pairs), f"fewer than {FEWEST_PAIRS} pairs")
    of_shares, of_deltas = (_ranks(np.array(values)) for values in zip(*pairs, strict=True))
    for name, own in (("all shares", of_shares), ("all Δ AP", of_deltas)):
        if np.ptp(own) == 0:
            return Correlation(None, len(pairs), f"{name} are equal")
    return Correlation(float(np.corrcoef(of_shares, of_deltas)[0, 1]), len(pairs))


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    tied = np.concatenate([[0], np.cumsum(np.diff(values[order]) > TIE)])
    ranks = np.empty(len(values))
    ranks[order] = (np.bincount(tied, np.arange(len(values))) / np.bincount(tied))[tied]
    return ranks
