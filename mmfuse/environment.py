"""What a result depends on beside its recipe."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec

import torch

from mmfuse.errors import UserError


@dataclass(frozen=True)
class Environment:
    """When and on what something was made: `date` (ISO), `versions` by package, the device in words as `hardware`."""

    date: str
    python: str
    versions: dict[str, str]
    hardware: str
    processes: int


def environment(device: torch.device, processes: int = 1) -> Environment:
    """Returns versions, hardware and date."""
    packages = ("torch", "torchvision", "timm", "numpy", "pycocotools", "faster_coco_eval")
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        python=platform.python_version(),
        versions={name: version(name) for name in packages if find_spec(name)},
        hardware=hardware(device),
        processes=processes,
    )


def usable(device: str | torch.device) -> torch.device:
    """Returns a device that tensors can lie on.

    Raises:
        UserError: there is none of that name here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split(". ")[0].split(" device type")[0].split(" with arguments")[0]
        raise UserError(f"device: {str(device)!r} can't be used here ({reason}); use cpu, cuda or cuda:0") from None


def hardware(device: torch.device) -> str:
    """Returns the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
