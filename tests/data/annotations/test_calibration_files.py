import json
from pathlib import Path

import numpy as np
import pytest

from mmfuse.data.annotations.calibration_files import kitti, open3d_json, read_calibration, sunrgbd
from mmfuse.errors import UserError
from mmfuse.sensor import IDENTITY

KITTI = b"""P0: 700 0 600 0 0 710 180 0 0 0 1 0
P1: 700 0 600 -378 0 710 180 0 0 0 1 0
P2: 7.0e+02 0 600 47 0 710 180 -0.35 0 0 1 0.005
P3: 700 0 600 -340 0 710 180 2 0 0 1 0.003
R0_rect: 0 -1 0 1 0 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0.1 0 0 -1 -0.2 1 0 0 -0.3
Tr_imu_to_velo: 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8

"""
LEVEL = b"0.8 0.6 0 0.1\n-0.6 0.8 0 0.2\n0 0 1 0.3\n"
PINHOLE = b"529.5 0 365.0\n0 528.5 262.0\n0 0 1\n"
CAMERA = {"width": 640, "height": 480, "intrinsic_matrix": [500, 0, 0, 0, 510, 0, 319, 241, 1]}


def extrinsic():
    """World to camera: a quarter turn about z, then a shift."""
    return np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])


def parameters():
    return {"class_name": "PinholeCameraParameters", "extrinsic": extrinsic().T.ravel().tolist(), "intrinsic": CAMERA}


def encoded(values):
    return json.dumps(values).encode()


@pytest.mark.parametrize("key", ["P0", "P1", "P2", "P3"])
def test_a_kitti_camera_projects_as_its_matrix_does(key):
    camera = kitti(KITTI, key)
    assert camera.intrinsics == (700, 710, 600, 180)
    assert camera.size is None
    line = next(line for line in KITTI.decode().splitlines() if line.startswith(key))
    matrix = np.array(line.split()[1:], float).reshape(3, 4)
    point = np.array([1.5, -0.7, 9, 1])
    x, y, w = matrix @ point
    own = np.linalg.inv(camera.pose) @ point
    assert own[2] == pytest.approx(w)
    assert 700 * own[0] / own[2] + 600 == pytest.approx(x / w)
    assert 710 * own[1] / own[2] + 180 == pytest.approx(y / w)


def test_a_kitti_scanner_is_turned_into_the_rectified_frame():
    scanner = kitti(KITTI, "Tr_velo_to_cam")
    assert scanner.intrinsics is None
    # (4, 1, 2) ahead, left, up: Tr gives (-1 + 0.1, -2 - 0.2, 4 - 0.3), then R0_rect (2.2, -0.9, 3.7)
    assert np.array(scanner.pose) @ (4, 1, 2, 1) == pytest.approx([2.2, -0.9, 3.7, 1])


def test_sun_rgbd_extrinsics_turn_the_camera_level():
    camera = sunrgbd(PINHOLE, LEVEL)
    assert camera.intrinsics == (529.5, 528.5, 365.0, 262.0)
    assert camera.pose == ((0.8, 0.6, 0, 0.1), (-0.6, 0.8, 0, 0.2), (0, 0, 1, 0.3), (0, 0, 0, 1))
    # the toolbox (readframeSUNRGBD.m, read3dPoints.m): Rtilt takes (x, z, -y) to a frame whose third axis is up
    swap, back = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    tilt = swap @ np.loadtxt(LEVEL.decode().splitlines())[:, :3] @ back
    down_in_camera = np.array(camera.pose)[:3, :3].T @ (0, 1, 0)
    x, y, z = down_in_camera
    assert tilt @ (x, z, -y) == pytest.approx([0, 0, -1])
    assert sunrgbd(b"529.5 0 365 0 528.5 262 0 0 1", None).pose == IDENTITY


def test_open3d_cameras_are_read():
    for values in (CAMERA, {**CAMERA, "class_name": "PinholeCameraIntrinsic"}):
        camera = open3d_json(encoded(values))
        assert camera.size == (640, 480)
        assert camera.intrinsics == (500, 510, 319, 241)
        assert camera.pose == IDENTITY
    for values in (parameters(), {"class_name": "PinholeCameraTrajectory", "parameters": [parameters()]}):
        camera = open3d_json(encoded(values))
        assert camera.intrinsics == (500, 510, 319, 241)
        assert np.array(camera.pose) @ extrinsic() == pytest.approx(np.eye(4))
        assert camera.pose[0] == pytest.approx((0, 1, 0, -2))


def test_what_open3d_writes_is_read(tmp_path):
    import open3d

    written = open3d.camera.PinholeCameraParameters()
    written.intrinsic = open3d.camera.PinholeCameraIntrinsic(640, 480, 500, 510, 319, 241)
    written.extrinsic = extrinsic()
    trajectory = open3d.camera.PinholeCameraTrajectory()
    trajectory.parameters = [written]
    for name, value in (("intrinsic", written.intrinsic), ("parameters", written), ("trajectory", trajectory)):
        path = tmp_path / f"{name}.json"
        assert (
            open3d.io.write_pinhole_camera_intrinsic(str(path), value)
            if name == "intrinsic"
            else (
                open3d.io.write_pinhole_camera_parameters(str(path), value)
                if name == "parameters"
                else open3d.io.write_pinhole_camera_trajectory(str(path), value)
            )
        )
        camera = read_calibration(path, "open3d")
        assert camera.size == (640, 480)
        assert camera.intrinsics == (500, 510, 319, 241)
        expected = np.eye(4) if name == "intrinsic" else np.linalg.inv(extrinsic())
        assert np.array(camera.pose) == pytest.approx(expected)


def test_files_are_read_by_their_format(tmp_path):
    (tmp_path / "000000.txt").write_bytes(KITTI)
    assert read_calibration(tmp_path / "000000.txt", "kitti", "P2") == kitti(KITTI, "P2")
    (tmp_path / "intrinsics.txt").write_bytes(PINHOLE)
    assert read_calibration(tmp_path / "intrinsics.txt", "sunrgbd") == sunrgbd(PINHOLE, None)
    (tmp_path / "extrinsics").mkdir()
    (tmp_path / "extrinsics/20140101.txt").write_bytes(b"1 0 0 0 0 1 0 0 0 0 1 0")
    (tmp_path / "extrinsics/20150101.txt").write_bytes(LEVEL)
    assert read_calibration(tmp_path / "intrinsics.txt", "sunrgbd") == sunrgbd(PINHOLE, LEVEL)
    (tmp_path / "camera.json").write_bytes(encoded(CAMERA))
    assert read_calibration(tmp_path / "camera.json", "open3d") == open3d_json(encoded(CAMERA))


def test_a_real_kitti_file_is_read():
    path = Path(__file__).parents[3].parent / "shared/data/kitti_sample/training/calib/000000.txt"
    if not path.is_file():
        pytest.skip("the KITTI sample isn't here")
    colour, grey = (read_calibration(path, "kitti", key) for key in ("P2", "P0"))
    assert grey.pose == IDENTITY
    assert colour.pose[0][3] == pytest.approx(-0.06, abs=0.01)
    assert colour.intrinsics == pytest.approx((707.0493, 707.0493, 604.0814, 180.5066))
    scanner = np.array(read_calibration(path, "kitti", "Tr_velo_to_cam").pose)
    assert scanner @ (10, 0, 0, 1) == pytest.approx([0, 0, 9.7, 1], abs=0.3)


WRONG_KITTI = {
    "an unknown key": (KITTI, "P4", "'P4' is not a known sensor of KITTI; use one of P0, P1, P2, P3, Tr_velo_to_cam"),
    "no key": (KITTI, "", "'' is not a known sensor of KITTI; use one of P0"),
    "a missing line": (KITTI.replace(b"P2:", b"Q:"), "P2", "the line 'P2:' is missing; give"),
    "no rectification": (KITTI.replace(b"R0_rect", b"R"), "Tr_velo_to_cam", "the line 'R0_rect:' is missing"),
    "too few": (b"P2: 700 0 600\n", "P2", "P2: holds 3 numbers; give 12, a matrix of 3 x 4"),
    "NaN": (KITTI.replace(b"47", b"nan"), "P2", "P2: 'nan' is not a finite number"),
    "words": (KITTI.replace(b"47", b"x"), "P2", "P2: 'x' is not a finite number"),
    "skew": (KITTI.replace(b"P3: 700 0", b"P3: 700 5"), "P3", "P3: .* is not a camera matrix"),
    "no rotation": (KITTI.replace(b"R0_rect: 0 -1", b"R0_rect: 0 -2"), "Tr_velo_to_cam", "pose: .* is not a rotation"),
    "no focal length": (KITTI.replace(b"P0: 700", b"P0: 0"), "P0", "P0: .* is not a camera matrix"),
    "an image": (b"\x89PNG\r\n\x1a\n\xff", "P2", "is not UTF-8 text"),
    "nothing": (b"", "P2", "the line 'P2:' is missing"),
}


@pytest.mark.parametrize("name", WRONG_KITTI)
def test_a_wrong_kitti_file_is_one_line(name):
    content, key, message = WRONG_KITTI[name]
    with pytest.raises(UserError, match=message) as caught:
        kitti(content, key)
    assert "\n" not in str(caught.value)


WRONG_SUN = {
    "too many": (PINHOLE + b"1", None, "intrinsics: holds 10 numbers; give 9"),
    "NaN": (PINHOLE.replace(b"365.0", b"NaN"), None, "intrinsics: 'NaN' is not a finite number"),
    "no camera": (b"1 2 3 4 5 6 7 8 9", None, "intrinsics: .* is not a camera matrix"),
    "other extrinsics": (PINHOLE, b"1 0 0 0 1 0 0 0 1", "extrinsics: holds 9 numbers; give 12"),
    "no rotation": (PINHOLE, LEVEL.replace(b"0.8", b"1.8"), "pose: .* is not a rotation"),
    "bytes": (PINHOLE, b"\xff\xfe", "is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG_SUN)
def test_wrong_sun_rgbd_files_are_one_line(name):
    intrinsics, extrinsics, message = WRONG_SUN[name]
    with pytest.raises(UserError, match=message):
        sunrgbd(intrinsics, extrinsics)


WRONG_OPEN3D = {
    "no JSON": (b"{", "is not JSON: .*; give a file that Open3D wrote"),
    "nothing": (b"", "is not JSON"),
    "a list": (b"[1, 2]", "the key 'intrinsic_matrix' is missing"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "no matrix": (encoded({"width": 640, "height": 480}), "the key 'intrinsic_matrix' is missing"),
    "no camera inside": (encoded({**parameters(), "intrinsic": 3}), "the key 'intrinsic_matrix' is missing"),
    "no size": (encoded({"intrinsic_matrix": CAMERA["intrinsic_matrix"]}), r"width, height: \[None, None\] is not"),
    "size 0": (encoded({**CAMERA, "width": 0}), r"width, height: \[0, 480\] is not a size"),
    "a true size": (encoded({**CAMERA, "width": True}), r"width, height: \[True, 480\] is not a size"),
    "row by row": (encoded({**CAMERA, "intrinsic_matrix": [500, 0, 319, 0, 510, 241, 0, 0, 1]}), "is not a camera"),
    "a short matrix": (encoded({**CAMERA, "intrinsic_matrix": [500]}), "intrinsic_matrix: holds 1 numbers; give 9"),
    "a number": (encoded({**CAMERA, "intrinsic_matrix": 5}), "intrinsic_matrix: holds 5; give 9"),
    "NaN": (encoded({**CAMERA, "intrinsic_matrix": [float("nan")] * 9}), "intrinsic_matrix: nan is not a finite"),
    "huge": (encoded({**CAMERA, "intrinsic_matrix": [10**400] * 9}), "intrinsic_matrix: .* is not a finite number"),
    "true": (encoded({**CAMERA, "intrinsic_matrix": [True] * 9}), "intrinsic_matrix: True is not a finite number"),
    "two cameras": (encoded({"parameters": [parameters()] * 2}), "parameters: holds 2 cameras; give a file with one"),
    "no cameras": (encoded({"parameters": []}), "parameters: holds 0 cameras"),
    "transposed": (encoded({**parameters(), "extrinsic": extrinsic().ravel().tolist()}), "extrinsic: .* by columns"),
    "flat": (encoded({**parameters(), "extrinsic": [0.0] * 15 + [1.0]}), "extrinsic: .* is not rotation"),
}


@pytest.mark.parametrize("name", WRONG_OPEN3D)
def test_a_wrong_open3d_file_is_one_line(name):
    content, message = WRONG_OPEN3D[name]
    with pytest.raises(UserError, match=message) as caught:
        open3d_json(content)
    assert "\n" not in str(caught.value)


def test_faults_name_the_file(tmp_path):
    for format in ("kitti", "sunrgbd", "open3d"):
        with pytest.raises(UserError, match=r"none\.txt: No such file or directory; check the path"):
            read_calibration(tmp_path / "none.txt", format, "P2")
        with pytest.raises(UserError, match="Is a directory"):
            read_calibration(tmp_path, format, "P2")
        (tmp_path / "a.txt").write_bytes(b"junk")
        with pytest.raises(UserError, match=r"a\.txt: "):
            read_calibration(tmp_path / "a.txt", format, "P2")
