"""Reads calibrations from the files that datasets and tools write: KITTI, SUN RGB-D and Open3D JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mmfuse.data.annotations.formats import decode
from mmfuse.errors import UserError, unknown_name
from mmfuse.files import read_regular
from mmfuse.sensor import IDENTITY, Calibration

_CAMERAS = ("P0", "P1", "P2", "P3")
_SCANNER = "Tr_velo_to_cam"
_TOO_LARGE = 2**31


def read_calibration(path: Path, format: Literal["kitti", "sunrgbd", "open3d"], key: str = "") -> Calibration:
    """Reads one sensor's calibration from a file.

    `key` names the sensor in a KITTI file. Beside SUN RGB-D's `intrinsics.txt` the last file of the folder
    `extrinsics`, as its toolbox takes it, gives the pose.

    Raises:
        UserError: a file is missing or holds something else.
    """
    content = _content(path)
    try:
        if format == "kitti":
            return kitti(content, key)
        if format == "sunrgbd":
            extrinsics = sorted((path.parent / "extrinsics").glob("*.txt"))
            return sunrgbd(content, _content(extrinsics[-1]) if extrinsics else None)
        return open3d_json(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def kitti(content: bytes, key: str) -> Calibration:
    """Reads `calib/000000.txt` of KITTI's object benchmark (Geiger et al., CVPR 2012); the rig is the rectified frame.

    `key` is "P0" to "P3" for a camera: projection K [I | t], so its pose is the translation -t. "Tr_velo_to_cam" is the
    laser scanner, whose pose is R0_rect Tr_velo_to_cam.

    Raises:
        UserError: it isn't such a file, or the key isn't one of these.
    """
    if key not in (*_CAMERAS, _SCANNER):
        raise UserError(f"key: {unknown_name(key, (*_CAMERAS, _SCANNER), 'sensor of KITTI')}")
    lines = [line.partition(":") for line in decode(content).splitlines()]
    rows = {name.strip(): text for name, colon, text in lines if colon}
    for name in (key,) if key in _CAMERAS else (key, "R0_rect"):
        if name not in rows:
            raise UserError(f"the line '{name}:' is missing; give a calib file of KITTI's object benchmark")
    if key == _SCANNER:
        pose = _numbers(rows["R0_rect"].split(), (3, 3), "R0_rect") @ _numbers(rows[key].split(), (3, 4), key)
        return Calibration(pose=_rows(pose))
    projection = _numbers(rows[key].split(), (3, 4), key)
    intrinsics = _pinhole(projection[:, :3], key)
    pose = np.array(IDENTITY)
    pose[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
    return Calibration(intrinsics=intrinsics, pose=_rows(pose))


def sunrgbd(intrinsics: bytes, extrinsics: bytes | None) -> Calibration:
    """Reads `intrinsics.txt` (3 x 3) and a file of `extrinsics/` (3 x 4) of SUN RGB-D (Song et al., CVPR 2015).

    The extrinsics turn the camera level, so that gravity is (0, 1, 0) in the rig; without them the rig is the camera.

    Raises:
        UserError: they aren't such files.
    """
    camera = _pinhole(_numbers(decode(intrinsics).split(), (3, 3), "intrinsics"), "intrinsics")
    if extrinsics is None:
        return Calibration(intrinsics=camera)
    pose = _numbers(decode(extrinsics).split(), (3, 4), "extrinsics")
    return Calibration(intrinsics=camera, pose=_rows(pose))


def open3d_json(content: bytes) -> Calibration:
    """Reads Open3D's PinholeCameraIntrinsic, PinholeCameraParameters, or PinholeCameraTrajectory of a single camera.

    Its matrices are column by column; its extrinsic takes the world to the camera, so the pose is the inverse.

    Raises:
        UserError: it isn't such a file.
    """
    try:
        values = json.loads(decode(content))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON: {error}; give a file that Open3D wrote") from None
    values = values if isinstance(values, dict) else {}
    if isinstance(cameras := values.get("parameters"), list):
        if len(cameras) != 1:
            raise UserError(f"parameters: holds {len(cameras)} cameras; give a file with one")
        values = cameras[0] if isinstance(cameras[0], dict) else {}
    camera = values.get("intrinsic", values)
    if not isinstance(camera, dict) or "intrinsic_matrix" not in camera:
        raise UserError("the key 'intrinsic_matrix' is missing; give a pinhole camera that Open3D wrote")
    width, height = camera.get("width"), camera.get("height")
    if not (type(width) is int and type(height) is int and 0 < min(width, height) <= max(width, height) < _TOO_LARGE):
        raise UserError(f"width, height: {[width, height]} is not a size; give whole pixels")
    intrinsics = _pinhole(_numbers(camera["intrinsic_matrix"], (3, 3), "intrinsic_matrix").T, "intrinsic_matrix")
    pose = IDENTITY
    if "extrinsic" in values:
        extrinsic = _numbers(values["extrinsic"], (4, 4), "extrinsic").T
        if np.abs(extrinsic[3] - IDENTITY[3]).max() > 1e-6 or not abs(np.linalg.det(extrinsic)) > 1e-6:
            raise UserError(f"extrinsic: {extrinsic.tolist()} is not rotation and translation; give 4 x 4 by columns")
        pose = _rows(np.linalg.inv(extrinsic))
    return Calibration((width, height), intrinsics, pose=pose)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; check the path of the calibration") from None


def _numbers(values: object, shape: tuple[int, int], name: str) -> np.ndarray:
    """Returns finite numbers, or their text, as a matrix."""
    count = shape[0] * shape[1]
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise UserError(f"{name}: holds {found}; give {count}, a matrix of {shape[0]} x {shape[1]}")
    numbers = []
    for value in values:
        try:
            number = float(value) if isinstance(value, str | int | float) else float("nan")
        except (ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not abs(number) < float("inf"):
            raise UserError(f"{name}: {value!r} is not a finite number; mend the file")
        numbers.append(number)
    return np.array(numbers).reshape(shape)


def _pinhole(matrix: np.ndarray, name: str) -> tuple[float, float, float, float]:
    (fx, skew, cx), (zero, fy, cy), last = matrix.tolist()
    if not min(fx, fy) > 0 or abs(skew) > 1e-6 * fx or zero or last != [0, 0, 1]:
        raise UserError(
            f"{name}: {matrix.tolist()} is not a camera matrix; give rows [fx, 0, cx], [0, fy, cy], [0, 0, 1]"
        )
    return fx, fy, cx, cy


def _rows(pose: np.ndarray) -> tuple[tuple[float, ...], ...]:
    rows: Sequence[Sequence[float]] = pose.tolist()
    return tuple(map(tuple, rows))
