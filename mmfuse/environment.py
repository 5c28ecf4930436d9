"""What a result depends on beside its recipe."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec

import torch


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


def hardware(device: torch.device) -> str:
    """Returns the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
