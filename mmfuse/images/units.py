"""Tells raw images that can't be in their sensor's unit, such as colours divided by 255 or metres for millimetres."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

_MUCH = 20.0
"""How many times the highest value of training half of an image must be above for another unit."""
_WILD = 1e6
"""From here on, likewise, values are those of a broken sensor, which isn't the user's mistake."""


def figures(raw: Tensor, sensor: Sensor) -> Tensor:
    """Returns what tells the unit of raw images (..., C, H, W), on their device: (..., 5) float32.

    These are the lowest and the highest value, the shares below 0 and far above training's highest, and 1 if any has
    a fraction, else 0; over every second row and column, without what wasn't measured: NaN, infinity, and 0 of depth.
    """
    values = sensor.measured(raw[..., ::2, ::2]).to(torch.float32)
    counts = values.isfinite()
    if sensor.is_depth:
        counts = counts & (values != 0)
    each = (-3, -2, -1)
    some = counts.sum(each).clamp(min=1)
    return torch.stack(
        (
            torch.where(counts, values, torch.inf).amin(each),
            torch.where(counts, values, -torch.inf).amax(each),
            (counts & (values < 0)).sum(each) / some,
            (counts & (values > _MUCH * sensor.seen[1])).sum(each) / some,
            (counts & (values != values.round())).flatten(-3).any(-1).to(torch.float32),
        ),
        -1,
    )


def check_units(told: Mapping[str, Tensor], sensors: Mapping[str, Sensor]) -> None:
    """Refuses images that can't be in their sensors' units; `told` is `figures` (B, 5) of each, NaN if not looked at.

    That is: floats with fractions that are all below a hundredth of training's highest, or of which a tenth is below 0,
    for files of whole numbers; all below a tenth of training's lowest; half of an image 20 times above its highest. An
    image of one value, and one beyond a million times the range, is a broken sensor's: `doubt` sees to it.

    Raises:
        UserError: one can't be.
    """
    for m, rows in told.items():
        sensor = sensors[m]
        for row, (lowest, highest, negative, above, fraction) in enumerate(rows.tolist()):
            if not lowest < highest:
                continue
            largest = max(abs(lowest), abs(highest))
            whole = sensor.dtype != "float32"
            low, high = sensor.seen
            if (
                (whole and fraction and (largest < high / 100 or negative > 0.1))
                or largest < low / 10
                or (above > 0.5 and largest < _WILD * high)
            ):
                which = f" of image {row}" if len(rows) > 1 else ""
                given, expected = f"{lowest:.4g} to {highest:.4g}", f"{sensor.dtype} from {low:.4g} to {high:.4g}"
                raise UserError(f"images: {m}{which} holds {given}, but this sensor gives {expected}; use its own unit")


def unknown(image: Tensor) -> Tensor:
    """Returns `figures` of an image that isn't looked at."""
    return torch.full((5,), math.nan, device=image.device)
