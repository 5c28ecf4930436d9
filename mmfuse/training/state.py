"""What a training keeps to go on from: weights, their average, the optimizer's moments, and how far it has come."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector

Row = dict[str, Any]
"""What is known of an epoch, by the column of `metrics.csv`."""


@dataclass
class Begun:
    """How far an epoch has come: the `steps` that are done, the `sums` of their losses, and the `seconds` they took."""

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def to(self, device: torch.device) -> "Begun":
        """Returns the same with its sums on a device."""
        return Begun(self.steps, {k: v.to(device) for k, v in self.sums.items()}, self.seconds)


@dataclass(frozen=True)
class State:
    """What lies in a run's `last.safetensors`.

    `spec` is that of the detector, `rows` have what is known of each whole epoch, `begun` of the
    one after them, and `best` is the highest AP on the validation split so far.
    """

    path: Path
    tensors: dict[str, Tensor]
    spec: checkpoint.Spec
    rows: list[Row]
    best: float
    begun: Begun

    @property
    def epochs_begun(self) -> int:
        """How many epochs were trained, in whole or in part."""
        return (int(self.rows[-1]["epoch"]) if self.rows else 0) + (self.begun.steps > 0)

    @staticmethod
    def read(path: Path) -> "State | None":
        """Returns the state in a file; None where there is no file.

        Raises:
            UserError: it can't be read.
        """
        if not path.exists():
            return None
        tensors, header = checkpoint.read(path)
        spec = checkpoint.Spec.read(header, str(path))
        rows, best = header.get("rows"), header.get("best")
        steps, sums, seconds = (header.get(key) for key in ("steps", "sums", "seconds"))
        if (
            not isinstance(rows, list)
            or not all(isinstance(row, dict) and "epoch" in row for row in rows)
            or not isinstance(best, int | float)
            or not isinstance(steps, int)
            or not isinstance(sums, dict)
            or not all(isinstance(value, float) for value in sums.values())
            or not isinstance(seconds, int | float)
        ):
            raise UserError(f"{path}: its header isn't a training state's; restore it, or train anew")
        begun = Begun(steps, {key: torch.tensor(value) for key, value in sums.items()}, seconds)
        return State(path, tensors, spec, list(rows), float(best), begun)

    def restore(self, detector: Detector, average: Detector, optimizer: torch.optim.Optimizer) -> None:
        """Fills a detector, the average of its weights and its optimizer.

        Raises:
            UserError: a tensor is missing, left over or of another shape.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for key, value in self.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        checkpoint.fill(detector, parts["model"], self.path)
        checkpoint.fill(average, parts["ema"], self.path)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, name = key.partition(".")
            like = parameters[int(index)]  # fused steps take memory as it lies, and files hold no strides
            own = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            moments.setdefault(int(index), {})[name] = own
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(
    path: Path,
    detector: Detector,
    average: Detector,
    optimizer: torch.optim.Optimizer,
    rows: list[Row],
    best: float,
    begun: Begun,
    step: int,
) -> None:
    """Writes what `State.read` reads, whole or not at all; `step` counts those that are done in all epochs.

    Raises:
        UserError: the file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in (("model", detector), ("ema", average)):
        tensors |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in moments.items() if isinstance(v, Tensor)}
    sums = {key: float(value) for key, value in begun.sums.items()}
    within = {"steps": begun.steps, "sums": sums, "seconds": begun.seconds}
    checkpoint.save(path, tensors, {"spec": detector.spec, "step": step, "rows": rows, "best": best, **within})
