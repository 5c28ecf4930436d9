"""Fits when the sensors of a trained run are doubted, each by itself and one beside the other: `calibrate`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import Record, objects_that_count, spread
from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import EvalLoader, eval_loader
from mmfuse.data.samples import Read, read_record
from mmfuse.errors import UserError
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import DoubtRow
from mmfuse.files import sole_writer
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector
from mmfuse.model.doubt import describe
from mmfuse.recipes import Recipe
from mmfuse.run import Run
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor
from mmfuse.training.agreement_calibration import fit_agreement
from mmfuse.training.faults import Strikes

FEWEST = 16
"""Training images of all sensors that are needed to say what is usual."""

MOST_DROPPED = 0.01
"""Share of the sound validation images of a condition that a threshold may drop."""

AS_GOOD = 0.01
"""AP on validation by which a threshold may fall short of the best one: faults that training knows cost a detector less
than those that it doesn't, for which a low threshold is better.
"""

MARGIN = 1.25
"""How far above the least good threshold the chosen one lies, for sound images farther out than validation's."""

CANDIDATES = 24
"""Thresholds that are tried."""


def calibrate(run: str | Path | Run, *, most: int = 512, seed: int = 0) -> dict[str, DoubtRow]:
    """Fits the doubt of each sensor of a run's best detector, writes it into its checkpoint, and returns a row for
    each.

    What is usual is what training images that have all sensors look like to the backbones, unaugmented, but for those
    that the data says a fault struck. A sensor's threshold is the one with the best mean of two APs on validation: of
    its images as they are, and of the same with the sensor struck by faults that training may know (`training.faults`),
    where what is above the threshold is detected without the sensor. It drops at most 1 % of the sound images in any
    condition. Of all that are nearly as good (`AS_GOOD`) it is the lowest, raised by a `MARGIN`. Agreement is fitted
    on the same images, see `agreement_calibration`. No test image is read.

    Args:
        run: a run of several modalities, or its folder.
        most: at most so many training and validation images, evenly spaced.
        seed: of the faults.

    Raises:
        UserError: the run has one modality or one backbone for all, too few images have all sensors, one can't be
            read, or another process writes into the folder.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    run.recipe  # noqa: B018 - a folder that holds no run isn't made
    with sole_writer(run.folder):
        return fit_doubt(run, most=most, seed=seed)


def fit_doubt(run: Run, *, most: int = 512, seed: int = 0) -> dict[str, DoubtRow]:
    """Does what `calibrate` does in a folder that this process holds; see `files.sole_writer`."""
    recipe = run.recipe
    card = card_of(recipe)
    header = checkpoint.read(run.best, with_tensors=False)[1]
    detector = checkpoint.load(run.best, recipe.train.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = detector.modalities
    if len(names) == 1:
        raise UserError(f"{run.folder}: has one modality, {names[0]}, which nothing can stand in for; give a fused run")
    detector.begin_doubt()
    cache = ImageCache()

    def loaded(records: Sequence[Record], read: Read | None = None) -> EvalLoader:
        batch, workers = recipe.train.batch_size, recipe.data.workers
        return eval_loader(records, detector.sensors, detector.input_size, batch, workers, read or cache.images)

    usual = [r for r in read_split(card, "train") if all(m in r.files for m in names)]
    if len(usual) < FEWEST:
        raise UserError(f"{card.path}: {len(usual)} training images have all of {', '.join(names)}; give {FEWEST}")
    usual = spread(usual, most)
    descriptions = _described(detector, loaded(usual), f"doubt of {recipe.name}")
    for m in names:
        sound = torch.tensor([m not in record.struck for record in usual])
        detector.doubts[m].fit(descriptions[m][sound if sound.sum() >= FEWEST else slice(None)])
        detector.doubts[m].threshold.fill_(1)

    records = objects_that_count(recipe, card, read_split(card, "val"), names)
    records = spread([r for r in records if all(m in r.files for m in names)], most)
    if not records:
        raise UserError(f"{card.path}: no validation image has all of {', '.join(names)}; add some")

    def found(title: str, read: Read | None = None, without: Sequence[str] = ()) -> dict[int, Detections]:
        return collect(detector, loaded(records, read), without=without, doubt="report", progress=title)

    clean = found("doubt: sound")
    rows, thresholds = dict[str, DoubtRow](), dict[str, float]()
    for m in names:
        struck = found(f"doubt: {m} struck", _Striking(m, seed))
        rows[m] = _chosen(m, records, detector, clean, struck, found(f"doubt: without {m}", without=[m]))
        thresholds[m] = torch.inf if (chosen := rows[m].threshold) is None else chosen
    for m, threshold in thresholds.items():
        detector.doubts[m].threshold.fill_(threshold)
    agreement = fit_agreement(detector, usual, records, loaded, seed)
    rows = {m: replace(row, agreement=agreement[m]) for m, row in rows.items()}
    fitted = {"split": "val", "images": len(records), "seed": seed, **{m: asdict(row) for m, row in rows.items()}}
    checkpoint.save_detector(run.best, detector, header["notes"] | {"doubt": fitted})
    return rows


def can_doubt(recipe: Recipe) -> bool:
    """Returns whether the sensors of a recipe's detector can be doubted, and are to be."""
    return recipe.doubt != "off" and len(recipe.modalities) > 1 and recipe.model.placement != "channels"


def is_calibrated(run: Run) -> bool:
    """Returns whether the doubt of the run's best detector was fitted."""
    return "doubt" in checkpoint.read(run.best, with_tensors=False)[1]["notes"]


@dataclass(frozen=True)
class _Striking:
    """Reads records with one sensor of each struck by a fault; loader workers call it."""

    modality: str
    seed: int

    def __call__(self, record: Record, sensors: Mapping[str, Sensor]) -> dict[str, Tensor]:
        state = np.random.SeedSequence([self.seed, record.image_id % 2**64]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        while True:
            struck = Strikes(1.0)(record, sensors, generator)
            if struck is not None and struck[0] == self.modality and struck[1] is not None:
                return read_record(record, sensors, struck[1])


@torch.inference_mode()
def _described(detector: Detector, batches: EvalLoader, title: str) -> dict[str, Tensor]:
    """Returns what `doubt.describe` says (N, D) of each sensor's features in all images of `batches`."""
    device = next(detector.parameters()).device
    found: dict[str, list[Tensor]] = {m: [] for m in detector.modalities}
    for batch in tqdm(batches, desc=title, unit="batch", leave=False):
        images = detector.normalise({m: x.to(device) for m, x in batch.images.items()})
        for m, maps in detector.maps(images).items():
            found[m].append(describe(maps[0]))
    return {m: torch.cat(rows) for m, rows in found.items()}


def _chosen(
    modality: str,
    records: Sequence[Record],
    detector: Detector,
    clean: Mapping[int, Detections],
    struck: Mapping[int, Detections],
    without: Mapping[int, Detections],
) -> DoubtRow:
    """Chooses the threshold of a sensor, given what is found of sound and of struck images and without the sensor."""
    found = {"clean": clean, "struck": struck}
    doubts = {name: {i: one.doubt[modality] for i, one in of.items()} for name, of in found.items()}
    sound = [r for r in records if modality not in r.struck]
    by_condition = {
        str(condition): np.array([doubts["clean"][r.image_id] for r in sound if r.condition == condition])
        for condition in sorted({r.condition for r in sound}, key=str)
    }
    every = np.unique(np.concatenate([list(of.values()) for of in doubts.values()]))
    allowed = [
        t for t in every[np.isfinite(every)] if all((of > t).mean() <= MOST_DROPPED for of in by_condition.values())
    ]

    def ap(threshold: float) -> float:
        def mixed(found: Mapping[int, Detections], of: Mapping[int, float]) -> dict[int, Detections]:
            return {i: without[i] if of[i] > threshold else one for i, one in found.items()}

        pairs = ((clean, doubts["clean"]), (struck, doubts["struck"]))
        return float(np.mean([coco_scores(records, mixed(*pair), detector.classes).ap or 0.0 for pair in pairs]))

    tried = np.unique(np.linspace(0, max(len(allowed) - 1, 0), CANDIDATES).round().astype(int))
    scores = {float(allowed[i]): ap(allowed[i]) for i in tried if allowed}
    off = ap(np.inf)
    threshold = None
    if scores and max(scores.values()) >= off - AS_GOOD:
        threshold = MARGIN * min(t for t, score in scores.items() if score >= max(scores.values()) - AS_GOOD)
    limit = np.inf if threshold is None else threshold
    return DoubtRow(
        threshold,
        {condition: float((of > limit).mean()) for condition, of in by_condition.items()},
        float(np.mean([value > limit for value in doubts["struck"].values()])),
        ap(limit),
        off,
    )
