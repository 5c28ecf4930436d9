"""Measures how a trained run bears what its sensors suffer: AP against the severity of each corruption."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mmfuse.data.annotations.records import split_digest, spread
from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import eval_loader
from mmfuse.environment import environment
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.corruptions import CORRUPTIONS, MISSING, SEVERITIES, Corruption
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import Clean, Curve, Fault, Robustness, relative_area, write_json
from mmfuse.evaluation.robustness import Found, Trial, Trials, check_names, striking, suiting
from mmfuse.evaluation.score import evaluate
from mmfuse.evaluation.verdicts import fault_verdict
from mmfuse.files import write_whole
from mmfuse.report.charts import robustness_curves
from mmfuse.report.run_page import write_run_page
from mmfuse.report.tables import robustness_markdown
from mmfuse.run import Run
from mmfuse.sample import Detections
from mmfuse.strict_yaml import build

_Point = tuple[float, float, Fault | None]
"""AP and AP50 at one severity, and the fault beside the sensor's absence, where it is one that nobody tells of."""


def robustness(
    run: str | Path | Run,
    *,
    split: str = "test",
    modalities: Collection[str] = (),
    corruptions: Collection[str] = (),
    severities: Collection[int] = (),
    limit: int | None = None,
    seed: int = 0,
    rounds: int = 1000,
) -> Robustness:
    """Corrupts one modality at a time and writes `robustness-SPLIT.json`, `.md` and `.png` into the run folder.

    `report.html` there shows all that this verb and `shares` found of the detector, on any split.

    Each corruption is scored at severities 1 to 5 for each modality that it suits; severity 0 is what `evaluate` says.
    A fault that nobody tells of should cost no more than a sensor that is known to be missing: so where there are
    several modalities each point is set beside the same detector without this one in the images that the fault strikes,
    with a paired bootstrap of the difference in AP and the false detections of both, and there is a verdict: see
    `evaluation.verdicts`.

    The file keeps each point as soon as it is known, and a later call with the same detector, images, seed and rounds
    goes on from there. Nothing is chosen by these scores.

    Args:
        run: the run or its folder.
        split: the split to score on.
        modalities: the modalities to corrupt, each on its own; all if empty.
        corruptions: names of `mmfuse.evaluation.corruptions.CORRUPTIONS`; all that suit if empty.
        severities: of 1 to 5; all if empty.
        limit: how many images to score, evenly spaced over the split; all if None.
        seed: seed of the corruptions.
        rounds: bootstrap rounds.

    Raises:
        UserError: the run, the split, a modality, a corruption or a severity doesn't exist, or nothing suits; a limit
            or rounds below 1.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    for name, value, fix in (("limit", limit, "1 image, or none for all"), ("rounds", rounds, "1")):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value} is not allowed; use at least {fix}")
    recipe = run.recipe
    for modality in modalities:
        if modality not in recipe.modalities:
            raise UserError(f"modality: {unknown_name(modality, recipe.modalities, 'modality of this run')}")
    check_names(corruptions, severities)
    evaluation = evaluate(run, split=split)
    detector, scored = evaluation.detector, spread(evaluation.records, limit or len(evaluation.records))
    chosen = suiting(detector.sensors, corruptions, modalities)
    if not chosen:
        asked = ", ".join(modalities or detector.modalities)
        raise UserError(f"corruption: {', '.join(corruptions)} suits none of {asked}; choose others, or none for all")
    if not (chosen := striking(chosen, evaluation.records, scored, seed)):
        raise UserError(f"corruption: {', '.join(corruptions)} strikes no image of {split}; choose others")

    clean = {r.image_id: evaluation.detections[r.image_id] for r in scored}
    scores = coco_scores(scored, clean, detector.classes)
    path = run.folder / f"robustness-{split}.json"
    empty = Robustness(
        split=split,
        digest=split_digest(scored),
        detector=run.digest,
        seed=seed,
        rounds=rounds,
        name=recipe.name,
        images=len(scored),
        clean=Clean(scores.ap, scores.ap50),
        curves=(),
        faults=(),
        verdict=None,
        environment=environment(detector.device),
    )
    points = _known_points(path, empty)
    asked_for = sorted(set(severities)) or list(range(1, SEVERITIES + 1))
    todo = [(c, m, [s for s in asked_for if (c.name, m, s) not in points]) for c, m in chosen]
    todo = [(c, m, left) for c, m, left in todo if left]

    size, batch, data = detector.input_size, recipe.train.batch_size, recipe.data
    several = len(detector.modalities) > 1
    finder = detector.ready(len(scored) * len(todo), batch)
    lacking: dict[str, Found] = {}
    for m in dict.fromkeys(m for _, m, _ in todo):
        loader = eval_loader(scored, detector.sensors, size, batch, data.workers, ImageCache().images)
        title = f"{recipe.name} without {m}"
        nothing = {r.image_id: Detections.empty() for r in scored}
        lacking[m] = collect(finder, loader, without=[m], progress=title) if several else nothing
    trial = Trial(finder, evaluation.records, scored, batch, clean, lacking, data.workers, seed)
    trials = Trials([trial], rounds)
    total = sum(trial.images_to_run(c, left) for c, _, left in todo)
    with tqdm(total=total, desc=f"robustness of {recipe.name}", unit="image", leave=False) as bar:
        for corruption, modality, left in todo:
            bar.set_postfix_str(f"{corruption.name} of {modality}")
            for fault, (found,) in trials.faults(corruption, modality, left, bar.update):
                under = coco_scores(scored, found, detector.classes)
                told = corruption is MISSING or not several  # nothing lies, or nothing is left to say so
                points[corruption.name, modality, fault.severity] = under.ap, under.ap50, None if told else fault
                write_json(path, _result(empty, points, detector.modalities))
    result = _result(empty, points, detector.modalities)
    write_json(path, result)
    write_whole(path.with_suffix(".md"), robustness_markdown(result).encode())
    robustness_curves(result, path.with_suffix(".png"))
    write_run_page(run.folder, result.detector)
    return result


def _result(empty: Robustness, points: Mapping[tuple[str, str, int], _Point], modalities: Sequence[str]) -> Robustness:
    """Returns the result with curves and faults of all points, in the order of `CORRUPTIONS`."""
    known = {(corruption, m) for corruption, m, _ in points}
    tried = [(c, m) for c in CORRUPTIONS for m in modalities if (c.name, m) in known]
    curves = tuple(_curve(c, m, empty.clean, points) for c, m in tried)
    keys = [(c.name, m, severity) for c, m in tried for severity in range(1, SEVERITIES + 1)]
    faults = tuple(fault for key in keys if key in points and (fault := points[key][2]) is not None)
    return replace(empty, curves=curves, faults=faults, verdict=fault_verdict(empty.name, faults))


def _curve(corruption: Corruption, modality: str, clean: Clean, points: Mapping[tuple[str, str, int], _Point]) -> Curve:
    scored = [points.get((corruption.name, modality, s)) for s in range(1, SEVERITIES + 1)]
    ap = (clean.ap, *(point and point[0] for point in scored))
    ap50 = (clean.ap50, *(point and point[1] for point in scored))
    areas = relative_area(ap), relative_area(ap50)
    return Curve(corruption.name, modality, corruption.unit, corruption.levels, ap, ap50, *areas)


def _known_points(path: Path, empty: Robustness) -> dict[tuple[str, str, int], _Point]:
    """Returns the points in a file of the same detector, images, seed and rounds, by corruption, modality and severity.

    Those of other levels are left out.
    """
    if not path.exists():
        return {}
    levels = {c.name: c.levels for c in CORRUPTIONS}
    try:
        stored = build(Robustness, json.loads(path.read_text()), str(path))
    except ValueError:
        raise UserError(f"{path}: holds no robustness curves; remove it, and they will be scored anew") from None
    if any(getattr(stored, key) != getattr(empty, key) for key in ("split", "digest", "detector", "seed", "rounds")):
        return {}
    faults = {(f.corruption, f.modality, f.severity): f for f in stored.faults}
    return {
        key: (ap, ap50, faults.get(key))
        for curve in stored.curves
        if curve.levels == levels.get(curve.corruption)
        for severity, (ap, ap50) in enumerate(zip(curve.ap, curve.ap50, strict=True))
        if severity > 0 and ap is not None and ap50 is not None
        for key in [(curve.corruption, curve.modality, severity)]
    }
