"""Processes that train together under torchrun; one process alone is a world of one."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmfuse.environment import usable


@dataclass
class World:
    """The processes of a training; enter it to join them."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def from_environment(device: str | None) -> "World":
        """Reads what torchrun sets; `device` None takes CUDA where there is one.

        Raises:
            UserError: the device can't be used here.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind == "cuda":
            kind = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        return World(rank, size, usable(kind))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def __enter__(self) -> "World":
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            # torchrun restarts all processes when one dies, but keeps the store: without a name of its own for each
            # time that they join, these would read the addresses of processes that are gone, and hang
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                timeout=_PATIENCE,
                store=dist.PrefixStore(f"attempt{_attempt()}/{next(_JOINED)}", _store(self.is_first)),
                rank=self.rank,
                world_size=self.size,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, model: nn.Module, *, some_unused: bool) -> nn.Module:
        """Returns a model whose processes share gradients and the statistics of batch norms.

        With `some_unused` a step may leave out parameters, the same ones in every process.
        """
        if self.size == 1:
            return model
        from mmfuse.training.shared_norms import share_norms

        share_norms(model)
        return DistributedDataParallel(model, find_unused_parameters=some_unused)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))  # on the host: it is the first process's, so long as it takes

    def any_of(self, there: Collection[str], names: Iterable[str]) -> list[str]:
        """Returns those of `names` that are `there` in some process."""
        names = list(names)
        votes = torch.tensor([name in there for name in names], dtype=torch.uint8)
        if self.size > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [name for name, vote in zip(names, votes.tolist(), strict=True) if vote]

    def draw_apart(self) -> None:
        """Lets processes whose global generators of torch are alike draw differently from here on."""
        if self.size > 1:
            torch.manual_seed(int(torch.randint(2**62, (self.size,))[self.rank]))

    def first_says(self, value: bool) -> bool:
        """Returns what the first process gives, to all."""
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.uint8, device=self.device)
        dist.broadcast(said, 0)
        return bool(said)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the mean over all processes of numbers () that each of them has."""
        numbers = torch.stack([value.double() for value in values.values()])
        if self.size > 1:
            dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))


ALONE = World(0, 1, torch.device("cpu"))
"""One process that trains by itself."""

_PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which prepares files and scores; torchrun ends them if one dies."""


def note_begun(folder: Path) -> None:
    """Notes where torchrun can be asked that it has begun a run in a folder, so that it goes on when it restarts."""
    if _agent_stores():
        _store().set(_begun(folder), "")


def was_begun(folder: Path) -> bool:
    """Whether torchrun restarted these processes after they had begun a run in a folder; see `note_begun`."""
    return _attempt() > 0 and _agent_stores() and _store().check([_begun(folder)])


_JOINED = count()


def _begun(folder: Path) -> str:
    return f"begun {folder.absolute()}"


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _agent_stores() -> bool:
    """Whether torchrun itself keeps the store, which then outlives the processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(is_first: bool = False) -> dist.TCPStore:
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=is_first and not _agent_stores(),
        timeout=timedelta(minutes=10),
    )
