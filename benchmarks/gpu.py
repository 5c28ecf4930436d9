"""What the benchmarks on a GPU share: their detectors, what may fail, graphs, and kernels.

Images lie on the device already, normalised and channels last, and networks run in bf16. Where effdet is installed it
is one of the sides, with the same weights, and its outputs are compared before anything is timed. What fails, differs
or has no time left is named in the result. Without a GPU, `small` runs the same code on the processor.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.side_by_side import device
from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.scaling import PUBLISHED

CLASSES = 90

Run = Callable[[], Any]


class Notes:
    """What a result lacks, and when nothing may begin any more."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.lines: list[str] = []

    def late(self, what: object) -> bool:
        """Returns whether time is up, and notes what is left out for it."""
        if late := time.monotonic() > self.deadline:
            self.lines.append(f"{what}: left out, no time was left")
        return late

    def attempt(self, what: str, make: Callable[[], Run]) -> Run | None:
        """Returns what `make` gives once it has run, None where either fails, with a note."""
        try:
            run = make()
            run()
        except Exception as error:  # a way that this machine can't go
            first = str(error).strip().partition("\n")[0][:160]
            self.lines.append(f"{what}: left out, {type(error).__name__}: {first}")
            return None
        return run

    def taken(self) -> list[str]:
        """Returns the notes since the last call."""
        lines, self.lines = self.lines, []
        return lines


def settle(small: bool) -> None:
    """Chooses what a GPU does best; refuses the whole benchmark without one.

    Raises:
        UserError: there is no CUDA device, and not `small`.
    """
    if not small and not torch.cuda.is_available():
        raise UserError("device: no CUDA device was found; run it on one, or give --small")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def models(size: str, side: int, count: int, notes: Notes) -> tuple[nn.Module | None, FusionDetector]:
    """Returns effdet's detector, if it is installed and has such a one, and ours for `count` modalities.

    Both are on the device, channels last, with the same weights.
    """
    reference: nn.Module | None = None
    detector: nn.Module | None = None
    if count == 1 and size in PUBLISHED:
        try:
            from benchmarks.reference import pair
        except ImportError as error:
            if (line := f"effdet: left out, {error}") not in notes.lines:
                notes.lines.append(line)
        else:
            with torch.enable_grad():
                reference, detector = pair(size, side, CLASSES)
            reference = reference.to(device()).to(memory_format=torch.channels_last)
    if detector is None:
        torch.manual_seed(0)
        detector = create_detector(size, {f"sensor_{n}": 3 for n in range(count)}, CLASSES).eval()
    assert isinstance(detector, FusionDetector)
    return reference, detector.to(device()).to(memory_format=torch.channels_last)


def captured(run: Run, pool: Any) -> Run:
    """Returns the replay of a CUDA graph of what `run` does; graphs of one memory `pool` write over each other's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def repeated(run: Run, times: int) -> Run:
    """Returns what runs so many times."""

    def all_of_them() -> None:
        for _ in range(times):
            run()

    return all_of_them


def kernels(run: Run) -> tuple[int, float]:
    """Returns how many kernels, copies and fills a run starts, and the seconds in which the device is busy."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as listener:
        run()
        torch.cuda.synchronize()
    found = [e.time_range for e in listener.events() or [] if e.device_type == DeviceType.CUDA]
    return len(found), covered((t.start, t.end) for t in found) / 1e6


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
