"""Datasets in Ultralytics' layout, in the forms of folders and lists that are about, and the cards made for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from ultralytics_files import write_image, write_trees

from mmfuse.convert.datasets import from_ultralytics
from mmfuse.convert.ultralytics import card_values
from mmfuse.data.annotations.cards import Card, load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.errors import UserError
from mmfuse.strict_yaml import save_yaml


def write_data(root: Path, **values: object) -> Path:
    given = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "person", 1: "car"}, **values}
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))
    return path


def convert(data: Path) -> Card:
    from_ultralytics(data, data.parent / "card.yaml")
    return load_card(data.parent / "card.yaml")


def names(card: Card, split: str) -> list[str]:
    return [r.files["image"].relative_to(card.root).as_posix() for r in read_split(card, split)]


def test_folders_of_images(tmp_path: Path) -> None:
    write_image(tmp_path / "set/images/train/a.b.jpg")
    write_image(tmp_path / "set/images/train/c.PNG", None)
    write_image(tmp_path / "set/images/val/a.tiff", "0 0.1 0.1 0.1 0.1\n")
    (tmp_path / "set/images/train/a.b.npy").write_bytes(b"Ultralytics' cache")
    (tmp_path / "set/images/train.cache").write_bytes(b"and another")
    script = "import os; os.mkdir('ran')"
    card = convert(write_data(tmp_path, path="set", channels=3, test=None, download=script, nc=2))
    assert (card.root, card.name, card.classes) == (tmp_path / "set", "set", ("person", "car"))
    assert names(card, "train") == ["images/train/a.b.jpg", "images/train/c.PNG"]
    first, second = read_split(card, "train")
    np.testing.assert_allclose(first.boxes, [[24, 12, 40, 36]])
    assert first.labels.tolist() == [1]
    assert len(second.boxes) == 0
    assert names(card, "val") == ["images/val/a.tiff"]
    assert check(card.path).errors == []
    assert card.splits.keys() == {"train", "val"}


def test_roboflow_puts_the_split_first_and_its_paths_one_folder_too_high(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_image(tmp_path / split / "images" / "a.jpg")
    paths = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    card = convert(write_data(tmp_path, path=None, names=["person", "car"], **paths))
    assert [names(card, split) for split in card.splits] == [[f"{s}/images/a.jpg"] for s in ("train", "valid", "test")]
    assert read_split(card, "val")[0].labels.tolist() == [1]


def test_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.jpg", "2 0.5 0.5 0.25 0.5\n0 0.5 0.5 0.25 0.5\n")
    card = convert(write_data(tmp_path, val=None, names={2: "bus", 0: "person", 10: "bike", 1: "car"}))
    assert card.classes == ("person", "car", "bus", "bike")
    assert read_split(card, "train")[0].labels.tolist() == [2, 0]


def test_numbers_count_the_classes_of_a_card_in_their_order(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.jpg", "1 0.5 0.5 0.25 0.5\n0 0.5 0.5 0.25 0.5\n")
    values = card_values(write_data(tmp_path, val=None))
    save_yaml(tmp_path / "card.yaml", values | {"labels": {"unlabelled": "background"}})
    assert read_split(load_card(tmp_path / "card.yaml"), "train")[0].labels.tolist() == [1, 0]
    save_yaml(tmp_path / "card.yaml", values | {"labels": {"aliases": {1: "person"}}})
    with pytest.raises(UserError, match="'0' is not a known class"):
        read_split(load_card(tmp_path / "card.yaml"), "train")
    write_image(tmp_path / "images/train/a.jpg", "2 0.5 0.5 0.25 0.5\n")
    save_yaml(tmp_path / "card.yaml", values | {"labels": {}})
    with pytest.raises(UserError, match="'2' is not a known class"):
        read_split(load_card(tmp_path / "card.yaml"), "train")


@pytest.mark.parametrize("lead", ["./", "", "ROOT/", ".\\"])
def test_lists_of_images(tmp_path: Path, lead: str) -> None:
    lead = lead.replace("ROOT", str(tmp_path))

    def line(name: str) -> str:
        return f"{lead}{name}\n" if lead != ".\\" else f"{lead}{name}\r\n".replace("/", "\\")

    for split, ids in (("train2017", "ab"), ("val2017", "c")):
        for name in ids:
            write_image(tmp_path / "images" / split / f"{name}.jpg")
        (tmp_path / f"{split}.txt").write_text(
            "\ufeff" + "".join(line(f"images/{split}/{name}.jpg") for name in ids[::-1])
        )
    card = convert(write_data(tmp_path, train="train2017.txt", val="val2017.txt", test="images/val2017"))
    assert names(card, "train") == ["images/train2017/b.jpg", "images/train2017/a.jpg"]
    assert names(card, "val") == names(card, "test") == ["images/val2017/c.jpg"]
    assert read_split(card, "train")[0].labels.tolist() == [1]


def test_two_lists_may_share_one_folder_and_a_folder_may_have_braces(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / "{x}" / "images" / f"{name}.jpg")
    (tmp_path / "train.txt").write_text("{x}/images/a.jpg\n{x}/images/c.jpg\n")
    (tmp_path / "val.txt").write_text("{x}/images/b.jpg\n")
    card = convert(write_data(tmp_path, train="train.txt", val="val.txt"))
    assert (names(card, "train"), names(card, "val")) == (
        ["{x}/images/a.jpg", "{x}/images/c.jpg"],
        ["{x}/images/b.jpg"],
    )


def test_channels_are_those_of_the_one_modality(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.tiff")
    data = write_data(tmp_path, val=None, channels=10)
    assert card_values(data)["modalities"] == {"image": {"channels": 10}}
    assert convert(data).modalities["image"].channels == 10
    assert card_values(write_data(tmp_path, val=None))["modalities"] == {"image": {"channels": 3}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "nowhere"}, "path: .*nowhere is not a folder; write it relative to the folder of data.yaml"),
        ({"channels": 0}, "channels: 0 is not allowed; use at least 1"),
        ({"channels": True}, "channels: True is not allowed"),
        ({"names": None}, "names: None is not allowed; give each class a name of its own"),
        ({"names": ["car", "car"]}, "names: .* is not allowed; give each class a name of its own"),
        ({"names": {"person": 0, "car": 1}}, "names: .* map the number of each class to its name"),
        ({"names": ["1", "0"]}, "names: '1' names the class 0 and numbers another; rename it"),
        ({"train": None, "val": None}, "names neither train, val nor test"),
        ({"train": ["images/train", "images/val"]}, "train: .* is not a path; give one folder, or a .txt list"),
        ({"train": "images/trian"}, "train: .*images/trian is neither a folder nor a .txt list"),
        ({"train": "data.yaml"}, "train: .*data.yaml is neither a folder nor a .txt list"),
        ({"train": "../.."}, "train: '../..' leads out of"),
        ({"train": "/etc"}, "train: '/etc' leads out of"),
        ({"val": "other/val"}, "the folder 'other/val' has no part named images; put the images into one"),
        ({"val": "images"}, "no template fits the folders images/train, images; let them differ in one place"),
        ({"val": "b/images/c"}, "no template fits the folders images/train, b/images/c; let them differ"),
        ({"train": "empty.txt"}, "empty.txt: lists images of 0 folders; list those of one"),
        ({"train": "mixed.txt"}, "mixed.txt: lists images of 2 folders; list those of one"),
        ({"train": "latin.txt"}, "latin.txt: is not UTF-8 text"),
        ({"train": "one.txt", "val": "two.txt"}, "the lists begin with '' and './'; write them alike"),
        ({"train": "images/deep"}, "images/deep has a folder in it, 'more'; give one without, or a .txt list"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, values: dict[str, object], message: str) -> None:
    for folder in ("images/train", "images/val", "images/deep/more", "other/val", "b/images/c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images").joinpath("train").joinpath("a.jpg").touch()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "mixed.txt").write_text("images/train/a.jpg\nimages/val/a.jpg\n")
    (tmp_path / "latin.txt").write_bytes(b"images/train/\xe9.jpg\n")
    (tmp_path / "one.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "two.txt").write_text("./images/val/a.jpg\n")
    if values.get("val") == "images":
        (tmp_path / "images" / "val").rmdir()
        (tmp_path / "images" / "deep" / "more").rmdir()
        values = values | {"train": "one.txt", "val": "three.txt"}
        (tmp_path / "three.txt").write_text("images/a.jpg\n")
    (tmp_path / "card.yaml").write_text("good")
    with pytest.raises(UserError, match=message) as raised:
        from_ultralytics(write_data(tmp_path, **values), tmp_path / "card.yaml")
    assert "\n" not in str(raised.value)
    assert "data.yaml" in str(raised.value) or ".txt" in str(raised.value)
    assert (tmp_path / "card.yaml").read_text() == "good"


def test_neither_the_file_itself_nor_another_kind_is_written(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.jpg")
    data = write_data(tmp_path, val=None)
    before = data.read_text()
    with pytest.raises(UserError, match=r"out: .*data.yaml is the file itself; give another name"):
        from_ultralytics(data, tmp_path / "images/../data.yaml")
    with pytest.raises(UserError, match=r"is not a file name for this; end it in .yaml"):
        from_ultralytics(data, tmp_path / "card.json")
    assert data.read_text() == before


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda r: (r / "images/train/a.jpg").write_text("x"), ["images/train/a.jpg: is not an image"]),
        (lambda r: (r / "labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1"), ["labels/train/a.txt: line 1: '7'"]),
        (lambda r: (r / "labels/train/a.txt").write_text("1 1.5 0.5 0.1 0.1"), ["a.txt: line 1: box", "lies outside"]),
        (lambda r: (r / "labels/train/a.txt").write_text("1 0.1 0.1 0.2 0.1 0.3"), ["line 1", "four finite"]),
        (lambda r: (r / "images/train/b.heic").touch(), ["images/train/b.heic: is not an image"]),
    ],
)
def test_a_planted_fault_is_one_line_that_names_it(
    tmp_path: Path, plant: Callable[[Path], object], words: list[str]
) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "a.jpg")
    card = convert(write_data(tmp_path))
    plant(tmp_path)
    (error,) = check(card.path).errors
    assert all(word in error for word in words), error


# ---- the template for a tree per sensor


def test_the_card_of_a_tree_for_each_sensor(tmp_path: Path) -> None:
    write_trees(tmp_path)
    path = Path(__file__).parents[2] / "datasets" / "ultralytics_yolo.yaml"
    assert check(path, str(tmp_path)).errors == []
    first, second = read_split(load_card(path, str(tmp_path)), "train")
    assert {m: file.relative_to(tmp_path).as_posix() for m, file in first.files.items()} == {
        "rgb": "rgb/images/train/train1.jpg",
        "thermal": "thermal/images/train/train1.jpg",
    }
    assert (first.labels.tolist(), len(second.boxes)) == ([2], 0)
    (tmp_path / "thermal/images/val/val1.jpg").unlink()
    (error,) = check(path, str(tmp_path)).errors
    assert "val1: thermal: " in error
    assert "val1.jpg is missing" in error
    values = yaml.safe_load(path.read_text())
    values["layout"]["entry"] = "./images/{folder}/{id}.jpg"
    values["splits"] = {"train": {"file": "train.txt", "folder": "train"}}
    (tmp_path / "train.txt").write_text("./images/train/train2.jpg\n")
    save_yaml(tmp_path / "card.yaml", values)
    (record,) = read_split(load_card(tmp_path / "card.yaml", str(tmp_path)), "train")
    assert record.files["thermal"].name == "train2.jpg"
