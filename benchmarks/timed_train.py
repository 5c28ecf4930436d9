"""`mmfuse train` as it is, with the times of its steps and epochs written down; for `benchmarks.mmfuse_train`.

Nothing is imported that the command doesn't import, so that it begins as soon.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

AGAIN = 10


def timed() -> None:
    """Runs mmfuse's command line, and writes into the file that comes first when its steps and epochs were done."""
    from mmfuse.cli import main
    from mmfuse.training.loop import Training, cudnn_looking

    path, *words = sys.argv[1:]
    found: dict[str, Any] = {"epochs": []}
    take_step, train_epoch = Training._step, Training._train_epoch
    batches = []

    def step(self: Training, number: int, batch: Any) -> Any:
        losses = take_step(self, number, batch)
        if number == 0:
            _finish()
            found["first"] = time.time()
        batches[:] = [(self, number, batch)]
        return losses

    def epoch(self: Training, *arguments: Any) -> Any:
        begun = time.time()
        losses = train_epoch(self, *arguments)
        _finish()
        found["epochs"].append((begun, time.time()))
        found["steps"] = len(self.loader)
        return losses

    Training._step, Training._train_epoch = step, epoch  # type: ignore[method-assign]
    if code := main(words):
        sys.exit(code)
    ((training, number, batch),) = batches
    training.model.train()
    with cudnn_looking(training.alike):
        for times in (2, AGAIN):
            begun = time.perf_counter()
            for _ in range(times):
                take_step(training, number, batch)
            _finish()
    found["step"] = (time.perf_counter() - begun) / AGAIN
    Path(path).write_text(json.dumps(found))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
