"""What `compare`, `shares` and `robustness` found, as the values that pages and charts are made of."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.curves import Curves
from mmfuse.evaluation.significance import Difference
from mmfuse.files import write_whole


@dataclass(frozen=True)
class DifferenceTo(Difference):
    """By how much a model is ahead of the one named `to`."""

    to: str


@dataclass(frozen=True)
class SubsetRow:
    """A trained model with some of its `modalities` alone, as if the others were broken.

    `scores` are those of each seed. `alone` names the best model that was trained on just these, `share` is the AP
    relative to its AP; both are None where there is no such model.
    """

    modalities: tuple[str, ...]
    scores: tuple[Scores, ...]
    alone: str | None
    share: float | None


@dataclass(frozen=True)
class Fault:
    """One corruption of one modality at one severity, set beside the modality missing from the same images.

    `ap` and `ap_without`, the AP under the fault and without the modality, have an entry a seed. `difference` is by how
    much the first is ahead. `false_detections` and `false_without` count, an image, the detections of a score of at
    least 0.3 that find no object at IoU 0.5.
    """

    corruption: str
    modality: str
    severity: int
    ap: tuple[float, ...]
    ap_without: tuple[float, ...]
    difference: Difference
    false_detections: float
    false_without: float


@dataclass(frozen=True)
class ModelRow:
    """One recipe of a comparison: its scores for each of `seeds`, what it costs and what it is ahead of.

    `ap`, `ap50`, `scores` and `curves` have an entry a seed. `gmacs` are billions of multiply-adds, `latency_ms`
    milliseconds, of one image. `difference` is the one that the table shows; `differences` are those to each rival
    by name, on all images and, as `per_condition`, on those of each condition alone. `subsets` is empty where there
    is one modality, and so is `faults`, or where no corruption was tried.
    """

    name: str
    modalities: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    ap: tuple[float, ...]
    ap50: tuple[float, ...]
    scores: tuple[Scores, ...]
    parameters: int
    gmacs: float
    latency_ms: float
    difference: DifferenceTo | None
    differences: dict[str, Difference]
    per_condition: dict[str, dict[str, Difference]]
    subsets: tuple[SubsetRow, ...]
    faults: tuple[Fault, ...]
    curves: tuple[Curves, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a model keeps a promise: "yes", "no" or "not shown"; `text` names the promise and says why."""

    model: str
    verdict: str
    text: str

    @property
    def figures(self) -> str:
        """What the text says in brackets, after the verdict."""
        return self.text.partition(f": {self.verdict} (")[2].removesuffix(")")


@dataclass(frozen=True)
class Comparison:
    """Models scored on one split; see `mmfuse.compare`.

    `verdicts` tell of models of several modalities whether they are at least as good as the best single one,
    `fault_verdicts` whether they are under each fault at least as good as without the sensor. `digest` is that of the
    split, `reference` the model that differences are taken to by default. `same_budget` tells whether the models differ
    in their modalities and seeds alone.
    """

    card: str
    split: str
    digest: str
    models: tuple[ModelRow, ...]
    reference: str
    verdicts: tuple[Verdict, ...]
    fault_verdicts: tuple[Verdict, ...]
    same_budget: bool
    command: str
    date: str
    hardware: str

    @property
    def conditions(self) -> list[str]:
        """The conditions that any model was scored on, in order of the alphabet."""
        return sorted({c for model in self.models for scores in model.scores for c in scores.per_condition})


@dataclass(frozen=True)
class ShareGroup:
    """The shares of modalities, and what they are worth, on all images of a split or on those of one condition.

    `shares` are those of the pyramid's output by modality, in the order of the levels, `mean_share` their mean over
    levels; both are None where no image counts. `images` are those whose weights count, None where weights are fixed.
    `delta_ap` is the AP of all sensors, `ap`, less that without each modality, `ap_without`; None where there is no
    object to find.
    """

    images: int | None
    shares: dict[str, tuple[float, ...]] | None
    mean_share: dict[str, float] | None
    ap: float | None
    ap_without: dict[str, float | None]
    delta_ap: dict[str, float | None]


@dataclass(frozen=True)
class CellShares:
    """The shares of each modality after one cell, in the order of the levels; None at a level that it doesn't make."""

    cell: int
    shares: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of so many pairs; where it isn't defined it is None, and `why` says so."""

    spearman: float | None
    pairs: int
    why: str | None = None


@dataclass(frozen=True)
class Shares:
    """The fusion weights of a run set beside what AP loses without each modality; see `mmfuse.shares`.

    `digest` is that of the split, `detector` the SHA-256 of the checkpoint. `by_image` tells whether images have
    weights of their own; `left_out` counts those that lack a sensor, None where weights are fixed. `cells` holds those
    in which modalities have met.
    """

    split: str
    digest: str
    detector: str
    name: str
    modalities: tuple[str, ...]
    levels: tuple[int, ...]
    by_image: bool
    left_out: int | None
    whole: ShareGroup
    cells: tuple[CellShares, ...]
    per_condition: dict[str, ShareGroup]
    correlation: Correlation
    environment: Environment


@dataclass(frozen=True)
class Curve:
    """AP and AP50 at severities 0 (clean) to 5 of one corruption of one modality; `levels` are its strengths.

    A severity that wasn't scored has None. `area_ap` and `area_ap50` are the areas under both; see `relative_area`.
    """

    corruption: str
    modality: str
    unit: str
    levels: tuple[float, ...]
    ap: tuple[float | None, ...]
    ap50: tuple[float | None, ...]
    area_ap: float | None
    area_ap50: float | None


def relative_area(values: Sequence[float | None]) -> float | None:
    """Returns the area under a curve over severities (trapezoids) relative to its clean, first value held throughout.

    1 means that nothing was lost; None that there was nothing to lose, or that a value is missing.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known[0]:
        return None
    return sum((a + b) / 2 for a, b in pairwise(known)) / (known[0] * (len(known) - 1))


@dataclass(frozen=True)
class Clean:
    """The scores of a run on the images of a robustness test, before any is corrupted."""

    ap: float
    ap50: float


@dataclass(frozen=True)
class Robustness:
    """How a run bears corrupted images; see `mmfuse.robustness`.

    `digest` is that of the `images` images scored, `detector` the SHA-256 of the checkpoint, `seed` that of the
    corruptions, `rounds` those of the bootstrap. `faults` and `verdict` are empty and None for a run of one modality.
    """

    split: str
    digest: str
    detector: str
    seed: int
    rounds: int
    name: str
    images: int
    clean: Clean
    curves: tuple[Curve, ...]
    faults: tuple[Fault, ...]
    verdict: Verdict | None
    environment: Environment


@dataclass(frozen=True)
class AgreementRow:
    """What is told of one sensor on validation: the share of sound images that are said to show another scene than all
    other sensors', by condition, and the same of images that do; None where there are none to say it of.
    """

    sound: Mapping[str, float | None]
    swapped: float | None


@dataclass(frozen=True)
class DoubtRow:
    """What was found of one sensor: the `threshold` in distances of a usual training image, None if nothing is dropped;
    the share that it drops of the sound validation images of each condition, and of those that a fault struck; AP over
    struck and sound images with it, and with doubt off; and how it agrees with other sensors.
    """

    threshold: float | None
    dropped: Mapping[str, float]
    dropped_struck: float
    ap: float
    ap_off: float
    agreement: AgreementRow | None = None


def write_json(path: Path, result: Comparison | Shares | Robustness | Mapping[str, Any]) -> None:
    """Writes a result as JSON, a list of numbers on one line, whole or not at all."""
    text = json.dumps(result if isinstance(result, Mapping) else asdict(result), indent=2)
    write_whole(path, re.sub(r"\[\n[^][{}\"]+\]", lambda found: re.sub(r"\s+", "", found[0]), text).encode())
