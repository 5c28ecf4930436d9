"""Comparisons as Markdown: what was scored, how sure it is, what it costs and how it was made."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.curves import Confusion
from mmfuse.evaluation.miss_rate import MissRates
from mmfuse.evaluation.results import (
    Comparison,
    DifferenceTo,
    DoubtRow,
    Fault,
    ModelRow,
    Robustness,
    ShareGroup,
    Shares,
)
from mmfuse.evaluation.significance import Difference, hardest
from mmfuse.evaluation.voc import VocScores

NOTHING = "–"

_JUDGEMENTS = (
    "below: all of the interval lies under zero; not below: all of it lies above -1 AP point; not shown: neither"
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
    models = comparison.models
    seeds, counted = sorted({seed for model in models for seed in model.seeds}), models[0].scores[0]
    parts = [
        f"# {escaped(comparison.card)}: {len(models)} models compared\n",
        _models_table(comparison),
        *(f"**{verdict.text}**\n" for verdict in (*comparison.verdicts, *comparison.fault_verdicts)),
        *(_conditions_won(model) for model in models if model.per_condition),
        _reading(comparison),
        *_condition_section(comparison),
        *_subset_section(comparison),
        *_fault_section({model.name: model.faults for model in models}),
        "## AP per class\n",
        _class_table(models),
        "## How it was made\n",
        "\n".join(
            (
                f"- split: {comparison.split}, {counted.images} images, {counted.boxes} objects",
                f"- seeds: {', '.join(map(str, seeds))}",
                f"- command: `{comparison.command}`",
                f"- hardware: {comparison.hardware}",
                f"- date: {comparison.date}",
            )
        )
        + "\n",
    ]
    return "\n".join(parts)


def scores_text(scores: Scores) -> str:
    """Returns the scores of one model on one split as Markdown tables: COCO's figures, per class, per condition."""
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100")
    parts = [markdown_table(names, [[_figure(getattr(scores, name)) for name in names]], 0)]
    parts.append(markdown_table(("class", "AP"), [(name, _figure(ap)) for name, ap in scores.per_class.items()]))
    if scores.per_condition:
        rows = [(c, _figure(s["ap"]), _figure(s["ap50"]), s["images"]) for c, s in scores.per_condition.items()]
        parts.append(markdown_table(("condition", "AP", "AP50", "images"), rows))
    return "\n\n".join(part.strip() for part in parts)


def thresholds_text(confusion: Confusion) -> str:
    """Returns precision, recall and F1 of each class at its threshold as a Markdown table, and who chose these."""
    rows = [
        [
            name,
            f"{threshold:.3f}",
            *(_figure(of(name)) for of in (confusion.precision, confusion.recall, confusion.f1)),
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
    rows = [[m, *(_percent(shares.get(group)) for group in groups)] for m, shares in dropped.items()]
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
            *(_percent(row.dropped.get(c)) for c in conditions),
            _percent(row.dropped_struck),
            _figure(row.ap),
            _figure(row.ap_off),
            *(None if row.agreement is None else _percent(row.agreement.sound.get(c)) for c in conditions),
            None if row.agreement is None else _percent(row.agreement.swapped),
        ]
        for m, row in rows.items()
    ]
    return (
        f"{markdown_table(header, table).strip()}\n\nAP on validation, the mean of sound and of struck images. Strange "
        "is what shows another scene than the other sensors; swapped images do."
    )


def robustness_markdown(robustness: Robustness) -> str:
    """Returns what `mmfuse.robustness` found as a Markdown page: AP and AP50 by severity, and what severities mean."""
    curves = robustness.curves
    severities = range(len(curves[0].levels) + 1)
    parts = [f"# {robustness.name}: robustness on the {robustness.split} split\n"]
    if robustness.verdict is not None:
        parts.append(f"**{robustness.verdict.text}**\n")
    for key, name in (("ap", "AP"), ("ap50", "AP50")):
        rows = [
            [c.corruption, c.modality, *map(_figure, getattr(c, key)), _figure(getattr(c, f"area_{key}"))]
            for c in curves
        ]
        parts.append(f"## {name} by severity\n")
        parts.append(markdown_table(["corruption", "of", *severities, "area"], rows, numbers_from=2))
    parts.append(
        "One modality is corrupted at a time; severity 0 is clean. The area under the curve is relative to the clean "
        "score held at all severities: 1 means that nothing was lost.\n"
    )
    parts += _fault_section({robustness.name: robustness.faults})
    meanings = {c.corruption: [c.unit, *(f"{level:g}" for level in c.levels)] for c in curves}
    rows = [[name, *meaning] for name, meaning in meanings.items()]
    parts.append("## What the severities mean\n")
    parts.append(markdown_table(["corruption", "levels are", *severities[1:]], rows, numbers_from=2))
    parts.append("## How it was made\n")
    parts.append(
        f"- images: {robustness.images} of the {robustness.split} split, digest {robustness.digest[:16]}\n"
        f"- detector: SHA-256 {robustness.detector[:16]}\n"
        f"- seed: {robustness.seed}\n"
        f"{_made_on(robustness.environment)}"
    )
    return "\n".join(parts)


def _made_on(facts: Environment) -> str:
    return f"- hardware: {facts.hardware}, torch {facts.versions['torch']}\n- date: {facts.date}\n"


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Returns the mean and, for several values, the standard deviation between them (n - 1), to three places."""
    known = [v for v in values if v is not None]
    if not known:
        return NOTHING
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def _condition_ap(scores: Iterable[Scores], condition: str) -> str:
    return mean_and_spread([s.per_condition.get(condition, {}).get("ap") for s in scores])


def _models_table(comparison: Comparison) -> str:
    header = ["model", "modalities", "AP", "AP50", *(f"AP {c}" for c in comparison.conditions)]
    header += [f"Δ AP to {comparison.reference}", "params (M)", "GMACs", "latency (ms)"]
    rows = [
        [
            model.name,
            " + ".join(model.modalities),
            mean_and_spread(model.ap),
            mean_and_spread(model.ap50),
            *(_condition_ap(model.scores, condition) for condition in comparison.conditions),
            _difference_to(model.difference, comparison.reference),
            f"{model.parameters / 1e6:.2f}",
            f"{model.gmacs:.2f}",
            f"{model.latency_ms:.1f}",
        ]
        for model in comparison.models
    ]
    return markdown_table(header, rows, numbers_from=2)


def _difference_to(difference: DifferenceTo | None, reference: str) -> str | None:
    if difference is None:
        return None
    return _interval(difference) + ("" if difference.to == reference else f" to {difference.to}")


def _interval(difference: Difference) -> str:
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _reading(comparison: Comparison) -> str:
    several = any(len(model.seeds) > 1 for model in comparison.models)
    rounds = next((model.difference.rounds for model in comparison.models if model.difference), None)
    text = "AP is COCO's, averaged over IoU 0.50 to 0.95"
    text += "; ± is the standard deviation over seeds" if several else ""
    text += f"; [ ] is the 95 % interval of a paired bootstrap over images, {rounds} rounds" if rounds else ""
    return f"{text}.\n"


def _conditions_won(model: ModelRow) -> str:
    judged = Counter(differences[hardest(differences)].judgement for differences in model.per_condition.values())
    return (
        f"{model.name} isn't below its best single in {judged['not below']} of {judged.total()} conditions; it is "
        f"below in {judged['below']}, and in {judged['not shown']} neither is shown.\n"
    )


def _condition_section(comparison: Comparison) -> list[str]:
    rows = []
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
    text = f"Intervals resample the images of the condition alone; {_JUDGEMENTS}.\n"
    return ["## By condition\n", markdown_table(header, rows, numbers_from=2), text]


def _subset_section(comparison: Comparison) -> list[str]:
    by_name = {model.name: model for model in comparison.models}
    rows = [
        [
            model.name,
            " + ".join(subset.modalities),
            mean_and_spread([s.ap for s in subset.scores]),
            *(_condition_ap(subset.scores, condition) for condition in comparison.conditions),
            f"{mean_and_spread(by_name[subset.alone].ap)} ({subset.alone})" if subset.alone else None,
            None if subset.share is None else f"{subset.share:.0%}".replace("%", " %"),
        ]
        for model in comparison.models
        for subset in model.subsets
    ]
    if not rows:
        return []
    header = ["model", "sensors left", "AP", *(f"AP {c}" for c in comparison.conditions)]
    header += ["AP trained on these", "share"]
    text = (
        "Each row leaves a trained model the named sensors alone, as if the others were broken; share is its AP "
        "relative to that of the model that was trained on just these.\n"
    )
    return ["## When sensors are lost\n", markdown_table(header, rows, numbers_from=2), text]


def _fault_section(faults: Mapping[str, Sequence[Fault]]) -> list[str]:
    """Returns a section on the faults that each model was tried on, by its name; nothing where there are none."""
    rows = [
        [
            *(name, f.corruption, f.modality, f.severity, mean_and_spread(f.ap), mean_and_spread(f.ap_without)),
            *(_interval(f.difference), f.difference.judgement, f"{f.false_detections:.2f}", f"{f.false_without:.2f}"),
        ]
        for name, of_model in faults.items()
        for f in of_model
    ]
    if not rows:
        return []
    header = ["model", "corruption", "of", "severity", "AP", "AP without it", "Δ AP", "so it is", "false", "without it"]
    text = (
        "Each row sets a corrupted sensor, of which nobody tells the detector, beside the same sensor missing from the "
        f"images that the fault strikes; {_JUDGEMENTS}. False are detections an image of a score of at least 0.3 that "
        "find no object at IoU 0.5.\n"
    )
    return ["## When sensors lie\n", markdown_table(header, rows, numbers_from=3), text]


def _class_table(models: Sequence[ModelRow]) -> str:
    classes = list(dict.fromkeys(name for model in models for scores in model.scores for name in scores.per_class))
    rows = [
        [name, *(mean_and_spread([s.per_class.get(name) for s in model.scores]) for model in models)]
        for name in classes
    ]
    return markdown_table(["class", *(model.name for model in models)], rows)


def shares_markdown(shares: Shares) -> str:
    """Returns what `mmfuse.shares` found as a Markdown page: shares by level beside ΔAP, per cell, per condition."""
    whole, conditions, by_image = shares.whole, shares.per_condition, shares.by_image
    levels = [f"P{level}" for level in shares.levels]
    rows = [
        [m, *_share_cells(whole, m, levels), *(_signed(one.delta_ap[m]) for one in (whole, *conditions.values()))]
        for m in shares.modalities
    ]
    header = ["modality", *levels, "mean", "Δ AP", *(f"Δ AP {c}" for c in conditions)]
    found = shares.correlation
    figure = f"– ({found.why})" if found.spearman is None else f"{found.spearman:+.2f}"
    pairs = f"{found.pairs} pairs of modality and condition" if conditions else f"{found.pairs} modalities"
    count = f"means over the {whole.images} images that have all sensors; {shares.left_out} were left out"
    parts = [
        f"# {shares.name}: shares in the fusion, tested on the {shares.split} split\n",
        markdown_table(header, rows),
        f"**Rank correlation of mean share and Δ AP (Spearman): {figure}**, over {pairs}.\n",
        "A share is what the weights give a modality of a level that the heads read, multiplied along the graph. Δ AP "
        "is the AP of all sensors less the AP without this one: above zero the sensor helps. Weights don't know what "
        "the features are worth that they weigh, so shares explain a detector only as far as they go with Δ AP. Pairs "
        "aren't independent: the shares of all modalities add up to 100 %.\n",
        f"Each image has weights of its own: shares are {count}.\n"
        if by_image
        else "The weights are fixed: shares are the same in every image and condition.\n",
        "## Per cell\n",
        markdown_table(
            ["cell", "modality", *levels],
            [[c.cell, m, *map(_percent, own)] for c in shares.cells for m, own in c.shares.items()],
            numbers_from=2,
        ),
        "Shares after each cell, of which 0 is the first; cells before the modalities meet are left out.\n",
    ]
    if conditions:
        by_condition = [
            [
                *(c, m, *_share_cells(one, m, levels), _figure(one.ap), _figure(one.ap_without[m])),
                *(_signed(one.delta_ap[m]), *([one.images] if by_image else [])),
            ]
            for c, one in conditions.items()
            for m in shares.modalities
        ]
        header = [
            "condition",
            "modality",
            *levels,
            "mean",
            "AP",
            "AP without",
            "Δ AP",
            *(["images"] if by_image else []),
        ]
        parts += ["## Per condition\n", markdown_table(header, by_condition, numbers_from=2)]
    parts.append("## How it was made\n")
    parts.append(
        f"- images: {shares.split} split, digest {shares.digest[:16]}, AP of all sensors {_figure(whole.ap)}\n"
        f"- detector: SHA-256 {shares.detector[:16]}\n"
        f"{_made_on(shares.environment)}"
    )
    return "\n".join(parts)


def _share_cells(group: ShareGroup, modality: str, levels: Sequence[str]) -> list[str | None]:
    """Returns a modality's shares of each level and their mean, as a table shows them."""
    if group.shares is None or group.mean_share is None:
        return [None] * (len(levels) + 1)
    return [_percent(share) for share in (*group.shares[modality], group.mean_share[modality])]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.3f}"
