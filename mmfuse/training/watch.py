"""Looks at the loss and the gradient of every step, without waiting for the device."""

import math
from collections import deque

import torch
from torch import Tensor

from mmfuse.errors import UserError


class Watch:
    """Stops a training at a loss or a gradient that isn't finite, without waiting for the device.

    The figures of a step are looked at when they have come to the host by themselves: on a CPU at once, so before the
    optimizer's step, on CUDA when the device is done with them, which is later by as much as the host is ahead. Until
    then weights and averages may be spoilt; `finish` waits for all figures, and goes before what reads or keeps these.
    `loss` is that of the last step whose figures have come, NaN before.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self.loss = math.nan
        self._sent: deque[tuple[int, list[int], Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, image_ids: list[int], loss: Tensor, norm: Tensor) -> None:
        """Sends the loss and the norm of the gradient of a step, both of shape (), to the host.

        Raises:
            UserError: those of this step or one before aren't finite.
        """
        figures = torch.stack((loss.detach(), norm)).to("cpu", non_blocking=True)
        self._sent.append((step, image_ids, figures, _copied(loss.device)))
        while self._sent and ((copied := self._sent[0][3]) is None or copied.query()):
            self._check()

    def finish(self) -> None:
        """Waits for what was sent.

        Raises:
            UserError: it isn't finite.
        """
        while self._sent:
            if copied := self._sent[0][3]:
                copied.synchronize()
            self._check()

    def _check(self) -> None:
        step, image_ids, figures, _ = self._sent.popleft()
        loss, norm = figures.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "norm of the gradient"
            raise UserError(
                f"step {step}: the {what} is {norm if math.isfinite(loss) else loss} on images {image_ids}; "
                f"lower train.lr ({self._lr:g}) or look at these images"
            )
        self.loss = loss


def _copied(device: torch.device) -> torch.cuda.Event | None:
    """Returns an event that comes when the device has done what it was asked so far; None where that is done."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
