from pathlib import Path

import pytest
import yaml

from mmfuse.data.annotations.cards import Split, load_card
from mmfuse.errors import UserError
from mmfuse.sensor import Calibration, Sensor

REPOSITORY = Path(__file__).parents[3]


def write_card(folder, **changes):
    values = {
        "name": "tiny",
        "root": "data",
        "reader": "coco",
        "modalities": {"rgb": {"channels": 3}, "depth": {"channels": 1, "encoding": "inverse_depth", "far": 40}},
        "classes": ["person", "car"],
        "splits": {"train": "train.json", "val": "val.json"},
        **changes,
    }
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return path


def test_a_card_is_read(tmp_path):
    card = load_card(write_card(tmp_path, conditions=["day"], notes="small"))
    assert card.root == (tmp_path / "data").resolve()
    assert card.modalities == {"rgb": Sensor(3), "depth": Sensor(1, "inverse_depth", far=40.0)}
    assert (card.classes, card.conditions, card.notes, card.licence) == (("person", "car"), ("day",), "small", "")


def test_root_is_overridden(tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert load_card(write_card(tmp_path, root="nowhere"), str(other)).root == other.resolve()


CALIBRATION = {"file": "{id}.txt", "format": "kitti", "key": "P2"}
MOVED = {"channels": 3, "register": "resize"}


def test_a_registered_sensor_knows_the_camera_of_the_reference(tmp_path):
    camera = {"size": [640, 480], "intrinsics": [500, 500, 319.5, 239.5]}
    sensors = {"thermal": {"channels": 1, "register": "rig"}, "rgb": {"channels": 3, "calibration": camera}}
    card = load_card(write_card(tmp_path, modalities=sensors))
    assert card.reference == "rgb"
    assert card.modalities["thermal"].onto == Calibration((640, 480), (500.0, 500.0, 319.5, 239.5))
    assert card.modalities["rgb"].onto is None


def test_boxes_were_drawn_on_the_reference_unless_the_card_says_otherwise(tmp_path):
    assert load_card(write_card(tmp_path)).label_source == ("rgb",)
    assert load_card(write_card(tmp_path, labels={"reference": "depth"})).label_source == ("depth",)
    assert load_card(write_card(tmp_path, labels={"source": ["rgb", "depth"]})).label_source == ("rgb", "depth")


def layout(**changes):
    files = {"rgb": "rgb/{id}.png", "depth": "depth/{id}.png"}
    return {"files": files, "annotations": {"depth": "labels/{id}.txt"}, **changes}


def test_a_layout_brings_the_reference_and_the_conditions(tmp_path):
    rules = {"day": "d.*", "night": "n.*"}
    splits = {"train": {"folder": "a", "only": "d.*"}, "val": {"folder": "a", "only": "n.*", "images": 3}}
    card = load_card(write_card(tmp_path, reader="yolo", layout=layout(conditions=rules), splits=splits))
    assert card.labels.reference == "depth"
    assert card.conditions == ("day", "night")
    assert card.splits["val"] == Split(folder="a", only="n.*", images=3)
    assert load_card(write_card(tmp_path, splits={"train": "train.json"})).splits == {"train": Split("train.json")}


def test_names_in_the_files_become_labels(tmp_path):
    labels = {"aliases": {"man": "person", 3: "car"}, "ignored": {"crowd": ["person", "car"]}, "dropped": ["dog"]}
    card = load_card(write_card(tmp_path, labels=labels))
    assert [card.labels_of(name) for name in ("car", "man", "3")] == [((1,), False), ((0,), False), ((1,), False)]
    assert card.labels_of("crowd") == ((0, 1), True)
    assert card.labels_of("dog") == ((), False)
    assert card.labels_of("cat") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": {"files": {"rgb": "{id}.png"}}}, "layout.files: there is none for the modality 'depth'"),
        ({"layout": layout(file="x")}, "did you mean 'files'?"),
        ({"layout": {"entry": "{id}"}}, "the key 'files' is missing"),
        ({"layout": layout(annotations={"dpth": "{id}.xml"})}, "layout.annotations: 'dpth' is not a known modality"),
        ({"layout": layout(annotations={"depth": "{ids}.xml"})}, "annotations.depth: 'ids' is not a known placeholder"),
        ({"layout": layout(annotations={"depth": "{id.xml"})}, "'{id.xml' is not a template"),
        ({"layout": layout(annotations={"depth": "{pair}.xml"})}, "{pair} needs 'pairs'"),
        ({"layout": layout(sequence="{pair}", pairs="p.json")}, "sequence: {pair} is not known of every entry"),
        ({"layout": layout(entry="{entry}")}, "{entry} is made from the whole entry"),
        ({"layout": layout(conditions={"day": "("})}, "conditions.day: '(' is not a regular expression"),
        ({"layout": layout(conditions={"dya": "x"}), "conditions": ["day"]}, "did you mean 'day'?"),
        ({"layout": layout(sequence="{folder}"), "splits": {"train": {}}}, "the key 'folder' is missing"),
        ({"layout": layout(), "splits": {"train": {}, "val": {"images": 3}}}, "train and val are the same entries"),
        ({"layout": layout(), "splits": {"train": {"file": "a"}, "val": "a"}}, "train and val are the same file 'a'"),
        ({"splits": {"train": {}}}, "splits.train: the key 'file' is missing"),
        ({"splits": {"train": {"file": "a", "first": "1"}}}, "only, first and last need a layout"),
        ({"splits": {"train": {"file": "a", "only": "["}}}, "splits.train.only: '[' is not a regular expression"),
        ({"splits": {"train": {"file": "a", "image": 3}}}, "did you mean 'images'?"),
        ({"layout": layout(tolerance=0.1)}, "tolerance: 0.1 needs {time} in 'entry'"),
        ({"layout": {"files": {}, "entry": "{time}", "tolerance": -1.0}}, "tolerance: -1.0 needs"),
        (
            {"layout": layout(calibrations={"lidar": CALIBRATION})},
            "layout.calibrations: 'lidar' is not a known modality",
        ),
        ({"layout": layout(calibrations={"rgb": {**CALIBRATION, "format": "ros"}})}, "'ros' is not a known value"),
        ({"layout": layout(calibrations={"rgb": {**CALIBRATION, "file": "{x}"}})}, "'x' is not a known placeholder"),
        ({"modalities": {"rgb": MOVED}}, "modalities: register: none lies in the reference frame"),
        (
            {"modalities": {"rgb": MOVED, "depth": {"channels": 1}}, "labels": {"reference": "rgb"}},
            "modalities.rgb.register: the reference can't be moved",
        ),
        ({"modalities": {"rgb": {"channels": 3, "calibration": {"pose": [[1, 0], [0, 1]]}}}}, "is not 3 x 4 or 4 x 4"),
        ({"labels": {"source": ["rgb", "lidar"]}}, "labels.source: 'lidar' is not a known modality"),
        ({"labels": {"reference": "lidar"}}, "labels.reference: 'lidar' is not a known modality"),
        ({"layout": layout(), "labels": {"reference": "rgb"}}, "labels.reference: 'rgb' has no annotations"),
        ({"layout": layout(condition_lists={"dya": "x"}), "conditions": ["day"]}, "did you mean 'day'?"),
        ({"labels": {"aliases": {"man": "persn"}}}, "labels.aliases.man: 'persn' is not a known class"),
        ({"labels": {"ignored": {"crowd": ["persn"]}}}, "labels.ignored.crowd: 'persn' is not a known class"),
        ({"labels": {"dropped": ["car"]}}, "'car' stands in two of classes, aliases, ignored and dropped"),
        ({"missing": "alow"}, "did you mean 'allow'?"),
        ({"clases": ["person"]}, "did you mean 'classes'?"),
        ({"reader": None}, "'reader' is missing"),
        ({"modalities": {"rgb": {"chanels": 3}}}, "did you mean 'channels'?"),
        (
            {"modalities": {"depth": {"channels": 1, "encoding": "inverse"}}},
            "encoding: 'inverse' is not a known value; did you mean 'inverse_depth'?",
        ),
        ({"modalities": {}}, "name at least one"),
        ({"modalities": {"../rgb": {"channels": 3}}}, "modalities: '../rgb' is not allowed; use letters"),
        ({"splits": {"../../important": "train.json"}}, "splits: '../../important' is not allowed; use letters"),
        ({"splits": {"/tmp/x": "train.json"}}, "splits: '/tmp/x' is not allowed; use letters"),
        ({"splits": {".hidden": "train.json"}}, "splits: '.hidden' is not allowed; use letters"),
        ({"splits": {"a\\b": "train.json"}}, "is not allowed; use letters"),
        ({"classes": []}, "name at least one"),
        ({"classes": ["car", "car"]}, "names a class twice"),
        ({"root": "nowhere"}, "is not a folder"),
        ({"splits": {"train": "train.json", "val": "v.json", "test": "v.json"}}, "val and test are the same file"),
        ({"splits": {"train": "t.json", "test": "./t.json"}}, "train and test are the same file"),
        ({"splits": {"train": "../train.json"}}, "leads out of"),
        ({"splits": {"train": "/etc/passwd"}}, "leads out of"),
        ({"path": "x"}, "'path' is not a known key"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_card(tmp_path, changes, message):
    path = write_card(tmp_path, **changes)
    with pytest.raises(UserError) as raised:
        load_card(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_split_may_not_leave_the_root_through_a_link(tmp_path):
    path = write_card(tmp_path, splits={"train": "train.json"})
    (tmp_path / "outside.json").write_text("{}")
    (tmp_path / "data" / "train.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(UserError, match="leads out of"):
        load_card(path)


def test_val_and_test_may_not_be_the_same_file_through_a_link(tmp_path):
    path = write_card(tmp_path, splits={"val": "val.json", "test": "test.json"})
    (tmp_path / "data" / "val.json").write_text("{}")
    (tmp_path / "data" / "test.json").symlink_to(tmp_path / "data" / "val.json")
    with pytest.raises(UserError, match="val and test are the same file"):
        load_card(path)


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.yaml: No such file"):
        load_card(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_cards_that_come_along_are_read(path, tmp_path):
    card = load_card(path, str(tmp_path))
    assert card.source
    assert card.licence
    assert card.notes


def test_a_share_of_train_is_a_number_or_a_mapping(tmp_path):
    card = load_card(write_card(tmp_path, splits={"train": "a.json", "val": 0.2, "test": {"share": 0.1, "seed": 4}}))
    assert (card.splits["val"], card.splits["test"]) == (Split(share=0.2), Split(share=0.1, seed=4))
    assert [card.pool(split).file for split in card.splits] == ["a.json"] * 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "a.json", "val": 0}, "splits.val.share: 0.0 is not allowed; use a part of train's images"),
        ({"train": "a.json", "val": 1}, "splits.val.share: 1.0 is not allowed"),
        ({"train": "a.json", "val": 1.5}, "splits.val.share: 1.5 is not allowed"),
        ({"train": "a.json", "val": -0.2}, "splits.val.share: -0.2 is not allowed"),
        ({"train": "a.json", "val": float("nan")}, "splits.val.share: nan is not a finite number"),
        ({"train": "a.json", "val": True}, "splits.val: True is not a mapping"),
        ({"train": "a.json", "val": 0.6, "test": 0.4}, "leave a part for train: shares must add up to less than 1"),
        ({"train": 0.8, "val": 0.2}, "splits.train: 0.8: train is what the others leave; remove it, or give its file"),
        ({"val": 0.2}, "splits.train: the key 'file' is missing"),
        ({"all": "a.json", "val": 0.2}, "splits.val: is a share of train, which is missing; add it"),
        ({"train": "a.json", "val": {"share": 0.2, "file": "b.json"}}, "is drawn from train; leave file"),
        ({"train": "a.json", "val": {"share": 0.2, "first": "b"}}, "is drawn from train; leave file"),
        ({"train": {"file": "a.json", "seed": 2}}, "splits.train.seed: 2 is not allowed; leave it out"),
    ],
)
def test_a_share_that_cannot_be_drawn_is_one_line(tmp_path, splits, message):
    with pytest.raises(UserError) as raised:
        load_card(write_card(tmp_path, splits=splits))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
