"""Measures how a trained run bears what its sensors suffer: AP against the severity of each corruption."""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmfuse.data.annotations.records import Record, split_digest
from mmfuse.environment import environment
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from mmfuse.evaluation.robustness import Trial
from mmfuse.evaluation.score import evaluate
from mmfuse.files import write_whole
from mmfuse.report.charts import robustness_curves
from mmfuse.report.tables import robustness_markdown
from mmfuse.run import Run, prepare_size


def robustness(
    run: str | Path | Run,
    *,
    split: str = "test",
    modalities: Collection[str] = (),
    corruptions: Collection[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Corrupts one modality at a time and writes `robustness-SPLIT.json`, `.md` and `.png` into the run folder.

    Each corruption is scored at severities 1 to 5 for each modality that it suits; severity 0 is what `evaluate` says.
    The file keeps a curve as soon as it is whole, and a later call with the same detector, images and seed goes on
    from there. Nothing is chosen by these scores.

    Args:
        run: the run or its folder.
        split: the split to score on.
        modalities: the modalities to corrupt, each on its own; all if empty.
        corruptions: names of `mmfuse.evaluation.corruptions.CORRUPTIONS`; all that suit if empty.
        limit: how many images to score, evenly spaced over the split; all if None.
        seed: seed of the corruptions.

    Returns:
        What the JSON file holds: the clean scores and every curve with its relative area (see `Curve.to_dict`).

    Raises:
        UserError: the run, the split, a modality or a corruption doesn't exist, or suits nothing; a limit below 1.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    if limit is not None and limit < 1:
        raise UserError(f"limit: {limit} is not allowed; use at least 1 image, or none for all")
    recipe = run.recipe
    for modality in modalities:
        if modality not in recipe.modalities:
            raise UserError(f"modality: {unknown_name(modality, recipe.modalities, 'modality of this run')}")
    names = [c.name for c in CORRUPTIONS]
    for name in corruptions:
        if name not in names:
            raise UserError(f"corruption: {unknown_name(name, names, 'corruption')}")
    evaluation = evaluate(run, split=split)
    detector, scored = evaluation.detector, _spread(evaluation.records, limit)
    chosen = {
        (c.name, m): c
        for c in CORRUPTIONS
        for m, sensor in detector.sensors.items()
        if c.name in (corruptions or names) and m in (modalities or detector.modalities) and c.suits(sensor)
    }
    if not chosen:
        asked = ", ".join(modalities or detector.modalities)
        raise UserError(f"corruption: {', '.join(corruptions)} suits none of {asked}; choose others, or none for all")
    clean = coco_scores(scored, {r.image_id: evaluation.detections[r.image_id] for r in scored}, detector.classes)
    size, batch, workers = prepare_size(recipe), recipe.train.batch_size, recipe.data.workers
    trial = Trial(detector, evaluation.records, scored, size, batch, workers, seed)
    basis = {
        "split": split,
        "digest": split_digest(scored),
        "detector": hashlib.sha256(run.best.read_bytes()).hexdigest(),
        "seed": seed,
    }
    path = run.folder / f"robustness-{split}.json"
    curves = _known_curves(path, basis)
    result: dict[str, Any] = {}

    def keep() -> None:
        result.update(
            basis,
            name=recipe.name,
            images=len(scored),
            clean={"ap": clean.ap, "ap50": clean.ap50},
            curves=[curves[c.name, m] for c in CORRUPTIONS for m in detector.modalities if (c.name, m) in curves],
            environment=environment(next(detector.parameters()).device),
        )
        write_whole(path, json.dumps(result, indent=2).encode())

    todo = {key: c for key, c in chosen.items() if key not in curves}
    total = len(todo) * SEVERITIES * len(scored)
    with tqdm(total=total, desc=f"robustness of {recipe.name}", unit="image", leave=False) as bar:
        for (name, modality), corruption in todo.items():
            bar.set_postfix_str(f"{name} of {modality}")
            curves[name, modality] = trial.curve(corruption, modality, clean, bar.update).to_dict()
            keep()
    keep()
    write_whole(path.with_suffix(".md"), robustness_markdown(result).encode())
    robustness_curves(result, path.with_suffix(".png"))
    return result


def _spread(records: Sequence[Record], limit: int | None) -> list[Record]:
    count = min(limit or len(records), len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _known_curves(path: Path, basis: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the curves of a file that has the same basis, by corruption and modality; those of other levels not."""
    levels = {c.name: list(c.levels) for c in CORRUPTIONS}
    try:
        stored = json.loads(path.read_text()) if path.exists() else {}
        if {key: stored.get(key) for key in basis} != basis:
            return {}
        known = [curve for curve in stored["curves"] if curve["levels"] == levels.get(curve["corruption"])]
        return {(curve["corruption"], curve["modality"]): curve for curve in known}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: holds no robustness curves; remove it, and they will be scored anew") from None
