import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiff_files import tiff

from mmfuse.data.checks import check as check_module
from mmfuse.data.checks.check import Report, check

REPOSITORY = Path(__file__).parents[3]
SHARED = REPOSITORY.parent / "shared" / "data"


class Dataset:
    """A small dataset on disk, right until a test spoils it."""

    def __init__(self, folder):
        self.folder = folder
        self.splits = {}
        self.missing = "error"
        self.modalities = {"rgb": {"channels": 3}, "thermal": {"channels": 1}}
        rng = np.random.default_rng(0)
        number = 0
        for split in ("train", "val", "test"):
            images, annotations = [], []
            for _ in range(2):
                number += 1
                files = {"rgb": f"{number}_rgb.png", "thermal": f"{number}_t.png"}
                Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / files["rgb"])
                Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(folder / files["thermal"])
                tags = {"condition": "day", "sequence": split}
                images.append({"id": number, "modalities": files, "width": 16, "height": 12, **tags})
                box = {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0}
                annotations.append(box)
            categories = [{"id": 1, "name": "car"}]
            self.splits[split] = {"images": images, "annotations": annotations, "categories": categories}

    def save(self, name, pixels):
        Image.fromarray(np.asarray(pixels)).save(self.folder / name)

    def add_depth(self, images, **sensor):
        """Makes depth of these images, given in raw values, the third sensor of as many pairs."""
        self.modalities["depth"] = {"channels": 1, "encoding": "metres", **sensor}
        entries = [image for content in self.splits.values() for image in content["images"]]
        for entry, pixels in zip(entries, images, strict=True):
            entry["modalities"]["depth"] = f"{entry['id']}_d.tif"
            self.save(entry["modalities"]["depth"], pixels)

    def check(self, **asked):
        for split, content in self.splits.items():
            (self.folder / f"{split}.json").write_text(json.dumps(content))
        card = {
            "name": "tiny",
            "root": ".",
            "reader": "coco",
            "modalities": self.modalities,
            "classes": ["car"],
            "missing": self.missing,
            "splits": {split: f"{split}.json" for split in self.splits},
        }
        (self.folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
        return check(self.folder / "card.yaml", **asked)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def test_a_good_dataset_has_no_problem(dataset):
    report = dataset.check()
    assert (report.errors, report.warnings) == ([], [])
    assert list(report.splits) == ["train", "val", "test"]
    train = report.splits["train"]
    assert (train.images, train.boxes, train.conditions) == (2, {"car": 2}, {"day": 2})
    assert train.sizes == ((16, 12), (16, 12))
    assert "train: 2 images, 2 boxes (2 car)" in report.to_text()
    assert report.to_text().endswith("errors: 0, warnings: 0")


def test_all_problems_are_reported_at_once(dataset):
    train = dataset.splits["train"]
    train["annotations"][0]["bbox"] = [1, 1, 0, 8]
    train["annotations"][1]["bbox"] = [90, 1, 8, 8]
    dataset.splits["val"]["categories"][0]["name"] = "cart"
    (dataset.folder / "5_t.png").unlink()
    (dataset.folder / "6_rgb.png").write_text("no image")
    report = dataset.check()
    assert len(report.errors) == 5
    for part in ("annotation 1", "annotation 2", "did you mean 'car'?", "5_t.png", "6_rgb.png"):
        assert sum(part in error for error in report.errors) == 1, part


def test_sizes_are_compared(dataset):
    dataset.splits["train"]["images"][0]["width"] = 17
    Image.fromarray(np.ones((10, 16), np.uint8)).save(dataset.folder / "3_t.png")
    report = dataset.check()
    assert len(report.errors) == 2
    assert "is 16 x 12, but image 1 is labelled as 17 x 12" in report.errors[0]
    assert "3_rgb.png is 16 x 12" in report.errors[1]
    assert "3_t.png is 16 x 10" in report.errors[1]


def test_an_image_without_its_partner_is_an_error(dataset):
    del dataset.splits["test"]["images"][0]["modalities"]["thermal"]
    (error,) = dataset.check().errors
    assert "image 5: has no file for the modality 'thermal'" in error


def test_splits_that_share_a_file_its_content_or_a_sequence_are_errors(dataset):
    dataset.splits["val"]["images"][0]["modalities"]["rgb"] = "1_rgb.png"
    (dataset.folder / "5_t.png").write_bytes((dataset.folder / "2_t.png").read_bytes())
    dataset.splits["test"]["images"][1]["sequence"] = "val"
    report = dataset.check()
    assert len(report.errors) == 3
    assert "'val' is in val and in test" in report.errors[0]
    assert "1_rgb.png: is in val" in report.errors[1]
    assert "5_t.png: is in test, and the same image" in report.errors[2]
    assert "2_t.png in train" in report.errors[2]


def test_what_training_can_live_with_is_a_warning(dataset):
    train = dataset.splits["train"]
    train["annotations"][0]["bbox"] = [-4, 1, 8, 8]
    dataset.splits["test"]["annotations"] = []
    (dataset.folder / "6_rgb.png").write_bytes((dataset.folder / "5_rgb.png").read_bytes())
    report = dataset.check()
    assert report.errors == []
    text = "\n".join(report.warnings)
    assert len(report.warnings) == 4
    assert "train: boxes that reach more than a pixel out of their image: 1" in text
    assert "test: images without objects: 2" in text
    assert "test: the class 'car' has no boxes" in text
    assert "6_rgb.png: is the same image as" in text


def test_a_split_or_card_that_cannot_be_read_is_an_error_and_the_rest_is_still_checked(dataset, tmp_path):
    del dataset.splits["val"]
    (tmp_path / "2_t.png").unlink()
    dataset.check()
    (tmp_path / "test.json").write_text("{")
    report = check(tmp_path / "card.yaml")
    assert len(report.errors) == 2
    assert "test.json: is not JSON" in report.errors[0]
    assert "2_t.png" in report.errors[1]
    assert any("no split 'val'" in warning for warning in report.warnings)
    assert "No such file" in check(tmp_path / "nothing.yaml").errors[0]


def depth_of(*rows, fill=0.0):
    image = np.full((12, 16), fill, np.float32)
    for i, row in enumerate(rows):
        image[i, : len(row)] = row
    return image


def test_what_each_sensor_measures_is_counted_by_hand(dataset):
    """Of 2 x 192 pixels of depth 3 and 1 are valid; the second thermal image is NaN but for two pixels."""
    depth = [depth_of([500, 3000, np.nan], [4000, np.inf]), depth_of([250, -3])]
    dataset.add_depth(depth + [depth_of([1000, 2000])] * 4, unit=0.001)
    thermal = [np.linspace(-20, 35.5, 192, dtype=np.float32).reshape(12, 16), np.full((12, 16), np.nan, np.float32)]
    thermal[1][0, :2] = 40, 41
    for image, pixels in zip(dataset.splits["train"]["images"], thermal, strict=True):
        image["modalities"]["thermal"] = f"{image['id']}_t.tif"
        dataset.save(image["modalities"]["thermal"], pixels)
    report = dataset.check()
    found = report.splits["train"].sensors
    assert found["depth"].types == {"float32": 2}
    assert found["depth"].range == pytest.approx((0.25, 4.0))
    assert found["depth"].unit == "m"
    assert found["depth"].invalid == pytest.approx(1 - 4 / 384)
    assert (found["depth"].blank, found["depth"].constant) == (0, 1)
    assert found["thermal"].range == (-20, 41)
    assert found["thermal"].invalid == pytest.approx(190 / 384)
    assert (found["thermal"].blank, found["thermal"].constant) == (0, 0)
    text = report.to_text()
    assert "    depth: float32, 0.25 to 4 m, 99.0% invalid" in text
    assert "    thermal: float32, -20 to 41, 49.5% invalid" in text
    assert "    rgb: uint8, 0 to 255\n" in text
    assert json.loads(json.dumps(dataclasses.asdict(report)))["splits"]["train"]["sensors"]["depth"]["unit"] == "m"


def test_a_colour_image_is_constant_only_if_all_its_channels_are(dataset):
    dataset.save("1_rgb.png", np.full((12, 16, 3), (9, 80, 200), np.uint8))
    nearly = np.full((12, 16, 3), (9, 80, 200), np.uint8)
    nearly[3, 4, 2] = 201
    dataset.save("2_rgb.png", nearly)
    (warning,) = (warning for warning in dataset.check().warnings if "pixels have" not in warning)
    assert "train: rgb: images of one single value: 1, such as" in warning
    assert "1_rgb.png" in warning


def test_a_sensor_that_is_blank_is_a_warning_in_one_image_and_an_error_in_a_whole_split(dataset):
    good = depth_of([1, 2, 3])
    dataset.add_depth([depth_of(), good, good + 1, good + 2, depth_of(fill=np.nan), depth_of(fill=-2)], unit=1)
    report = dataset.check()
    (warning,) = (warning for warning in report.warnings if "pixels have" not in warning)
    assert "train: depth: images without any measurement: 1, such as" in warning
    assert "1_d.tif" in warning
    (error,) = report.errors
    assert "test: depth: no image measures anything: 2, such as" in error
    assert "5_d.tif" in error


@pytest.mark.parametrize(("inside", "errors"), [(4, 1), (5, 0)])
@pytest.mark.parametrize(("near_value", "far_value"), [(1.0, 1.01), (39.9, 40.0)])
def test_depth_is_implausible_if_under_5_percent_lie_between_half_near_and_twice_far(
    dataset, inside, errors, near_value, far_value
):
    values = [near_value, far_value, *[(near_value + far_value) / 2] * (inside - 2), *[5000.0] * (100 - inside)]
    image = np.zeros(192, np.float32)
    image[:100] = values
    images = [image.reshape(12, 16)] * 2 + [depth_of([3, 4, 5])] * 4
    dataset.add_depth(images, unit=1, near=2, far=20)
    found = [error for error in dataset.check().errors if "is in test" not in error and "is in val" not in error]
    assert len(found) == errors
    if found:
        text = "unit: 1 makes the median 5000 m, but near is 2 and far 20 m; is it 0.001, which makes it 5 m?"
        assert found == [f"train: depth: {text}"]


@pytest.mark.parametrize(
    ("raw", "sensor", "words"),
    [
        (3000, {"unit": 1}, "unit: 1 makes the median 3000 m, but near is 0.5 and far 20 m; is it 0.001, which"),
        (3, {"unit": 0.001}, "unit: 0.001 makes the median 0.003 m, but near is 0.5 and far 20 m; is it 1, which"),
        (15000, {"unit": 1, "near": 1, "far": 6}, "is it 0.0002, which makes it 3 m?"),
        (15000, {"unit": 1, "near": 20, "far": 100}, "is it 0.00390625, which makes it 58.594 m?"),
        (10**7, {"unit": 1}, "makes the median 1e+07 m, but near is 0.5 and far 20 m; mend one of them"),
        (
            1000,
            {"disparity": [1, 0]},
            "disparity: [1.0, 0.0] makes the median 0.001 m, but near is 0.5 and far 20 m; mend",
        ),
    ],
)
def test_the_likely_unit_is_told(dataset, raw, sensor, words):
    dataset.add_depth([depth_of([raw + i, raw, raw]) for i in range(1, 7)], **sensor)
    errors = dataset.check().errors
    assert [error.split(":")[0] for error in errors] == ["train", "val", "test"]
    assert all(words in error for error in errors), errors


def test_a_sensor_may_be_absent_from_an_image_and_from_a_split(dataset):
    dataset.missing = "allow"
    for split, index in (("train", 0), ("test", 0), ("test", 1)):
        del dataset.splits[split]["images"][index]["modalities"]["thermal"]
    report = dataset.check()
    assert report.errors == []
    assert [warning.split(";")[0] for warning in report.warnings] == [
        "train: images without thermal: 1",
        "test: images without thermal: 2",
    ]
    assert report.splits["train"].sensors["thermal"].types == {"uint8": 1}
    assert report.splits["test"].sensors["thermal"].types == {}
    assert report.to_text().count("\n    thermal:") == 2


def test_images_of_one_sensor_in_several_pixel_types_are_an_error(dataset):
    dataset.save("5_t.png", np.arange(192, dtype=np.uint16).reshape(12, 16) * 300)
    (error,) = dataset.check().errors
    assert "thermal: images of uint16: 1, such as" in error
    assert "5_t.png, but 5 of uint8, such as" in error
    assert "1_t.png; write all in one pixel type" in error
    assert "    thermal: uint16 and uint8, 0 to 57300" in dataset.check().to_text()
    dataset.modalities["thermal"]["dtype"] = "uint16"
    (error,) = dataset.check().errors
    assert "thermal: images of uint8: 5, such as" in error
    assert "but the card's dtype is uint16; write them as uint16 or mend the card" in error


@pytest.mark.parametrize("empty", [False, True])
def test_point_clouds_are_counted_and_not_looked_at(dataset, monkeypatch, empty):
    clouds = np.random.default_rng(0).normal(size=(6, 50, 3)).astype(np.float32) * 3000
    clouds[:, 0], clouds[:, 1] = np.nan, 0
    read = check_module.read_image

    def with_points(path, sensor):
        return torch.from_numpy(clouds[int(path.stem[0]) - 1]) if path.suffix == ".bin" else read(path, sensor)

    monkeypatch.setattr(check_module, "read_image", with_points)
    dataset.modalities["cloud"] = {"channels": 1, "encoding": "metres"}
    if empty:
        clouds = np.zeros((6, 0, 3), np.float32)
    for content in dataset.splits.values():
        for image in content["images"]:
            image["modalities"]["cloud"] = f"{image['id']}.bin"
            (dataset.folder / image["modalities"]["cloud"]).write_bytes(bytes([image["id"]]))
    report = dataset.check()
    found = report.splits["train"].sensors["cloud"]
    if empty:
        assert [error.split(";")[0].split(",")[0] for error in report.errors] == [
            f"{split}: cloud: no image measures anything: 2" for split in ("train", "val", "test")
        ]
        assert (found.range, found.invalid) == ((), 0)
    else:
        assert (report.errors, report.warnings) == ([], [])
        distances = np.linalg.norm(clouds[:2, 2:], axis=2)
        assert found.range == pytest.approx((distances.min(), distances.max()))
        assert found.invalid == pytest.approx(4 / 100)


@pytest.mark.parametrize(
    ("names", "swapped"),
    [
        (["t16_0001_a", "t16_0002_b"], False),
        (["t16_0002_a", "t16_0001_b"], True),
        (["t_2", "t_1"], True),
        (["t_3", "t_2"], False),  # a numbering of its own
        (["scene2_t1", "scene1_t1"], True),
        (["left", "right"], False),
        (["1_of_2", "2"], False),
    ],
)
def test_pairs_that_were_matched_by_the_order_of_lines_are_a_warning(dataset, names, swapped):
    for image, name in zip(dataset.splits["train"]["images"], names, strict=True):
        number, files = image["id"], image["modalities"]
        for m, new in (("rgb", f"r8_{number}.png"), ("thermal", f"{name}.png")):
            (dataset.folder / files[m]).rename(dataset.folder / new)
            files[m] = new
    warnings = dataset.check().warnings
    assert len(warnings) == swapped
    if swapped:
        assert "train: thermal: 2 of 2 pairs differ in number, such as" in warnings[0]
        assert "r8_1.png and" in warnings[0]
        assert f"{names[0]}.png; match pairs by their names" in warnings[0]


def test_images_of_two_splits_that_look_alike_are_a_warning(dataset):
    rng = np.random.default_rng(1)
    scene = Image.fromarray(rng.integers(0, 256, (8, 9), dtype=np.uint8)).resize((16, 12), Image.Resampling.BILINEAR)
    scene.convert("RGB").save(dataset.folder / "1_rgb.png")
    scene.convert("RGB").point(lambda v: v * 0.8 + 9).save(dataset.folder / "6_rgb.png")
    for number in (2, 3):
        Image.new("RGB", (16, 12), (number, 0, 0)).save(dataset.folder / f"{number}_rgb.png")
    report = dataset.check()
    assert report.errors == []
    told = ("of one single value", "pixels have", "the same image:")
    (warning,) = (warning for warning in report.warnings if not any(words in warning for words in told))
    assert "6_rgb.png: in test, looks like" in warning
    assert "1_rgb.png in train" in warning


def test_a_long_list_is_cut_in_the_text_only():
    text = Report("card", errors=[f"problem {i}" for i in range(25)]).to_text()
    assert "problem 19" in text
    assert "problem 20" not in text
    assert "and 5 more errors" in text
    assert text.endswith("errors: 25, warnings: 0")


@pytest.mark.parametrize("name", ["roadscene", "osd"])
def test_the_real_data_is_in_order(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the {name} data is not here")
    report = check(REPOSITORY / "datasets" / f"{name}.yaml", str(SHARED / name))
    assert report.errors == []
    assert set(report.splits) == {"train", "val", "test"}


def test_double_boxes_double_images_and_crowds_are_told(dataset):
    train, val = dataset.splits["train"], dataset.splits["val"]
    train["annotations"].append(train["annotations"][0] | {"id": 90})
    train["images"].append(train["images"][1] | {"id": 91})
    for annotation in val["annotations"]:
        annotation["iscrowd"] = 1
    report = dataset.check()
    assert "train: boxes that stand twice in their image: 1, such as in image 1; remove the second" in report.warnings
    crowds = "val: all 2 boxes of the class 'car' are crowds or ignore regions; it can't be learnt or measured here"
    assert crowds in report.warnings
    doubled, uncounted = report.errors
    assert uncounted == "val: no object counts, so no epoch can be best on it; add some, or use another split"
    assert doubled.endswith("2_rgb.png: is image 2 and image 91 of train; keep one of them")
    assert "val: 2 images, 2 boxes (2 car), 2 of them ignored" in report.to_text()


def test_a_split_train_or_val_without_objects_is_an_error(dataset):
    for split in dataset.splits.values():
        split["annotations"] = []
    assert dataset.check().errors == [
        "train: no object counts, so nothing can be learnt of it; add some, or use another split",
        "val: no object counts, so no epoch can be best on it; add some, or use another split",
    ]


def test_a_condition_that_a_split_lacks_is_a_warning(dataset):
    dataset.splits["train"]["images"][0]["condition"] = "night"
    dataset.splits["val"]["images"][1]["condition"] = "night"
    assert [w for w in dataset.check().warnings if "condition" in w] == [
        "test: no image has the condition 'night', which train, val has; compare no figures of it"
    ]


def test_objects_too_small_at_an_input_size_are_counted(dataset):
    assert dataset.check(input_size=(12, 16)).splits["val"].too_small == 0
    dataset.splits["val"]["annotations"][0]["iscrowd"] = 1
    report = dataset.check(input_size=(2, 16))
    assert [found.too_small for found in report.splits.values()] == [2, 1, 2]
    assert "val: objects too small to be learnt at input size [2, 16]: 1 of 1; use a larger one" in report.warnings
    assert not any("too small" in warning for warning in dataset.check().warnings)


def test_sensors_that_show_the_same_image_are_a_warning(dataset):
    """A linked folder, a copy in grey, and files of two sensors swapped."""
    (dataset.folder / "1_t.png").unlink()
    (dataset.folder / "1_t.png").symlink_to(dataset.folder / "1_rgb.png")
    Image.open(dataset.folder / "2_rgb.png").convert("L").save(dataset.folder / "2_t.png")
    rgb, thermal = ((dataset.folder / f"3_{m}.png").read_bytes() for m in ("rgb", "t"))
    (dataset.folder / "3_rgb.png").write_bytes(thermal)
    (dataset.folder / "3_t.png").write_bytes(rgb)
    warnings = dataset.check().warnings
    (same,) = (warning for warning in warnings if "same image:" in warning)
    assert same.startswith("train: rgb and thermal are the same image: 2 of 2, such as ")
    coloured = [warning for warning in warnings if "coloured" in warning]
    assert [warning.partition(";")[0].rpartition("/")[2] for warning in coloured] == ["1_t.png", "3_t.png"]
    assert all("thermal: coloured images of one channel: 1" in warning for warning in coloured)


def test_one_file_for_two_sensors_is_told_whatever_their_channels(dataset):
    dataset.modalities["thermal"]["register"] = "resize"
    dataset.splits["val"]["images"][0]["modalities"]["thermal"] = "3_rgb.png"
    assert any("val: rgb and thermal are the same image: 1 of 2" in warning for warning in dataset.check().warnings)


def test_grey_in_three_channels_is_not_coloured(dataset):
    Image.open(dataset.folder / "1_t.png").convert("RGB").save(dataset.folder / "1_t.png")
    assert dataset.check().warnings == []


def test_values_that_mean_not_measured_are_invalid_and_no_range(dataset):
    for image in (image for content in dataset.splits.values() for image in content["images"]):
        pixels = np.random.default_rng(image["id"]).integers(20, 200, (12, 16)).astype(np.uint8)
        pixels[:4] = 255
        dataset.save(image["modalities"]["thermal"], pixels)
    (warning,) = {w.partition(": ")[2] for w in dataset.check().warnings if "thermal" in w}
    assert warning.startswith("thermal: 33% of the pixels have the highest value, 255")
    dataset.modalities["thermal"]["nodata"] = [255]
    report = dataset.check()
    assert (report.errors, report.warnings) == ([], [])
    thermal = report.splits["train"].sensors["thermal"]
    assert (thermal.types, thermal.range[1] < 200, thermal.invalid) == ({"uint8": 2}, True, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("value", "sensor", "told"),
    [
        ("-9999", {}, True),
        ("-9999", {"nodata": [-9999]}, False),
        ("-9.999e3", {"nodata": [-9999]}, False),
        ("nan", {}, False),
        ("nonsense", {}, False),
        ("0", {"encoding": "inverse_depth", "unit": 1}, False),
    ],
)
def test_a_value_that_files_say_means_not_measured_is_to_be_named(dataset, value, sensor, told):
    dataset.modalities["thermal"] |= sensor
    for image in (image for content in dataset.splits.values() for image in content["images"]):
        image["modalities"]["thermal"] = f"{image['id']}_t.tif"
        pixels = np.random.default_rng(image["id"]).uniform(1, 9, (12, 16)).astype(np.float32)
        content = tiff(pixels, more={42113: (2, [f"{value}\0".encode()])})
        (dataset.folder / image["modalities"]["thermal"]).write_bytes(content)
    warnings = [line for line in dataset.check().warnings if "means not measured" in line]
    assert len(warnings) == (3 if told else 0)
    if told:
        assert warnings[0].startswith("train: thermal: images that say that -9999 means not measured: 2, such as ")
        assert warnings[0].endswith("add nodata: [-9999] to the card, or -9999 counts as measured")
