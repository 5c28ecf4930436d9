"""Tries a detector on images of which one modality is corrupted, and sets the result beside that modality missing."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import EvalLoader, eval_loader
from mmfuse.data.samples import Read, read_record
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.corruptions import (
    ANOTHER_SCENE,
    CORRUPTIONS,
    FROZEN,
    MISSING,
    NOWHERE,
    SEVERITIES,
    Corruption,
    ImageCorruption,
    ObjectCorruption,
    faulty,
    objects_in,
)
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import Fault
from mmfuse.evaluation.significance import Matches, difference, match, resampled_ap
from mmfuse.model.detector import Finder
from mmfuse.sample import Batch, Detections
from mmfuse.sensor import Sensor

Found = Mapping[int, Detections]
"""Detections by image id, in original pixels."""

_FRAMES_TRIED = 32


def check_names(corruptions: Collection[str], severities: Collection[int]) -> None:
    """Checks what a user asks for.

    Raises:
        UserError: a corruption is unknown, or a severity isn't 1 to 5.
    """
    names = [c.name for c in CORRUPTIONS]
    for name in corruptions:
        if name not in names:
            raise UserError(f"corruption: {unknown_name(name, names, 'corruption')}")
    for severity in severities:
        if severity not in range(1, SEVERITIES + 1):
            raise UserError(f"severity: {severity!r} is not allowed; use whole numbers from 1 to {SEVERITIES}")


def suiting(
    sensors: Mapping[str, Sensor], corruptions: Collection[str] = (), modalities: Collection[str] = ()
) -> list[tuple[Corruption, str]]:
    """Returns the corruptions of these names, each with every modality that it suits; empty stands for all."""
    return [
        (corruption, m)
        for corruption in CORRUPTIONS
        for m, sensor in sensors.items()
        if corruption.name in (corruptions or (corruption.name,))
        and m in (modalities or (m,))
        and corruption.suits(sensor)
    ]


def striking(
    chosen: Sequence[tuple[Corruption, str]], records: Sequence[Record], scored: Sequence[Record], seed: int = 0
) -> list[tuple[Corruption, str]]:
    """Returns those of `chosen` that strike any of the `scored` records; there may be no other frame to show.

    Those that don't are told, in one line.
    """
    ids = {r.image_id for r in scored}
    idle = [(c, m) for c, m in chosen if not isinstance(c, ImageCorruption) and not frames(c, records, m, ids, seed)[1]]
    if idle:
        names = ", ".join(f"{c.name} of {m}" for c, m in idle)
        print(f"left out, since no image has another frame of its size to show: {names}")
    return [one for one in chosen if one not in idle]


@dataclass(frozen=True)
class Trial:
    """A detector, the images to try corruptions on, and what it finds in these as they are.

    `scored` are those of `records` that are scored; the others only lend frames. `clean` is what is found with all
    sensors, `lacking` what is found with each modality missing. The rest is as for `eval_loader`; `seed` is that of all
    corruptions.
    """

    detector: Finder
    records: Sequence[Record]
    scored: Sequence[Record]
    batch_size: int
    clean: Found
    lacking: Mapping[str, Found]
    workers: int | None = None
    seed: int = 0

    def run(
        self,
        corruption: Corruption,
        modality: str,
        severities: Sequence[int],
        progress: Callable[[int], object] = lambda images: 0,
    ) -> Iterator[tuple[Found, Found]]:
        """Yields for each severity what is found under a corruption, and with the modality missing where it strikes.

        `progress` is told each number of images done. A fault of whole images runs once: at each severity it strikes a
        share of the images, and the others are as they were.

        Raises:
            UserError: an image can't be read, or the corruption doesn't suit the sensor.
        """
        lacking = self.lacking[modality]
        if isinstance(corruption, ImageCorruption):
            for severity in severities:
                yield self._changed(corruption, modality, severity, progress), lacking
            return
        ids = [r.image_id for r in self.scored]
        records, changed = frames(corruption, self.records, modality, set(ids), self.seed)
        stuck = {modality: changed} if corruption is FROZEN else {}
        everywhere = lacking if corruption is MISSING else self._found(records, progress, stuck=stuck)
        for severity in severities:
            struck = faulty(ids, severity, self.seed) & changed
            found, without = ({**self.clean, **{i: of[i] for i in struck}} for of in (everywhere, lacking))
            yield found, without

    def images_to_run(self, corruption: Corruption, severities: Sequence[int]) -> int:
        """Returns how many images `run` will report as done."""
        if corruption is MISSING:
            return 0
        return len(self.scored) * (len(severities) if isinstance(corruption, ImageCorruption) else 1)

    def _changed(
        self, corruption: ImageCorruption, modality: str, severity: int, progress: Callable[[int], object]
    ) -> Found:
        sensor = self.detector.sensors[modality]
        told = self.scored if isinstance(corruption, ObjectCorruption) else ()
        boxes = {record.image_id: objects_in(record, modality, sensor) for record in told}
        change = Corrupted(corruption, modality, sensor, severity, self.seed, boxes)
        return self._found(self.scored, progress, partial(read_record, change=change))

    def _found(
        self,
        records: Sequence[Record],
        progress: Callable[[int], object],
        read: Read | None = None,
        stuck: Mapping[str, Collection[int]] | None = None,
    ) -> Found:
        loader = eval_loader(
            records, self.detector.sensors, self.detector.input_size, self.batch_size, self.workers, read
        )
        return collect(self.detector, _told(loader, progress), stuck=stuck)


class Trials:
    """The trials of one model, one for each training seed, on the same images; `rounds` are those of the bootstrap."""

    def __init__(self, trials: Sequence[Trial], rounds: int) -> None:
        self._trials = trials
        self._rounds = rounds
        self._lacking: dict[tuple[str, int | None], tuple[list[Matches], np.ndarray]] = {}

    def faults(
        self,
        corruption: Corruption,
        modality: str,
        severities: Sequence[int],
        progress: Callable[[int], object] = lambda images: 0,
    ) -> Iterator[tuple[Fault, list[Found]]]:
        """Yields what a corruption does at each severity, and what each trial found under it; see `Trial.run`."""
        runs = [trial.run(corruption, modality, severities, progress) for trial in self._trials]
        for severity, pairs in zip(severities, zip(*runs, strict=True), strict=True):
            found = [of for of, _ in pairs]
            share = None if isinstance(corruption, ImageCorruption) else severity
            if (modality, share) not in self._lacking:
                matches = self._matches([lacking for _, lacking in pairs])
                self._lacking[modality, share] = matches, resampled_ap(matches, self._rounds)
            without, ap_without = self._lacking[modality, share]
            under = self._matches(found)
            yield (
                Fault(
                    corruption=corruption.name,
                    modality=modality,
                    severity=severity,
                    ap=_each_ap(under),
                    ap_without=_each_ap(without),
                    difference=difference(resampled_ap(under, self._rounds), ap_without),
                    false_detections=_mean_false(under),
                    false_without=_mean_false(without),
                ),
                found,
            )

    def _matches(self, found: Sequence[Found]) -> list[Matches]:
        return [match(t.scored, of, t.detector.classes) for t, of in zip(self._trials, found, strict=True)]


def _each_ap(matches: Sequence[Matches]) -> tuple[float, ...]:
    return tuple(float(m.average_precision(np.ones((1, m.images), int))[0]) for m in matches)


def _mean_false(matches: Sequence[Matches]) -> float:
    return sum(m.false_detections() for m in matches) / len(matches)


def frames(
    corruption: Corruption, records: Sequence[Record], modality: str, image_ids: Collection[int], seed: int = 0
) -> tuple[list[Record], set[int]]:
    """Returns the records of `image_ids` as a fault of whole images shows them, and which of them it changes."""
    if corruption is MISSING:
        return [r for r in records if r.image_id in image_ids], set(image_ids)
    assert corruption in (FROZEN, ANOTHER_SCENE)
    shown = (
        frozen(records, modality, image_ids)
        if corruption is FROZEN
        else of_another_scene(records, modality, image_ids, seed)
    )
    changed = {a.image_id for a, b in zip(shown, records, strict=True) if a.files != b.files}
    return [r for r in shown if r.image_id in image_ids], changed


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
            if before is not None and record.image_id in image_ids:
                record = _with_frame_of(before, record, modality)
        changed.append(record)
    return changed


def of_another_scene(
    records: Sequence[Record], modality: str, image_ids: Collection[int], seed: int = 0
) -> list[Record]:
    """Returns the records; those of `image_ids` have the modality's file and calibration of another one of their size.

    Where there are sequences it is of another one. A record for which none is found in 32 draws stays.
    """
    by_size: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        if modality in record.files:
            by_size.setdefault((record.width, record.height), []).append(record)
    changed = []
    for record in records:
        if modality in record.files and record.image_id in image_ids:
            others = by_size[record.width, record.height]
            draws = np.random.default_rng([seed % 2**64, record.image_id % 2**64]).integers(
                len(others), size=_FRAMES_TRIED
            )
            other = next((others[i] for i in draws if _is_another_scene(others[i], record)), None)
            record = record if other is None else _with_frame_of(other, record, modality)
        changed.append(record)
    return changed


def _is_another_scene(other: Record, record: Record) -> bool:
    if record.sequence is None:
        return other.image_id != record.image_id
    return other.sequence != record.sequence


def _with_frame_of(other: Record, record: Record, modality: str) -> Record:
    own = {m: c for m, c in record.calibration.items() if m != modality}
    theirs = {m: c for m, c in other.calibration.items() if m == modality}
    files = {**record.files, modality: other.files[modality]}
    return replace(record, files=files, calibration={**own, **theirs})


@dataclass(frozen=True)
class Corrupted:
    """Corrupts the raw images of one modality, for `read_record`; loader workers call it.

    Chance is a function of (seed, image id). `boxes` are those that `ImageCorruption` asks for, by image id.
    """

    corruption: ImageCorruption
    modality: str
    sensor: Sensor
    severity: int
    seed: int
    boxes: Mapping[int, Tensor]

    def __call__(self, image_id: int, modality: str, raw: Tensor) -> Tensor:
        if modality != self.modality:
            return raw
        state = np.random.SeedSequence([self.seed % 2**64, image_id % 2**64]).generate_state(1, np.uint64)
        return self.corruption(raw, self.sensor, self.severity, int(state[0]), self.boxes.get(image_id, NOWHERE))


def _told(loader: EvalLoader, progress: Callable[[int], object]) -> Iterator[Batch]:
    for batch in loader:
        yield batch
        progress(len(batch))
