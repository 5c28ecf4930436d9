import json
from dataclasses import asdict

import pytest

from mmfuse.errors import UserError
from mmfuse.sensor import IDENTITY, Calibration

CAMERA = Calibration((640, 480), (500.0, 510.0, 319.5, 239.5), (0.1, -0.2, 0.0, 0.001))
TURNED = ((0, -1, 0, 0.5), (1, 0, 0, 0), (0, 0, 1, 2))


def test_a_pose_of_three_rows_gets_its_fourth():
    assert Calibration(pose=TURNED).pose == (*TURNED, (0, 0, 0, 1))
    assert Calibration().pose == IDENTITY


def test_it_survives_json():
    for calibration in (CAMERA, Calibration(pose=TURNED)):
        assert Calibration(**json.loads(json.dumps(asdict(calibration)))) == calibration


def test_an_image_of_half_the_size_has_half_the_focal_length_and_the_same_corner():
    half = CAMERA.scaled((320, 240))
    assert half.intrinsics == (250.0, 255.0, 159.5, 119.5)
    assert (half.size, half.distortion, half.pose) == ((320, 240), CAMERA.distortion, CAMERA.pose)
    corner = (-0.5 - half.intrinsics[2]) / half.intrinsics[0]
    assert corner == (-0.5 - CAMERA.intrinsics[2]) / CAMERA.intrinsics[0]


def test_a_size_that_was_not_given_is_taken_as_it_is():
    assert Calibration(None, CAMERA.intrinsics).scaled((64, 48)) == Calibration((64, 48), CAMERA.intrinsics)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pose": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "is not 3 x 4 or 4 x 4"),
        ({"pose": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, "is not a rotation"),
        ({"pose": [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, "is not a rotation"),
        ({"pose": [[float("nan"), 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, "is not a rotation"),
        ({"size": [0, 480]}, "size: [0, 480] is not allowed; use [width, height]"),
        ({"intrinsics": [0, 500, 3, 4]}, "intrinsics: [0, 500, 3, 4] is not allowed"),
        ({"intrinsics": [500, 3, 4]}, "use [fx, fy, cx, cy]"),
        ({"distortion": [0.1]}, "distortion: [0.1] is not allowed; use k1, k2, p1, p2"),
    ],
)
def test_a_mistake_is_one_line(values, message):
    with pytest.raises(UserError) as raised:
        Calibration(**values)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
