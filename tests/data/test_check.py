import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmfuse.data.check import Report, check, difference_hash, look_alikes

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"


class Dataset:
    """A small dataset on disk, right until a test spoils it."""

    def __init__(self, folder):
        self.folder = folder
        self.splits = {}
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

    def check(self):
        for split, content in self.splits.items():
            (self.folder / f"{split}.json").write_text(json.dumps(content))
        card = {
            "name": "tiny",
            "root": ".",
            "reader": "coco",
            "modalities": {"rgb": {"channels": 3}, "thermal": {"channels": 1}},
            "classes": ["car"],
            "splits": {split: f"{split}.json" for split in self.splits},
        }
        (self.folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
        return check(self.folder / "card.yaml")


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
    train, val = dataset.splits["train"], dataset.splits["val"]
    train["annotations"][0]["bbox"] = [-4, 1, 8, 8]
    val["annotations"] = []
    (dataset.folder / "6_rgb.png").write_bytes((dataset.folder / "5_rgb.png").read_bytes())
    report = dataset.check()
    assert report.errors == []
    text = "\n".join(report.warnings)
    assert len(report.warnings) == 4
    assert "train: boxes that reach more than a pixel out of their image: 1" in text
    assert "val: images without objects: 2" in text
    assert "val: the class 'car' has no boxes" in text
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


def test_images_of_two_splits_that_look_alike_are_a_warning(dataset):
    rng = np.random.default_rng(1)
    scene = Image.fromarray(rng.integers(0, 256, (8, 9), dtype=np.uint8)).resize((16, 12), Image.Resampling.BILINEAR)
    scene.convert("RGB").save(dataset.folder / "1_rgb.png")
    scene.convert("RGB").point(lambda v: v * 0.8 + 9).save(dataset.folder / "6_rgb.png")
    for number in (2, 3):
        Image.new("RGB", (16, 12), (number, 0, 0)).save(dataset.folder / f"{number}_rgb.png")
    report = dataset.check()
    assert report.errors == []
    (warning,) = report.warnings
    assert "6_rgb.png: in test, looks like" in warning
    assert "1_rgb.png in train" in warning


def test_many_images_are_compared_at_once():
    rng = np.random.default_rng(0)
    looks = {s: [(Path(f"{s}{i}"), rng.random(64) < 0.5) for i in range(3000)] for s in ("train", "test")}
    looks["test"][2500] = (Path("test2500"), looks["train"][17][1])
    assert [line.split(";")[0] for line in look_alikes(looks)] == ["test2500: in test, looks like train17 in train"]


def test_a_difference_hash_says_where_grey_falls():
    falling = torch.arange(90, 0, -1).repeat(3, 80, 1)
    assert difference_hash(falling).all()
    assert not difference_hash(falling.flip(-1)).any()
    assert difference_hash(torch.full((1, 4, 4), 60000, dtype=torch.uint16)).shape == (64,)
    assert not difference_hash(torch.full((1, 9, 9), float("nan"))).any()


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
