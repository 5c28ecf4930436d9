"""Measures how a trained run bears what its sensors suffer: AP against the severity of each corruption."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mmfuse.data.annotations.records import Record, split_digest
from mmfuse.environment import environment
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from mmfuse.evaluation.results import Clean, Curve, Robustness, write_json
from mmfuse.evaluation.robustness import Trial
from mmfuse.evaluation.score import evaluate
from mmfuse.files import write_whole
from mmfuse.report.charts import robustness_curves
from mmfuse.report.tables import robustness_markdown
from mmfuse.run import Run, input_size
from mmfuse.strict_yaml import build


def robustness(
    run: str | Path | Run,
    *,
    split: str = "test",
    modalities: Collection[str] = (),
    corruptions: Collection[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Robustness:
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
    size, batch, workers = input_size(recipe), recipe.train.batch_size, recipe.data.workers
    trial = Trial(detector, evaluation.records, scored, size, batch, workers, seed)
    path = run.folder / f"robustness-{split}.json"
    found = Robustness(
        split=split,
        digest=split_digest(scored),
        detector=hashlib.sha256(run.best.read_bytes()).hexdigest(),
        seed=seed,
        name=recipe.name,
        images=len(scored),
        clean=Clean(clean.ap, clean.ap50),
        curves=(),
        environment=environment(next(detector.parameters()).device),
    )
    curves = _known_curves(path, found)

    def keep() -> Robustness:
        order = [(c.name, m) for c in CORRUPTIONS for m in detector.modalities]
        result = replace(found, curves=tuple(curves[key] for key in order if key in curves))
        write_json(path, result)
        return result

    todo = {key: c for key, c in chosen.items() if key not in curves}
    total = len(todo) * SEVERITIES * len(scored)
    with tqdm(total=total, desc=f"robustness of {recipe.name}", unit="image", leave=False) as bar:
        for (name, modality), corruption in todo.items():
            bar.set_postfix_str(f"{name} of {modality}")
            curves[name, modality] = trial.curve(corruption, modality, clean, bar.update)
            keep()
    result = keep()
    write_whole(path.with_suffix(".md"), robustness_markdown(result).encode())
    robustness_curves(result, path.with_suffix(".png"))
    return result


def _spread(records: Sequence[Record], limit: int | None) -> list[Record]:
    count = min(limit or len(records), len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _known_curves(path: Path, found: Robustness) -> dict[tuple[str, str], Curve]:
    """Returns the curves of a file of the same detector, images and seed, by corruption and modality.

    Those of other levels are left out.
    """
    if not path.exists():
        return {}
    levels = {c.name: c.levels for c in CORRUPTIONS}
    try:
        stored = build(Robustness, json.loads(path.read_text()), str(path))
    except ValueError:
        raise UserError(f"{path}: holds no robustness curves; remove it, and they will be scored anew") from None
    if any(getattr(stored, key) != getattr(found, key) for key in ("split", "digest", "detector", "seed")):
        return {}
    return {(c.corruption, c.modality): c for c in stored.curves if c.levels == levels.get(c.corruption)}
