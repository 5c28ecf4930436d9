"""What `compare`, `shares` and `robustness` found, as the values that pages and charts are made of."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
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
class ModelRow:
    """One recipe of a comparison: its scores for each of `seeds`, what it costs and what it is ahead of.

    `ap`, `ap50` and `scores` have an entry a seed. `gmacs` are billions of multiply-adds, `latency_ms` milliseconds, of
    one image. `difference` is the one that the table shows; `differences` are those to each rival by name, on all
    images and, as `per_condition`, on those of each condition alone. `subsets` is empty where there is one modality.
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


@dataclass(frozen=True)
class Verdict:
    """Whether `model` is at least as good as the best single modality: "yes", "no" or "not shown"; `text` says why."""

    model: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """Models scored on one split; see `mmfuse.compare`.

    `digest` is that of the split, `reference` the model that differences are taken to by default. `same_budget` tells
    whether the models differ in their modalities and seeds alone.
    """

    card: str
    split: str
    digest: str
    models: tuple[ModelRow, ...]
    reference: str
    verdicts: tuple[Verdict, ...]
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
    shares: dict[str, list[float]] | None
    mean_share: dict[str, float] | None
    ap: float | None
    ap_without: dict[str, float | None]
    delta_ap: dict[str, float | None]


@dataclass(frozen=True)
class CellShares:
    """The shares of each modality after one cell, in the order of the levels; None at a level that it doesn't make."""

    cell: int
    shares: dict[str, list[float | None]]


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

    `area_ap` and `area_ap50` are the areas under both; see `relative_area`.
    """

    corruption: str
    modality: str
    unit: str
    levels: tuple[float, ...]
    ap: tuple[float, ...]
    ap50: tuple[float, ...]
    area_ap: float | None
    area_ap50: float | None


def relative_area(values: Iterable[float]) -> float | None:
    """Returns the area under a curve over severities (trapezoids) relative to its clean, first value held throughout.

    1 means that nothing was lost; None that there was nothing to lose.
    """
    values = list(values)
    area = sum((a + b) / 2 for a, b in pairwise(values))
    return area / (values[0] * (len(values) - 1)) if values[0] else None


@dataclass(frozen=True)
class Clean:
    """The scores of a run on the images of a robustness test, before any is corrupted."""

    ap: float
    ap50: float


@dataclass(frozen=True)
class Robustness:
    """How a run bears corrupted images; see `mmfuse.robustness`.

    `digest` is that of the `images` images scored, `detector` the SHA-256 of the checkpoint, `seed` that of the
    corruptions.
    """

    split: str
    digest: str
    detector: str
    seed: int
    name: str
    images: int
    clean: Clean
    curves: tuple[Curve, ...]
    environment: Environment


def write_json(path: Path, result: Comparison | Shares | Robustness) -> None:
    """Writes a result as JSON, whole or not at all."""
    write_whole(path, json.dumps(asdict(result), indent=2).encode())
