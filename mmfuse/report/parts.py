"""The parts of a page: the sections of the Markdown report, and what only a page shows, such as charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmfuse.evaluation.curves import STEPS, THRESHOLD, Curves
from mmfuse.evaluation.results import Robustness, Shares
from mmfuse.report.plots import Chart, Line, chart
from mmfuse.report.sections import (
    Cell,
    Figure,
    Section,
    Table,
    correlation_pairs,
    correlation_text,
    percent,
    robustness_sections,
    shares_notes,
    shares_sections,
    shares_table,
)

MOST_CLASSES = 12
MOST_PAIRS = 20
"""How many classes a matrix of what is taken for what shows, and of more classes how many pairs of a model."""


@dataclass(frozen=True)
class Part:
    """A part of a page: a titled table and charts, either of which may be missing, and how to read them.

    `switched` shows the charts of one title at a time, which is chosen.
    """

    title: str
    table: Table | None = None
    charts: Sequence[Chart] = ()
    note: str = ""
    switched: bool = False


def of_section(section: Section) -> Part:
    """Returns a section of the Markdown report as a part."""
    return Part(section.title, section.table, note=section.note)


def curve_parts(curves: Mapping[str, Sequence[Curves]]) -> list[Part]:
    """Returns precision over recall and F1 over threshold of each class, by model, the means over seeds."""
    classes = next(iter(curves.values()))[0].per_class
    charts = []
    for name in (None, *classes):
        seeds = {
            model: [one for of_seed in of for one in [of_seed.per_class[name] if name else of_seed.overall] if one]
            for model, of in curves.items()
        }
        title = f"class {name}" if name else "all classes"
        for x, y, values in (
            ("recall", "precision", {m: [one.precision50 for one in of] for m, of in seeds.items()}),
            ("score", "F1", {m: [one.f1 for one in of] for m, of in seeds.items()}),
        ):
            lines = [
                Line(model, i, list(zip(STEPS.tolist(), np.mean(of, axis=0).tolist(), strict=True)) if of else ())
                for i, (model, of) in enumerate(values.items())
            ]
            charts.append(chart(title, x, y, lines, top=1.0))
    note = (
        "At IoU 0.5, the mean over seeds. Precision is COCO's, the highest at that recall or a higher one; F1 is that "
        "of the detections of at least a score."
    )
    return [Part("Precision and recall", charts=[one for one in charts if one.lines], note=note, switched=True)]


def confusion_parts(curves: Mapping[str, Sequence[Curves]]) -> list[Part]:
    """Returns what each model takes for what, the sum over seeds; of many classes what is confused most often."""
    first = next(iter(curves.values()))[0].confusion
    counts = {model: np.sum([of_seed.confusion.counts for of_seed in of], axis=0) for model, of in curves.items()}
    table = (_matrices if len(first.classes) <= MOST_CLASSES else _pairs)(first.classes, counts)
    chosen = f"chosen on {first.chosen_on}" if first.chosen_on else f"{THRESHOLD:g}, as none was chosen in training"
    note = (
        "Detections of at least the threshold of their class are counted at IoU 0.5, the sum over seeds; thresholds "
        f"are {chosen}. Detections of nothing lie where no object is."
    )
    return [Part("Confusion", table, note=note)] if table.rows else []


def _matrices(classes: Sequence[str], counts: Mapping[str, np.ndarray]) -> Table:
    """Returns the matrix (K+1, K+1) of each model, background last, with recall and precision of the classes."""
    rows: list[list[Cell]] = []
    for model, matrix in counts.items():
        for k, (name, row) in enumerate(zip((*classes, "nothing"), matrix, strict=True)):
            is_class = k < len(classes)
            cells = [Figure(str(n), n, shade=n / max(row.sum(), 1) if is_class else None) for n in row.tolist()]
            of_class = (_part_of(row[k], row), _part_of(row[k], matrix[:, k])) if is_class else (None, None)
            rows.append([model, name, *cells, *of_class])
    header = ["model", "object", *(f"as {name}" for name in classes), "missed", "recall", "precision"]
    return Table(header, rows, 2)


def _pairs(classes: Sequence[str], counts: Mapping[str, np.ndarray]) -> Table:
    """Returns the classes that each model takes for another most often."""
    rows: list[list[Cell]] = []
    for model, matrix in counts.items():
        wrong = matrix[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
        for place in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS].tolist():
            i, j = divmod(place, len(classes))
            if times := int(wrong[i, j]):
                rows.append([model, classes[i], classes[j], Figure(str(times), times), _part_of(times, matrix[i])])
    return Table(["model", "object", "taken for", "times", "of its objects"], rows, 3)


def _part_of(count: int, whole: np.ndarray) -> Figure | None:
    total = whole.sum()
    return Figure(f"{count / total:.1%}", float(count / total)) if total else None


def weight_parts(shares: Mapping[str, Mapping[str, Mapping[int, float]]]) -> list[Part]:
    """Returns the share of each modality at each pyramid level, by model."""
    levels = sorted({level for of_model in shares.values() for by_level in of_model.values() for level in by_level})
    rows = [
        [model, m, *(percent(by_level.get(level)) for level in levels)]
        for model, of_model in shares.items()
        for m, by_level in of_model.items()
    ]
    note = "What the weights of the fusion give each modality of a pyramid level."
    table = Table(["model", "modality", *(f"P{level}" for level in levels)], rows, 2)
    return [Part("Shares in the fusion", table, note=note)] if rows else []


def training_parts(training: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[Part]:
    """Returns loss and validation AP over the epochs of each run, by model."""
    charts = []
    for key, title in (("loss", "training loss"), ("val_ap", "validation AP")):
        lines = [
            Line(name, i, [(row["epoch"], row[key]) for row in rows if key in row])
            for i, (name, runs) in enumerate(training.items())
            for rows in runs
        ]
        charts.append(chart(title, "epoch", title, lines, marked=True))
    charts = [one for one in charts if one.lines]
    return [Part("Training", charts=charts, note="A line for each seed.")] if charts else []


def robustness_parts(robustness: Robustness) -> list[Part]:
    """Returns how a run bears what its sensors suffer: curves, then what the Markdown has."""
    sections = robustness_sections(robustness)
    clean, curves = robustness.clean.ap, robustness.curves
    modalities = list(dict.fromkeys(curve.modality for curve in curves))
    top = max([clean, *(ap for curve in curves for ap in curve.ap if ap is not None)])
    charts = []
    for name in dict.fromkeys(curve.corruption for curve in curves):
        own = [curve for curve in curves if curve.corruption == name]
        lines = [Line("clean", 7, [(0, clean), (len(own[0].ap) - 1, clean)], dashed=True)]
        lines += [
            Line(c.modality, modalities.index(c.modality), [(s, ap) for s, ap in enumerate(c.ap) if ap is not None])
            for c in own
        ]
        charts.append(chart(name.replace("_", " "), "severity", "AP", lines, top=top, marked=True))
    note = "One modality is corrupted at a time, by the named one; the dashed line is the clean AP."
    return [Part("AP as a sensor fails", charts=charts, note=note), *map(of_section, sections)]


def shares_parts(shares: Shares) -> list[Part]:
    """Returns the shares of a run beside what they are worth."""
    note = " ".join([f"{correlation_text(shares)}, over {correlation_pairs(shares)}.", *shares_notes(shares)])
    return [Part("Shares in the fusion", shares_table(shares), note=note), *map(of_section, shares_sections(shares))]
