"""Batches for training and evaluation, and the statistics that normalise them.

What a training batch holds is a function of (seed, epoch, position in the epoch) alone: not of the number of worker
processes, not of where a run was resumed, and, taken over all ranks together, not of the number of ranks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmfuse.config import DataRecipe
from mmfuse.data.cards import Card
from mmfuse.data.readers import Record
from mmfuse.data.transforms import augment, letterbox, load_sample, read_image
from mmfuse.errors import UserError, unknown_name
from mmfuse.sample import Batch, Sample, Targets
from mmfuse.sensor import Sensor

_MEASURED_IMAGES = 256
_SMALLEST_STD = 1e-6


class TrainLoader:
    """Augmented training batches of one rank; see `train_loader`."""

    def __init__(self, loader: "DataLoader[Batch]", order: "_Order") -> None:
        self._loader = loader
        self._order = order

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._order.batches

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from `start_batch` on.

        Raises:
            UserError: an image can't be read.
        """
        self._order.epoch, self._order.start_batch = epoch, start_batch
        yield from _good_batches(self._loader)


class EvalLoader:
    """Letterboxed batches in the order of the records, the last one smaller; see `eval_loader`."""

    def __init__(self, loader: "DataLoader[Batch]") -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return _good_batches(self._loader)


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
) -> TrainLoader:
    """Makes the loader of one rank's share of each batch; `batch_size` counts over all ranks.

    An epoch is a new order of the records, without those that don't fill a last batch; records that are fewer than a
    batch are repeated to fill one. Images are padded with the mean of the card's sensors, so give a card with
    measured ones (`measure`): others pad with zero.

    Raises:
        UserError: there are no records, a modality isn't in the card, or the ranks can't share a batch evenly.
    """
    for modality in modalities:
        if modality not in card.modalities:
            raise UserError(f"modalities: {unknown_name(modality, card.modalities, f'modality of {card.path}')}")
    if batch_size % world_size:
        fix = f"use a multiple of {world_size}"
        raise UserError(f"train.batch_size: {batch_size} can't be shared evenly by {world_size} processes; {fix}")
    if not records:
        raise UserError(f"{card.path}: there is no image to train on; add some to the split")
    sensors = {m: card.modalities[m] for m in modalities}
    order = _Order(len(records), batch_size, seed, rank, world_size)
    dataset = _Samples(list(records), sensors, input_size, data, seed)
    return TrainLoader(_data_loader(dataset, order, _workers(data.workers, world_size)), order)


def eval_loader(
    records: Sequence[Record],
    sensors: Mapping[str, Sensor],
    input_size: tuple[int, int],
    batch_size: int,
    workers: int | None = None,
) -> EvalLoader:
    """Makes the loader of all records, in order, without augmentation. `workers` None takes the cores to spare."""
    items = [(0, i) for i in range(len(records))]
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    dataset = _Samples(list(records), dict(sensors), input_size, None, 0)
    return EvalLoader(_data_loader(dataset, batches, min(_workers(workers), len(batches))))


def measure(records: Sequence[Record], sensors: Mapping[str, Sensor]) -> dict[str, Sensor]:
    """Returns the sensors with the mean and standard deviation of their encoded channels over all pixels.

    At most 256 records are read, evenly spaced. A channel that never changes gets a deviation of 1e-6.

    Raises:
        UserError: an image can't be read, or no record has an image of a sensor.
    """
    count = min(_MEASURED_IMAGES, len(records))
    chosen = [records[i * len(records) // count] for i in range(count)]
    sums: dict[str, list[Tensor]] = {m: [] for m in sensors}
    for record in tqdm(chosen, desc="measuring sensors", unit="image"):
        for m, sensor in sensors.items():
            if m in record.files:
                values = sensor.encode(read_image(record.files[m], sensor)[None])[0].flatten(1).double()
                pixels = torch.full((len(values),), values.shape[1], dtype=torch.float64)
                sums[m].append(torch.stack((pixels, values.sum(1), values.square().sum(1))))
    measured = {}
    for m, sensor in sensors.items():
        if not sums[m]:
            raise UserError(f"{m}: no training image has this modality; leave it out or add its files")
        pixels, total, squares = torch.stack(sums[m]).sum(0)
        mean = total / pixels
        std = (squares / pixels - mean.square()).clamp(min=0).sqrt().clamp(min=_SMALLEST_STD)
        measured[m] = replace(sensor, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return measured


class _Samples(Dataset[Sample | UserError]):
    """Samples asked for as (epoch, index); without a recipe they are letterboxed and not augmented.

    An index past the last record stands for a repeated one, augmented anew. A user's mistake is returned, not raised:
    DataLoader would bury it in a worker's traceback.
    """

    def __init__(
        self,
        records: list[Record],
        sensors: dict[str, Sensor],
        size: tuple[int, int],
        recipe: DataRecipe | None,
        seed: int,
    ) -> None:
        self.records = records
        self.sensors = sensors
        self.size = size
        self.recipe = recipe
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Sample | UserError:
        epoch, index = item
        try:
            sample = load_sample(self.records[index % len(self.records)], self.sensors)
        except UserError as error:
            return error
        if self.recipe is not None:
            return augment(sample, self.size, self.sensors, self.recipe, _generator(self.seed, epoch, index + 1))
        images, boxes, scale = letterbox(sample.images, sample.boxes, self.size, self.sensors)
        return Sample(sample.image_id, images, boxes, sample.labels, scale)


class _Order:
    """The (epoch, index) items of each batch of one rank; set `epoch` and `start_batch` before iterating."""

    def __init__(self, records: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.records = records
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches = max(1, records // batch_size)
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return self.batches - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        indices = torch.randperm(max(self.records, self.batch_size), generator=_generator(self.seed, epoch, 0)).tolist()
        for batch in range(self.start_batch, self.batches):
            whole = indices[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in whole[self.rank :: self.world_size]]


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence([seed % 2**64, epoch, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _workers(asked: int | None, processes: int = 1) -> int:
    if asked is not None:
        if asked < 0:
            raise UserError(f"data.workers: {asked} is not allowed; use 0 or more, or null for the cores to spare")
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, cores // processes - 1))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class _Collate:
    """Stacks samples into a batch of the modalities of `sensors`; passes a user's mistake on as it is."""

    def __init__(self, sensors: Mapping[str, Sensor], size: tuple[int, int]) -> None:
        self.sensors = sensors
        self.size = size

    def __call__(self, samples: list[Sample | UserError]) -> Batch | UserError:
        good = []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            good.append(sample)
        images, present = {}, {}
        for m, sensor in self.sensors.items():
            there = [m in sample.images for sample in good]
            kinds = {sample.images[m].dtype for sample in good if m in sample.images} or {torch.uint8}
            if len(kinds) > 1:
                names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
                ids = [sample.image_id for sample in good]
                return UserError(f"{m}: images {ids} mix {names}; give all images of a sensor one bit depth")
            images[m] = torch.zeros(len(good), sensor.channels, *self.size, dtype=kinds.pop())
            for row, sample in zip(images[m], good, strict=True):
                if m in sample.images:
                    row.copy_(sample.images[m])
            present[m] = torch.tensor(there)
        return Batch(
            [sample.image_id for sample in good],
            images,
            present,
            Targets([sample.boxes for sample in good], [sample.labels for sample in good]),
            torch.tensor([sample.scale for sample in good]),
        )


def _data_loader(dataset: _Samples, batches: object, workers: int) -> "DataLoader[Batch]":
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_Collate(dataset.sensors, dataset.size),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
        persistent_workers=workers > 0,
    )


def _good_batches(loader: "DataLoader[Batch]") -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise UserError(str(batch))  # raising what the frame holds would be a cycle, and workers end late in one
        yield batch
