"""The network alone, from images to logits and box codes, relative to effdet with the same weights.

Each side runs in the memory layout in which it is faster. Outputs are compared before anything is timed.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counters import count
from benchmarks.reference import pair, rows
from benchmarks.results import Bar, Row, count_rows, time_rows
from benchmarks.side_by_side import LAYOUTS, device, fastest, side_by_side

Sides = dict[str, Callable[[], Any]]
"""A network by memory layout."""

TIME = {"mmfuse": Bar(1.0, 0.85), "mmfuse, folded": Bar(0.8, 0.65)}
CALLS = {"mmfuse": Bar(0.6), "mmfuse, folded": Bar(0.35)}


def measure(rounds: int = 11, size: str = "d0", side: int = 512, batch: int = 1, classes: int = 90) -> list[Row]:
    """Times effdet, ours, ours again and ours for inference, and counts their calls."""
    candidates = sides(size, side, batch, classes)
    check(candidates, classes)
    layouts = {name: fastest(ways) for name, ways in candidates.items()}
    chosen = {name: candidates[name][layout] for name, layout in layouts.items()}
    calls = {name: count(way).calls.total() for name, way in chosen.items()}
    chosen["mmfuse again"], layouts["mmfuse again"] = chosen["mmfuse"], layouts["mmfuse"]
    times = side_by_side(chosen, rounds)
    return [*time_rows(times, TIME, layouts=layouts), *count_rows("ATen calls", "calls", calls, CALLS)]


def sides(size: str, side: int, batch: int, classes: int) -> dict[str, Sides]:
    """Returns each network in each memory layout, by name and layout; a call gives logits and codes.

    effdet's are lists of maps, ours are joined.
    """
    model, detector = pair(size, side, classes)
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))

    def theirs(network: nn.Module, x: Tensor) -> Any:
        return network(x)

    def ours(network: nn.Module, x: Tensor) -> Any:
        outputs = network({"rgb": x})
        return outputs.class_logits, outputs.box_codes

    networks = {"effdet": (model, theirs), "mmfuse": (detector, ours), "mmfuse, folded": (detector.folded(), ours)}
    found: dict[str, Sides] = {}
    for name, (network, run) in networks.items():
        found[name] = {}
        for layout, memory_format in LAYOUTS.items():
            copy = deepcopy(network).to(device(), memory_format=memory_format)
            x = images.to(device(), memory_format=memory_format)
            found[name][layout] = torch.inference_mode()(partial(run, copy, x))
    return found


def check(candidates: Mapping[str, Sides], classes: int) -> None:
    """Compares logits and codes of all sides with effdet's.

    Raises:
        AssertionError: they differ.
    """
    class_maps, box_maps = candidates["effdet"]["contiguous"]()
    expected = (rows(class_maps, classes), rows(box_maps, 4))
    for name, ways in candidates.items():
        for layout, way in ways.items():
            found = way()
            for mine, theirs, values in zip(found, expected, (classes, 4), strict=True):
                torch.testing.assert_close(
                    mine if isinstance(mine, Tensor) else rows(mine, values), theirs, rtol=0, atol=1e-4,
                    msg=partial("{}: {}".format, f"{name}, {layout}"),
                )  # fmt: skip
