"""The page that goes with a shared detector, filled from its run: what it sees and finds, how sure that is, of what."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mmfuse.errors import UserError
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.results import Comparison, Robustness
from mmfuse.files import read_regular
from mmfuse.model.detector import Detector
from mmfuse.report.tables import comparison_markdown, escaped, markdown_table, robustness_markdown
from mmfuse.run import Run
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import build, read_yaml


def model_card(
    run: Run,
    detector: Detector,
    notes: Mapping[str, Any],
    place: str,
    comparison: Comparison | None,
    robustness: Sequence[Robustness],
) -> str:
    """Returns the page as Markdown, with the Hub's own head; `place` is what `mmfuse.load` takes.

    Raises:
        UserError: a file in the run folder isn't what the run wrote there.
    """
    recipe, sensors = run.recipe, detector.sensors
    head = {"library_name": "mmfuse", "pipeline_tag": "object-detection", "tags": ["mmfuse", *sensors]}
    files = ", ".join(f'"{m}": "{m}.png"' for m in sensors)
    height, width = detector.input_size
    doubted = "Sensors that look unlike those of training count as missing.\n" if detector.doubts else ""
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {recipe.name}\n",
        f"Finds objects of {len(detector.classes)} class{'es' * (len(detector.classes) > 1)} with "
        f"{', '.join(sensors)}{'; any of these may be missing' * (len(sensors) > 1)}.\n",
        "## How to use it\n",
        "```python\nimport mmfuse\n\n"
        f'detector = mmfuse.load("{place}")\n'
        f"found = detector.detect({{{files}}})[0]  # files, arrays or tensors, raw\n"
        "print(found.names, found.scores, found.boxes)  # best first; boxes x1 y1 x2 y2 in pixels\n```\n",
        "## What it sees\n",
        markdown_table(
            ("sensor", "channels", "files hold", "a count is", "seen in training", "read as"),
            [(m, s.channels, s.dtype or "uint8", _unit(s), _seen(s), s.encoding) for m, s in sensors.items()],
        ),
        f"Give values as the files have them. It sees them at {height} x {width} pixels, to which `detect` scales.\n",
        doubted,
        "## Classes\n",
        markdown_table(("label", "class"), list(enumerate(detector.classes)), numbers_from=2),
        *_own_scores(run),
        *([_lower(comparison_markdown(_without_paths(comparison)))] if comparison else []),
        *(_lower(robustness_markdown(one)) for one in robustness),
        "## What it was made of\n",
        _made_of(run, notes),
    ]
    return "\n".join(part for part in parts if part)


def comparison_of(run: Run, folder: Path) -> Comparison:
    """Returns the comparison that `mmfuse.compare` wrote into a folder.

    Raises:
        UserError: there is none, or not of this run, as its scores in the run folder tell.
    """
    path, recipe = folder / "comparison.json", run.recipe
    try:
        comparison = build(Comparison, json.loads(read_regular(path)), str(path))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: holds no comparison; give the folder that mmfuse compare wrote") from None
    seeds = {model.name: dict(zip(model.seeds, model.ap, strict=True)) for model in comparison.models}
    ap = seeds.get(recipe.name, {}).get(recipe.train.seed)
    own = [row for row in _scored(run) if (row["split"], row["without"]) == (comparison.split, [])]
    if not own or ap is None or (own[0]["digest"], own[0]["scores"]["ap"]) != (comparison.digest, ap):
        raise UserError(f"{path}: isn't of {run.folder} as it is now; compare it anew, or leave the comparison out")
    return comparison


def _unit(sensor: Sensor) -> str | None:
    if sensor.disparity:
        a, b = sensor.disparity
        return f"disparity: {a:g} / (count - {b:g}) m"
    if sensor.is_depth:
        return f"{sensor.unit:g} m"
    return f"{sensor.unit:g} K" if sensor.encoding == "celsius" else None


def _seen(sensor: Sensor) -> str | None:
    return f"{sensor.seen[0]:g} to {sensor.seen[1]:g}" if sensor.seen else None


def _scored(run: Run) -> list[dict[str, Any]]:
    """Returns what `mmfuse.evaluate` wrote into the run folder, with the recipe's own doubt and plain NMS."""
    rows = []
    for path in sorted(run.folder.glob("*.json")):
        try:
            values = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{path}: is not JSON; restore or remove it") from None
        if not isinstance(values, dict) or not {"scores", "split", "without", "digest"} <= set(values):
            continue
        if not values.get("soft") and values.get("doubt") == run.recipe.doubt:
            rows.append(values | {"parsed": build(Scores, values["scores"], str(path))})
    return rows


def _own_scores(run: Run) -> list[str]:
    """Returns a section with the scores of this run, of all sensors and of those that are left."""
    scored = _scored(run)
    if not scored:
        return []
    conditions = sorted({c for row in scored for c in row["parsed"].per_condition})
    rows = []
    for row in sorted(scored, key=lambda row: (row["split"], len(row["without"]))):
        s, left = row["parsed"], [m for m in run.recipe.modalities if m not in row["without"]]
        by_condition = [s.per_condition.get(c, {}).get("ap") for c in conditions]
        figures = [None if ap is None else f"{ap:.3f}" for ap in (s.ap, s.ap50, *by_condition)]
        rows.append([row["split"], " + ".join(left), *figures, s.images, s.boxes])
    header = ["split", "sensors", "AP", "AP50", *(f"AP {c}" for c in conditions), "images", "objects"]
    return ["## How well it finds them\n", markdown_table(header, rows, numbers_from=2), "AP is COCO's.\n"]


def _without_paths(comparison: Comparison) -> Comparison:
    """Returns a comparison whose command names models, not the folders of a stranger's machine."""
    return replace(comparison, command="mmfuse compare " + " ".join(model.name for model in comparison.models))


def _lower(page: str) -> str:
    """Returns a page whose headings are those of a section."""
    return re.sub("^#", "##", page, flags=re.MULTILINE)


def _made_of(run: Run, notes: Mapping[str, Any]) -> str:
    recipe = run.recipe
    made_on, digests = _environment(run)
    digests |= {row["split"]: row["digest"] for row in _scored(run)}
    data = _data(Path(recipe.card))
    lines = [
        f"- data: {data['name']}",
        f"- its source: {data['source']}",
        f"- its licence: {data['licence']}",
        *(f"- split {split}: digest {digest}" for split, digest in digests.items()),
        f"- training: {recipe.train.epochs} epochs, seed {recipe.train.seed}; this is epoch {notes.get('epoch', '?')}, "
        "the best on val",
        f"- detector: size {recipe.model.size}, placement {recipe.model.placement}",
        *made_on,
    ]
    return "\n".join(lines) + "\n"


def _environment(run: Run) -> tuple[list[str], dict[str, str]]:
    """Returns what the training ran on, as lines, and the digest of each split that it read."""
    try:
        values = json.loads(read_regular(run.folder / "environment.json"))
        versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
        lines = [f"- made on: {values['hardware']}, {values['date']}", f"- with: {versions}"]
        return [escaped(line) for line in lines], dict(values["splits"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], {}


def _data(card: Path) -> dict[str, str]:
    """Returns what a card says of its dataset; it may be gone, and so may the data."""
    try:
        values = read_yaml(card)
    except UserError:
        values = {}
    unknown = "not known; ask who made it"
    return {key: escaped(str(values.get(key) or unknown).strip()) for key in ("name", "source", "licence")}
