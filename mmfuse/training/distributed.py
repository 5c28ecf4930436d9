"""Processes that train together under torchrun; one process alone is a world of one."""

import os
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import nn
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
            agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                self.size,
                is_master=self.is_first and not agent,
                timeout=timedelta(minutes=10),
            )
            # torchrun restarts all processes when one dies, but keeps the store: without a name of its own for each
            # attempt, these would read the addresses of processes that are gone, and hang
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo",
                store=dist.PrefixStore(f"attempt{attempt}", store),
                rank=self.rank,
                world_size=self.size,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns a model whose processes share gradients and, on CUDA, the statistics of batch norms."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm

            model = convert_sync_batchnorm(model)
        return DistributedDataParallel(model)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()
