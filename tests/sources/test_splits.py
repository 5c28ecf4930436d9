import json

import pytest

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.errors import UserError
from mmfuse.sources.splits import scenes_of_coco, scenes_of_split


def test_a_split_gives_each_image_with_its_id(paired_set):
    card = load_card(paired_set)
    scenes, records = scenes_of_split(card, "test"), read_split(card, "test")
    assert [s.image_id for s in scenes] == [r.image_id for r in records]
    assert [s.images for s in scenes] == [r.files for r in records]
    assert scenes[0].size == (records[0].width, records[0].height)
    assert scenes[0].name == records[0].files["rgb"].relative_to(card.root).as_posix()
    with pytest.raises(UserError, match=r"'tests' is not a known split; .*did you mean 'test'"):
        scenes_of_split(card, "tests")


def coco(path, **changes):
    image = {"id": 7, "width": 96, "height": 64, "modalities": {"rgb": "a.png", "thermal": "b.png", "other": "c.png"}}
    path.write_text(json.dumps({"images": [image | changes]}))
    return path


def test_a_coco_file_needs_no_annotations(tmp_path):
    (scene,) = scenes_of_coco(coco(tmp_path / "x.json"), ("rgb", "thermal"))
    assert scene.images == {"rgb": tmp_path / "a.png", "thermal": tmp_path / "b.png"}
    assert (scene.image_id, scene.size) == (7, (96, 64))
    (scene,) = scenes_of_coco(coco(tmp_path / "x.json", modalities={"thermal": "b.png"}), ("rgb", "thermal"))
    assert list(scene.images) == ["thermal"]


def test_plain_coco_is_for_one_sensor(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    assert scenes_of_coco(path, ("rgb",))[0].images == {"rgb": tmp_path / "a.jpg"}
    with pytest.raises(UserError, match=r"x.json: image 1: has no 'modalities'; map each of rgb, thermal to its file"):
        scenes_of_coco(path, ("rgb", "thermal"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "is not JSON"),
        ("[]", "'images' is not a list of mappings"),
        ('{"images": []}', "'images' is not a list of mappings"),
        ('{"images": [{"id": "a"}]}', "image 'a': its id is not a whole number"),
        ('{"images": [{"id": 1, "file_name": "../x.png"}]}', "image 1: '../x.png' leads out of"),
        ('{"images": [{"id": 1, "file_name": 3}]}', "image 1: has no 'modalities'"),
        ('{"images": [{"id": 1, "modalities": {"radar": "a.png"}}]}', "image 1: has no file of rgb; remove"),
    ],
)
def test_what_is_no_coco_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        scenes_of_coco(path, ("rgb",))
    with pytest.raises(UserError, match="No such file"):
        scenes_of_coco(tmp_path / "absent.json", ("rgb",))
