import json
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sun_rgbd_files import write_sun_rgbd

from mmfuse.data.annotations.cards import Split, load_card
from mmfuse.data.annotations.draws import drawn
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.errors import UserError


class Shared:
    """What `drawn` looks at of a card."""

    path = "card.yaml"

    def __init__(self, seed=0, **shares):
        self.splits = {"train": Split("a")} | {m: Split(share=share, seed=seed) for m, share in shares.items()}

    def names(self, split, names):
        return [name for (name, _), kept in zip(names, drawn(self, split, names), strict=True) if kept]


ALONE = [(f"{i:03}.png", None) for i in range(100)]
SCENES = [(f"{i:03}.png", f"drive {i // 10}") for i in range(100)]


@pytest.mark.parametrize("names", [ALONE, SCENES])
def test_each_image_is_in_one_split_and_each_has_its_share(names):
    card = Shared(val=0.2, test=0.1)
    found = {split: card.names(split, names) for split in card.splits}
    assert {split: len(taken) for split, taken in found.items()} == {"train": 70, "val": 20, "test": 10}
    assert sorted(chain(*found.values())) == [name for name, _ in names]
    own = {split: {sequence for name, sequence in names if name in taken} for split, taken in found.items()}
    assert names is ALONE or sum(map(len, own.values())) == 10


def test_the_draw_is_the_same_for_everyone():
    """As `printf '0 image 074.png' | sha256sum` ranks them, and `printf '0 sequence drive 6'`."""
    assert Shared(val=0.04).names("val", ALONE) == ["057.png", "074.png", "079.png", "084.png"]
    assert Shared(val=0.2).names("val", SCENES)[::10] == ["010.png", "060.png"]


def test_the_draw_goes_by_names_and_seed_alone():
    mixed = random.Random(0).sample(ALONE, len(ALONE))
    expected = set(Shared(val=0.2).names("val", ALONE))
    assert set(Shared(val=0.2).names("val", mixed)) == expected
    assert set(Shared(seed=1, val=0.2).names("val", ALONE)) != expected
    assert set(Shared(val=0.2, test=0.3).names("val", ALONE)) == expected
    assert len(set(Shared(val=0.2).names("val", ALONE[1:])) ^ expected) <= 2


@pytest.mark.parametrize("sizes", [(1, 1, 1), (50, 50, 50), (98, 1, 1), (1, 1, 98)])
@pytest.mark.parametrize("shares", [{"val": 0.2}, {"val": 0.01, "test": 0.98}, {"val": 0.49, "test": 0.5}])
def test_no_split_is_empty_where_there_are_enough_sequences(sizes, shares):
    names = [(f"{s} {i}", str(s)) for s, size in enumerate(sizes) for i in range(size)]
    card = Shared(**shares)
    counts = [len(card.names(split, names)) for split in card.splits]
    assert min(counts) >= 1
    assert sum(counts) == sum(sizes)


def test_a_long_sequence_is_left_where_shorter_ones_come_nearer():
    names = [(f"{s} {i}", s) for s, size in (("long", 80), ("a", 10), ("b", 10)) for i in range(size)]
    for seed in range(5):
        assert len(Shared(seed, val=0.2).names("val", names)) == 20


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([("a", "s"), ("b", "s")], "1 sequences can't be shared by train, val"),
        ([("a", None)], "1 images can't"),
        ([], "0 images can't"),
        ([("a", None), ("a", None)], "1 images can't"),
    ],
)
def test_too_few_groups_are_refused(names, told):
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"^card.yaml: splits: {told}"):
            drawn(Shared(val=0.5), split, names)


READERS = {"coco": None, "coco by entries": None, "voc": "xml", "yolo": "txt", "kitti": "txt"}


def write(folder, reader, splits):
    """Writes ten images in five sequences, of which a card of one reader makes splits, and returns the card."""
    images = []
    for i in range(10):
        name = f"{'abcde'[i // 2]}/{i}"
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        box = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        content = {
            "voc": f"<annotation><object><name>car</name><bndbox>{box}</bndbox></object></annotation>",
            "yolo": "0 .5 .5 .2 .2",
            "kitti": "car 0 0 0 2 2 9 9" + " 0" * 7,
        }
        (folder / f"{name}.{READERS[reader]}").write_text(content.get(reader, ""))
        file = f"{name}.png"
        images.append({"id": i, "file_name": name, "modalities": {"t": file}, "width": 32, "height": 24})
        images[-1]["sequence"] = name[0]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 2, 7, 7]} for i in range(10)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
    (folder / "all.json").write_text(json.dumps(content))
    layout = {"entry": "{drive}/{id}", "files": {"t": "{drive}/{id}.png"}, "sequence": "{drive}"}
    values = {"name": "x", "root": ".", "modalities": {"t": {"channels": 1}}, "classes": ["car"], "splits": splits}
    values["reader"] = reader.partition(" ")[0]
    if READERS[reader]:
        layout["annotations"] = {"t": "{drive}/{id}." + READERS[reader]}
    elif "train" not in splits:
        values["splits"] = {"train": "all.json", **splits}
    if reader != "coco":
        values["layout"] = layout
    (folder / "card.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "card.yaml"


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_draws_shares_by_sequence(tmp_path, reader):
    card = load_card(write(tmp_path, reader, {"val": 0.2, "test": {"share": 0.4, "seed": 3}}))
    found = {split: [r.files["t"] for r in read_split(card, split)] for split in card.splits}
    assert {split: len(files) for split, files in found.items()} == {"train": 4, "val": 2, "test": 4}
    assert len(set(chain(*found.values()))) == 10
    drives = [{file.parent.name for file in files} for files in found.values()]
    assert sum(map(len, drives)) == 5
    assert all(len(record.boxes) == 1 for record in read_split(card, "val"))


def test_sun_rgbd_draws_shares_too(tmp_path):
    write_sun_rgbd(tmp_path)
    shipped = Path(__file__).parents[3] / "datasets" / "sun_rgbd.yaml"
    values = yaml.safe_load(shipped.read_text())
    whole = [r.files for r in read_split(load_card(shipped, str(tmp_path)), "test")]
    values["splits"] = {"train": values["splits"]["test"], "val": 0.5}
    values["splits"]["train"].pop("images", None)
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    card = load_card(tmp_path / "card.yaml", str(tmp_path))
    parts = [[r.files for r in read_split(card, split)] for split in ("train", "val")]
    assert [len(part) for part in parts] == [1, 1]
    assert sorted(map(str, chain(*parts))) == sorted(map(str, whole))


def test_check_tells_what_a_share_came_to(tmp_path):
    report = check(write(tmp_path, "voc", {"val": 0.2}))
    assert (report.errors, report.warnings) == ([], [])
    assert "  val: 2 images, 2 boxes (2 car)\n    drawn from train: 20.0% of its images\n" in report.to_text()
    report = check(write(tmp_path, "voc", {"val": 0.05}))
    (warning,) = report.warnings
    assert warning.startswith("val: 20.0% of train's images in place of 5.0%: sequences")


def test_a_mistake_in_the_file_that_splits_share_is_told_once(tmp_path):
    card = write(tmp_path, "coco", {"val": 0.2})
    content = json.loads((tmp_path / "all.json").read_text())
    content["annotations"][3]["iscrowd"] = "no"
    (tmp_path / "all.json").write_text(json.dumps(content))
    (error,) = check(card).errors
    assert "annotation 4: iscrowd: 'no' is not 0 or 1" in error
