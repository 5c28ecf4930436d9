"""From files to the images that the detector is shown: decoding, cutting the border, registering, preparing.

Training, evaluation and prediction all read their images here.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from mmfuse.images.decode import read_image
from mmfuse.images.encodings import prepare
from mmfuse.images.registration import register
from mmfuse.sensor import Calibration, Sensor


def prepare_scene(
    raw: Mapping[str, Tensor],
    sensors: Mapping[str, Sensor],
    size: tuple[int, int] | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Prepares one scene: raw images (C, H, W) of some of the `sensors`, registered to the reference and encoded.

    `size` is width and height of the reference frame; where None, it is that of the images that lie in it already.
    `change` is given each modality and its raw image just before that is prepared: intensity as read, depth registered.
    Returns prepared images (C, H, W) of that size, in which intensity is NaN where nothing was measured.

    Raises:
        UserError: the sensors can't be registered, or lack a calibration that their encoding needs.
    """

    def prepared(m: str, x: Tensor, calibration: Calibration | None) -> Tensor:
        return prepare(x if change is None else change(m, x), sensors[m], calibration)

    own = {m: x if sensors[m].is_depth else prepared(m, x, sensors[m].calibration) for m, x in raw.items()}
    return {
        m: prepared(m, x, sensors[m].onto or sensors[m].calibration) if sensors[m].is_depth else x
        for m, x in register(own, sensors, size).items()
    }


def read_scene(
    files: Mapping[str, str | os.PathLike[str]],
    sensors: Mapping[str, Sensor],
    calibration: Mapping[str, Calibration],
    onto: Calibration | None = None,
    size: tuple[int, int] | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reads one scene and prepares it, see `prepare_scene`; of those `sensors` that have a file.

    `calibration` and `onto`, that of the reference, take the place of the sensors' own where given.

    Raises:
        UserError: a file can't be read, or the sensors can't be registered.
    """
    mounted = {
        m: replace(s, calibration=calibration.get(m, s.calibration), onto=s.onto if onto is None else onto)
        for m, s in sensors.items()
        if m in files
    }
    return prepare_scene({m: read_image(files[m], sensor) for m, sensor in mounted.items()}, mounted, size, change)
