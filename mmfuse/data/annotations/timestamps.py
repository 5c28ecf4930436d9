"""Matches the frames of two sensors by their times."""

from collections.abc import Sequence

import numpy as np

from mmfuse.errors import UserError


def match(reference: Sequence[float], other: Sequence[float], tolerance: float) -> list[int | None]:
    """Returns for each time of `reference` the index of the nearest in `other`, None if that is over `tolerance` off.

    All are of one unit and in any order. Each reference frame is matched on its own, so a frame of a slower sensor
    serves all that it is nearest to. Of two that are equally near the earlier one is taken, of equal times the first.

    Raises:
        UserError: a time isn't a finite number, or the tolerance isn't 0 or more.
    """
    if not tolerance >= 0:
        raise UserError(f"tolerance: {tolerance!r} is not allowed; use 0 or more")
    wanted, times = _numbers(reference, "reference"), _numbers(other, "other")
    if not len(times):
        return [None] * len(wanted)
    order = times.argsort(kind="stable")
    times = times[order]
    later = np.searchsorted(times, wanted).clip(max=len(times) - 1)
    earlier = np.searchsorted(times, times[(later - 1).clip(min=0)])
    gaps = np.abs(np.stack((times[earlier], times[later])) - wanted)
    nearest = np.where(gaps[0] <= gaps[1], earlier, later)
    near = gaps.min(0) <= tolerance
    return [index if found else None for index, found in zip(order[nearest].tolist(), near.tolist(), strict=True)]


def _numbers(times: Sequence[float], name: str) -> np.ndarray:
    try:
        values = np.array(times, np.int64 if all(isinstance(t, int) for t in times) else np.float64)
    except OverflowError:
        raise UserError(f"times: one of the {name} frames is too large; give seconds") from None
    if not np.isfinite(values).all():
        index = int(np.isfinite(values).argmin())
        raise UserError(f"times: number {index} of the {name} frames is {times[index]!r}; give finite numbers")
    return values
