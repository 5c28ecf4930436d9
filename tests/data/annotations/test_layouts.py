"""Each card that comes along, on a small dataset that is written in its published layout, quirks included."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sun_rgbd_files import write_sun_rgbd
from ultralytics_files import write_trees

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.coco import coco_card, coco_split
from mmfuse.data.annotations.readers import read_split, scan_split
from mmfuse.data.annotations.records import split_digest
from mmfuse.data.checks.check import check
from mmfuse.data.samples import load_sample
from mmfuse.errors import UserError
from mmfuse.strict_yaml import save_yaml

CARDS = Path(__file__).parents[3] / "datasets"
WIDTH, HEIGHT = 64, 48


class Folder:
    """A dataset's folder; images are noise, so that no two look alike."""

    def __init__(self, root):
        self.root = root
        self.rng = np.random.default_rng(0)

    def image(self, name, size=(WIDTH, HEIGHT), channels=3):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
        Image.fromarray(self.rng.integers(0, 256, shape, dtype=np.uint8)).save(path)

    def text(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def voc(self, name, *objects):
        """Objects are (name, (x1, y1, x2, y2)), with `difficult` or a polygon for a box where they go on."""
        things = ""
        for label, box, *more in objects:
            if len(box) == 8:
                keys = [f"{axis}{i}" for i in (1, 2, 3, 4) for axis in "xy"]
                shape = f"<polygon>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, box, strict=True))}</polygon>"
            else:
                keys = ["xmin", "ymin", "xmax", "ymax"]
                shape = f"<bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, box, strict=True))}</bndbox>"
            things += f"<object><name>{label}</name><difficult>{int(bool(more))}</difficult>{shape}</object>"
        self.text(name, f"<annotation><filename>x</filename>{things}</annotation>\n")

    def coco(self, name, file_names, annotations, categories):
        """Annotations are (image index from 0, category id, bbox), `iscrowd` where they go on."""
        size = {"width": WIDTH, "height": HEIGHT}
        images = [{"id": i, "file_name": file_name, **size} for i, file_name in enumerate(file_names)]
        table = [
            {"id": n, "image_id": i, "category_id": c, "bbox": list(box), "iscrowd": int(bool(more)), "area": 1}
            for n, (i, c, box, *more) in enumerate(annotations, 1)
        ]
        listed = [{"id": number, "name": label, "supercategory": "x"} for number, label in categories.items()]
        self.text(name, json.dumps({"images": images, "annotations": table, "categories": listed}))


def write_llvip(folder):
    for part, names in (("train", ["010001", "010002", "150001", "160001"]), ("test", ["190001"])):
        for name in names:
            folder.image(f"visible/{part}/{name}.jpg")
            folder.image(f"infrared/{part}/{name}.jpg")
            folder.voc(f"Annotations/{name}.xml", ("person", (10, 5, 30, 40)))


def write_m3fd(folder):
    for split, name in (("train", "00000"), ("val", "00003"), ("test", "00008")):
        folder.image(f"vis/{name}.png")
        folder.image(f"ir/{name}.png", channels=1)
        folder.voc(f"Annotation/{name}.xml", ("People", (1, 1, 9, 20)), ("Lamp", (30, 2, 36, 9)))
        folder.text(f"{split}.txt", f"{name}\n")


def write_flir_aligned(folder):
    names = {"align_train.txt": ["FLIR_00002", "FLIR_08123"], "align_validation.txt": ["FLIR_08864"]}
    for listing, ids in names.items():
        for name in ids:
            folder.image(f"align/JPEGImages/{name}_RGB.jpg")
            folder.image(f"align/JPEGImages/{name}_PreviewData.jpeg", channels=1)
            objects = [("bicycle", (1, 1, 20, 20)), ("bike", (4, 4, 9, 9)), ("dog", (2, 2, 8, 8))]
            folder.voc(f"align/Annotations/{name}_PreviewData.xml", *objects)
        folder.text(listing, "".join(f"{name}_PreviewData\r\n" for name in ids))


def write_pascal_voc_2007(folder):
    for split, name in (("train", "000012"), ("val", "000005"), ("test", "000001")):
        folder.image(f"JPEGImages/{name}.jpg")
        objects = [("dog", (1, 1, WIDTH, HEIGHT)), ("person", (8, 12, 20, 30), "difficult")]
        folder.voc(f"Annotations/{name}.xml", *objects)
        folder.text(f"ImageSets/Main/{split}.txt", f"{name}\n")


def write_dronevehicle(folder):
    for i, split in enumerate(("train", "val", "test")):
        for kind in ("", "r"):
            folder.image(f"{split}/{split}img{kind}/0000{i}.jpg", (WIDTH + 200, HEIGHT + 200))
        polygon = (110, 120, 130, 115, 132, 122, 112, 127)
        names = ["car", "feright car", "feright_car", "truvk", "freight car", "*"]
        folder.voc(f"{split}/{split}labelr/0000{i}.xml", *((name, polygon) for name in names))
        folder.voc(f"{split}/{split}label/0000{i}.xml", ("car", (109, 119, 133, 128)))


def write_flir_adas_v1(folder):
    categories = {1: "person", 2: "bicycle", 3: "car", 18: "dog", 91: "other"}
    annotations = [(0, 1, (1, 2, 10, 20)), (0, 17, (1, 2, 5, 5)), (1, 3, (5, 5, 20, 10)), (1, 91, (1, 1, 4, 4))]
    for part, numbers in (("train", (1, 7862, 7863)), ("val", (8863, 8864)), ("video", (10229, 10230))):
        names = [f"thermal_8_bit/FLIR_{number:05}.jpeg" for number in numbers]
        for number, name in zip(numbers, names, strict=True):
            folder.image(f"{part}/{name}", channels=1)
            if number != 1:
                folder.image(f"{part}/RGB/FLIR_{number:05}.jpg")
        folder.coco(f"{part}/thermal_annotations.json", names, annotations, categories)


V2 = {1: "person", 3: "car", 8: "truck", 17: "dog", 79: "other vehicle", 12: "sign"}


def v2_names(part, kind):
    return [f"video-{part}{kind}X-frame-00000{i}-{kind}hash{i}.jpg" for i in (0, 1)]


def write_flir_adas_v2(kind):
    def write(folder):
        for part in ("images_{}_train", "images_{}_val", "video_{}_test"):
            part = part.format(kind)
            names = [f"data/{name}" for name in v2_names(part, kind)]
            for name in names:
                folder.image(f"{part}/{name}")
            folder.coco(f"{part}/coco.json", names, [(0, 17, (1, 2, 10, 20)), (1, 79, (1, 1, 9, 9))], V2)

    return write


def write_flir_adas_v2_video(folder):
    names = {kind: v2_names("test", kind) for kind in ("rgb", "thermal")}
    for kind, listed in names.items():
        for name in listed:
            folder.image(f"video_{kind}_test/data/{name}")
    table = [(0, 1, (1, 2, 10, 20))]
    folder.coco("video_thermal_test/coco.json", [f"data/{name}" for name in names["thermal"]], table, V2)
    folder.text("rgb_to_thermal_vid_map.json", json.dumps(dict(zip(names["rgb"], names["thermal"], strict=True))))


def write_coco_2017(folder):
    categories = {1: "person", 13: "stop sign", 90: "toothbrush"}
    annotations = [(0, 90, (1.5, 2, 10, 20)), (0, 13, (1, 2, 30, 20), "crowd"), (1, 1, (3, 3, 0, 9))]
    for part, names in (
        ("train2017", ["000000000009.jpg", "000000560001.jpg"]),
        ("val2017", ["000000000139.jpg", "000000000285.jpg"]),
    ):
        for name in names:
            folder.image(f"{part}/{name}")
        folder.coco(f"annotations/instances_{part}.json", names, annotations, categories)


KAIST_TEXT = "% bbGt version=3\nperson 10 20 10 20 1 0 0 0 0 0 0\npeople 30 5 20 30 0 0 0 0 0 0 0\nperson? 1 1 5 5 2\n"


def write_kaist(folder):
    names = {"train-all-02": ["set00/V000/I00001", "set02/V004/I00003"], "test-all-20": ["set11/V001/I00019"]}
    for listing, entries in names.items():
        for entry in entries:
            place, frame = entry.rsplit("/", 1)
            folder.image(f"images/{place}/visible/{frame}.jpg")
            folder.image(f"images/{place}/lwir/{frame}.jpg")
            labels = "annotations_improved" if "test" in listing else "annotations"
            folder.text(f"{labels}/{entry}.txt", KAIST_TEXT)
        folder.text(f"imageSets/{listing}.txt", "\n".join(entries))


def write_kitti(folder):
    lines = [
        "Car 0.00 1 1.85 7.5 10.0 40.25 30.0 1.67 1.87 3.69 -16.53 2.39 58.49 1.57",
        "Van 0.00 0 1.85 1.5 1.0 9.25 9.0 1.67 1.87 3.69 -16.53 2.39 58.49 1.57",
        "DontCare -1 -1 -10 50.0 1.0 60.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10",
        "Misc 0.00 0 -1.82 1 1 9 9 1.63 1.48 2.37 3.23 1.59 8.55 -1.47",
    ]
    for name in ("000003", "000009", "000010"):
        folder.image(f"training/image_2/{name}.png")
        folder.text(f"training/label_2/{name}.txt", "\n".join(lines) + "\n")
    folder.text("ImageSets/train.txt", "000003\n000009\n")
    folder.text("ImageSets/val.txt", "000010\n")


def write_vedai(folder):
    for name in ("00000001", "00000009", "00000012"):
        folder.image(f"Vehicules1024/{name}_co.png")
        folder.image(f"Vehicules1024/{name}_ir.png", channels=1)
        text = "20 15 0.78 11 1 0 10 30 28 12 8 10 22 20\n40 20 0.1 31 1 1 35 45 45 35 15 15 25 25\n"
        folder.text(f"Annotations1024/{name}.txt", text)
    folder.text("fold01.txt", "00000001\n00000009\n")
    folder.text("fold01test.txt", "00000012\n")


def write_vedai_combined(folder):
    write_vedai(folder)
    shutil.rmtree(folder.root / "Annotations1024")
    lines = [
        "00000001 20 15 0.78 10 30 28 12 8 10 22 20 011 1 0",
        "00000009 40 20 0.1 35 45 45 35 15 15 25 25 031 1 1",
        "00000001 40 20 0.1 1 5 5 1 2 2 9 9 001 1 1",
        "000000012 40 20 0.1 1 5 5 1 2 2 9 9 001 1 1",
    ]
    folder.text("Annotations1024/annotation1024.txt", "\r\n".join(lines) + "\r\n")


def write_kitti_depth(folder):
    write_kitti(folder)
    camera = f"60 0 {WIDTH / 2} 3 0 60 {HEIGHT / 2} 0 0 0 1 0"
    lines = [f"P{i}: {camera}" for i in range(4)] + ["R0_rect: 1 0 0 0 1 0 0 0 1"]
    lines += ["Tr_velo_to_cam: 0 -1 0 0.1 0 0 -1 -0.2 1 0 0 -0.3", "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0"]
    for name in ("000003", "000009", "000010"):
        points = folder.rng.uniform([5, -2, -2, 0], [50, 2, 2, 1], (200, 4)).astype(np.float32)
        (folder.root / "training/velodyne").mkdir(exist_ok=True)
        points.tofile(folder.root / f"training/velodyne/{name}.bin")
        folder.text(f"training/calib/{name}.txt", "\n".join(lines) + "\n\n")


def write_cvc14(folder):
    for time, part, frames, name in (
        ("Day", "Train", "FramesPos", "2014_05_01_17"),
        ("Night", "Train", "FramesNeg", "2014_05_04_23"),
        ("Night", "NewTest", "FramesPos", "2014_05_04_24"),
    ):
        folder.image(f"{time}/Visible/{part}/{frames}/{name}.tif", (WIDTH, HEIGHT - 4), 1)
        folder.image(f"{time}/FIR/{part}/{frames}/{name}.tif", channels=1)
        if frames == "FramesPos":
            folder.text(f"{time}/FIR/{part}/Annotations/{name}.txt", "20  25  10  20  1  0  0  0\n")
            folder.text(f"{time}/Visible/{part}/Annotations/{name}.txt", "22 25 10 20 1 0 0 0\n40 44 6 10 1 0 0 0\n")


DATASETS = {
    "llvip": write_llvip,
    "m3fd": write_m3fd,
    "flir_aligned": write_flir_aligned,
    "pascal_voc_2007": write_pascal_voc_2007,
    "dronevehicle": write_dronevehicle,
    "flir_adas_v1": write_flir_adas_v1,
    "flir_adas_v2_rgb": write_flir_adas_v2("rgb"),
    "flir_adas_v2_thermal": write_flir_adas_v2("thermal"),
    "flir_adas_v2_video": write_flir_adas_v2_video,
    "coco_2017": write_coco_2017,
    "kaist": write_kaist,
    "kitti": write_kitti,
    "vedai": write_vedai,
    "cvc14": write_cvc14,
    "vedai_combined": write_vedai_combined,
    "kitti_depth": write_kitti_depth,
    "sun_rgbd": lambda folder: write_sun_rgbd(folder.root),
    "ultralytics_yolo": lambda folder: write_trees(folder.root),
}


@pytest.fixture
def make(tmp_path):
    """Writes the dataset of a card and returns the card, at that root."""

    def write(name):
        DATASETS[name](Folder(tmp_path))
        return load_card(CARDS / f"{name}.yaml", str(tmp_path))

    return write


def only(card, split):
    (record,) = read_split(card, split)
    return record


def boxes_of(record):
    return [(label, box) for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)]


def same(a, b):
    """Whether two records are equal in every field."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert y is not None
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        elif field.name == "objects_of":
            assert x.keys() == y.keys()
            assert all(same(x[m], y[m]) for m in x)
        else:
            assert x == y, field.name
    return True


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_in_its_own_layout_is_in_order(make, name):
    card = make(name)
    report = check(card.path, str(card.root))
    none = "val: no object counts"  # of the few that are written here
    known = {"cvc14": "register them to one size", "flir_adas_v1": none, "coco_2017": none}
    assert [error for error in report.errors if name not in known or known[name] not in error] == []
    assert all(found.images for found in report.splits.values())


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_as_coco_is_read_back_alike(make, name, tmp_path):
    card = make(name)
    records = {split: read_split(card, split) for split in card.splits}
    for split in card.splits:
        (card.root / f"converted_{split}.json").write_text(json.dumps(coco_split(card, records[split])))
    save_yaml(tmp_path / "converted.yaml", coco_card(card, {split: f"converted_{split}.json" for split in card.splits}))
    converted = load_card(tmp_path / "converted.yaml")
    assert (converted.classes, converted.labels.reference) == (card.classes, card.labels.reference)
    assert converted.label_source == card.label_source
    for split, expected in records.items():
        found = read_split(converted, split)
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))
        assert split_digest(found) == split_digest(expected)


def test_every_card_that_reads_files_has_its_layout_tested():
    cards = {path.stem for path in CARDS.glob("*.yaml") if "layout" in yaml.safe_load(path.read_text())}
    assert cards == DATASETS.keys()


def test_llvip_shares_out_scenes(make):
    card = make("llvip")
    train = read_split(card, "train")
    assert [r.files["rgb"].name for r in train] == ["010001.jpg", "010002.jpg", "150001.jpg"]
    assert [r.sequence for r in train] == ["01", "01", "15"]
    assert only(card, "val").sequence == "16"
    assert boxes_of(train[0]) == [(0, [10, 5, 30, 40])]


def test_flir_aligned_pairs_names_and_drops_dogs(make):
    card = make("flir_aligned")
    record = only(card, "train")
    assert record.files["rgb"] == card.root / "align/JPEGImages/FLIR_00002_RGB.jpg"
    assert record.files["thermal"] == card.root / "align/JPEGImages/FLIR_00002_PreviewData.jpeg"
    assert boxes_of(record) == [(1, [1, 1, 20, 20]), (1, [4, 4, 9, 9])]
    assert only(card, "val").files["rgb"].name == "FLIR_08123_RGB.jpg"


def test_pascal_voc_counts_from_one_and_ignores_the_difficult(make):
    record = only(make("pascal_voc_2007"), "train")
    assert boxes_of(record) == [(11, [0, 0, WIDTH, HEIGHT]), (14, [7, 11, 20, 30])]
    assert record.ignore.tolist() == [False, True]


def test_dronevehicle_cuts_the_border_mends_names_and_keeps_the_labels_of_both_sensors(make):
    card = make("dronevehicle")
    record = only(card, "train")
    assert (record.width, record.height) == (WIDTH, HEIGHT)
    assert {x.shape[1:] for x in load_sample(record, card.modalities).images.values()} == {(HEIGHT, WIDTH)}
    assert boxes_of(record) == [(label, [10, 15, 32, 27]) for label in (0, 4, 4, 1, 4)]
    assert record.objects_of.keys() == {"rgb"}
    assert record.objects_of["rgb"].boxes.tolist() == [[9, 19, 33, 28]]
    assert record.objects_of["rgb"].labels.tolist() == [0]


def test_flir_adas_v1_allows_for_missing_images_and_two_ids_of_dogs(make):
    card = make("flir_adas_v1")
    first, second = read_split(card, "train")
    assert first.files.keys() == {"thermal"}
    assert second.files.keys() == {"rgb", "thermal"}
    assert boxes_of(first) == [(0, [1, 2, 11, 22])]
    assert boxes_of(second) == [(2, [5, 5, 25, 15])]
    assert only(card, "val").files["rgb"].name == "FLIR_07863.jpg"
    assert [len(read_split(card, split)) for split in ("test", "video")] == [2, 2]
    assert "train: images without rgb: 1; the card allows it" in check(card.path, str(card.root)).warnings


def test_flir_adas_v2_pairs_by_its_map(make):
    card = make("flir_adas_v2_video")
    first, _ = read_split(card, "test")
    assert first.files["thermal"].name == "video-testthermalX-frame-000000-thermalhash0.jpg"
    assert first.files["rgb"].name == "video-testrgbX-frame-000000-rgbhash0.jpg"
    assert first.sequence == "testthermalX"
    (card.root / "rgb_to_thermal_vid_map.json").write_text("{}")
    errors = scan_split(card, "test").errors
    assert len(errors) == 2
    assert "rgb: there is no pair in the card's map" in errors[0]
    (card.root / "rgb_to_thermal_vid_map.json").write_text("[]")
    assert "is not a mapping of names to names" in check(card.path, str(card.root)).errors[0]


def test_flir_adas_v2_knows_its_classes_by_name(make):
    first, second = read_split(make("flir_adas_v2_thermal"), "train")
    assert boxes_of(first) == [(10, [1, 2, 11, 22])]
    assert boxes_of(second) == [(14, [1, 1, 10, 10])]


def test_coco_has_ids_with_holes_crowds_and_boxes_without_area(make):
    card = make("coco_2017")
    record = only(card, "train")
    assert boxes_of(record) == [(79, [1.5, 2, 11.5, 22]), (11, [1, 2, 31, 22])]
    assert record.ignore.tolist() == [False, True]
    assert record.files == {"rgb": card.root / "train2017/000000000009.jpg"}
    assert (only(card, "val").image_id, scan_split(card, "val").left_out) == (1, 1)


def test_kaist_has_regions_to_ignore_occlusion_and_conditions(make):
    card = make("kaist")
    train, val, test = (only(card, split) for split in ("train", "val", "test"))
    assert boxes_of(train) == [(0, [10, 20, 20, 40]), (0, [30, 5, 50, 35]), (0, [1, 1, 6, 6])]
    assert train.ignore.tolist() == [False, True, True]
    assert train.occlusion.tolist() == [1, 0, 2]
    assert [(r.condition, r.sequence) for r in (train, val, test)] == [
        ("day", "set00/V000"),
        ("day", "set02/V004"),
        ("night", "set11/V001"),
    ]
    assert card.conditions == ("day", "night")


def test_kitti_ignores_a_region_for_each_class(make):
    record = only(make("kitti"), "train")
    assert boxes_of(record)[0] == (0, [7.5, 10, 40.25, 30])
    assert record.labels.tolist() == [0, 0, 0, 1, 2]
    assert record.ignore.tolist() == [False, True, True, True, True]
    assert record.occlusion.tolist() == [1, 0, -1, -1, -1]


def test_vedai_names_its_numbers(make):
    record = only(make("vedai"), "train")
    assert boxes_of(record) == [(8, [10, 8, 30, 22]), (10, [35, 15, 45, 25])]
    assert record.files.keys() == {"rgb", "nir"}


def test_vedai_s_file_of_all_labels_has_its_own_order(make):
    card = make("vedai_combined")
    record = only(card, "train")
    assert boxes_of(record) == [(8, [10, 8, 30, 22]), (0, [1, 2, 5, 9])]
    assert record.occlusion.tolist() == [0, 1]
    assert boxes_of(only(card, "val")) == [(10, [35, 15, 45, 25])]
    assert boxes_of(only(card, "test")) == []
    with (card.root / "Annotations1024/annotation1024.txt").open("a") as file:
        file.write("00000009 40 20 0.1 35 45 45 35 15 15 25 25 012 1 1\n")
    (error,) = scan_split(card, "val").errors
    assert "annotation1024.txt: line 5: '12' is not a known class" in error


def test_cvc14_keeps_the_labels_of_both_sensors_and_images_without_any(make):
    card = make("cvc14")
    day, night = read_split(card, "train")
    assert (day.condition, night.condition) == ("day", "night")
    assert boxes_of(day) == [(0, [15, 15, 25, 35])]
    assert day.objects_of["visible"].boxes.tolist() == [[17, 15, 27, 35], [37, 39, 43, HEIGHT - 4]]
    assert len(night.boxes) == len(night.objects_of["visible"].boxes) == 0
    assert "register them to one size" in check(card.path, str(card.root)).errors[0]


def test_trees_of_yolo_labels_are_read_with_a_card(tmp_path):
    folder = Folder(tmp_path)
    for split in ("train", "val"):
        for sensor, channels in (("rgb", 3), ("depth", 1), ("thermal", 1)):
            folder.image(f"{sensor}/images/{split}/{split}1.png", channels=channels)
            folder.image(f"{sensor}/images/{split}/{split}2.png", channels=channels)
        folder.text(f"rgb/labels/{split}/{split}1.txt", "1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.1 0.1")
        folder.text(f"{split}.txt", f"./images/{split}/{split}2.png\n./images/{split}/{split}1.png\n")
    trees = {m: f"{m}/images/{{folder}}/{{id}}.png" for m in ("rgb", "depth", "thermal")}
    values = {
        "name": "trees",
        "root": ".",
        "reader": "yolo",
        "modalities": {"rgb": {"channels": 3}, "depth": {"channels": 1}, "thermal": {"channels": 1}},
        "classes": ["person", "car"],
        "layout": {"files": trees, "annotations": {"rgb": "rgb/labels/{folder}/{id}.txt"}},
        "labels": {"aliases": {0: "person", 1: "car"}, "unlabelled": "background"},
        "splits": {"train": {"folder": "train"}, "val": {"folder": "val"}},
    }
    save_yaml(tmp_path / "card.yaml", values)
    found = read_split(load_card(tmp_path / "card.yaml"), "train")
    assert [r.files["depth"].name for r in found] == ["train1.png", "train2.png"]
    np.testing.assert_allclose(found[0].boxes, [[24, 12, 40, 36], [3.2, 2.4, 9.6, 7.2]], rtol=1e-6)
    assert found[0].labels.tolist() == [1, 0]
    assert len(found[1].boxes) == 0
    assert check(tmp_path / "card.yaml").errors == []
    values["layout"]["entry"] = "./images/{folder}/{id}.png"
    values["splits"] = {s: {"file": f"{s}.txt", "folder": s} for s in ("train", "val")}
    save_yaml(tmp_path / "card.yaml", values)
    listed = read_split(load_card(tmp_path / "card.yaml"), "val")
    assert [r.files["rgb"].name for r in listed] == ["val2.png", "val1.png"]


@pytest.fixture
def spoiled(make):
    """FLIR-aligned's layout, in which a test plants a fault; returns the folder and what `check` finds."""
    card = make("flir_aligned")

    def errors():
        return check(card.path, str(card.root)).errors

    return Folder(card.root), errors


XML = "align/Annotations/FLIR_00002_PreviewData.xml"


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def symlink(path):
    path.unlink()
    outside = path.parents[3] / "outside.jpg"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("plant", "messages"),
    [
        (lambda f: (f.root / "align/JPEGImages/FLIR_00002_RGB.jpg").unlink(), ["FLIR_00002_RGB.jpg is missing"]),
        (lambda f: (f.root / XML).unlink(), ["align_train.txt:1: FLIR_00002_PreviewData: the annotation file", XML]),
        (lambda f: cut(f.root / XML), [XML, "is not XML"]),
        (lambda f: f.text(XML, '<!DOCTYPE a [<!ENTITY a "b">]><annotation/>'), [XML, "document type 'a'"]),
        (lambda f: (f.root / XML).write_bytes("<annotation>é</annotation>".encode("latin-1")), [XML, "is not XML"]),
        (lambda f: f.voc(XML, ("persn", (1, 1, 5, 5))), [XML, "object 1", "did you mean 'person'?", "or name it in"]),
        (lambda f: f.text("align_train.txt", "\n"), ["align_train.txt: is empty"]),
        (lambda f: (f.root / "align_train.txt").write_bytes(b"FLIR\xff\n"), ["align_train.txt: is not UTF-8 text"]),
        (lambda f: (f.root / "align_train.txt").unlink(), ["align_train.txt: No such file"]),
        (lambda f: f.text("align_train.txt", "FLIR_00002\n"), ["'FLIR_00002' doesn't fit", "{id}_PreviewData"]),
        (lambda f: f.text("align_train.txt", f"{'F' * 300}_PreviewData\n"), ["align_train.txt:1: FFF", "is missing"]),
        (lambda f: symlink(f.root / "align/JPEGImages/FLIR_00002_RGB.jpg"), ["FLIR_00002", "leads out of"]),
    ],
)
def test_a_planted_fault_is_one_line_that_names_it(spoiled, plant, messages):
    folder, errors = spoiled
    plant(folder)
    (error, *rest) = errors()
    assert all(message in error for message in messages), error
    assert "\n" not in error
    assert all("align_train.txt" in other or "splits.val: no entry is found" in other for other in rest)


def test_an_entry_twice_or_in_two_splits_is_an_error(spoiled):
    folder, errors = spoiled
    folder.text("align_train.txt", "FLIR_00002_PreviewData\nFLIR_08123_PreviewData\nFLIR_00002_PreviewData\n")
    assert any("align_train.txt:3: the entry 'FLIR_00002_PreviewData' stands twice" in error for error in errors())
    folder.text("align_train.txt", "FLIR_00002_PreviewData\nFLIR_08123_PreviewData\n")
    folder.text("align_validation.txt", "FLIR_08123_PreviewData\n")
    assert sum("FLIR_08123" in error and "is in test, and the same image" in error for error in errors()) == 2


@pytest.mark.parametrize("name", ["../../x", "/etc/x"])
def test_an_entry_may_not_leave_the_root(tmp_path, name):
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    Folder(root).text("list.txt", f"{name}\n")
    values = {
        "name": "x",
        "root": str(root),
        "reader": "voc",
        "modalities": {"rgb": {"channels": 3}},
        "classes": ["car"],
        "layout": {"entry": name.replace("x", "{id}"), "files": {"rgb": "{entry}.jpg"}, "annotations": {"rgb": "{id}"}},
        "splits": {"train": "list.txt"},
    }
    save_yaml(root / "card.yaml", values)
    assert f"'{name}.jpg' leads out of" in check(root / "card.yaml").errors[0]


def test_conditions_come_from_lists_too(make):
    card = make("m3fd")
    Folder(card.root).text("fog.txt", "00000\n00003\n")
    layout = dataclasses.replace(card.layout, condition_lists={"fog": "fog.txt"}, conditions={"clear": ".*"})
    card = dataclasses.replace(card, layout=layout)
    assert [only(card, split).condition for split in ("train", "val", "test")] == ["fog", "fog", "clear"]
    Folder(card.root).text("rain.txt", "00003\n")
    layout = dataclasses.replace(layout, condition_lists={"fog": "fog.txt", "rain": "rain.txt"})
    with pytest.raises(UserError, match=r"rain.txt:1: '00003' is rain, and fog in another list"):
        read_split(dataclasses.replace(card, layout=layout), "train")


def test_a_copy_of_flir_aligned_as_coco_is_matched_by_names(tmp_path):
    folder = Folder(tmp_path)
    name = "FLIR_08864_PreviewData.jpeg"
    folder.image(f"thermal/{name}", channels=1)
    folder.image("rgb/FLIR_08864_RGB.jpg")
    categories = {0: "car", 1: "person", 2: "bike", 3: "dog"}
    annotations = [(0, 2, (1, 1, 9, 9)), (0, 0, (2, 2, 9, 9)), (0, 3, (3, 3, 9, 9))]
    folder.coco("test.json", [name], annotations, categories)
    values = {
        "name": "copy",
        "root": ".",
        "reader": "coco",
        "modalities": {"rgb": {"channels": 3}, "thermal": {"channels": 1}},
        "classes": ["person", "bicycle", "car"],
        "layout": {
            "entry": "{id}_PreviewData.jpeg",
            "files": {"rgb": "rgb/{id}_RGB.jpg", "thermal": "thermal/{entry}"},
        },
        "labels": {"reference": "thermal", "aliases": {"bike": "bicycle"}, "dropped": ["dog"]},
        "splits": {"test": "test.json"},
    }
    save_yaml(tmp_path / "card.yaml", values)
    record = only(load_card(tmp_path / "card.yaml"), "test")
    assert boxes_of(record) == [(1, [1, 1, 10, 10]), (2, [2, 2, 11, 11])]
    assert record.files["rgb"] == tmp_path / "rgb/FLIR_08864_RGB.jpg"
    assert check(tmp_path / "card.yaml").errors == []
    values["labels"] = {"unknown": "drop"}
    save_yaml(tmp_path / "card.yaml", values)
    assert boxes_of(only(load_card(tmp_path / "card.yaml"), "test")) == [(2, [2, 2, 11, 11])]


@pytest.mark.parametrize(
    ("box", "problem"), [((9, 9, 3, 12), "has no area"), ((70, 1, 80, 9), "lies outside the image of 64 x 48 pixels")]
)
def test_a_bad_box_is_an_error_or_left_out_as_the_card_says(make, tmp_path, box, problem):
    card = make("flir_aligned")
    Folder(tmp_path).voc(XML, ("car", box), ("car", (-9, 1, 9, 9)))
    reading = scan_split(card, "train")
    assert (reading.errors, reading.left_out, reading.clipped) == ([], 1, 1)
    assert reading.records[0].boxes.tolist() == [[0, 1, 9, 9]]
    strict = dataclasses.replace(card, labels=dataclasses.replace(card.labels, bad_boxes="error"))
    (error,) = scan_split(strict, "train").errors
    assert f"{XML}: object 1: box {' '.join(map(str, box))} {problem}" in error


def test_an_image_of_one_sensor_only_is_found_as_unpaired(make):
    card = make("llvip")
    (card.root / "visible/train/010002.jpg").unlink()
    (card.root / "infrared/train/150001.jpg").unlink()
    errors = scan_split(card, "train").errors
    assert len(errors) == 2
    assert "010002: rgb: " in errors[0]
    assert "150001: thermal: " in errors[1]


def test_counts_are_compared_with_the_published_ones(make):
    card = make("flir_aligned")
    warnings = check(card.path, str(card.root)).warnings
    assert "test: 1 images, but 1013 are published; check the copy and the list" in warnings
    assert "test: 2 boxes, but 8591 are published; check the copy and the list" in warnings
    shutil.rmtree(card.root / "align")
    assert check(card.path, str(card.root)).errors
