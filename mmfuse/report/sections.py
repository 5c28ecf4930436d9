"""The parts of a report as values: sections with a table each, of which Markdown and pages are made."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.results import Comparison, DifferenceTo, Fault, ModelRow, Robustness, ShareGroup, Shares
from mmfuse.evaluation.significance import Difference, hardest

NOTHING = "–"

_JUDGEMENTS = (
    "below: all of the interval lies under zero; not below: all of it lies above -1 AP point; not shown: neither"
)


@dataclass(frozen=True)
class Figure:
    """A number of a table: as it is written, and as it is sorted and drawn.

    `interval` is its low and high end where it has some, `shade` in [0, 1] how dark its cell is.
    """

    text: str
    value: float
    interval: tuple[float, float] | None = None
    shade: float | None = None

    def __str__(self) -> str:
        return self.text


Cell = str | Figure | None


@dataclass(frozen=True)
class Table:
    """Rows under a header; None is a cell without anything. From column `numbers_from` on they hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers_from: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a report: a titled table, and how to read it."""

    title: str
    table: Table
    note: str = ""


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Returns what a comparison found below its models: conditions, lost sensors, faults and classes."""
    return [
        *_condition_section(comparison),
        *_subset_section(comparison),
        *_fault_section({model.name: model.faults for model in comparison.models}),
        Section("AP per class", _class_table(comparison.models)),
    ]


def robustness_sections(robustness: Robustness) -> list[Section]:
    """Returns what `mmfuse.robustness` found: AP and AP50 by severity, faults, and what severities mean."""
    curves = robustness.curves
    severities = [str(s) for s in range(len(curves[0].levels) + 1)]
    sections = []
    for key, name in (("ap", "AP"), ("ap50", "AP50")):
        clean = getattr(robustness.clean, key)
        rows: list[list[Cell]] = [
            [c.corruption, c.modality, *(_kept(v, clean) for v in getattr(c, key)), figure(getattr(c, f"area_{key}"))]
            for c in curves
        ]
        sections.append(Section(f"{name} by severity", Table(["corruption", "of", *severities, "area"], rows, 2)))
    note = (
        "One modality is corrupted at a time; severity 0 is clean. The area under the curve is relative to the clean "
        "score held at all severities: 1 means that nothing was lost."
    )
    sections[-1] = Section(sections[-1].title, sections[-1].table, note)
    sections += _fault_section({robustness.name: robustness.faults})
    meanings: dict[str, list[Cell]] = {
        c.corruption: [c.corruption, c.unit, *(Figure(f"{level:g}", level) for level in c.levels)] for c in curves
    }
    table = Table(["corruption", "levels are", *severities[1:]], list(meanings.values()), 2)
    return [*sections, Section("What the severities mean", table)]


def shares_table(shares: Shares) -> Table:
    """Returns the share of each modality at each level beside what it is worth."""
    groups = {"": shares.whole, **shares.per_condition}
    levels = level_names(shares)
    rows = [
        [m, *_share_cells(shares.whole, m, levels), *(signed(of.delta_ap[m]) for of in groups.values())]
        for m in shares.modalities
    ]
    return Table(["modality", *levels, "mean", *(f"Δ AP {name}".strip() for name in groups)], rows)


def shares_sections(shares: Shares) -> list[Section]:
    """Returns what `mmfuse.shares` found below its main table: shares per cell and per condition."""
    levels = level_names(shares)
    rows = [[str(c.cell), m, *map(percent, own)] for c in shares.cells for m, own in c.shares.items()]
    note = "Shares after each cell, of which 0 is the first; cells before the modalities meet are left out."
    sections = [Section("Per cell", Table(["cell", "modality", *levels], rows, 2), note)]
    if shares.per_condition:
        counted = ["images"] if shares.by_image else []
        by_condition = [
            [
                *(c, m, *_share_cells(one, m, levels), figure(one.ap), figure(one.ap_without[m])),
                *(signed(one.delta_ap[m]), *(_count(one.images) for _ in counted)),
            ]
            for c, one in shares.per_condition.items()
            for m in shares.modalities
        ]
        header = ["condition", "modality", *levels, "mean", "AP", "AP without", "Δ AP", *counted]
        sections.append(Section("Per condition", Table(header, by_condition, 2)))
    return sections


def made_on(facts: Environment) -> list[tuple[str, str]]:
    """Returns on what and when a result was made."""
    return [("hardware", f"{facts.hardware}, torch {facts.versions['torch']}"), ("date", facts.date)]


def comparison_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Returns how a comparison was made."""
    seeds, counted = sorted({s for model in comparison.models for s in model.seeds}), comparison.models[0].scores[0]
    return [
        ("split", f"{comparison.split}, {counted.images} images, {counted.boxes} objects"),
        ("seeds", ", ".join(map(str, seeds))),
        ("command", comparison.command),
        ("hardware", comparison.hardware),
        ("date", comparison.date),
    ]


def robustness_facts(robustness: Robustness) -> list[tuple[str, str]]:
    """Returns how a result of `mmfuse.robustness` was made."""
    return [
        ("images", f"{robustness.images} of the {robustness.split} split, digest {robustness.digest[:16]}"),
        ("detector", f"SHA-256 {robustness.detector[:16]}"),
        ("seed", str(robustness.seed)),
        *made_on(robustness.environment),
    ]


def shares_facts(shares: Shares) -> list[tuple[str, str]]:
    """Returns how a result of `mmfuse.shares` was made."""
    ap = figure(shares.whole.ap)
    return [
        ("images", f"{shares.split} split, digest {shares.digest[:16]}, AP of all sensors {ap}"),
        ("detector", f"SHA-256 {shares.detector[:16]}"),
        *made_on(shares.environment),
    ]


def correlation_text(shares: Shares) -> str:
    """Returns in one line how far shares and worth go together."""
    found = shares.correlation
    value = f"{NOTHING} ({found.why})" if found.spearman is None else f"{found.spearman:+.2f}"
    return f"Rank correlation of mean share and Δ AP (Spearman): {value}"


def correlation_pairs(shares: Shares) -> str:
    """Returns what that correlation is over."""
    kind = "pairs of modality and condition" if shares.per_condition else "modalities"
    return f"{shares.correlation.pairs} {kind}"


def shares_notes(shares: Shares) -> list[str]:
    """Returns how to read the table of shares."""
    counted = f"means over the {shares.whole.images} images that have all sensors; {shares.left_out} were left out"
    return [
        "A share is what the weights give a modality of a level that the heads read, multiplied along the graph. Δ AP "
        "is the AP of all sensors less the AP without this one: above zero the sensor helps. Weights don't know what "
        "the features are worth that they weigh, so shares explain a detector only as far as they go with Δ AP. Pairs "
        "aren't independent: the shares of all modalities add up to 100 %.",
        f"Each image has weights of its own: shares are {counted}."
        if shares.by_image
        else "The weights are fixed: shares are the same in every image and condition.",
    ]


def models_table(comparison: Comparison) -> Table:
    """Returns a row for each model: what it scored, its difference to the reference and what it costs."""
    header = ["model", "modalities", "AP", "AP50", *(f"AP {c}" for c in comparison.conditions)]
    header += [f"Δ AP to {comparison.reference}", "params (M)", "GMACs", "latency (ms)"]
    rows = [
        [
            model.name,
            " + ".join(model.modalities),
            scored(model.ap),
            scored(model.ap50),
            *(_condition_ap(model.scores, condition) for condition in comparison.conditions),
            _difference_to(model.difference, comparison.reference),
            Figure(f"{model.parameters / 1e6:.2f}", model.parameters),
            Figure(f"{model.gmacs:.2f}", model.gmacs),
            Figure(f"{model.latency_ms:.1f}", model.latency_ms),
        ]
        for model in comparison.models
    ]
    return Table(header, rows, 2)


def reading(comparison: Comparison) -> str:
    """Returns how to read the figures of a comparison."""
    several = any(len(model.seeds) > 1 for model in comparison.models)
    rounds = next((model.difference.rounds for model in comparison.models if model.difference), None)
    text = "AP is COCO's, averaged over IoU 0.50 to 0.95"
    text += "; ± is the standard deviation over seeds" if several else ""
    text += f"; [ ] is the 95 % interval of a paired bootstrap over images, {rounds} rounds" if rounds else ""
    return f"{text}."


def conditions_won(comparison: Comparison) -> list[str]:
    """Returns a sentence for each model that was judged by condition."""
    sentences = []
    for model in (model for model in comparison.models if model.per_condition):
        counts = Counter(against[hardest(against)].judgement for against in model.per_condition.values())
        sentences.append(
            f"{model.name} isn't below its best single in {counts['not below']} of {counts.total()} conditions; it is "
            f"below in {counts['below']}, and in {counts['not shown']} neither is shown."
        )
    return sentences


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Returns the mean and, for several values, the standard deviation between them (n - 1), to three places."""
    known = [v for v in values if v is not None]
    if not known:
        return NOTHING
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def scored(values: Sequence[float | None], suffix: str = "") -> Figure | None:
    """Returns the figure of a value that each seed has."""
    known = [v for v in values if v is not None]
    return Figure(mean_and_spread(known) + suffix, float(np.mean(known))) if known else None


def figure(value: float | None, form: str = ".3f") -> Figure | None:
    """Returns a number as a cell."""
    return None if value is None else Figure(f"{value:{form}}", value)


def signed(value: float | None) -> Figure | None:
    """Returns a number as a cell that has its sign."""
    return figure(value, "+.3f")


def percent(value: float | None) -> Figure | None:
    """Returns a share in [0, 1] as a cell, the darker the larger."""
    return None if value is None else Figure(f"{value:.1%}", value, shade=value)


def level_names(shares: Shares) -> list[str]:
    """Returns the names of the pyramid's levels."""
    return [f"P{level}" for level in shares.levels]


def _count(value: int | None) -> Figure | None:
    return None if value is None else Figure(str(value), value)


def _kept(value: float | None, clean: float) -> Figure | None:
    return None if value is None else Figure(f"{value:.3f}", value, shade=min(1.0, value / clean) if clean else None)


def _condition_ap(scores: Iterable[Scores], condition: str) -> Figure | None:
    return scored([s.per_condition.get(condition, {}).get("ap") for s in scores])


def _difference_to(difference: DifferenceTo | None, reference: str) -> Figure | None:
    if difference is None:
        return None
    return _interval(difference, "" if difference.to == reference else f" to {difference.to}")


def _interval(difference: Difference, suffix: str = "") -> Figure:
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{suffix}"
    return Figure(text, difference.mean, (difference.low, difference.high))


def _condition_section(comparison: Comparison) -> list[Section]:
    rows: list[list[Cell]] = []
    for condition in comparison.conditions:
        for model in comparison.models:
            if condition not in model.per_condition:
                continue
            rival = hardest(model.per_condition[condition])
            ahead = model.per_condition[condition][rival]
            ap = _condition_ap(model.scores, condition)
            rows.append([condition, model.name, ap, rival, _interval(ahead), ahead.judgement])
    if not rows:
        return []
    header = ["condition", "model", "AP", "hardest single", "Δ AP to it", "so it is"]
    note = f"Intervals resample the images of the condition alone; {_JUDGEMENTS}."
    return [Section("By condition", Table(header, rows, 2), note)]


def _subset_section(comparison: Comparison) -> list[Section]:
    by_name = {model.name: model for model in comparison.models}
    rows = [
        [
            model.name,
            " + ".join(subset.modalities),
            scored([s.ap for s in subset.scores]),
            *(_condition_ap(subset.scores, condition) for condition in comparison.conditions),
            scored(by_name[subset.alone].ap, f" ({subset.alone})") if subset.alone else None,
            None if subset.share is None else Figure(f"{100 * subset.share:.0f} %", subset.share),
        ]
        for model in comparison.models
        for subset in model.subsets
    ]
    if not rows:
        return []
    header = ["model", "sensors left", "AP", *(f"AP {c}" for c in comparison.conditions)]
    header += ["AP trained on these", "share"]
    note = (
        "Each row leaves a trained model the named sensors alone, as if the others were broken; share is its AP "
        "relative to that of the model that was trained on just these."
    )
    return [Section("When sensors are lost", Table(header, rows, 2), note)]


def _fault_section(faults: Mapping[str, Sequence[Fault]]) -> list[Section]:
    """Returns a section on the faults that each model was tried on, by its name; nothing where there are none."""
    rows = [
        [
            *(name, f.corruption, f.modality, Figure(str(f.severity), f.severity), scored(f.ap), scored(f.ap_without)),
            *(_interval(f.difference), f.difference.judgement),
            *(figure(f.false_detections, ".2f"), figure(f.false_without, ".2f")),
        ]
        for name, of_model in faults.items()
        for f in of_model
    ]
    if not rows:
        return []
    header = ["model", "corruption", "of", "severity", "AP", "AP without it", "Δ AP", "so it is", "false", "without it"]
    note = (
        "Each row sets a corrupted sensor, of which nobody tells the detector, beside the same sensor missing from the "
        f"images that the fault strikes; {_JUDGEMENTS}. False are detections an image of a score of at least 0.3 that "
        "find no object at IoU 0.5."
    )
    return [Section("When sensors lie", Table(header, rows, 3), note)]


def _class_table(models: Sequence[ModelRow]) -> Table:
    classes = list(dict.fromkeys(name for model in models for scores in model.scores for name in scores.per_class))
    rows = [[name, *(scored([s.per_class.get(name) for s in model.scores]) for model in models)] for name in classes]
    return Table(["class", *(model.name for model in models)], rows)


def _share_cells(group: ShareGroup, modality: str, levels: Sequence[str]) -> list[Cell]:
    """Returns a modality's shares of each level and their mean."""
    if group.shares is None or group.mean_share is None:
        return [None] * (len(levels) + 1)
    return [percent(share) for share in (*group.shares[modality], group.mean_share[modality])]
