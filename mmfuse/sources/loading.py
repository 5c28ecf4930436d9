"""Makes views of many scenes, in worker processes where these are a list, and goes on past what can't be read."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfuse.data.parallel import one_thread
from mmfuse.errors import UserError
from mmfuse.sample import Scene, Sight, Views

Item = TypeVar("Item")


@dataclass(frozen=True)
class Loaded:
    """Some scenes, and the `views` of those that can be shown, which are `rows` of them.

    `lost` names the sensors of which each has no image that is shown, `problems` says why. `digests` tell the frames of
    its sensors, where there are several, from any others, where they are on the host.
    """

    scenes: Sequence[Scene]
    views: Views | None
    rows: Sequence[int]
    lost: Sequence[tuple[str, ...]]
    problems: Sequence[tuple[str, ...]]
    digests: Sequence[Mapping[str, bytes]]


_RUNS_REMEMBERED = 64

_USUAL = 0.9
"""Share of the last frames of a sensor that aren't shown longer than is usual of it."""

_TOO_LONG = 4 / 3
"""A frame that is shown so many times as long as is usual of its sensor is one too old."""


class LastFrames:
    """What each sensor showed last, of scenes that follow one another."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}
        self._shown: dict[str, int] = {}
        self._runs: dict[str, deque[int]] = {}

    def stuck(self, loaded: Loaded) -> dict[str, Tensor]:
        """Returns in which of the scenes that are shown (B,) bool a sensor is stuck, by modality; goes on past them.

        Its frame has the very bits of the one before there, which a sensor that works never gives twice. A slower one
        does, beside a faster: it is stuck where the frame is shown a third longer than nine in ten of its last 64 were.
        Of its first frame every repetition counts.
        """
        rows = []
        for digests in loaded.digests:
            rows.append({m: self._is_stuck(m, digest) for m, digest in digests.items()})
        shown = [rows[row] for row in loaded.rows]
        return {m: torch.tensor([row.get(m, False) for row in shown]) for m in {m: None for row in shown for m in row}}

    def _is_stuck(self, modality: str, digest: bytes) -> bool:
        runs = self._runs.setdefault(modality, deque(maxlen=_RUNS_REMEMBERED))
        if self._digests.get(modality) == digest:
            self._shown[modality] += 1
        else:
            if modality in self._digests:
                runs.append(self._shown[modality])
            self._digests[modality], self._shown[modality] = digest, 1
        usual = sorted(runs)[int(_USUAL * (len(runs) - 1))] if runs else 1
        return self._shown[modality] > _TOO_LONG * usual


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last one shorter."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def load(scenes: Sequence[Scene], sight: Sight) -> Loaded:
    """Reads scenes and makes views of them.

    An image that can't be read leaves its scene without that sensor. Sensors that the sight doesn't know are left out.
    """
    scenes = [replace(s, images={m: x for m, x in s.images.items() if m in sight.sensors}) for s in scenes]
    raw, problems = [], []
    for scene in scenes:
        images, wrong = {}, []
        for m, image in scene.images.items():
            try:
                images[m] = sight.read(m, image)
            except UserError as error:
                wrong.append(str(error))
        if not scene.images:
            wrong.append(f"{scene.name}: has no image of {', '.join(sight.sensors)}")
        raw.append(images)
        problems.append(wrong)
    rows = [row for row, images in enumerate(raw) if images]
    views = None
    try:
        views = sight.shown([scenes[r] for r in rows], [raw[r] for r in rows]) if rows else None
    except UserError:
        good = []
        for row in rows:
            try:
                sight.shown([scenes[row]], [raw[row]])
                good.append(row)
            except UserError as error:
                problems[row].append(str(error))
        rows = good
        views = sight.shown([scenes[r] for r in rows], [raw[r] for r in rows]) if rows else None
    shown = [raw[row] if row in rows else {} for row in range(len(scenes))]
    lost = [tuple(m for m in sight.sensors if m not in images) for images in shown]
    several = len(sight.sensors) > 1  # one alone is set beside nothing
    digests = [{m: _digest(x) for m, x in images.items() if several and not x.is_cuda} for images in raw]
    return Loaded(scenes, views, rows, lost, [tuple(wrong) for wrong in problems], digests)


def _digest(image: Tensor) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()


class _Batches(Dataset[tuple[int, Loaded]]):
    def __init__(self, batches: Sequence[tuple[int, Sequence[Scene]]], sight: Sight) -> None:
        self.batches = batches
        self.sight = sight

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[int, Loaded]:
        number, scenes = self.batches[index]
        return number, load(scenes, self.sight)


def load_each(
    batches: Iterable[tuple[int, Sequence[Scene]]], sight: Sight, workers: int
) -> Iterator[tuple[int, Loaded]]:
    """Yields what `load` makes of each batch, in order, with the number that came with it.

    A list of batches is shared by up to `workers` processes.
    """
    if not isinstance(batches, Sequence):
        yield from ((number, load(scenes, sight)) for number, scenes in batches)
        return
    yield from DataLoader(
        _Batches(batches, sight),
        batch_size=None,
        num_workers=max(0, min(workers, len(batches) - 1)),
        worker_init_fn=one_thread,
    )
