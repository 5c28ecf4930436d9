"""Real samples, where they lie beside the checkout: each is read with a card of a few lines."""

from pathlib import Path

import pytest

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.strict_yaml import save_yaml

SHARED = Path(__file__).parents[3] / "shared" / "data"
RGB, GREY = {"channels": 3}, {"channels": 1}


@pytest.fixture
def sample(tmp_path):
    """Writes a card of a sample and returns its path, once nothing is wrong with its data."""

    def write(name, **values):
        if not (SHARED / name).is_dir():
            pytest.skip(f"the {name} data is not here")
        path = tmp_path / "card.yaml"
        save_yaml(path, {"name": name, "root": str(SHARED / name), **values})
        assert check(path).errors == []
        return load_card(path)

    return write


def test_kaist_demo(sample):
    card = sample(
        "kaist_demo",
        reader="bbgt",
        modalities={"rgb": RGB, "thermal": GREY},
        classes=["person"],
        layout={
            "entry": "{set}_{video}_{frame}",
            "files": {"rgb": "images/{entry}_visible.png", "thermal": "images/{entry}_lwir.png"},
            "annotations": {"thermal": "annotations_improved/{entry}.txt"},
            "conditions": {"day": "set0[678].*", "night": "set(09|10|11).*"},
            "sequence": "{set}/{video}",
        },
        labels={"ignored": {"people": ["person"]}},
        splits={"test": {"images": 8}},
    )
    records = read_split(card, "test")
    assert [r.condition for r in records] == ["day"] * 3 + ["night"] * 5
    assert all((r.width, r.height) == (640, 512) for r in records)
    first = records[0]
    assert first.sequence == "set06/V001"
    assert first.boxes[0].tolist() == [282, 209, 334, 320]
    assert sum(int(r.ignore.sum()) for r in records) >= 1
    assert sorted({int(v) for r in records for v in r.occlusion}) == [0, 1, 2]


def test_kitti_sample(sample):
    card = sample(
        "kitti_sample",
        reader="kitti",
        modalities={"rgb": RGB},
        classes=["Car", "Pedestrian", "Cyclist"],
        layout={"files": {"rgb": "training/image_2/{id}.png"}, "annotations": {"rgb": "training/label_2/{id}.txt"}},
        labels={
            "ignored": {"DontCare": ["Car", "Pedestrian", "Cyclist"], "Van": ["Car"]},
            "dropped": ["Truck", "Tram", "Misc"],
        },
        splits={"train": {}},
    )
    first, second, third = read_split(card, "train")
    assert (first.labels.tolist(), first.boxes[0].round(2).tolist()) == (
        [1],
        pytest.approx([712.4, 143, 810.73, 307.92]),
    )
    assert second.labels.tolist()[:2] == [0, 2]
    assert second.ignore.sum() == 12
    assert second.occlusion.tolist()[:2] == [0, 3]
    assert third.labels.tolist() == [0]


def test_flir_aligned_sample(sample):
    card = sample(
        "flir_aligned_sample",
        reader="coco",
        modalities={"rgb": RGB, "thermal": GREY},
        classes=["person", "bicycle", "car"],
        labels={"reference": "thermal"},
        splits={
            "train": {"file": "train.json", "images": 40, "boxes": 364},
            "test": {"file": "test.json", "boxes": 150},
        },
    )
    assert not any("published" in warning for warning in check(card.path).warnings)


@pytest.mark.slow
def test_three_sensors_with_labels_as_yolo_text(sample):
    card = sample(
        "peach_rgbd",
        reader="yolo",
        modalities={"rgb": RGB, "depth": {**GREY, "encoding": "inverse_depth"}, "infrared": GREY},
        classes=["peach"],
        layout={
            "files": {m: f"{m}/{{id}}.png" for m in ("rgb", "depth", "infrared")},
            "annotations": {"rgb": "annotations/{id}.txt"},
        },
        labels={"aliases": dict.fromkeys(range(4), "peach")},
        splits={"train": {"images": 20, "boxes": 230}},
    )
    records = read_split(card, "train")
    assert (len(records), sum(len(r.boxes) for r in records)) == (20, 230)
    assert all(r.files.keys() == {"rgb", "depth", "infrared"} for r in records)
