"""Comparisons as Markdown: what was scored, how sure it is, what it costs and how it was made."""

from collections.abc import Iterable, Mapping, Sequence

from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.curves import Confusion
from mmfuse.evaluation.miss_rate import MissRates
from mmfuse.evaluation.results import Comparison, DoubtRow, ModelRow, Robustness, Shares
from mmfuse.evaluation.voc import VocScores
from mmfuse.report.sections import (
    NOTHING,
    Section,
    Table,
    comparison_facts,
    comparison_sections,
    conditions_won,
    correlation_pairs,
    correlation_text,
    figure,
    mean_and_spread,
    models_table,
    percent,
    reading,
    robustness_facts,
    robustness_sections,
    shares_facts,
    shares_notes,
    shares_sections,
    shares_table,
)


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers_from: int = 1) -> str:
    """Returns a Markdown table, padded so that it reads as plain text too; a None cell shows a dash.

    Columns from `numbers_from` on are aligned to the right.
    """
    cells = [[str(h) for h in header], *([NOTHING if c is None else str(c) for c in row] for row in rows)]
    cells = [[escaped(text).replace("|", "\\|") for text in row] for row in cells]
    widths = [max(3, *(len(text) for text in column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (w - 1) + ":" if i >= numbers_from else "-" * w for i, w in enumerate(widths)]
    lines = (
        " | ".join(
            t.rjust(w) if i >= numbers_from else t.ljust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (cells[0], rule, *cells[1:])
    )
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def escaped(text: str) -> str:
    """Returns text, such as a name from a file, that a Markdown page shows as it is: no markup, link or picture."""
    text = " ".join(text.split("\n")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("](", "]\\(").replace("`", "\\`")


def comparison_markdown(comparison: Comparison) -> str:
    """Returns a comparison as a Markdown page: models, verdicts, conditions, lost sensors, classes, how it was made."""
    parts = [
        f"# {escaped(comparison.card)}: {len(comparison.models)} models compared\n",
        _markdown(models_table(comparison)),
        *(f"**{verdict.text}**\n" for verdict in (*comparison.verdicts, *comparison.fault_verdicts)),
        *(f"{sentence}\n" for sentence in (*conditions_won(comparison), reading(comparison))),
        *_sections(comparison_sections(comparison)),
        _made([(name, f"`{fact}`" if name == "command" else fact) for name, fact in comparison_facts(comparison)]),
    ]
    return "\n".join(parts)


def scores_text(scores: Scores) -> str:
    """Returns the scores of one model on one split as Markdown tables: COCO's figures, per class, per condition."""
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100")
    parts = [markdown_table(names, [[figure(getattr(scores, name)) for name in names]], 0)]
    parts.append(markdown_table(("class", "AP"), [(name, figure(ap)) for name, ap in scores.per_class.items()]))
    if scores.per_condition:
        rows = [(c, figure(s["ap"]), figure(s["ap50"]), s["images"]) for c, s in scores.per_condition.items()]
        parts.append(markdown_table(("condition", "AP", "AP50", "images"), rows))
    return "\n\n".join(part.strip() for part in parts)


def thresholds_text(confusion: Confusion) -> str:
    """Returns precision, recall and F1 of each class at its threshold as a Markdown table, and who chose these."""
    rows = [
        [
            name,
            f"{threshold:.3f}",
            *(figure(of(name)) for of in (confusion.precision, confusion.recall, confusion.f1)),
        ]
        for name, threshold in confusion.thresholds.items()
    ]
    table = markdown_table(("class", "threshold", "precision", "recall", "F1"), rows)
    if confusion.chosen_on is None:
        return f"{table}\nAt IoU 0.5. No thresholds were chosen on validation."
    return f"{table}\nAt IoU 0.5. Thresholds are those of the highest F1 on {confusion.chosen_on}."


def f1_table(models: Sequence[ModelRow]) -> str:
    """Returns F1 of each class for each model, at the thresholds of `Confusion`, as a Markdown table."""
    rows = [
        [name, *(mean_and_spread([of.confusion.f1(name) for of in model.curves]) for model in models)]
        for name in models[0].curves[0].confusion.classes
    ]
    return markdown_table(["class", *(model.name for model in models)], rows)


def other_scores_text(others: Mapping[str, MissRates | VocScores]) -> str:
    """Returns the scores by a card's own metrics as Markdown tables: miss rates in %, VOC's AP50."""
    parts = []
    for name, scores in others.items():
        key, scale, digits = ("miss_rate", 100, 2) if isinstance(scores, MissRates) else ("ap50", 1, 3)
        values = {"all images": getattr(scores, key), **{c: one[key] for c, one in scores.per_condition.items()}}
        row = [None if value is None else f"{scale * value:.{digits}f}" for value in values.values()]
        title = f"{name.replace('_', ' ')}{', %' if scale == 100 else ''}"
        parts.append(markdown_table((title, *values), [(f"{scores.boxes} objects", *row)]))
    return "\n\n".join(part.strip() for part in parts)


def dropped_text(dropped: Mapping[str, Mapping[str, float]]) -> str:
    """Returns in how many images each sensor was left out for doubt, as a Markdown table; "" if none was judged."""
    if not dropped:
        return ""
    groups = list(dict.fromkeys(name for shares in dropped.values() for name in shares))
    rows = [[m, *(percent(shares.get(group)) for group in groups)] for m, shares in dropped.items()]
    header = ["left out, doubted", *(f"{group} images" if group == "all" else group for group in groups)]
    return markdown_table(header, rows).strip()


def doubt_text(rows: Mapping[str, DoubtRow]) -> str:
    """Returns what `mmfuse.calibrate` found as a Markdown table."""
    conditions = list(dict.fromkeys(c for row in rows.values() for c in row.dropped))
    header = [
        "sensor",
        "threshold",
        *(f"sound dropped, {c}" for c in conditions),
        "struck dropped",
        "AP",
        "AP, doubt off",
        *(f"sound strange, {c}" for c in conditions),
        "swapped strange",
    ]
    table = [
        [
            m,
            None if row.threshold is None else f"{row.threshold:.2f}",
            *(percent(row.dropped.get(c)) for c in conditions),
            percent(row.dropped_struck),
            figure(row.ap),
            figure(row.ap_off),
            *(None if row.agreement is None else percent(row.agreement.sound.get(c)) for c in conditions),
            None if row.agreement is None else percent(row.agreement.swapped),
        ]
        for m, row in rows.items()
    ]
    return (
        f"{markdown_table(header, table).strip()}\n\nAP on validation, the mean of sound and of struck images. Strange "
        "is what shows another scene than the other sensors; swapped images do."
    )


def robustness_markdown(robustness: Robustness) -> str:
    """Returns what `mmfuse.robustness` found as a Markdown page: AP and AP50 by severity, and what severities mean."""
    parts = [f"# {robustness.name}: robustness on the {robustness.split} split\n"]
    if robustness.verdict is not None:
        parts.append(f"**{robustness.verdict.text}**\n")
    parts += _sections(robustness_sections(robustness))
    parts.append(_made(robustness_facts(robustness)))
    return "\n".join(parts)


def shares_markdown(shares: Shares) -> str:
    """Returns what `mmfuse.shares` found as a Markdown page: shares by level beside ΔAP, per cell, per condition."""
    parts = [
        f"# {shares.name}: shares in the fusion, tested on the {shares.split} split\n",
        _markdown(shares_table(shares)),
        f"**{correlation_text(shares)}**, over {correlation_pairs(shares)}.\n",
        *(f"{note}\n" for note in shares_notes(shares)),
        *_sections(shares_sections(shares)),
        _made(shares_facts(shares)),
    ]
    return "\n".join(parts)


def _markdown(table: Table) -> str:
    return markdown_table(table.header, table.rows, table.numbers_from)


def _sections(sections: Sequence[Section]) -> list[str]:
    parts = []
    for section in sections:
        parts += [f"## {section.title}\n", _markdown(section.table)]
        parts += [f"{section.note}\n"] if section.note else []
    return parts


def _made(facts: Sequence[tuple[str, str]]) -> str:
    return "## How it was made\n\n" + "".join(f"- {name}: {fact}\n" for name, fact in facts)
