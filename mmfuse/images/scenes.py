"""From files to the images that the detector is shown: decoding, cutting the border, registering, preparing.

Training, evaluation and prediction all read their images here.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from mmfuse.images.decode import raw_image
from mmfuse.images.encodings import prepare
from mmfuse.images.registration import register
from mmfuse.sample import Scene
from mmfuse.sensor import Calibration, Sensor


def prepare_scene(
    raw: Mapping[str, Tensor],
    sensors: Mapping[str, Sensor],
    size: tuple[int, int] | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Prepares one scene: raw images (C, H, W) of some of the `sensors`, registered to the reference and encoded.

    `size` is width and height of the reference frame; where None, it is that of the images that lie in it already.
    `change` is given each modality and its raw image just before that is prepared: intensity as read, depth registered,
    both without what wasn't measured (`Sensor.measured`). Returns prepared images (C, H, W) of that size, in which
    intensity is NaN where nothing was measured.

    Raises:
        UserError: the sensors can't be registered, or lack a calibration that their encoding needs.
    """

    def prepared(m: str, x: Tensor, calibration: Calibration | None) -> Tensor:
        return prepare(x if change is None else change(m, x), sensors[m], calibration)

    raw = {m: x if x.ndim == 2 else sensors[m].measured(x) for m, x in raw.items()}
    own = {m: x if sensors[m].is_depth else prepared(m, x, sensors[m].calibration) for m, x in raw.items()}
    return {
        m: prepared(m, x, sensors[m].onto or sensors[m].calibration) if sensors[m].is_depth else x
        for m, x in register(own, sensors, size).items()
    }


def corner_of(sensors: Mapping[str, Sensor]) -> tuple[int, int]:
    """Returns x and y of what is seen in the whole image of the reference: the border that is cut off."""
    reference = next((s for s in sensors.values() if s.register == "none"), None)
    return (0, 0) if reference is None else reference.border[:2]


def mounted(scene: Scene, sensors: Mapping[str, Sensor]) -> dict[str, Sensor]:
    """Returns those `sensors` that a scene has images of, calibrated as they were then."""
    return {
        m: replace(
            sensors[m],
            calibration=scene.calibration.get(m, sensors[m].calibration),
            onto=sensors[m].onto if scene.onto is None else scene.onto,
        )
        for m in scene.images
    }


def read_scene(
    scene: Scene, sensors: Mapping[str, Sensor], change: Callable[[str, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Reads the images of one scene and prepares them, see `prepare_scene`.

    Raises:
        UserError: an image can't be read, or the sensors can't be registered.
    """
    raw = {m: raw_image(image, m, sensors[m]) for m, image in scene.images.items()}
    return prepare_scene(raw, mounted(scene, sensors), scene.size, change)
