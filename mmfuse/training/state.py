"""What a training keeps after each whole epoch, to go on from: weights, their average and the optimizer's moments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector
from mmfuse.sensor import Sensor

Row = dict[str, Any]
"""What is known of an epoch, by the column of `metrics.csv`."""


@dataclass(frozen=True)
class State:
    """What lies in a run's `last.safetensors`.

    `sensors` are those that the detector was built with, `rows` have what is known of each epoch, and `best` is the
    highest AP on the validation split so far.
    """

    path: Path
    tensors: dict[str, Tensor]
    sensors: dict[str, Sensor]
    rows: list[Row]
    best: float

    @staticmethod
    def read(path: Path) -> "State | None":
        """Returns the state in a file; None where there is no file.

        Raises:
            UserError: it can't be read.
        """
        if not path.exists():
            return None
        tensors, header = checkpoint.read(path)
        sensors = checkpoint.Spec.read(header, str(path)).sensors
        rows, best = header.get("rows"), header.get("best")
        if (
            not isinstance(rows, list)
            or not all(isinstance(row, dict) and "epoch" in row for row in rows)
            or not isinstance(best, int | float)
        ):
            raise UserError(f"{path}: its header isn't a training state's; restore it, or train anew")
        return State(path, tensors, sensors, list(rows), float(best))

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
    step: int,
) -> None:
    """Writes what `State.read` reads, whole or not at all; `step` counts those that are done.

    Raises:
        UserError: the file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in (("model", detector), ("ema", average)):
        tensors |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in moments.items() if isinstance(v, Tensor)}
    checkpoint.save(path, tensors, {"spec": detector.spec, "step": step, "rows": rows, "best": best})
