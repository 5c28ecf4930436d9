"""Scores a detector on images of which one modality is corrupted, and sums up how AP falls with severity."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmfuse.data.annotations.records import Record
from mmfuse.data.images.samples import Read, read_record
from mmfuse.data.loader import EvalLoader, eval_loader
from mmfuse.evaluation.coco import Scores, coco_scores
from mmfuse.evaluation.corruptions import FROZEN, MISSING, SEVERITIES, Corruption, ImageCorruption, faulty
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import Curve, relative_area
from mmfuse.model.detector import Detector
from mmfuse.sample import Batch
from mmfuse.sensor import Sensor


@dataclass(frozen=True)
class Trial:
    """A detector, and the images to try corruptions on.

    `scored` are those of `records` that are scored; the others only lend previous frames. The rest is as for
    `eval_loader`; `seed` is that of all corruptions.
    """

    detector: Detector
    records: Sequence[Record]
    scored: Sequence[Record]
    input_size: tuple[int, int]
    batch_size: int
    workers: int | None = None
    seed: int = 0

    def curve(
        self, corruption: Corruption, modality: str, clean: Scores, progress: Callable[[int], object] = lambda images: 0
    ) -> Curve:
        """Scores all severities; `clean` are the scores of severity 0. `progress` is told each number of images done.

        Raises:
            UserError: an image can't be read, or the corruption doesn't suit the sensor.
        """
        scores = [clean]
        for severity in range(1, SEVERITIES + 1):
            scores.append(self.scores(corruption, modality, severity, progress))
        ap, ap50 = tuple(s.ap for s in scores), tuple(s.ap50 for s in scores)
        areas = relative_area(ap), relative_area(ap50)
        return Curve(corruption.name, modality, corruption.unit, corruption.levels, ap, ap50, *areas)

    def scores(
        self, corruption: Corruption, modality: str, severity: int, progress: Callable[[int], object] = lambda images: 0
    ) -> Scores:
        """Scores the detector with one modality corrupted at one severity; see `curve`."""
        records: Sequence[Record] = self.scored
        read: Read | None = None
        lost: set[int] = set()
        struck = faulty([r.image_id for r in self.scored], severity, self.seed)
        if corruption is MISSING:
            lost = struck
        elif corruption is FROZEN:
            wanted = {r.image_id for r in self.scored}
            records = [r for r in frozen(self.records, modality, struck) if r.image_id in wanted]
        elif isinstance(corruption, ImageCorruption):
            change = _Corrupted(corruption, modality, self.detector.sensors[modality], severity, self.seed)
            read = partial(read_record, change=change)
        loader = eval_loader(records, self.detector.sensors, self.input_size, self.batch_size, self.workers, read)
        found = collect(self.detector, _batches(loader, modality, lost, progress))
        return coco_scores(self.scored, found, self.detector.classes)


def frozen(records: Sequence[Record], modality: str, image_ids: Collection[int]) -> list[Record]:
    """Returns the records; those of `image_ids` have the file and calibration of the modality's previous frame.

    That is the last record before, in order, of the same sequence and size (all of one size where there are no
    sequences). The first frame has none and stays; so does a record that lacks the modality.
    """
    last: dict[tuple[object, ...], Record] = {}
    changed = []
    for record in records:
        place = (record.sequence, record.width, record.height)
        before = last.get(place)
        if modality in record.files:
            last[place] = record
        if before is not None and modality in record.files and record.image_id in image_ids:
            own = {m: c for m, c in record.calibration.items() if m != modality}
            old = {m: c for m, c in before.calibration.items() if m == modality}
            record = replace(
                record, files={**record.files, modality: before.files[modality]}, calibration={**own, **old}
            )
        changed.append(record)
    return changed


@dataclass(frozen=True)
class _Corrupted:
    """Corrupts the raw images of one modality; loader workers call it."""

    corruption: ImageCorruption
    modality: str
    sensor: Sensor
    severity: int
    seed: int

    def __call__(self, image_id: int, modality: str, raw: Tensor) -> Tensor:
        if modality != self.modality:
            return raw
        state = np.random.SeedSequence([self.seed % 2**64, image_id % 2**64]).generate_state(1, np.uint64)
        return self.corruption(raw, self.sensor, self.severity, int(state[0]))


def _batches(
    loader: EvalLoader, modality: str, lost: Collection[int], progress: Callable[[int], object]
) -> Iterator[Batch]:
    """Yields the batches, in which images of `lost` lack the modality."""
    for batch in loader:
        there = torch.tensor([image_id not in lost for image_id in batch.image_ids])
        yield replace(batch, present={**batch.present, modality: batch.present[modality] & there})
        progress(len(batch))
