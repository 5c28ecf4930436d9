"""SUN RGB-D's card on a small copy of its layout, quirks included, and what `check` says of faults in it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from sun_rgbd_files import (
    BOXES,
    HEIGHT,
    KINECT,
    LISTS,
    META,
    NYU,
    SCAN,
    SPLIT,
    WIDTH,
    Boxes,
    write_boxes,
    write_lists,
    write_sun_rgbd,
    write_view,
)

from mmfuse.data.annotations.cards import Card, load_card
from mmfuse.data.annotations.readers import read_split, scan_split
from mmfuse.data.annotations.records import Record
from mmfuse.data.checks.check import check
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image

CARD = Path(__file__).parents[3] / "datasets" / "sun_rgbd.yaml"


@pytest.fixture
def card(tmp_path: Path) -> Card:
    write_sun_rgbd(tmp_path)
    return load_card(CARD, str(tmp_path))


def objects_of(record: Record, card: Card) -> list[tuple[str, list[float]]]:
    names = [card.classes[label] for label in record.labels]
    return list(zip(names, record.boxes.tolist(), strict=True))


def test_the_published_layout_is_in_order(card: Card) -> None:
    report = check(CARD, str(card.root))
    assert report.errors == []
    assert [found.images for found in report.splits.values()] == [2, 1, 2]
    assert report.splits["train"].conditions == {"kv2": 1, "xtion": 1}
    assert report.splits["val"].left_out == 1
    assert report.splits["test"].empty == 1


def test_views_have_their_files_objects_and_scans(card: Card) -> None:
    kinect, scan = read_split(card, "train")
    assert kinect.files["rgb"] == card.root / "SUNRGBD" / KINECT / "image" / "0000121.jpg"
    assert kinect.files["depth"] == card.root / "SUNRGBD" / KINECT / "depth" / "0000121.png"
    assert (kinect.width, kinect.height, kinect.image_id, scan.image_id) == (WIDTH, HEIGHT, 1, 2)
    assert objects_of(kinect, card) == [("chair", [10, 20, 40, 25]), ("night_stand", [40.5, 2, 60.5, 50])]
    assert objects_of(scan, card) == [("bed", [1, 2, 61, 42])]
    assert (kinect.sequence, scan.sequence) == (None, SCAN)
    (nyu,) = read_split(card, "val")
    assert objects_of(nyu, card) == [("table", [50, 30, 73, 53])]


def test_each_view_has_its_own_calibration_by_its_last_extrinsics(card: Card) -> None:
    record = read_split(card, "val")[0]
    assert record.calibration["rgb"] == record.calibration["depth"] == record.onto
    assert record.calibration["depth"].intrinsics == (529.5, 529.5, 36, 26)
    np.testing.assert_allclose(np.array(record.calibration["depth"].pose)[2, :3], [0, np.sin(0.1), np.cos(0.1)], 1e-5)


def test_depth_is_metres_once_its_bits_are_turned_back(card: Card) -> None:
    sensor = card.modalities["depth"]
    metres, valid = sensor.metres(read_image(read_split(card, "val")[0].files["depth"], sensor))
    assert metres[0, 0, 0].item() == pytest.approx(4.321)
    assert valid.all()
    assert 0.5 <= metres.min() < metres.max() < 8


def test_all_of_the_training_list_can_be_taken_and_chosen_from(card: Card) -> None:
    for changes, expected in (
        ({}, [KINECT, LISTS["train"][1], NYU]),
        ({"only": "kv.*"}, [KINECT, NYU]),
        ({"first": "kv2"}, [KINECT, LISTS["train"][1]]),
    ):
        split = dataclasses.replace(card.splits["train"], file=f"{SPLIT}:alltrain", **changes)
        records = read_split(dataclasses.replace(card, splits={"train": split}), "train")
        folders = [r.files["rgb"].parents[1].relative_to(card.root / "SUNRGBD").as_posix() for r in records]
        assert folders == expected
    none = dataclasses.replace(card, splits={"train": dataclasses.replace(card.splits["train"], only="x")})
    with pytest.raises(UserError, match=r"splits.train: no entry is found; check the split's rule"):
        read_split(none, "train")


def as_corners(boxes: dict[str, Boxes]) -> dict[str, Boxes]:
    return {
        view: [(name, (b[0], b[1], b[0] + b[2], b[1] + b[3]) if b else ()) for name, b in objects]
        for view, objects in boxes.items()
    }


def test_boxes_are_sizes_or_corners_as_the_whole_file_tells(card: Card) -> None:
    """Boxes at the right of large images tell corners: as sizes they would reach out of any image."""
    large = {"kv2/x": [("chair", (500, 300, 200, 220)), ("chair", (400, 10, 300, 20))]}
    noise = {"kv2/y": [("chair", (600.0, 20.0, 0.0, 5.0))]}
    expected = [("chair", [10, 20, 40, 25]), ("night_stand", [40.5, 2, 60.5, 50])]
    for boxes in (BOXES, BOXES | large, BOXES | large | noise):
        write_boxes(card.root, boxes)
        assert objects_of(read_split(card, "train")[0], card) == expected
    write_boxes(card.root, as_corners(BOXES | large) | noise)
    assert objects_of(read_split(card, "train")[0], card) == expected
    ambiguous = {view: [("chair", (3, 4, 13, 24))] for view in BOXES}
    write_boxes(card.root, ambiguous)
    assert objects_of(read_split(card, "train")[0], card) == [("chair", [3, 4, 16, 28])]


def test_views_may_lack_labels_or_a_sensor_where_the_card_allows_it(card: Card) -> None:
    write_boxes(card.root, {view: boxes for view, boxes in BOXES.items() if view != NYU})
    (card.root / "SUNRGBD" / NYU / "depth" / "0000121.png").unlink()
    first, *rest = scan_split(card, "val").errors
    assert f"trainvalsplit.val(1): {NYU}: is missing in" in first
    assert not rest
    lenient = dataclasses.replace(card, labels=dataclasses.replace(card.labels, unlabelled="background"))
    (error,) = scan_split(lenient, "val").errors
    assert f"{NYU}: depth: {card.root}/SUNRGBD/{NYU}/depth/*.png is missing; add the file" in error
    (record,) = read_split(dataclasses.replace(lenient, missing="allow"), "val")
    assert record.files.keys() == {"rgb"}
    assert len(record.boxes) == 0


def copy(root: Path, source: str, target: str) -> None:
    (root / target).write_bytes((root / source).read_bytes())


def outside(root: Path) -> None:
    path = root / "SUNRGBD" / NYU / "depth" / "0000121.png"
    path.rename(root.parent / "outside.png")
    path.symlink_to(root.parent / "outside.png")


VIEW = f"SUNRGBD/{KINECT}"


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda r: (r / VIEW / "image/0000121.jpg").unlink(), ["train(1): ", f"{KINECT}: rgb: ", "*.jpg is missing"]),
        (lambda r: copy(r, f"{VIEW}/image/0000121.jpg", f"{VIEW}/image/b.jpg"), ["2 files (0000121.jpg, b.jpg)"]),
        (lambda r: (r / VIEW / "image/0000121.jpg").write_text("x"), ["0000121.jpg: is not an image"]),
        (lambda r: (r / VIEW / "intrinsics.txt").unlink(), ["intrinsics.txt: No such file"]),
        (lambda r: (r / VIEW / "intrinsics.txt").write_text("1 2 3"), ["intrinsics.txt: intrinsics: holds 3 numbers"]),
        (
            lambda r: write_lists(r, LISTS | {"val": [NYU, NYU]}),
            ["val(2): the entry 'kv1/NYUdata/NYU0001' stands twice"],
        ),
        (lambda r: write_lists(r, LISTS | {"val": ["../../../x"]}), ["val(1): ../../../x: is missing in"]),
        (outside, [f"{NYU}", "0000121.png' leads out of"]),
    ],
)
def test_a_planted_fault_is_one_line_that_names_it(
    card: Card, plant: Callable[[Path], object], words: list[str]
) -> None:
    plant(card.root)
    (error,) = check(CARD, str(card.root)).errors
    assert all(word in error for word in words), error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda r: (r / META).unlink(), [META, "No such file"]),
        (lambda r: (r / META).write_bytes((r / META).read_bytes()[:-40]), [META, "can't be read as a MATLAB file"]),
        (lambda r: scipy.io.savemat(r / META, {"SUNRGBDMeta": 1}), [META, "did you mean 'SUNRGBDMeta'?"]),
        (lambda r: scipy.io.savemat(r / META, {"SUNRGBDMeta2DBB": {"a": 1}}), ["SUNRGBDMeta2DBB(1): has no sequence"]),
        (lambda r: (r / SPLIT).write_text("x"), ["allsplit.mat: can't be read as a MATLAB file"]),
        (lambda r: scipy.io.savemat(r / SPLIT, {"trainvalsplit": {"trian": 1}}), ["'trainvalsplit' has no 'train'"]),
        (lambda r: scipy.io.savemat(r / SPLIT, {"trainvalsplit": {"train": 1}}), ["train(1): is not a text"]),
    ],
)
def test_a_fault_of_the_matlab_files_names_file_and_variable(
    card: Card, plant: Callable[[Path], object], words: list[str]
) -> None:
    plant(card.root)
    errors = check(CARD, str(card.root)).errors
    assert len(errors) == len(set(errors))
    assert all(word in errors[0] for word in words), errors[0]
    assert not any("\n" in error for error in errors)


def test_an_entry_may_not_leave_the_root(card: Card) -> None:
    write_lists(card.root, LISTS | {"val": ["../../../x"]})
    write_boxes(card.root, BOXES | {"../../../x": []})
    (error,) = scan_split(card, "val").errors
    assert "'SUNRGBD/../../../x/image' leads out of" in error


def test_a_class_that_the_card_lacks_is_named_where_it_is_not_left_out(card: Card) -> None:
    strict = dataclasses.replace(card, labels=dataclasses.replace(card.labels, unknown="error"))
    (error,) = scan_split(strict, "train").errors
    assert f"{META}: {KINECT}: object 2: 'sofa_chair' is not a known class" in error


def test_boxes_outside_their_view_are_errors_or_left_out(card: Card) -> None:
    write_boxes(card.root, BOXES | {NYU: [("bed", (80, 2, 5, 6)), ("bed", (70, 1, 30, 10))]})
    reading = scan_split(card, "val")
    assert (reading.errors, reading.left_out, reading.clipped) == ([], 1, 1)
    strict = dataclasses.replace(card, labels=dataclasses.replace(card.labels, bad_boxes="error"))
    (error,) = scan_split(strict, "val").errors
    assert f"{NYU}: object 1: box 80 2 5 6 lies outside the image of {WIDTH} x {HEIGHT} pixels" in error


def test_a_scan_in_two_splits_is_an_error(card: Card, tmp_path: Path) -> None:
    name = f"{SCAN}/0000900-000030000000"
    write_view(card.root, name, np.random.default_rng(5))
    write_boxes(card.root, BOXES | {name: []})
    write_lists(card.root, LISTS | {"val": [NYU, name]})
    (error,) = check(CARD, str(card.root)).errors
    assert error == f"the sequence '{SCAN}' is in train and in val; keep it in one of them"


def test_what_the_reader_needs_of_the_card_is_said(card: Card) -> None:
    for layout in (None, dataclasses.replace(card.layout, annotations={})):
        with pytest.raises(UserError, match=r"layout.annotations: the reader 'sunrgbd' needs one"):
            read_split(dataclasses.replace(card, layout=layout), "train")
    for file in (SPLIT, f"{SPLIT}:", ":alltrain"):
        split = dataclasses.replace(card.splits["train"], file=file)
        with pytest.raises(UserError, match=r"splits.train: file: .* names no variable; write FILE.mat:alltrain"):
            read_split(dataclasses.replace(card, splits={"train": split}), "train")


def test_a_mended_file_is_read_anew(card: Card) -> None:
    assert len(read_split(card, "train")[1].boxes) == 1
    write_boxes(card.root, BOXES | {LISTS["train"][1]: [("bed", (1, 2, 9, 9)), ("bed", (1, 2, 8, 8))]})
    assert len(read_split(card, "train")[1].boxes) == 2
