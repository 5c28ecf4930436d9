"""Brings the images of a rig's sensors into the frame of its reference camera, by the rule of each sensor."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.images.geometry import project_points, register_depth, warp_by_homography, warp_through_depth
from mmfuse.images.resizing import resized
from mmfuse.sensor import Calibration, Sensor

Size = tuple[int, int]


def register(images: Mapping[str, Tensor], sensors: Mapping[str, Sensor], size: Size | None) -> dict[str, Tensor]:
    """Returns images (C, H', W') in the frame of the reference camera.

    `images` are (C, H, W); depth, which is raw, may also be points (N, 3) float32 in metres. `size` is width and height
    of the reference frame; where None, those of an image that lies in it already, else of the calibration. What each
    `register` of the sensors does:

    - "none": nothing.
    - "resize": scaled to the frame in its own type; intensity is interpolated, of depth the nearest pixel is taken.
    - "homography": intensity becomes float32, NaN outside the image; depth keeps its type, 0 outside.
    - "rig": depth and points are seen anew from the reference camera, in float32 of the sensor's raw unit. Intensity is
      looked up through the first depth image there is, and by the homography, if it has one, where that has no depth;
      float32, NaN where it isn't seen.

    Raises:
        UserError: a sensor lacks what its rule needs; the message starts with its name.
    """
    rules = {m: sensors[m].register for m in images}
    for m, image in images.items():
        if image.ndim == 2 and not (rules[m] == "rig" and sensors[m].is_depth and image.shape[1] == 3):
            raise UserError(f"{m}: register: points {tuple(image.shape)} need depth, register: rig and rows x, y, z")
    if all(rule == "none" for rule in rules.values()):
        return dict(images)
    frame = size or _frame_size(images, sensors)
    registered: dict[str, Tensor] = {}
    depth: Tensor | None = None
    for m in sorted(images, key=lambda m: not sensors[m].is_depth):
        try:
            registered[m] = _registered(images[m], sensors[m], frame, depth)
        except UserError as error:
            raise UserError(f"{m}: {error}") from None
        if depth is None and sensors[m].is_depth:
            depth = sensors[m].metres(registered[m])[0][0]
    return {m: registered[m] for m in images}


def _frame_size(images: Mapping[str, Tensor], sensors: Mapping[str, Sensor]) -> Size:
    for m, image in images.items():
        if sensors[m].register == "none":
            return image.shape[2], image.shape[1]
    for m in images:
        if (onto := sensors[m].onto) is not None and onto.size is not None:
            return onto.size
    raise UserError(
        f"register: the size of the reference frame isn't known of {', '.join(images)} alone; "
        "give an image of the reference too, or its calibration.size"
    )


def _registered(image: Tensor, sensor: Sensor, size: Size, depth: Tensor | None) -> Tensor:
    """Returns one image in the frame; `depth` (H', W') metres is there already, if any sensor measures it."""
    if sensor.register == "none":
        return image
    if sensor.register == "resize":
        return resized(image, size[::-1], sensor.interpolation)
    if sensor.register == "homography":
        return _by_homography(image, sensor, size)
    return _by_depth(image, sensor, size) if sensor.is_depth else _through_depth(image, sensor, size, depth)


def _by_homography(image: Tensor, sensor: Sensor, size: Size) -> Tensor:
    warped, valid = warp_by_homography(image, sensor.homography, size, sensor.interpolation)
    return torch.where(valid, warped, 0).to(image.dtype) if sensor.is_depth else torch.where(valid, warped, torch.nan)


def _by_depth(image: Tensor, sensor: Sensor, size: Size) -> Tensor:
    own, camera = _cameras(sensor, size)
    if image.ndim == 2:
        metres = project_points(image, own, camera)
    else:
        metres = register_depth(sensor.metres(image)[0][0], own, camera)
    raw = sensor.disparity[0] / metres + sensor.disparity[1] if sensor.disparity else metres / sensor.unit
    return torch.where(metres > 0, raw, 0)[None]


def _through_depth(image: Tensor, sensor: Sensor, size: Size, depth: Tensor | None) -> Tensor:
    if depth is None and not sensor.homography:
        raise UserError("register: rig needs depth, which no sensor here gives; add a depth sensor or a homography")
    result = (
        _by_homography(image, sensor, size) if sensor.homography else torch.full((len(image), *size[::-1]), torch.nan)
    )
    if depth is None:
        return result
    if depth.shape != size[::-1]:
        found = f"{depth.shape[1]} x {depth.shape[0]}"
        raise UserError(f"register: the depth is {found} and the reference frame {size[0]} x {size[1]}; register it")
    own, camera = _cameras(sensor, size)
    warped, valid = warp_through_depth(image, own, camera, depth)
    return torch.where(valid | (depth > 0), torch.where(valid, warped, torch.nan), result)


def _cameras(sensor: Sensor, size: Size) -> tuple[Calibration, Calibration]:
    if sensor.calibration is None:
        raise UserError("register: rig needs this sensor's calibration; give it in the card or with the scene")
    if sensor.onto is None:
        raise UserError("register: rig needs the reference camera's calibration; give it in the card or with the scene")
    return sensor.calibration, sensor.onto.scaled(size)
