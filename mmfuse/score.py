"""Scores a trained run on a split of its dataset."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmfuse.config import write_whole
from mmfuse.data.loader import eval_loader
from mmfuse.data.readers import Record, read_split, split_digest
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluate.coco import Scores, coco_scores
from mmfuse.evaluate.inference import collect
from mmfuse.model.detector import Detector
from mmfuse.sample import Detections
from mmfuse.train.checkpoint import load
from mmfuse.train.loop import Run, environment, prepare


@dataclass(frozen=True)
class Evaluation:
    """A detector's scores on a split, with what they were computed from."""

    detector: Detector
    records: Sequence[Record]
    detections: dict[int, Detections]
    scores: Scores


def evaluate(
    run: str | Path | Run, *, split: str = "test", without: Collection[str] = (), soft: bool = False
) -> Evaluation:
    """Scores a run's best detector on a split and writes `SPLIT[-without-M…][-soft].json` into the run folder.

    `without` names modalities to leave out, as if those sensors were broken; `soft` uses Soft-NMS. The file holds the
    digest of the split, so that a result can be tied to its images.

    Raises:
        UserError: the run, the split or a modality doesn't exist.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    recipe = run.recipe
    card, input_size = prepare(recipe)
    device = recipe.train.device or ("cuda" if torch.cuda.is_available() else "cpu")
    detector = load(run.best, device).to(memory_format=torch.channels_last)
    for modality in without:
        if modality not in detector.modalities:
            raise UserError(f"without: {unknown_name(modality, detector.modalities, 'modality of this run')}")
    if card.classes != detector.classes:
        raise UserError(
            f"{card.path}: classes {list(card.classes)} aren't the run's {list(detector.classes)}; use its card"
        )
    records = read_split(card, split)
    loader = eval_loader(records, detector.sensors, input_size, recipe.train.batch_size, recipe.data.workers)
    title = f"evaluating {recipe.name}" + "".join(f" without {m}" for m in without)
    found = collect(detector, loader, without=without, soft=soft, progress=title)
    scores = coco_scores(records, found, detector.classes)
    name = "-without-".join((split, *sorted(without))) + ("-soft" if soft else "")
    chosen = {"split": split, "digest": split_digest(records), "without": sorted(without), "soft": soft}
    result = chosen | {"scores": scores.to_dict()}
    write_whole(
        run.folder / f"{name}.json",
        json.dumps(result | {"environment": environment(next(detector.parameters()).device)}, indent=2).encode(),
    )
    return Evaluation(detector, records, found, scores)
