"""Compares single modalities with their fusion: trains what isn't trained, scores all on one split, writes a report."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.records import Record, conditions_of
from mmfuse.data.samples import load_sample
from mmfuse.environment import environment
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.corruptions import CORRUPTIONS, MISSING, SEVERITIES
from mmfuse.evaluation.curves import THRESHOLD
from mmfuse.evaluation.results import Comparison, DifferenceTo, Fault, ModelRow, SubsetRow, Verdict, write_json
from mmfuse.evaluation.robustness import Trial, Trials, check_names, striking, suiting
from mmfuse.evaluation.score import Evaluation, evaluate
from mmfuse.evaluation.significance import Difference, difference, hardest, resampled_ap
from mmfuse.evaluation.verdicts import SEEDS_NEEDED, fault_verdict, verdict_on
from mmfuse.exporting.loading import ExportedDetector
from mmfuse.exporting.runs import is_exported, open_run
from mmfuse.files import write_whole
from mmfuse.model.detector import Detector, Finder, FusionDetector
from mmfuse.model.postprocess import DEFAULT
from mmfuse.recipes import Recipe, load_recipe
from mmfuse.report.charts import (
    comparison_bars,
    confusion_matrices,
    share_heatmap,
    threshold_curves,
    training_curves,
)
from mmfuse.report.gallery import Answers, make_gallery
from mmfuse.report.page import comparison_page
from mmfuse.report.pictures import GalleryRow, gallery
from mmfuse.report.tables import comparison_markdown, f1_table
from mmfuse.run import Run, input_size
from mmfuse.sensor import Sensor
from mmfuse.training.loop import train


@dataclasses.dataclass(frozen=True)
class _Model:
    """The runs of one recipe, which differ in their seed, and their scores."""

    recipe: Recipe
    runs: list[Run]
    evaluations: list[Evaluation]

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def fused(self) -> bool:
        return len(self.recipe.modalities) > 1

    @property
    def mean_ap(self) -> float:
        return statistics.mean(evaluation.scores.ap for evaluation in self.evaluations)

    @property
    def ap_by_seed(self) -> dict[int, float]:
        return {run.recipe.train.seed: e.scores.ap for run, e in zip(self.runs, self.evaluations, strict=True)}


def compare(
    runs_or_recipes: Iterable[str | Path | Run],
    assignments: Iterable[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    split: str = "test",
    reference: str | None = None,
    corruptions: Collection[str] = (),
    severities: Collection[int] = (SEVERITIES,),
    out: str | Path = "runs/comparison",
    rounds: int = 1000,
) -> Comparison:
    """Compares models on one split and writes `report.html`, `report.md`, `comparison.json` and pictures into `out`.

    A run folder is scored as it is; run folders that differ only in the seed are one model. A recipe is trained first,
    once for each of `seeds` (its own seed if None), into `out/runs`; what is there already is resumed. Differences in
    AP have a 95 % interval by a paired bootstrap over images, of all and of each condition alone.

    A model of several modalities is scored with each subset of them, too, and has a verdict: whether it is at least as
    good as the best single modality. "yes" takes intervals that reach no lower than zero against every single one, so
    that none is chosen on the split, and three training seeds shared with each, in all of which it isn't behind; "no"
    an interval below zero, or three seeds of which that isn't true; "not shown" is all else.

    Where `corruptions` are named, each model of several modalities is also scored with one sensor under each of them,
    of which it isn't told, and set beside itself without this sensor; a second verdict, by the same rules, tells
    whether a fault costs no more than a sensor that is known to be missing.

    Args:
        runs_or_recipes: runs or their folders, what `mmfuse export` wrote of one, recipe files, or folders of these.
        assignments: changes to the recipe files, such as "train.epochs=20".
        seeds: training seeds for recipes.
        split: the split to score on.
        reference: the model that differences are taken to; by default the best single modality or, for a model of
            several modalities, the single one that is hardest to beat; where there is none, the first model.
        corruptions: names of `mmfuse.evaluation.corruptions.CORRUPTIONS` to try; "all" for all that suit.
        severities: of 1 to 5, at which to try them.
        out: the report folder.
        rounds: bootstrap rounds.

    Raises:
        UserError: nothing to compare, different cards or splits, two models of one name, an unknown reference,
            corruption or severity, or no rounds.
    """
    tried = [c.name for c in CORRUPTIONS] if "all" in corruptions else list(corruptions)
    check_names(tried, severities)
    if rounds < 1:
        raise UserError(f"rounds: {rounds} is not allowed; use at least 1")
    out = Path(out)
    runs = [run for given in runs_or_recipes for run in _runs(given, tuple(assignments), seeds, out / "runs")]
    models = _group(runs, split)
    records = models[0].evaluations[0].records
    comparison = _comparison(models, split, reference, rounds, tried, sorted(set(severities)))
    write_json(out / "comparison.json", comparison)
    write_whole(out / "report.md", _report(comparison, models).encode())
    _pictures(out, comparison, models, records)
    write_whole(out / "report.html", _page(comparison, models).encode())
    return comparison


def _runs(
    given: str | Path | Run, assignments: tuple[str, ...], seeds: Sequence[int] | None, folder: Path
) -> list[Run]:
    if isinstance(given, Run):
        return [given]
    path = Path(given)
    if is_exported(path) or (path / "config.yaml").exists():
        return [open_run(path)]
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds neither a run nor recipes; give a run folder or a folder of *.yaml recipes")
    recipes = sorted((load_recipe(file, assignments) for file in files), key=lambda recipe: len(recipe.modalities))
    runs = []
    for recipe in recipes:  # single sensors first, since others may start from them
        card_of(recipe)
        input_size(recipe)  # what is wrong with either is told before any model is trained
        for seed in [recipe.train.seed] if seeds is None else seeds:
            seeded = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
            runs.append(train(seeded, folder=folder / f"{recipe.name}-seed{seed}", resume=True))
    return runs


def _group(runs: Sequence[Run], split: str) -> list[_Model]:
    """Scores runs and groups those of one recipe."""
    models: dict[str, _Model] = {}
    for run in runs:
        init = run.recipe.init
        starts = "a run" if isinstance(init, str) else dict.fromkeys(init, "")  # each seed goes on from runs of its own
        recipe = dataclasses.replace(run.recipe, init=starts, train=dataclasses.replace(run.recipe.train, seed=0))
        known = models.setdefault(recipe.name, _Model(recipe, [], []))
        if known.recipe != recipe:
            raise UserError(f"{run.folder}: another run named {recipe.name!r} has another recipe; give it another name")
        if run.recipe.train.seed in (other.recipe.train.seed for other in known.runs):
            raise UserError(f"{run.folder}: is given twice, or has the seed of another run of it; give each seed once")
        known.runs.append(run)
        known.evaluations.append(evaluate(run, split=split))
    if len(models) < 2:
        raise UserError(f"compare: {', '.join(models) or 'nothing'} is one model; give at least two")
    digests = {model.evaluations[0].digest for model in models.values()}
    if len(digests) > 1:
        raise UserError(f"compare: {', '.join(models)} were scored on different {split} splits; use one card for all")
    return sorted(models.values(), key=lambda model: len(model.recipe.modalities))


def _comparison(
    models: Sequence[_Model],
    split: str,
    reference: str | None,
    rounds: int,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> Comparison:
    by_name = {model.name: model for model in models}
    if reference is not None and reference not in by_name:
        raise UserError(f"reference: {unknown_name(reference, by_name, 'model of this comparison')}")
    singles = [model for model in models if not model.fused]
    best = max(singles, key=lambda model: model.mean_ap, default=models[0])
    named = by_name[reference] if reference is not None else best
    whole, by_condition = _resampled(models, rounds)
    rows, verdicts = [], []
    for model in models:
        rivals = singles if model.fused else []
        against = _against(model, rivals, whole)
        differences = _against(model, [named], whole) | against
        if against:
            verdicts.append(_verdict(model, rivals, against))
        to = hardest(against) if against and reference is None else named.name
        shown = differences.get(to)
        per_condition = {c: _against(model, rivals, ap) for c, ap in by_condition.items()} if against else {}
        detector = model.evaluations[0].detector
        lacking = _lacking(model, split) if model.fused else {}
        rows.append(
            ModelRow(
                name=model.name,
                modalities=model.recipe.modalities,
                seeds=tuple(run.recipe.train.seed for run in model.runs),
                epochs=model.recipe.train.epochs,
                ap=tuple(e.scores.ap for e in model.evaluations),
                ap50=tuple(e.scores.ap50 for e in model.evaluations),
                scores=tuple(e.scores for e in model.evaluations),
                parameters=detector.parameter_count,
                gmacs=gmacs(detector),
                latency_ms=latency_ms(detector),
                difference=DifferenceTo(**dataclasses.asdict(shown), to=to) if shown else None,
                differences=differences,
                per_condition=per_condition,
                subsets=_subsets(model, models, lacking) if model.fused else (),
                faults=_faults(model, lacking, rounds, corruptions, severities) if model.fused and corruptions else (),
                curves=tuple(e.curves for e in model.evaluations),
            )
        )
    facts = environment(models[0].evaluations[0].detector.device)
    recipes = [model.recipe for model in models]
    budgets = [(r.train, r.data, r.model, r.init) for r in recipes]
    return Comparison(
        card=card_of(recipes[0]).name,
        split=split,
        digest=models[0].evaluations[0].digest,
        models=tuple(rows),
        reference=reference or best.name,
        verdicts=tuple(verdicts),
        fault_verdicts=tuple(v for row in rows if (v := fault_verdict(row.name, row.faults)) is not None),
        same_budget=all(budget == budgets[0] for budget in budgets),
        command="mmfuse compare " + " ".join(run.given for model in models for run in model.runs),
        date=facts.date,
        hardware=f"{facts.hardware}, torch {facts.versions['torch']}",
    )


def _resampled(models: Sequence[_Model], rounds: int) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Returns the resampled AP of each model, by name, on all images and by condition.

    A condition in which a model has no object to find is left out, all where there is no single one and fusion to set
    against each other.
    """
    records = sorted(models[0].evaluations[0].records, key=lambda record: record.image_id)
    opposed = len({model.fused for model in models}) > 1
    conditions = conditions_of(records) if opposed else []
    whole: dict[str, np.ndarray] = {}
    by_condition: dict[str, dict[str, np.ndarray]] = {condition: {} for condition in conditions}
    for model in tqdm(models, desc="bootstrap", unit="model", leave=False):
        seeds = [evaluation.matches for evaluation in model.evaluations]
        whole[model.name] = resampled_ap(seeds, rounds)
        for condition in conditions:
            chosen = np.array([record.condition == condition for record in records])
            by_condition[condition][model.name] = resampled_ap([one.on(chosen) for one in seeds], rounds)
    defined = {c: of for c, of in by_condition.items() if not any(np.isnan(ap[0]) for ap in of.values())}
    return whole, defined


def _against(model: _Model, rivals: Sequence[_Model], ap: dict[str, np.ndarray]) -> dict[str, Difference]:
    """Returns by how much a model is ahead of each rival but itself, given the resampled AP of all."""
    return {rival.name: difference(ap[model.name], ap[rival.name]) for rival in rivals if rival is not model}


def _verdict(model: _Model, singles: Sequence[_Model], against: dict[str, Difference]) -> Verdict:
    own = model.ap_by_seed
    shared = {single.name: own.keys() & single.ap_by_seed.keys() for single in singles}
    seeds = set().union(*shared.values())
    behind = {seed for single in singles for seed in shared[single.name] if own[seed] < single.ap_by_seed[seed]}
    fewest = min(shared, key=lambda name: len(shared[name]))
    verdict = verdict_on(against.values(), len(shared[fewest]), len(behind))
    rival = hardest(against)
    figures = f"{against[rival].mean:+.3f} AP against {rival}, "
    figures += f"95 % interval {against[rival].low:+.3f} to {against[rival].high:+.3f}; "
    figures += f"ahead in {len(seeds - behind)} of {len(seeds)} seeds"
    if verdict == "not shown":
        count = len(shared[fewest])
        fix = " ".join(map(str, range(SEEDS_NEEDED)))
        figures += f"; {count} seed{'s' * (count != 1)} shared with {fewest}, give --seeds {fix}"
    return Verdict(model.name, verdict, f"{model.name} ≥ best single: {verdict} ({figures})")


def _lacking(model: _Model, split: str) -> dict[tuple[str, ...], list[Evaluation]]:
    """Scores a model with each subset of its modalities, by what is left: all first, then by falling size."""
    names = model.recipe.modalities
    scored = {names: model.evaluations}
    for kept in (kept for count in range(len(names) - 1, 0, -1) for kept in itertools.combinations(names, count)):
        without = [name for name in names if name not in kept]
        scored[kept] = [
            dataclasses.replace(evaluate(run, split=split, without=without), detector=whole.detector)  # one a run
            for run, whole in zip(model.runs, model.evaluations, strict=True)
        ]
    return scored


def _subsets(
    model: _Model, models: Sequence[_Model], lacking: Mapping[tuple[str, ...], Sequence[Evaluation]]
) -> tuple[SubsetRow, ...]:
    """Sets a model with each subset of its modalities beside the best that was trained on just these."""
    rows = []
    for kept, evaluations in lacking.items():
        scores = tuple(evaluation.scores for evaluation in evaluations)
        others = models if kept != model.recipe.modalities else ()
        trained = [other for other in others if set(other.recipe.modalities) == set(kept)]
        alone = max(trained, key=lambda other: other.mean_ap, default=None)
        share = statistics.mean(s.ap for s in scores) / alone.mean_ap if alone and alone.mean_ap else None
        rows.append(SubsetRow(kept, scores, alone.name if alone else None, share))
    return tuple(rows)


def _faults(
    model: _Model,
    lacking: Mapping[tuple[str, ...], Sequence[Evaluation]],
    rounds: int,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> tuple[Fault, ...]:
    """Tries corruptions of each modality on all runs of a model."""
    recipe, names = model.recipe, model.recipe.modalities
    trials = []
    for i, evaluation in enumerate(model.evaluations):
        missing = {m: lacking[tuple(n for n in names if n != m)][i].detections for m in names}
        scored, batch = evaluation.records, recipe.train.batch_size
        found, workers = evaluation.detections, recipe.data.workers
        finder = evaluation.detector.ready(len(scored), batch)
        trials.append(Trial(finder, scored, scored, batch, found, missing, workers))
    suit = suiting(model.evaluations[0].detector.sensors, corruptions)
    records = model.evaluations[0].records
    chosen = striking([(c, m) for c, m in suit if c is not MISSING], records, records)  # that one is told
    total = sum(trial.images_to_run(c, severities) for trial in trials for c, _ in chosen)
    rows, together = [], Trials(trials, rounds)
    with tqdm(total=total, desc=f"faults of {model.name}", unit="image", leave=False) as bar:
        for corruption, modality in chosen:
            bar.set_postfix_str(f"{corruption.name} of {modality}")
            rows += [fault for fault, _ in together.faults(corruption, modality, severities, bar.update)]
    return tuple(rows)


def gmacs(detector: Finder) -> float:
    """Returns the billions of multiply-adds of one forward pass on one image of its input size, all sensors there.

    That is what runs: it has the places between packed levels too, 1 or 2 % more than the architecture. Of an exported
    detector it is that of the one that it was made from.
    """
    if isinstance(detector, ExportedDetector):
        return detector.header.gmacs
    assert isinstance(detector, Detector)
    from torch.utils.flop_counter import FlopCounterMode

    images = {
        m: torch.zeros(1, s.encoded_channels, *detector.input_size, device=detector.device)
        for m, s in detector.sensors.items()
    }
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(images)
    return counter.get_total_flops() / 2e9


def latency_ms(detector: Finder, rounds: int = 15) -> float:
    """Returns the median time in ms to find objects in one raw image of its input size, all sensors there and judged.

    It is that of what `Detector.fast` makes of it in float32, or of the exported detector.
    """
    finder = detector.fast(dtype=torch.float32) if isinstance(detector, Detector) else detector
    made = detector.header.selection if isinstance(detector, ExportedDetector) else DEFAULT
    doubt = detector.doubting if isinstance(detector, ExportedDetector) else "report"  # a blank image isn't left out
    raw = {
        m: torch.zeros(1, s.prepared_channels, *detector.input_size, device=detector.device)
        for m, s in detector.sensors.items()
    }
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        finder.find(raw, {}, selection=made, doubt=doubt)[0].scores.cpu()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def _report(comparison: Comparison, models: Sequence[_Model]) -> str:
    text = comparison_markdown(comparison)
    if not comparison.same_budget:
        text += "\nThe models differ in more than their modalities: see the recipes below `runs`.\n"
    shares = "![Share of each modality](shares.png)\n\n" if _weighing(models) else ""
    chosen = "that training chose on validation" if models[0].evaluations[0].thresholds else f"{THRESHOLD}"
    text += (
        f"\n## F1 per class\n\n{f1_table(comparison.models)}\nAt IoU 0.5 and the threshold of each class, {chosen}.\n"
    )
    return (
        f"{text}\n## Pictures\n\n![AP of each model](ap.png)\n\n![Training](training.png)\n\n{shares}"
        "![Precision over recall, F1 over threshold](curves.png)\n\n![What is taken for what](confusion.png)\n\n"
        "![Ground truth and what each model found](gallery.png)\n"
    )


def _pictures(out: Path, comparison: Comparison, models: Sequence[_Model], records: Sequence[Record]) -> None:
    comparison_bars(comparison, out / "ap.png")
    training_curves({run.folder.name: run.metrics for model in models for run in model.runs}, out / "training.png")
    title = f"{comparison.card}, {comparison.split} split, first seed of each model"
    first = {row.name: row.curves[0] for row in comparison.models}
    threshold_curves({name: of.overall for name, of in first.items()}, out / "curves.png", title)
    confusion_matrices({name: of.confusion for name, of in first.items()}, out / "confusion.png", title)
    detector = models[-1].evaluations[0].detector
    for weighing in _weighing(models)[-1:]:
        share_heatmap(weighing.fusion_shares(), out / "shares.png")
    sensors = _sensors(models)
    rows = []
    for record in _shown(records):
        images = load_sample(record, sensors).images
        found = {model.name: model.evaluations[0].detections[record.image_id] for model in models}
        truth = (torch.from_numpy(record.boxes), torch.from_numpy(record.labels))
        spoilt = f"\n{', '.join(record.struck)} struck" if record.struck else ""
        rows.append(GalleryRow((record.condition or f"image {record.image_id}") + spoilt, images, truth, found))
    shown_on = {model.name: model.recipe.modalities[0] for model in models}
    gallery(rows, sensors, shown_on, detector.classes, out / "gallery.png")


def _page(comparison: Comparison, models: Sequence[_Model]) -> str:
    pair = _pair(comparison)
    (records,) = (model.evaluations[0].records for model in models if model.name == pair[0])
    answers = [Answers(m.name, m.evaluations[0].detections, m.evaluations[0].matches) for m in models]
    sensors, classes = _sensors(models), models[0].evaluations[0].detector.classes
    gallery = make_gallery(records, answers, pair, sensors, classes, lambda record: load_sample(record, sensors).images)
    shares = {model.name: detector.fusion_shares() for model in models for detector in _weighing([model])}
    training = {model.name: [run.metrics for run in model.runs] for model in models}
    curves = {model.name: [evaluation.curves for evaluation in model.evaluations] for model in models}
    return comparison_page(comparison, gallery, curves, shares, training)


def _pair(comparison: Comparison) -> tuple[str, str]:
    """Returns the best model of several modalities, or of all where there is none, and the rival hardest to beat."""
    rows = [row for row in comparison.models if row.differences]
    model = max(rows, key=lambda row: (len(row.modalities) > 1, statistics.mean(row.ap)))
    return model.name, hardest(model.differences)


def _sensors(models: Sequence[_Model]) -> dict[str, Sensor]:
    return {m: s for model in models for m, s in model.evaluations[0].detector.sensors.items()}


def _weighing(models: Sequence[_Model]) -> list[FusionDetector]:
    """Returns a detector of each model that merges modalities by weights."""
    detectors = [model.evaluations[0].detector for model in models]
    return [d for d in detectors if isinstance(d, FusionDetector) and len(d.modalities) > 1 and not d.stacked]


def _shown(records: Sequence[Record]) -> list[Record]:
    """Returns images for the gallery, none of which is chosen by its result: some, and the first that a fault struck.

    That is one of which the data says that the weather, or whatever it was, spoilt a sensor's image.
    """
    sound = [record for record in records if not record.struck]
    struck = [record for record in records if record.struck and len(record.boxes)]
    return [*_telling(sound), *struck[:1]]


def _telling(records: Sequence[Record], count: int = 4) -> list[Record]:
    """Returns the first images with objects, in turn from each condition."""
    by_condition: dict[str | None, list[Record]] = {}
    for record in records:
        if len(record.boxes):
            by_condition.setdefault(record.condition, []).append(record)
    turns = [r for turn in range(count) for group in by_condition.values() for r in group[turn : turn + 1]]
    return turns[:count]
