"""Times and calibrations of each entry, and images of sensors that are cut or moved to the reference's frame."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.coco import coco_card, coco_split
from mmfuse.data.annotations.layout import image_size
from mmfuse.data.annotations.readers import read_split, scan_split
from mmfuse.data.annotations.records import split_digest
from mmfuse.data.checks.check import check
from mmfuse.data.measuring import measure
from mmfuse.errors import UserError
from mmfuse.sensor import Calibration
from mmfuse.strict_yaml import save_yaml

FAST = ["10.00", "10.10", "10.20", "10.30", "10.40"]
SLOW = ["10.01", "10.21", "10.46"]
KITTI = (
    "P2: 700 0 31.5 70 0 700 23.5 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
    "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 {ahead}\n"
)


def write(path, size=(64, 48), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(1, 200, (size[1], size[0]), dtype=dtype)).save(path)


@pytest.fixture
def rig(tmp_path):
    """A card of two cameras with frames of their own, in a drive that is train and one that is val; and changes."""
    for drive in ("a", "b"):
        for time in FAST:
            write(tmp_path / drive / "grey" / f"{time}.png")
            (tmp_path / drive / "labels").mkdir(exist_ok=True)
            (tmp_path / drive / "labels" / f"{time}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
        for time in SLOW:
            write(tmp_path / drive / "warm" / f"{time}.png", (32, 24))

    def card(**changes):
        layout = {
            "entry": "{drive}/{time}",
            "files": {"grey": "{drive}/grey/{time}.png", "warm": "{drive}/warm/{time}.png"},
            "annotations": {"grey": "{drive}/labels/{time}.txt"},
            "tolerance": 0.05,
            "sequence": "{drive}",
        } | changes.pop("layout", {})
        values = {
            "name": "rig",
            "root": ".",
            "reader": "yolo",
            "modalities": {"grey": {"channels": 1}, "warm": {"channels": 1, "register": "resize"}},
            "classes": ["thing"],
            "labels": {"aliases": {"0": "thing"}},
            "layout": layout,
            "splits": {"train": {"only": "a/.*"}, "val": {"only": "b/.*"}},
        } | changes
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(values))
        return load_card(tmp_path / "card.yaml")

    return card


def test_the_nearest_frame_is_taken_and_those_without_one_are_counted(rig):
    reading = scan_split(rig(), "train")
    assert not reading.errors
    names = [(record.files["grey"].stem, record.files["warm"].stem) for record in reading.records]
    assert names == [("10.00", "10.01"), ("10.20", "10.21")]
    assert {record.files["warm"].parts[-3] for record in reading.records} == {"a"}
    assert reading.warnings == ["warm: 3 of 5 images have no frame within 0.05; left out"]


def test_a_slow_frame_serves_all_that_it_is_near_to(rig):
    records = read_split(rig(layout={"tolerance": 0.1}), "val")
    assert [record.files["warm"].stem for record in records] == ["10.01", "10.01", "10.21", "10.21", "10.46"]


def test_where_missing_is_allowed_the_sensor_is_absent(rig):
    reading = scan_split(rig(missing="allow"), "train")
    assert [sorted(record.files) for record in reading.records].count(["grey"]) == 3
    assert reading.warnings == ["warm: 3 of 5 images have no frame within 0.05; absent there"]


def test_no_frame_in_reach_and_names_that_are_no_times_are_one_line(rig, tmp_path):
    with pytest.raises(UserError, match=r"card.yaml: layout.tolerance: no image has a frame of every sensor within 0"):
        read_split(rig(layout={"tolerance": 0.0}), "train")
    write(tmp_path / "a" / "warm" / "first.png", (32, 24))
    with pytest.raises(UserError, match=r"the time 'first' is not a number; name the files by their time"):
        read_split(rig(), "train")


def test_nanoseconds_are_told_apart(rig, tmp_path):
    for drive in ("a", "b"):
        for kind, times in (("grey", [1700000000000000000]), ("warm", [1700000000000000001, 1700000000000000100])):
            for old in (tmp_path / drive / kind).iterdir():
                old.unlink()
            for time in times:
                write(tmp_path / drive / kind / f"{time}.png")
        (tmp_path / drive / "labels" / "1700000000000000000.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (record,) = read_split(rig(layout={"tolerance": 1}), "train")
    assert record.files["warm"].stem == "1700000000000000001"


def calibrated(rig, tmp_path):
    for drive, ahead in (("a", 0.25), ("b", 0.5)):
        (tmp_path / drive / "calib.txt").write_text(KITTI.format(ahead=ahead))
    files = {
        "grey": {"file": "{drive}/calib.txt", "format": "kitti", "key": "P2"},
        "warm": {"file": "{drive}/calib.txt", "format": "kitti", "key": "Tr_velo_to_cam"},
    }
    return rig(layout={"calibrations": files})


def test_every_entry_has_its_own_calibration(rig, tmp_path):
    card = calibrated(rig, tmp_path)
    first, second = (read_split(card, split)[0] for split in ("train", "val"))
    assert first.onto == first.calibration["grey"]
    assert first.onto.intrinsics == (700, 700, 31.5, 23.5)
    assert first.onto.pose[0][3] == pytest.approx(-0.1)
    assert [r.calibration["warm"].pose[2][3] for r in (first, second)] == [0.25, 0.5]


def test_a_missing_calibration_is_one_line(rig, tmp_path):
    card = calibrated(rig, tmp_path)
    (tmp_path / "a" / "calib.txt").unlink()
    with pytest.raises(UserError, match=r"a/calib.txt"):
        read_split(card, "train")


def test_calibrations_go_to_coco_and_back_and_into_the_digest(rig, tmp_path):
    card = calibrated(rig, tmp_path)
    records = read_split(card, "train")
    (tmp_path / "train.json").write_text(json.dumps(coco_split(card, records)))
    save_yaml(tmp_path / "coco.yaml", coco_card(card, {"train": "train.json"}))
    again = read_split(load_card(tmp_path / "coco.yaml"), "train")
    assert [(r.calibration, r.onto) for r in again] == [(r.calibration, r.onto) for r in records]
    assert split_digest(again) == split_digest(records)
    moved = replace(records[0], onto=replace(records[0].onto, intrinsics=(701.0, 700.0, 31.5, 23.5)))
    assert split_digest([moved, *records[1:]]) != split_digest(records)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration": []}, "'calibration' doesn't map modalities of the card"),
        ({"calibration": {"radar": {}}}, "'calibration' doesn't map modalities of the card"),
        ({"calibration": {"warm": {"poses": []}}}, "calibration.warm: 'poses' is not a known key"),
        ({"onto": {"size": [0, 1]}}, "onto.size: [0, 1] is not allowed"),
    ],
)
def test_a_wrong_calibration_in_coco_names_the_image(rig, tmp_path, values, message):
    card = rig()
    truth = coco_split(card, read_split(card, "train"))
    truth["images"][1] |= values
    (tmp_path / "train.json").write_text(json.dumps(truth))
    save_yaml(tmp_path / "coco.yaml", coco_card(card, {"train": "train.json"}))
    with pytest.raises(UserError) as raised:
        read_split(load_card(tmp_path / "coco.yaml"), "train")
    assert f"image {truth['images'][1]['id']}: {message}" in str(raised.value)


def test_without_an_image_in_its_frame_the_reference_is_as_large_as_calibrated(rig, tmp_path):
    camera = {"size": [100, 80], "intrinsics": [90, 90, 50, 40]}
    sensors = {"grey": {"channels": 1, "calibration": camera}, "warm": {"channels": 1, "register": "resize"}}
    for time in FAST:
        (tmp_path / "a" / "grey" / f"{time}.png").unlink()
    changes = {"missing": "allow", "layout": {"tolerance": 0.1, "entry": "{drive}/{time}"}}
    (tmp_path / "list.txt").write_text("a/10.00\n")
    card = rig(modalities=sensors, splits={"train": {"file": "list.txt"}}, **changes)
    (record,) = read_split(card, "train")
    assert (record.width, record.height, sorted(record.files)) == (100, 80, ["warm"])
    sensors["grey"] = {"channels": 1}
    card = rig(modalities=sensors, splits={"train": {"file": "list.txt"}}, **changes)
    with pytest.raises(UserError, match=r"10.01.png: has no image of grey beside it; give modalities.grey.calibration"):
        read_split(card, "train")


def test_what_the_border_leaves_is_the_image(rig, tmp_path):
    border = [8, 4, 16, 12]
    card = rig(modalities={"grey": {"channels": 1, "border": border}, "warm": {"channels": 1, "register": "resize"}})
    record = read_split(card, "train")[0]
    assert (record.width, record.height) == (40, 32)
    # half of 48 high, a quarter of 64 wide, about the middle of the file
    assert record.boxes.tolist() == [[24 - 8, 12 - 4, 40 - 8, 32]]
    path = record.files["grey"]
    with pytest.raises(
        UserError, match=r"10.00.png: is 64 x 48, so nothing is left within the border \[32, 0, 32, 0\]"
    ):
        image_size(path, (32, 0, 32, 0))


def test_check_tells_whether_sensors_can_be_registered(rig):
    assert check(rig().path).errors == []
    own = {"size": [32, 24], "intrinsics": [30, 30, 15.5, 11.5]}
    lacking = {"grey": {"channels": 1}, "warm": {"channels": 1, "register": "rig", "calibration": own}}
    errors = check(rig(modalities=lacking).path).errors
    assert [error.partition(";")[0] for error in errors] == [
        f"{split}: warm: register: rig needs depth, which no sensor here gives" for split in ("train", "val")
    ]
    lacking["warm"] = {"channels": 1}
    assert "register them to one size" in check(rig(modalities=lacking).path).errors[0]


def test_check_tells_where_nothing_of_a_sensor_is_seen(rig):
    far = {"channels": 1, "register": "homography", "homography": [[2, 0, 5000], [0, 2, 0], [0, 0, 1]]}
    errors = check(rig(modalities={"grey": {"channels": 1}, "warm": far}).path).errors
    assert len(errors) == 2
    assert "warm/10.01.png: nothing of it lies in the frame of grey; check register, homography" in errors[0]


def test_a_sensor_that_is_never_seen_is_not_measured(rig):
    far = {"channels": 1, "encoding": "inverse_depth", "register": "homography"}
    far["homography"] = [[2, 0, 5000], [0, 2, 0], [0, 0, 1]]
    card = rig(modalities={"grey": {"channels": 1}, "warm": far})
    with pytest.raises(UserError, match=r"warm: no training image has a measured pixel in the frame of the reference"):
        measure(read_split(card, "train"), card.modalities)


def test_a_moved_sensor_carries_the_camera_of_its_own_time(rig):
    camera = Calibration((64, 48), (60.0, 60.0, 31.5, 23.5))
    sensors = {
        "grey": {"channels": 1, "calibration": {"size": [64, 48], "intrinsics": [60, 60, 31.5, 23.5]}},
        "warm": {"channels": 1, "register": "rig"},
    }
    assert rig(modalities=sensors).modalities["warm"].onto == camera
