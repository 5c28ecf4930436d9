"""Scores a trained run on a split of its dataset."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from mmfuse.data.annotations.cards import Card, card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import Record, conditions_of, objects_that_count, split_digest
from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import eval_loader
from mmfuse.environment import environment
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.coco import Scores, coco_scores
from mmfuse.evaluation.curves import Curves, confusion, curves
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.miss_rate import ALL, REASONABLE, MissRates, miss_rates
from mmfuse.evaluation.results import write_json
from mmfuse.evaluation.significance import Matches, match
from mmfuse.evaluation.voc import VocScores, voc_scores
from mmfuse.exporting.loading import load
from mmfuse.exporting.runs import open_run
from mmfuse.model.detector import Finder
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import Selection
from mmfuse.run import Run
from mmfuse.sample import Detections


@dataclass(frozen=True)
class Evaluation:
    """A detector's scores on a split, with what they were computed from.

    `records` hold the objects that counted, `digest` is that of the split whichever these are. `others` are the scores
    by the card's own `metrics`, by name. `dropped` has for each sensor that was judged the share of the images, "all"
    and by condition, in which it was left out because it was doubted. `thresholds` are those by class that training
    chose on validation, empty where it didn't; `name` is that of its file in the run folder.
    """

    detector: Finder
    records: Sequence[Record]
    digest: str
    detections: dict[int, Detections]
    scores: Scores
    others: dict[str, MissRates | VocScores]
    dropped: dict[str, dict[str, float]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    @cached_property
    def matches(self) -> Matches:
        """The detections, matched with the objects."""
        return match(self.records, self.detections, self.detector.classes)

    @cached_property
    def curves(self) -> Curves:
        """Precision over recall, F1 over threshold and confusion."""
        chosen_on = "val" if self.thresholds else None
        taken = confusion(self.records, self.detections, self.detector.classes, self.thresholds, chosen_on)
        return curves(self.matches, taken)


def evaluate(
    run: str | Path | Run,
    *,
    split: str = "test",
    without: Collection[str] = (),
    soft: bool = False,
    doubt: Doubting | None = None,
) -> Evaluation:
    """Scores a run's best detector on a split and writes `SPLIT[-without-M…][-soft].json` into the run folder.

    `without` names modalities to leave out, as if those sensors were broken; `soft` uses Soft-NMS; `doubt` is as for
    `Detector.detect`, the recipe's if None, and another one is named in the file's name. The file holds the
    digest of the split, so that a result can be tied to its images. What `mmfuse export` wrote of a run is scored as
    one, into a folder beside it of its name without the suffix.

    Raises:
        UserError: the run, the split or a modality doesn't exist.
    """
    run = run if isinstance(run, Run) else open_run(run)
    recipe = run.recipe
    card = card_of(recipe)
    device = recipe.train.device or ("cuda" if torch.cuda.is_available() else "cpu")
    detector = load(run.best, device)
    for modality in without:
        if modality not in detector.modalities:
            raise UserError(f"without: {unknown_name(modality, detector.modalities, 'modality of this run')}")
    check_classes(card, detector.classes)
    records = read_split(card, split)
    digest = split_digest(records)
    records = objects_that_count(recipe, card, records, [m for m in recipe.modalities if m not in without])
    data, batch, size = recipe.data, recipe.train.batch_size, detector.input_size
    loader = eval_loader(records, detector.sensors, size, batch, data.workers, ImageCache().images)
    title = f"evaluating {recipe.name}" + "".join(f" without {m}" for m in without)
    doubt = doubt or recipe.doubt
    finder = detector.ready(len(records), batch)
    found = collect(finder, loader, without=without, selection=Selection(soft=soft), doubt=doubt, progress=title)
    scores = coco_scores(records, found, detector.classes)
    name = "-without-".join((split, *sorted(without))) + ("-soft" if soft else "")
    name += f"-doubt-{doubt}" if doubt != recipe.doubt else ""
    dropped = dropped_shares(records, found)
    others = _other_scores(card, records, found)
    evaluation = Evaluation(detector, records, digest, found, scores, others, dropped, run.thresholds, name)
    result = {
        "split": split,
        "digest": digest,
        "boxes": recipe.data.boxes,
        "label_source": list(card.label_source),
        "without": sorted(without),
        "soft": soft,
        "doubt": doubt,
        "dropped": dropped,
        "scores": asdict(scores),
        **{metric: asdict(of) for metric, of in others.items()},
        "curves": asdict(evaluation.curves),
        "environment": asdict(environment(detector.device)),
    }
    write_json(run.folder / f"{name}.json", result)
    return evaluation


def check_classes(card: Card, classes: Sequence[str]) -> None:
    """Refuses to score a run on a card of other classes.

    Raises:
        UserError: they aren't the card's.
    """
    if card.classes != classes:
        raise UserError(f"{card.path}: classes {list(card.classes)} aren't the run's {list(classes)}; use its card")


def dropped_shares(records: Sequence[Record], found: Mapping[int, Detections]) -> dict[str, dict[str, float]]:
    """Returns for each sensor that was judged in `found` the share of these images in which it was left out.

    Of "all" images in which it was judged, and of those of each condition.
    """
    shares: dict[str, dict[str, float]] = {}
    for modality in dict.fromkeys(m for one in found.values() for m in one.doubt):
        judged = [r for r in records if modality in found[r.image_id].doubt]
        groups = {"all": judged} | {c: [r for r in judged if r.condition == c] for c in conditions_of(judged)}
        shares[modality] = {
            name: sum(modality in found[r.image_id].dropped for r in of) / len(of) for name, of in groups.items()
        }
    return shares


def _other_scores(
    card: Card, records: Sequence[Record], found: dict[int, Detections]
) -> dict[str, MissRates | VocScores]:
    scores: dict[str, MissRates | VocScores] = {}
    for metric in card.metrics:
        if metric == "miss_rate":
            for setup in (REASONABLE, ALL):
                scores[f"miss_rate_{setup.name}"] = miss_rates(records, found, card.classes, setup)
        else:
            method = metric.removeprefix("voc_").replace("_", "-")
            scores[metric] = voc_scores(records, found, card.classes, method)
    return scores
