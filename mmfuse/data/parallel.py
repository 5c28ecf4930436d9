"""Does the same with many things in as many processes as there are cores to spare."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmfuse.errors import UserError

_WORTH_A_PROCESS = 16


def spare_cores(asked: int | None, processes: int = 1) -> int:
    """Returns how many worker processes to start: what was asked for, or as many as there are cores to spare.

    One core is left to each of the `processes` that train here, and none has more than 16 workers.
    """
    if asked is not None:
        if asked < 0:
            raise UserError(f"data.workers: {asked} is not allowed; use 0 or more, or null for the cores to spare")
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(16, cores // processes - 1))


def one_thread(worker: int) -> None:
    """Sets up a worker process: cores are shared between workers, not threads."""
    torch.set_num_threads(1)


def each(function: Callable[[Any], Any], things: Sequence[Any], workers: int | None, title: str) -> Iterator[Any]:
    """Yields what a function gives for each of some things, in their order, with a progress bar.

    The function and what it gives must be such that processes can pass them on, and so are the things. A `UserError`
    that it raises is yielded in its place: a process would bury it in a traceback. Of few things the process itself
    takes care.
    """
    number = min(spare_cores(workers), len(things) // _WORTH_A_PROCESS)
    loader = DataLoader(_Done(function, things), batch_size=None, num_workers=number, worker_init_fn=one_thread)
    return iter(tqdm(loader, desc=title, unit="image"))


class _Done(Dataset[Any]):
    def __init__(self, function: Callable[[Any], Any], things: Sequence[Any]) -> None:
        self.function = function
        self.things = things

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(self.things[index])
        except UserError as error:
            return error
