"""Batches for training and evaluation.

What a training batch holds is a function of (seed, epoch, position in the epoch) alone: not of the number of worker
processes, not of where a run was resumed, and, taken over all ranks together, not of the number of ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfuse.data.annotations.cards import Card
from mmfuse.data.annotations.records import Record
from mmfuse.data.cache import CacheError, ImageCache, is_costly
from mmfuse.data.parallel import each, one_thread, spare_cores
from mmfuse.data.samples import Change, Read, load_sample, read_record
from mmfuse.data.transforms import augment
from mmfuse.errors import UserError, unknown_name
from mmfuse.images.letterbox import letterbox, stacked
from mmfuse.recipes import DataRecipe
from mmfuse.sample import Batch, Sample, Targets
from mmfuse.sensor import Sensor

_MOST_BAD = 32


Strike = Callable[[Record, Mapping[str, Sensor], torch.Generator], tuple[str, Change | None] | None]
"""Says which sensor of a training image suffers a fault, and how its raw image changes, None if it gives none; or None.
"""


class TrainLoader:
    """Augmented training batches of one rank; see `train_loader`.

    `skipped` says of the images that couldn't be read so far, by their id, why; another took the place of each.
    `absent` counts the records that are left out because they have a file of none of the modalities.
    """

    def __init__(self, loader: "DataLoader[_Loaded]", order: "_Order", absent: int) -> None:
        self._loader = loader
        self._order = order
        self._batches: Iterator[_Packed] = iter(())
        self._next: tuple[int, int] | None = None
        self.absent = absent
        self.skipped: dict[int, str] = {}

    @property
    def workers(self) -> int:
        """How many processes read them."""
        return self._loader.num_workers

    @property
    def images(self) -> int:
        """How many images there are to learn from."""
        return self._order.records

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._order.batches

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from `start_batch` on.

        Worker processes go on with the next epoch meanwhile, so that its first batches are there when it begins.

        Raises:
            UserError: an image can't be read, or with on_bad_sample "skip" 32 in a row can't.
        """
        if self._next != (epoch, start_batch):
            self._order.epoch, self._order.start_batch = epoch, start_batch
            self._batches = _good(self._loader)
        for batch in range(start_batch, len(self)):
            self._next = None  # until it is there
            packed = next(self._batches)
            self._next = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            self.skipped |= packed.skipped
            yield packed.unpack()


class EvalLoader:
    """Letterboxed batches in the order of the records, the last one smaller; see `eval_loader`."""

    def __init__(self, loader: "DataLoader[_Loaded]") -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return (packed.unpack() for packed in _good(self._loader))


def train_loader(
    card: Card,
    records: Sequence[Record],
    modalities: Sequence[str],
    input_size: tuple[int, int],
    data: DataRecipe,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    epochs: int | None = None,
    strike: Strike | None = None,
) -> TrainLoader:
    """Makes the loader of one rank's share of each batch; `batch_size` counts over all ranks.

    An epoch is a new order of the records, without those that don't fill a last batch; records that are fewer than a
    batch are repeated to fill one. Records without a file of any of the modalities are left out and counted. Images
    are padded with the mean of the card's sensors, so give a card with measured ones (see `measuring`): others pad
    with zero.

    An image that can't be read is an error, or with `data.on_bad_sample` "skip" the next record that can be takes its
    place in the batch. `strike` says which sensor of an image suffers a fault. Nothing is read ahead that comes after
    `epochs`, if given.

    Raises:
        UserError: there are no such records, a modality isn't in the card, or the ranks can't share a batch evenly.
    """
    for modality in modalities:
        if modality not in card.modalities:
            raise UserError(f"modalities: {unknown_name(modality, card.modalities, f'modality of {card.path}')}")
    if batch_size % world_size:
        fix = f"use a multiple of {world_size}"
        raise UserError(f"train.batch_size: {batch_size} can't be shared evenly by {world_size} processes; {fix}")
    usable = [record for record in records if any(m in record.files for m in modalities)]
    if not usable:
        raise UserError(f"{card.path}: there is no image to train on; add some to the split")
    sensors = {m: card.modalities[m] for m in modalities}
    order = _Order(len(usable), batch_size, seed, rank, world_size, epochs)
    dataset = _Samples(usable, sensors, input_size, ImageCache(data.cache).images, data, seed, strike)
    loader = _data_loader(dataset, order, min(spare_cores(data.workers, world_size), 2 * order.batches))
    return TrainLoader(loader, order, len(records) - len(usable))


def eval_loader(
    records: Sequence[Record],
    sensors: Mapping[str, Sensor],
    input_size: tuple[int, int],
    batch_size: int,
    workers: int | None = None,
    read: Read | None = None,
) -> EvalLoader:
    """Makes the loader of all records, in order, without augmentation.

    `workers` None takes the cores to spare; `read` gives the images, `ImageCache().images` if None. An image that can't
    be read is always an error: leaving it out would change what is scored.
    """
    items = [(0, i) for i in range(len(records))]
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    dataset = _Samples(list(records), dict(sensors), input_size, read or ImageCache().images)
    return EvalLoader(_data_loader(dataset, batches, min(spare_cores(workers), len(batches))))


def fill_cache(records: Sequence[Record], sensors: Mapping[str, Sensor], data: DataRecipe) -> None:
    """Prepares the images of costly sensors ahead of training, with a progress bar; those that are kept already aren't.

    Images that can't be read are left to the training, unless `data.on_bad_sample` is "error".

    Raises:
        UserError: an image can't be read, or the cache can't be written.
    """
    costly = {m: sensor for m, sensor in sensors.items() if is_costly(sensor)}
    there = [record for record in records if any(m in record.files for m in costly)]
    if not there:
        return
    fill = partial(ImageCache(data.cache).fill, sensors=dict(sensors), modalities=tuple(costly))
    for error in each(fill, there, data.workers, f"caching {', '.join(costly)}"):
        if isinstance(error, CacheError) or (error is not None and data.on_bad_sample == "error"):
            raise UserError(str(error))


_Skipped = dict[int, str]


@dataclass(frozen=True)
class _PackedTargets:
    boxes: np.ndarray
    labels: np.ndarray
    objects: list[int]

    @staticmethod
    def pack(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> "_PackedTargets":
        numbers, names = (np.concatenate([x.numpy() for x in values]) for values in (boxes, labels))
        return _PackedTargets(numbers, names, [len(x) for x in boxes])

    def unpack(self) -> Targets:
        boxes, labels = (torch.from_numpy(x).split(self.objects) for x in (self.boxes, self.labels))
        return Targets(list(boxes), list(labels))


@dataclass(frozen=True)
class _Packed:
    """A batch on its way out of a worker: each tensor costs a file descriptor, so that all small ones are arrays."""

    image_ids: list[int]
    images: dict[str, Tensor]
    present: dict[str, np.ndarray]
    targets: _PackedTargets
    scale: np.ndarray
    contents: np.ndarray
    own: dict[str, _PackedTargets]
    skipped: _Skipped

    def pin_memory(self) -> "_Packed":
        return replace(self, images={m: x.pin_memory() for m, x in self.images.items()})

    def unpack(self) -> Batch:
        return Batch(
            self.image_ids,
            self.images,
            {m: torch.from_numpy(x) for m, x in self.present.items()},
            self.targets.unpack(),
            torch.from_numpy(self.scale),
            torch.from_numpy(self.contents),
            {m: targets.unpack() for m, targets in self.own.items()},
        )


_Loaded = _Packed | UserError


class _Samples(Dataset[tuple[Sample, _Skipped] | UserError]):
    """Samples asked for as (epoch, index); without a recipe they are letterboxed and not augmented.

    An index past the last record stands for a repeated one, augmented anew. A user's mistake is returned, not raised:
    DataLoader would bury it in a worker's traceback. With each sample comes why others before it were skipped.
    """

    def __init__(
        self,
        records: list[Record],
        sensors: dict[str, Sensor],
        size: tuple[int, int],
        read: Read,
        recipe: DataRecipe | None = None,
        seed: int = 0,
        strike: Strike | None = None,
    ) -> None:
        self.records = records
        self.sensors = sensors
        self.size = size
        self.read = read
        self.recipe = recipe
        self.seed = seed
        self.strike = strike

    def __getitem__(self, item: tuple[int, int]) -> tuple[Sample, _Skipped] | UserError:
        epoch, index = item
        sample, skipped = self._readable(epoch, index)
        if isinstance(sample, UserError):
            return sample
        if self.recipe is not None:
            generator = _generator(self.seed, epoch, index + 1)
            whole = {m: self.sensors[m].without_gaps(x) for m, x in sample.images.items()}
            return augment(replace(sample, images=whole), self.size, self.sensors, self.recipe, generator), skipped
        images, scale, content = letterbox(sample.images, self.size, self.sensors)
        return Sample(sample.image_id, images, sample.boxes * scale, sample.labels, scale, content), skipped

    def _readable(self, epoch: int, index: int) -> tuple[Sample | UserError, _Skipped]:
        skipping = self.recipe is not None and self.recipe.on_bad_sample == "skip"
        skipped: _Skipped = {}
        for tried in range(_MOST_BAD):
            record = self.records[(index + tried) % len(self.records)]
            try:
                return self._load(record, _generator(self.seed, epoch, index + 1, 1)), skipped
            except UserError as error:
                if not skipping or isinstance(error, CacheError):
                    return error, {}
                skipped[record.image_id] = str(error)
        return UserError(f"{_MOST_BAD} images in a row can't be used; the last: {skipped[record.image_id]}"), {}

    def _load(self, record: Record, generator: torch.Generator) -> Sample:
        struck = None if self.strike is None else self.strike(record, self.sensors, generator)
        if struck is None:
            return load_sample(record, self.sensors, self.read)
        modality, change = struck
        if change is not None:
            return load_sample(record, self.sensors, partial(read_record, change=change))
        return load_sample(record, {m: s for m, s in self.sensors.items() if m != modality}, self.read)


class _Order:
    """The (epoch, index) items of each batch of one rank, epoch after epoch until `epochs` are over, if given.

    Set `epoch` and `start_batch`, which is the first, before iterating.
    """

    def __init__(
        self, records: int, batch_size: int, seed: int, rank: int, world_size: int, epochs: int | None = None
    ) -> None:
        self.records = records
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches = max(1, records // batch_size)
        self.epochs = epochs
        self.epoch = 0
        self.start_batch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_batch
        for epoch in count(self.epoch):
            if self.epochs is not None and self.epoch < epoch >= self.epochs:
                return
            order = torch.randperm(max(self.records, self.batch_size), generator=_generator(self.seed, epoch, 0))
            indices = order.tolist()
            for batch in range(first, self.batches):
                whole = indices[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [(epoch, index) for index in whole[self.rank :: self.world_size]]
            first = 0


def _generator(seed: int, *numbers: int) -> torch.Generator:
    state = np.random.SeedSequence([seed % 2**64, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class _Collate:
    """Stacks samples into a batch of the modalities of `sensors`; passes a user's mistake on as it is."""

    def __init__(self, sensors: Mapping[str, Sensor], size: tuple[int, int]) -> None:
        self.sensors = sensors
        self.size = size

    def __call__(self, loaded: list[tuple[Sample, _Skipped] | UserError]) -> _Loaded:
        good: list[Sample] = []
        skipped: _Skipped = {}
        for item in loaded:
            if isinstance(item, UserError):
                return item
            good.append(item[0])
            skipped |= item[1]
        try:
            images, present = stacked(
                [sample.images for sample in good], [sample.image_id for sample in good], self.sensors
            )
        except UserError as error:
            return error
        return _Packed(
            [sample.image_id for sample in good],
            images,
            present,
            _PackedTargets.pack([sample.boxes for sample in good], [sample.labels for sample in good]),
            np.array([sample.scale for sample in good], np.float32),
            np.array([sample.content or self.size for sample in good], np.float32),
            {
                m: _PackedTargets.pack(*zip(*(s.own.get(m, (s.boxes, s.labels)) for s in good), strict=True))
                for m in self.sensors
                if any(m in sample.own for sample in good)
            },
            skipped,
        )


def _data_loader(dataset: _Samples, batches: object, workers: int) -> "DataLoader[_Loaded]":
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_Collate(dataset.sensors, dataset.size),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
        persistent_workers=workers > 0,
    )


def _good(loader: "DataLoader[_Loaded]") -> Iterator[_Packed]:
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise UserError(str(loaded))  # raising what the frame holds would be a cycle, and workers end late in one
        yield loaded
