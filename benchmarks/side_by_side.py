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
    draws = np.random.default_rng(0).integers(rounds, size=(2000, rounds))
    found = []
    for name in names:
        ratio = np.array(times[name]) / np.array(times[names[0]])
        low, high = np.percentile(np.median(ratio[draws], 1), (2.5, 97.5))
        found.append(
            Ratio(name, 1000 * float(np.median(times[name])), float(np.median(ratio)), float(low), float(high))
        )
    return found
