"""Prints how often `mmfuse.lift` is right on ray-cast streets, for depth.md: .venv/bin/python docs/measure_lift.py."""

import runpy
from pathlib import Path

import numpy as np

from mmfuse import lift

SEEDS = range(1000, 1060)
BINS = ((0, 5), (5, 10), (10, 15), (15, 20), (0, 20))
STREET = runpy.run_path(str(Path(__file__).parents[1] / "tests/images/test_lift.py"))["street"]


def main() -> None:
    """Prints the table's rows."""
    rows: list[tuple[float, bool, bool]] = []
    for seed in SEEDS:
        depth, camera, objects, truth = STREET(seed)
        right = []
        for holes in (0.0, 0.3):
            seen = np.where(np.random.default_rng(seed).random(depth.shape) < holes, 0, depth)
            got = np.array([position.distance for position in lift(objects, seen, camera)])
            right.append(np.abs(got - truth) <= np.maximum(0.02 * truth, 0.05))
        rows += zip(truth.tolist(), *(of.tolist() for of in right), strict=True)
    table = np.array(rows)
    for low, high in BINS:
        inside = table[(table[:, 0] >= low) & (table[:, 0] < high)]
        whole, holes = inside[:, 1].mean(), inside[:, 2].mean()
        print(f"{low} to {high} m: {len(inside)} objects, {whole:.1%} whole, {holes:.1%} with holes")


if __name__ == "__main__":
    main()
