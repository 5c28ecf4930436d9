"""Reports as one HTML file that needs nothing else: no network, no other file, and no script but its own."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmfuse.evaluation.curves import THRESHOLD, Curves
from mmfuse.evaluation.results import Comparison, Robustness, Shares, Verdict
from mmfuse.evaluation.significance import hardest
from mmfuse.report.gallery import LONGEST_SIDE, LOWEST_SCORE, Gallery
from mmfuse.report.parts import (
    Part,
    confusion_parts,
    curve_parts,
    of_section,
    robustness_parts,
    shares_parts,
    training_parts,
    weight_parts,
)
from mmfuse.report.plots import Chart, Scale, around_zero
from mmfuse.report.sections import (
    NOTHING,
    Figure,
    Table,
    comparison_facts,
    comparison_sections,
    conditions_won,
    models_table,
    reading,
    robustness_facts,
    shares_facts,
)

_HERE = Path(__file__).parent
_ANSWERS = {"yes": "Yes", "no": "No", "not shown": "Not shown"}


@dataclass(frozen=True)
class Question:
    """What a page answers first: a question, its answer in a word or two, the figures, and intervals by name."""

    question: str
    answer: str
    figures: str
    intervals: Mapping[str, Figure]

    @property
    def scale(self) -> Scale:
        """The scale that all intervals are drawn on."""
        return around_zero(figure.interval for figure in self.intervals.values() if figure.interval)


def comparison_page(
    comparison: Comparison,
    gallery: Gallery,
    curves: Mapping[str, Sequence[Curves]],
    shares: Mapping[str, Mapping[str, Mapping[int, float]]],
    training: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
) -> str:
    """Returns a comparison as a page: verdicts, models, a gallery, and what else the Markdown report holds.

    Args:
        comparison: what was found.
        gallery: images, and what each model found in them.
        curves: what each seed's detector finds at each threshold, by model.
        shares: the share of each modality at each pyramid level, by model.
        training: the metric rows of each run, by model.
    """
    note = " ".join([reading(comparison), *conditions_won(comparison)])
    if not comparison.same_budget:
        note += " The models differ in more than their modalities: see the recipes of the runs."
    return _rendered(
        title=comparison.card,
        subtitle=f"{len(comparison.models)} models compared on {_images(comparison)}",
        questions=[
            *(_single_question(comparison, verdict) for verdict in comparison.verdicts),
            *(_fault_question(verdict) for verdict in comparison.fault_verdicts),
        ],
        first=[Part("Models", models_table(comparison), note=note)],
        gallery=gallery,
        parts=[
            *map(of_section, comparison_sections(comparison)),
            *curve_parts(curves),
            *confusion_parts(curves),
            *weight_parts(shares),
            *training_parts(training),
        ],
        facts=comparison_facts(comparison),
    )


def run_page(robustness: Sequence[Robustness], shares: Sequence[Shares]) -> str:
    """Returns what is known of one trained detector as a page: how it bears faults, and shares in its fusion."""
    results: list[Robustness | Shares] = [*robustness, *shares]
    splits = ", ".join(dict.fromkeys(result.split for result in results))
    facts = [fact for one in robustness for fact in robustness_facts(one)]
    facts += [fact for one in shares for fact in shares_facts(one)]
    several = len({result.split for result in results}) > 1
    parts = [(one.split, part) for one in robustness for part in robustness_parts(one)]
    parts += [(one.split, part) for one in shares for part in shares_parts(one)]
    return _rendered(
        title=results[0].name,
        subtitle=f"One detector, tested on the {splits} split",
        questions=[_fault_question(one.verdict) for one in robustness if one.verdict is not None],
        first=[],
        gallery=None,
        parts=[replace(part, title=f"{part.title}, {split} split") if several else part for split, part in parts],
        facts=list(dict.fromkeys(facts)),
    )


def _rendered(**values: Any) -> str:
    """Fills the template; what a name holds that no text can, such as half a character, shows as a question mark."""
    files = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = files.get_template("page.html").render(
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        scales=_scales,
        anchor=_anchor,
        key_of=_key,
        nothing=NOTHING,
        limits={"score": THRESHOLD, "lowest": LOWEST_SCORE, "side": LONGEST_SIDE},
        **values,
    )
    return page.encode(errors="replace").decode()


def _digest(text: str) -> str:
    """Returns what a Content-Security-Policy names an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _anchor(title: str) -> str:
    """Returns the name of a part that links lead to."""
    return re.sub(r"\W+", "-", title).strip("-").lower()


def _key(charts: Sequence[Chart]) -> list[tuple[str, int, bool]]:
    """Returns the name, colour and dashes of all lines, each name once."""
    return list({line.name: (line.name, line.colour, line.dashed) for one in charts for line in one.lines}.values())


def _scales(table: Table) -> list[Scale | None]:
    """Returns for each column the scale of its intervals, if it has any."""
    columns = zip(*table.rows, strict=True)
    intervals = [[cell.interval for cell in cells if isinstance(cell, Figure) and cell.interval] for cells in columns]
    return [around_zero(of_column) if of_column else None for of_column in intervals]


def _images(comparison: Comparison) -> str:
    return f"the {comparison.models[0].scores[0].images} images of the {comparison.split} split"


def _single_question(comparison: Comparison, verdict: Verdict) -> Question:
    (model,) = (model for model in comparison.models if model.name == verdict.model)
    intervals = {f"all images, against {rival}": ahead for rival, ahead in model.differences.items()}
    for condition, against in model.per_condition.items():
        rival = hardest(against)
        intervals[f"{condition}, against {rival}"] = against[rival]
    return Question(
        f"Is {model.name} at least as good as the best single sensor?",
        _ANSWERS[verdict.verdict],
        verdict.figures,
        {name: Figure(f"{d.mean:+.3f}", d.mean, (d.low, d.high)) for name, d in intervals.items()},
    )


def _fault_question(verdict: Verdict) -> Question:
    question = f"Is {verdict.model} under a fault that nobody tells of at least as good as without that sensor?"
    return Question(question, _ANSWERS[verdict.verdict], verdict.figures, {})
