"""Times several functions in strict alternation and gives the ratio of each to the first."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Ratio:
    """Time of one side over that of the first: the median over rounds, with its 95 % bootstrap interval.

    `milliseconds` is the median time of the side itself.
    """

    name: str
    milliseconds: float
    median: float
    low: float
    high: float


def side_by_side(sides: Mapping[str, Callable[[], object]], rounds: int = 11, warm_up: int = 2) -> list[Ratio]:
    """Runs every side once a round, in turning order, and compares the times of one round with each other."""
    times = alternate(sides, rounds, warm_up)
    first = next(iter(times.values()))
    return [Ratio(name, 1000 * float(np.median(own)), *median(own / first)) for name, own in times.items()]


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, np.ndarray]:
    """Returns the seconds of each side in each round (rounds,), by side; each round begins with another side."""
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(-warm_up, rounds), desc="rounds", leave=False):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            sides[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in times.items()}


def median(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the median of the rounds' values (rounds,) and the ends of its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.percentile(np.median(values[draws], 1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def fastest(candidates: Mapping[str, Callable[[], object]]) -> str:
    """Returns the name of the quickest of several ways to do the same, by the best of a few rounds."""
    times = alternate(candidates, rounds=5, warm_up=1)
    return min(times, key=lambda name: times[name].min())


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def device() -> torch.device:
    """Returns the device that benchmarks run on: the CUDA device where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
