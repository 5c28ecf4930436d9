"""Compares single modalities with their fusion: trains what isn't trained, scores all on one split, writes a report."""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.config import Recipe, load_recipe, write_whole
from mmfuse.data.images import load_sample
from mmfuse.data.readers import Record, split_digest
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluate.significance import Difference, paired_bootstrap
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.report.pictures import GalleryRow, comparison_bars, gallery, share_heatmap, training_curves
from mmfuse.report.tables import comparison_markdown
from mmfuse.score import Evaluation, evaluate
from mmfuse.train.loop import Run, environment, prepare, train


@dataclasses.dataclass(frozen=True)
class _Model:
    """The runs of one recipe, which differ in their seed, and their scores."""

    recipe: Recipe
    runs: list[Run]
    evaluations: list[Evaluation]

    @property
    def detections(self) -> list[dict[int, Any]]:
        return [evaluation.detections for evaluation in self.evaluations]


def compare(
    runs_or_recipes: Iterable[str | Path],
    assignments: Iterable[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    split: str = "test",
    reference: str | None = None,
    out: str | Path = "runs/comparison",
    rounds: int = 1000,
) -> dict[str, Any]:
    """Compares models on one split and writes `report.md`, `comparison.json` and pictures into `out`.

    A run folder is scored as it is; run folders that differ only in the seed are one model. A recipe is trained first,
    once for each of `seeds` (its own seed if None), into `out/runs`; what is there already is resumed. Differences in
    AP have a 95 % interval by a paired bootstrap over images. A model of several modalities is called better when its
    difference lies above zero against every single modality, so that no single one is chosen on the split.

    Args:
        runs_or_recipes: run folders, recipe files, or folders of recipe files.
        assignments: changes to the recipe files, such as "train.epochs=20".
        seeds: training seeds for recipes.
        split: the split to score on.
        reference: the model that differences are taken to; by default the best single modality or, for a model of
            several modalities, the single one that is hardest to beat; where there is none, the first model.
        out: the report folder.
        rounds: bootstrap rounds.

    Raises:
        UserError: nothing to compare, different cards or splits, two models of one name, or an unknown reference.
    """
    out = Path(out)
    runs = [run for path in runs_or_recipes for run in _runs(Path(path), tuple(assignments), seeds, out / "runs")]
    models = _group(runs, split)
    records = models[0].evaluations[0].records
    comparison = _comparison(models, split, reference, rounds)
    write_whole(out / "comparison.json", json.dumps(comparison, indent=2).encode())
    write_whole(out / "report.md", _report(comparison, models).encode())
    _pictures(out, comparison, models, records)
    return comparison


def _runs(path: Path, assignments: tuple[str, ...], seeds: Sequence[int] | None, folder: Path) -> list[Run]:
    if (path / "config.yaml").exists():
        return [Run(path)]
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds neither a run nor recipes; give a run folder or a folder of *.yaml recipes")
    runs = []
    for file in files:
        recipe = load_recipe(file, assignments)
        prepare(recipe)
        for seed in [recipe.train.seed] if seeds is None else seeds:
            seeded = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
            runs.append(train(seeded, folder=folder / f"{recipe.name}-seed{seed}", resume=True))
    return runs


def _group(runs: Sequence[Run], split: str) -> list[_Model]:
    """Scores runs and groups those of one recipe."""
    models: dict[str, _Model] = {}
    for run in runs:
        recipe = dataclasses.replace(run.recipe, train=dataclasses.replace(run.recipe.train, seed=0))
        known = models.setdefault(recipe.name, _Model(recipe, [], []))
        if known.recipe != recipe:
            raise UserError(f"{run.folder}: another run named {recipe.name!r} has another recipe; give it another name")
        if run.recipe.train.seed in (other.recipe.train.seed for other in known.runs):
            raise UserError(f"{run.folder}: is given twice, or has the seed of another run of it; give each seed once")
        known.runs.append(run)
        known.evaluations.append(evaluate(run, split=split))
    if len(models) < 2:
        raise UserError(f"compare: {', '.join(models) or 'nothing'} is one model; give at least two")
    digests = {split_digest(m.evaluations[0].records) for m in models.values()}
    if len(digests) > 1:
        raise UserError(f"compare: {', '.join(models)} were scored on different {split} splits; use one card for all")
    return sorted(models.values(), key=lambda model: len(model.recipe.modalities))


def _comparison(models: Sequence[_Model], split: str, reference: str | None, rounds: int) -> dict[str, Any]:
    by_name = {model.recipe.name: model for model in models}
    if reference is not None and reference not in by_name:
        raise UserError(f"reference: {unknown_name(reference, by_name, 'model of this comparison')}")
    singles = [model for model in models if len(model.recipe.modalities) == 1]
    best = max(singles, key=_mean_ap, default=models[0])
    classes = models[0].evaluations[0].detector.classes
    records = models[0].evaluations[0].records
    named = by_name[reference] if reference is not None else best
    rows, verdicts = [], []
    for model in models:
        fused = len(model.recipe.modalities) > 1
        rivals = {r.recipe.name: r for r in [named, *(singles if fused else [])] if r is not model}
        differences = {
            name: paired_bootstrap(records, model.detections, rival.detections, classes, rounds)
            for name, rival in rivals.items()
        }
        against = {rival.recipe.name: differences[rival.recipe.name] for rival in singles if fused}
        if against:
            verdicts.append(_verdict(model.recipe.name, against))
        to = named.recipe.name
        if against and reference is None:
            to = min(against, key=lambda name: against[name].low)
        shown = differences.get(to)
        detector = model.evaluations[0].detector
        _, input_size = prepare(model.recipe)
        rows.append(
            {
                "name": model.recipe.name,
                "modalities": list(model.recipe.modalities),
                "seeds": [run.recipe.train.seed for run in model.runs],
                "epochs": model.recipe.train.epochs,
                "ap": [e.scores.ap for e in model.evaluations],
                "ap50": [e.scores.ap50 for e in model.evaluations],
                "scores": [e.scores.to_dict() for e in model.evaluations],
                "parameters": sum(p.numel() for p in detector.parameters()),
                "gmacs": gmacs(detector, input_size),
                "latency_ms": latency_ms(detector, input_size),
                "difference": {"to": to, **shown.to_dict()} if shown else None,
                "differences": {name: d.to_dict() for name, d in differences.items()},
            }
        )
    facts = environment(next(models[0].evaluations[0].detector.parameters()).device)
    recipes = [model.recipe for model in models]
    return {
        "card": prepare(recipes[0])[0].name,
        "split": split,
        "digest": split_digest(records),
        "models": rows,
        "reference": reference or best.recipe.name,
        "verdicts": verdicts,
        "same_budget": len({(r.train, r.data, r.model, tuple(r.init.items())) for r in recipes}) == 1,
        "command": "mmfuse compare " + " ".join(str(run.folder) for model in models for run in model.runs),
        "date": facts["date"],
        "hardware": f"{facts['hardware']}, torch {facts['versions']['torch']}",
    }


def _mean_ap(model: _Model) -> float:
    return statistics.mean(evaluation.scores.ap for evaluation in model.evaluations)


def _verdict(name: str, against: dict[str, Difference]) -> dict[str, Any]:
    better = all(difference.low > 0 for difference in against.values())
    rival, least = min(against.items(), key=lambda item: item[1].low)
    figures = f"{least.mean:+.3f} AP against {rival}, 95 % interval {least.low:+.3f} to {least.high:+.3f}"
    text = f"{name} is better than the best single: {'yes' if better else 'no'} ({figures})"
    return {"model": name, "better": better, "text": text}


def gmacs(detector: Detector, size: tuple[int, int]) -> float:
    """Returns the billions of multiply-adds of one forward pass on one image of `size` (H, W), all sensors there."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(_blank(detector, size))
    return counter.get_total_flops() / 2e9


def latency_ms(detector: Detector, size: tuple[int, int], rounds: int = 15) -> float:
    """Returns the median time in ms to find objects in one image of `size` (H, W), on the detector's device."""
    device = next(detector.parameters()).device
    times = []
    with torch.inference_mode():
        images = _blank(detector, size)
        for _ in range(rounds):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            detector.decode(detector(images))
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def _blank(detector: Detector, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    device = next(detector.parameters()).device
    return {m: torch.zeros(1, s.encoded_channels, *size, device=device) for m, s in detector.sensors.items()}


def _report(comparison: dict[str, Any], models: Sequence[_Model]) -> str:
    text = comparison_markdown(comparison)
    if not comparison["same_budget"]:
        text += "\nThe models differ in more than their modalities: see the recipes below `runs`.\n"
    shares = "![Share of each modality](shares.png)\n\n" if _weighing(models) else ""
    return (
        f"{text}\n## Pictures\n\n![AP of each model](ap.png)\n\n![Training](training.png)\n\n{shares}"
        "![Ground truth and what each model found](gallery.png)\n"
    )


def _pictures(out: Path, comparison: dict[str, Any], models: Sequence[_Model], records: Sequence[Record]) -> None:
    comparison_bars(comparison, out / "ap.png")
    training_curves({run.folder.name: run.metrics for model in models for run in model.runs}, out / "training.png")
    detector = models[-1].evaluations[0].detector
    for weighing in _weighing(models)[-1:]:
        share_heatmap(weighing.fusion_shares(), out / "shares.png")
    sensors = {m: s for model in models for m, s in model.evaluations[0].detector.sensors.items()}
    rows = []
    for record in _telling(records):
        images = load_sample(record, sensors).images
        found = {model.recipe.name: model.detections[0][record.image_id] for model in models}
        truth = (torch.from_numpy(record.boxes), torch.from_numpy(record.labels))
        rows.append(GalleryRow(record.condition or f"image {record.image_id}", images, truth, found))
    shown_on = {model.recipe.name: model.recipe.modalities[0] for model in models}
    gallery(rows, sensors, shown_on, detector.classes, out / "gallery.png")


def _weighing(models: Sequence[_Model]) -> list[FusionDetector]:
    """Returns a detector of each model that merges modalities by weights."""
    detectors = [model.evaluations[0].detector for model in models]
    return [d for d in detectors if isinstance(d, FusionDetector) and len(d.modalities) > 1 and not d.stacked]


def _telling(records: Sequence[Record], count: int = 4) -> list[Record]:
    """Returns the first images with objects, in turn from each condition, so that none is chosen by its result."""
    by_condition: dict[str | None, list[Record]] = {}
    for record in records:
        if len(record.boxes):
            by_condition.setdefault(record.condition, []).append(record)
    turns = [r for turn in range(count) for group in by_condition.values() for r in group[turn : turn + 1]]
    return turns[:count]
