"""Cards that are guessed for folders: in the layout of each card that comes along, and in others."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from test_layouts import CARDS, DATASETS, HEIGHT, WIDTH, Folder

from mmfuse.cli import main
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.data.new_card import new_card
from mmfuse.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return Folder(tmp_path / "set")


def guessed(folder, name="new.yaml"):
    return load_card(new_card(folder.root.parent / name, folder.root))


def values(folder, name="new.yaml"):
    path = new_card(folder.root.parent / name, folder.root)
    return yaml.safe_load(path.read_text()), re.findall("^# guessed: (.*)$", path.read_text(), re.M)


def pairs(card):
    """The files of all images of all splits, and how many boxes they have."""
    records = [record for split in card.splits for record in read_split(card, split)]
    return {frozenset(r.files.values()) for r in records}, sum(len(r.boxes) for r in records)


@pytest.mark.parametrize(
    ("name", "boxes"),
    [
        ("llvip", 5), ("m3fd", 6), ("flir_aligned", 9), ("pascal_voc_2007", 6), ("dronevehicle", 3), ("kitti", 18),
        ("kitti_depth", 18), ("vedai", 6), ("ultralytics_yolo", 3), ("sun_rgbd", 5),
    ],
)  # fmt: skip
def test_a_dataset_is_found_as_its_own_card_has_it(folder, name, boxes):
    """The same pairs of files; objects are those of all classes, of one sensor's labels."""
    DATASETS[name](folder)
    own, _ = pairs(load_card(CARDS / f"{name}.yaml", str(folder.root)))
    card = guessed(folder)
    assert pairs(card) == (own, boxes)
    assert set(card.splits) >= {"train", "val"}
    assert check(card.path).errors == []


def test_vedai_s_file_of_all_labels_is_found(folder):
    DATASETS["vedai_combined"](folder)
    card = guessed(folder)
    assert card.layout.annotations == {"rgb": "Annotations1024/annotation1024.txt"}
    assert len(pairs(card)[0]) == 3
    assert pairs(card)[1] == 3


def test_kaist_s_videos_are_part_of_an_entry_and_persons_unsure_are_ignored(folder):
    DATASETS["kaist"](folder)
    card = guessed(folder)
    assert card.layout.entry == "{part1}/{part2}/{id}"
    assert card.splits["train"].file == "imageSets/train-all-02.txt"
    assert card.labels.ignored == {"person?": ("person",)}
    assert len(pairs(card)[0]) == 3


@pytest.mark.parametrize(
    ("name", "reference", "sensors", "splits"),
    [
        ("coco_2017", "rgb", {"rgb"}, {"train": "train2017", "val": "val2017"}),
        ("flir_adas_v1", "thermal", {"rgb", "thermal"}, {"train": "train", "val": "val"}),
        ("flir_adas_v2_rgb", "rgb", {"rgb"}, {"train": "train", "val": "val"}),
    ],
)
def test_plain_coco_files_get_a_layout(folder, name, reference, sensors, splits):
    DATASETS[name](folder)
    card = guessed(folder)
    assert (card.reader, card.reference, set(card.modalities)) == ("coco", reference, sensors)
    assert {split: rule.folder for split, rule in card.splits.items()} == splits
    errors = [error for error in check(card.path).errors if "category 17" not in error and "no area" not in error]
    assert errors == []


def test_coco_that_names_each_sensor_s_file_needs_no_layout(folder, paired_set):
    path = new_card(folder.root / "x.yaml", paired_set.parent)
    card, own = load_card(path), load_card(paired_set)
    assert (card.layout, card.classes, card.conditions) == (None, own.classes, own.conditions)
    assert {split: rule.file for split, rule in card.splits.items()} == {s: f"{s}.json" for s in own.splits}
    assert pairs(card) == pairs(own)
    depth = card.modalities["depth"]
    assert depth.unit == 0.001
    assert depth.near < 10 < depth.far
    assert check(path).errors == []


# ---- sensors


def deep(folder, name, values, kind=np.uint16):
    path = folder.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, kind)).save(path)


def labelled(folder, count=8, place="labels"):
    for i in range(count):
        folder.image(f"rgb/{i:03}.png")
        folder.text(f"{place}/{i:03}.txt", "1 0.5 0.5 0.25 0.5\n")


def test_depth_gets_a_unit_and_a_range_that_are_told_as_guesses(folder):
    labelled(folder)
    for i in range(8):
        measured = folder.rng.integers(900, 8000, (HEIGHT, WIDTH))
        measured[:, :9] = 0
        deep(folder, f"depth/{i:03}.png", measured)
    card, guesses = values(folder)
    depth = card["modalities"]["depth"]
    assert (depth["encoding"], depth["unit"]) == ("inverse_depth", 0.001)
    assert 0.5 < depth["near"] <= 0.9
    assert 8 <= depth["far"] < 12
    assert any(guess.startswith("depth: whole numbers of 0.001 m, 0 where nothing") for guess in guesses)


def test_depth_in_metres_and_as_a_picture_are_told_apart(folder):
    labelled(folder)
    for i in range(8):
        deep(folder, f"depth/{i:03}.tif", folder.rng.uniform(0.7, 9, (HEIGHT, WIDTH)), np.float32)
    assert values(folder)[0]["modalities"]["depth"]["unit"] == 1.0
    for i in range(8):
        (folder.root / f"depth/{i:03}.tif").unlink()
        folder.image(f"depth/{i:03}.png", channels=1)
    card, guesses = values(folder, "other.yaml")
    assert card["modalities"]["depth"] == {"channels": 1}
    assert "depth: 8 bits, which may be a picture of depth; it is read as a grey image" in guesses


def test_thermal_in_counts_of_kelvin_is_told_and_three_equal_channels_are_one(folder):
    labelled(folder)
    for i in range(8):
        deep(folder, f"lwir/{i:03}.tif", folder.rng.integers(29000, 31000, (HEIGHT, WIDTH)))
    card, guesses = values(folder)
    assert card["modalities"]["thermal"] == {"channels": 1}
    assert any("may be hundredths of a kelvin; encoding: celsius, unit: 0.01" in guess for guess in guesses)
    for i in range(8):
        (folder.root / f"lwir/{i:03}.tif").unlink()
        grey = folder.rng.integers(0, 256, (HEIGHT, WIDTH, 1)).repeat(3, 2)
        deep(folder, f"lwir/{i:03}.png", grey, np.uint8)
    card, guesses = values(folder, "other.yaml")
    assert card["modalities"]["thermal"] == {"channels": 1}
    assert "thermal: three equal channels, read as one" in guesses


def test_sensors_of_other_sizes_are_resized_and_cameras_without_a_word_are_told_by_their_folders(folder):
    for i in range(6):
        folder.image(f"cam_a/{i}.png")
        folder.image(f"cam_b/{i}.png", (32, 24), channels=1)
        folder.text(f"labels/{i}.txt", "0 0.5 0.5 0.2 0.2\n")
    card, guesses = values(folder)
    assert card["modalities"] == {"cam_a": {"channels": 3}, "cam_b": {"channels": 1, "register": "resize"}}
    assert any(guess.startswith("cam_b: has other sizes than cam_a") for guess in guesses)
    assert check(folder.root.parent / "new.yaml").errors == []


def test_numbered_folders_of_one_sensor_are_sequences_and_masks_are_no_sensor(folder):
    for scene in ("scene1", "scene2", "scene3"):
        for i in range(2):
            folder.image(f"{scene}/{i}.png")
            folder.image(f"masks/{scene}/{i}.png", channels=1)
            folder.text(f"labels/{scene}/{i}.txt", "0 0.5 0.5 0.2 0.2\n")
    card, _ = values(folder)
    assert card["layout"]["files"] == {"rgb": "{part1}/{id}.png"}
    assert card["layout"]["annotations"] == {"rgb": "labels/{part1}/{id}.txt"}


def test_a_folder_for_each_scene_with_a_file_for_each_sensor(folder):
    for i in range(6):
        for sensor in ("rgb", "thermal"):
            folder.image(f"scene_{i}/{sensor}.png")
        folder.voc(f"scene_{i}/labels.xml", ("person", (1, 1, 9, 9)))
    card = guessed(folder)
    assert card.layout.files == {"rgb": "{id}/rgb.png", "thermal": "{id}/thermal.png"}


def test_frames_named_by_their_times_are_paired_by_these(folder):
    for i in range(8):
        folder.image(f"rgb/{1000 + 100 * i}.png")
        folder.image(f"thermal/{1013 + 100 * i}.png", channels=1)
        folder.text(f"labels/{1000 + 100 * i}.txt", "0 0.5 0.5 0.2 0.2\n")
    card = guessed(folder)
    assert (card.layout.entry, card.layout.tolerance) == ("{time}", 50)
    assert all(len(files) == 2 for files in pairs(card)[0])
    assert len(pairs(card)[0]) == 8


def test_a_sensor_whose_names_fit_no_other_s_is_left_out_and_told(folder):
    labelled(folder)
    folder.image("thermal/a.png")
    folder.image("thermal/b.png")
    card, guesses = values(folder)
    assert set(card["modalities"]) == {"rgb"}
    assert "thermal (thermal/{id}.png): left out, its names aren't those of rgb" in guesses


def test_points_without_a_calibration_are_left_out_and_told(folder):
    labelled(folder)
    (folder.root / "velodyne").mkdir()
    for i in range(8):
        folder.rng.uniform(1, 9, (20, 4)).astype(np.float32).tofile(folder.root / f"velodyne/{i:03}.bin")
    card, guesses = values(folder)
    assert set(card["modalities"]) == set(card["layout"]["files"]) == {"rgb"}
    assert any(guess.startswith("lidar: left out, as no calibration was found") for guess in guesses)


# ---- labels and splits


def test_classes_of_yolo_have_the_names_of_a_list_or_of_data_yaml(folder):
    labelled(folder)
    card, guesses = values(folder)
    assert card["classes"] == ["class_0", "class_1"]
    assert "the label files have numbers alone; write their names, in this order" in guesses
    folder.text("data.yaml", "names: {0: person, 1: car}\n")
    assert values(folder, "other.yaml")[0]["classes"] == ["person", "car"]
    folder.text("data.yaml", "names: &a [x, *a]\n")
    folder.text("labels/classes.txt", "cat\ndog\n")
    assert values(folder, "third.yaml")[0]["classes"] == ["cat", "dog"]


def test_cvc14_s_text_is_told_from_yolo_s(folder):
    labelled(folder, place="boxes")
    for i in range(8):
        folder.text(f"boxes/{i:03}.txt", "20  25  10  20  3  0  0  0\n")
    card, _ = values(folder)
    assert (card["reader"], card["classes"], card["labels"]) == ("centred", ["class_3"], {"aliases": {"3": "class_3"}})
    assert pairs(load_card(folder.root.parent / "new.yaml"))[1] == 8


def test_without_splits_they_are_drawn_and_without_some_labels_images_are_background(folder):
    labelled(folder)
    folder.image("rgb/100.png")
    card, guesses = values(folder)
    assert card["splits"] == {"train": {}, "val": 0.15, "test": 0.15}
    assert any(guess.startswith("none was found, so val and test are drawn") for guess in guesses)
    assert card["labels"]["unlabelled"] == "background"
    assert "1 of 9 images lack a label file, so hold no object" in guesses


def test_lists_of_paths_are_splits_too(folder):
    labelled(folder)
    for split, numbers in (("train", (0, 1, 2, 3, 4)), ("valid", (5,)), ("test", (6, 7))):
        folder.text(f"lists/{split}.txt", "".join(f"./rgb/{i:03}.png\n" for i in numbers))
    folder.text("notes.txt", "taken\nin\nspring\n")
    card = guessed(folder)
    assert card.layout.entry == "./rgb/{id}.png"
    assert [len(read_split(card, split)) for split in ("train", "val", "test")] == [5, 1, 2]


def test_a_sensor_that_some_images_lack_is_allowed_to(folder):
    labelled(folder)
    for i in range(6):
        folder.image(f"ir/{i:03}.png", channels=1)
    card, guesses = values(folder)
    assert card["missing"] == "allow"
    assert "some images lack a sensor" in guesses


def test_names_with_markup_stay_text_in_the_card(folder):
    for i in range(4):
        folder.image(f"rgb/{i}.png")
        folder.voc(f"xml/{i}.xml", ("off", (1, 1, 9, 9)), ("a: [b] # c", (1, 1, 9, 9)), ("&lt;b&gt;", (2, 2, 9, 9)))
    card = guessed(folder)
    assert card.classes == ("<b>", "a: [b] # c", "off")


# ---- what can't be


def test_nothing_recognisable_is_one_line_and_writes_nothing(folder, capsys):
    path = folder.root.parent / "new.yaml"
    folder.text("notes.txt", "nothing here\n")
    folder.text("a.json", "[" * 100_000)
    assert main(["new", str(path), str(folder.root)]) == 2
    assert re.fullmatch(r"mmfuse: .*/set: holds no image \(png, .*\); give the folder .*\n", capsys.readouterr().err)
    folder.image("rgb/1.png")
    assert main(["new", str(path), str(folder.root)]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"mmfuse: .*/set: holds images of rgb, but no labels \(COCO, .*\); add them\n", told)
    folder.text("labels/1.txt", "\n")
    folder.text("rgb/1.txt", "person 1 2\n")
    with pytest.raises(UserError, match="but no labels"):
        new_card(path, folder.root)
    with pytest.raises(UserError, match="nowhere: is not a folder"):
        new_card(path, folder.root / "nowhere")
    assert list(folder.root.parent.iterdir()) == [folder.root]


def test_images_that_can_t_be_read_are_one_line(folder):
    labelled(folder)
    for path in (folder.root / "rgb").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"rgb/000.png: can't be read as an image, nor can others of"):
        guessed(folder)


def test_a_card_is_never_overwritten(folder):
    labelled(folder)
    path = folder.root.parent / "new.yaml"
    path.write_text("mine\n")
    with pytest.raises(UserError, match=r"new.yaml: is there already; give another name, or remove it"):
        new_card(path, folder.root)
    assert path.read_text() == "mine\n"
    with pytest.raises(UserError, match="is not a file name for this; end it in"):
        new_card(folder.root.parent / "new.txt", folder.root)


def test_the_verb_shows_the_card_and_what_check_says(folder, capsys):
    labelled(folder)
    path = folder.root.parent / "cards" / "new.yaml"
    assert main(["new", str(path), str(folder.root)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(path.read_text())
    assert "errors: 0, warnings: " in told
    assert yaml.safe_load(path.read_text())["root"] == "../set"
    (folder.root / "rgb/000.png").write_bytes(b"no image")
    path.unlink()
    assert main(["new", str(path), str(folder.root), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["errors"]
