import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from mmfuse.data.annotations.cards import Card, Labels, Layout, Split, load_card
from mmfuse.data.annotations.coco import coco_ground_truth, coco_split
from mmfuse.data.annotations.readers import read_split, scan_split
from mmfuse.data.annotations.records import Objects, split_digest
from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def make_card(root, **changes):
    card = Card(
        name="tiny",
        root=root.resolve(),
        reader="coco",
        modalities={"rgb": Sensor(3), "thermal": Sensor(1)},
        classes=("person", "car"),
        splits={"train": Split("train.json")},
        conditions=("day", "night"),
        licence="",
        source="",
        notes="",
        path=root / "card.yaml",
    )
    return dataclasses.replace(card, **changes)


def make_image(number, **changes):
    files = {"rgb": f"rgb/{number}.png", "thermal": f"t/{number}.png"}
    return {"id": number, "file_name": "x", "modalities": files, "width": 40, "height": 30, **changes}


def make_annotation(number, **changes):
    return {"id": number, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0, **changes}


def write_split(root, images, annotations, categories=({"id": 7, "name": "car"}, {"id": 2, "name": "person"})):
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (root / "train.json").write_text(json.dumps(content))
    return make_card(root)


def test_records_hold_what_the_file_says(tmp_path):
    card = write_split(
        tmp_path,
        [make_image(5, condition="night", sequence="a"), make_image(1)],
        [
            make_annotation(0),
            make_annotation(1, category_id=2, bbox=[0.5, 1, 2, 3.25]),
            make_annotation(2, iscrowd=1),
        ],
    )
    empty, full = read_split(card, "train")
    assert (empty.image_id, empty.condition, empty.sequence, empty.boxes.shape) == (5, "night", "a", (0, 4))
    assert full.files == {"rgb": card.root / "rgb/1.png", "thermal": card.root / "t/1.png"}
    assert (full.width, full.height, full.condition) == (40, 30, None)
    np.testing.assert_array_equal(full.boxes, [[1, 2, 11, 7], [0.5, 1, 2.5, 4.25], [1, 2, 11, 7]])
    assert full.boxes.dtype == np.float32
    assert full.labels.tolist() == [1, 0, 1]
    assert full.labels.dtype == np.int64
    assert full.ignore.tolist() == [False, False, True]


def test_boxes_are_clipped_and_those_far_out_are_counted(tmp_path):
    boxes = [[-5, 2, 10, 5], [-0.5, 2, 10, 5], [35, 28, 5, 4]]
    card = write_split(tmp_path, [make_image(1)], [make_annotation(i, bbox=b) for i, b in enumerate(boxes)])
    reading = scan_split(card, "train")
    assert reading.errors == []
    assert reading.clipped == 2
    np.testing.assert_array_equal(reading.records[0].boxes, [[0, 2, 5, 7], [0, 2, 9.5, 7], [35, 28, 40, 30]])


@pytest.mark.parametrize(
    ("image", "annotation", "message"),
    [
        ({}, {"bbox": [1, 2, float("nan"), 5]}, "annotation 3: box [1, 2, nan, 5] is not four finite numbers"),
        ({}, {"bbox": [1, 2, float("inf"), 5]}, "annotation 3: box [1, 2, inf, 5] is not four finite numbers"),
        ({}, {"bbox": [1, 2, 10**400, 5]}, "is not four finite numbers"),
        ({}, {"bbox": [1, 2, 3]}, "is not four finite numbers"),
        ({}, {"bbox": [1, 2, 0, 5]}, "annotation 3: box [1, 2, 0, 5] has no area; mend or remove it"),
        ({}, {"bbox": [5, 5, -2, 5]}, "has no area"),
        ({}, {"bbox": [40, 2, 10, 5]}, "annotation 3: box [40, 2, 10, 5] lies outside the image of 40 x 30 pixels"),
        ({}, {"bbox": [1, -9, 10, 5]}, "lies outside the image"),
        ({}, {"iscrowd": "0"}, "annotation 3: iscrowd: '0' is not 0 or 1"),
        ({}, {"iscrowd": 2}, "annotation 3: iscrowd: 2 is not 0 or 1"),
        ({}, {"ignore": "no"}, "annotation 3: ignore: 'no' is not 0 or 1"),
        ({}, {"category_id": 9}, "annotation 3: there is no category 9"),
        ({}, {"image_id": 2}, "annotation 3: there is no image 2"),
        ({}, {"area": float("nan")}, "annotation 3: area: nan is not a count of pixels"),
        ({}, {"area": "50"}, "annotation 3: area: '50' is not a count of pixels"),
        ({}, {"area": -1}, "annotation 3: area: -1 is not a count of pixels"),
        ({"id": "1"}, {}, "image '1': its id is not a whole number"),
        ({"width": 0}, {}, "image 1: width 0 and height 30 are not both pixels"),
        ({"width": None}, {}, "image 1: width None"),
        ({"condition": "nigth"}, {}, "image 1: 'nigth' is not a known condition"),
        ({"modalities": {"rgb": "a.png"}}, {}, "image 1: has no file for the modality 'thermal'"),
        (
            {"modalities": None},
            {},
            "image 1: has no 'modalities' but a file_name 'x'; map each modality to its file, or",
        ),
        ({"modalities": {"rgb": "..\\a.png", "thermal": "b.png"}}, {}, "image 1: '../a.png' leads out of"),
        ({"modalities": {"rgb": "../a.png", "thermal": "b.png"}}, {}, "image 1: '../a.png' leads out of"),
        ({"modalities": {"rgb": "/a.png", "thermal": "b.png"}}, {}, "image 1: '/a.png' leads out of"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_entry(tmp_path, image, annotation, message):
    card = write_split(tmp_path, [make_image(1) | image], [make_annotation(3) | annotation])
    with pytest.raises(UserError) as raised:
        read_split(card, "train")
    assert message in str(raised.value)
    assert str(tmp_path / "train.json") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_other_tools_write_is_read(tmp_path):
    """A byte order mark, whole numbers with a point, a switch for a crowd, and bad boxes where they may be."""
    card = write_split(
        tmp_path,
        [make_image(1, width=40.0, height=30.0)],
        [
            make_annotation(1, iscrowd=True),
            make_annotation(2, bbox=[]),
            make_annotation(3, bbox=[1, 2, float("nan"), 5], area=float("nan")),
        ],
    )
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    reading = scan_split(dataclasses.replace(card, labels=Labels(bad_boxes="drop")), "train")
    assert (reading.errors, reading.left_out) == ([], 2)
    (record,) = reading.records
    assert (record.width, record.height, record.ignore.tolist()) == (40, 30, [True])
    assert len(scan_split(card, "train").errors) == 2


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
def test_polygons_without_a_box_are_read_as_their_bounds(tmp_path, bbox):
    polygons = [[5, 6, 9.5, 6, 7, 12], [20, 3, 22, 3, 22, 4, 20, 4]]
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": polygons, **bbox}
    (record,) = read_split(write_split(tmp_path, [make_image(1)], [annotation]), "train")
    np.testing.assert_array_equal(record.boxes, [[5, 3, 22, 12]])


@pytest.mark.parametrize(("crowd", "ignore", "expected"), [(0, 0, False), (0, 1, True), (1, 0, True), (0, True, True)])
def test_ignored_objects_are_those_of_either_key(tmp_path, crowd, ignore, expected):
    card = write_split(tmp_path, [make_image(1)], [make_annotation(1, iscrowd=crowd, ignore=ignore)])
    assert read_split(card, "train")[0].ignore.tolist() == [expected]


@pytest.mark.parametrize("as_text", [True, False])
def test_a_mask_without_a_box_is_read_as_its_bounds(tmp_path, as_text):
    pixels = np.zeros((30, 40), np.uint8, order="F")
    pixels[5:9, 12:30], pixels[20, 14] = 1, 1
    counts = mask.encode(pixels)["counts"].decode()
    if not as_text:
        flat = pixels.flatten("F")
        counts = np.diff(np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1])), prepend=0).tolist()
    annotation = make_annotation(1, bbox=None, segmentation={"size": [30, 40], "counts": counts})
    (record,) = read_split(write_split(tmp_path, [make_image(1)], [annotation]), "train")
    np.testing.assert_array_equal(record.boxes, [[12, 5, 30, 21]])


def test_a_box_counts_before_its_polygons(tmp_path):
    annotation = make_annotation(1, segmentation=[[5, 6, 9, 6, 7, 12]])
    (record,) = read_split(write_split(tmp_path, [make_image(1)], [annotation]), "train")
    np.testing.assert_array_equal(record.boxes, [[1, 2, 11, 7]])


@pytest.mark.parametrize(
    "segmentation",
    [None, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, "6"]], [7], {"counts": [1], "size": [9, 9]}],
)
def test_what_has_neither_box_nor_polygon_is_refused(tmp_path, segmentation):
    annotation = make_annotation(1, bbox=[], segmentation=segmentation)
    card = write_split(tmp_path, [make_image(1)], [annotation])
    (error,) = scan_split(card, "train").errors
    assert "is not four finite numbers" in error


def test_separators_of_windows_are_read(tmp_path):
    names = {"rgb": "rgb\\day\\1.png", "thermal": ".\\t\\1.png"}
    card = write_split(tmp_path, [make_image(1, modalities=names)], [])
    (record,) = read_split(card, "train")
    assert record.files == {"rgb": card.root / "rgb/day/1.png", "thermal": card.root / "t/1.png"}
    layout = Layout({"rgb": "rgb/{id}.png", "thermal": "t/{id}.png"}, entry="day/{id}.png")
    for file in ("rgb/1.png", "t/1.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / file)
    card = dataclasses.replace(
        write_split(tmp_path, [make_image(1, file_name="day\\1.png")], []), layout=layout, modalities=card.modalities
    )
    (record,) = read_split(card, "train")
    assert record.files == {"rgb": card.root / "rgb/1.png", "thermal": card.root / "t/1.png"}


def test_areas_are_the_files_and_go_to_coco_and_back_and_into_the_digest(tmp_path):
    boxes = [make_annotation(1, area=20.5), make_annotation(2, area=None), make_annotation(3)]
    clipped = make_annotation(4, bbox=[-20, 2, 40, 5], area=200)
    card = write_split(tmp_path, [make_image(1)], [*boxes, clipped])
    (record,) = read_split(card, "train")
    assert record.area.tolist() == [20.5, 50, 50, 200]
    (tmp_path / "train.json").write_text(json.dumps(coco_split(card, [record])))
    (again,) = read_split(card, "train")
    assert again.area.tolist() == record.area.tolist()
    assert split_digest([again]) == split_digest([record])
    assert split_digest([dataclasses.replace(record, area=None)]) != split_digest([record])


@pytest.mark.parametrize("given", [{"area": 50}, {"area": None}, {"bbox": [0.1, 0.2, 3.3, 7.7], "area": None}])
def test_areas_of_the_boxes_are_none_of_their_own(tmp_path, given):
    card = write_split(tmp_path, [make_image(1)], [make_annotation(1, **given)])
    (record,) = read_split(card, "train")
    assert record.area is None
    (tmp_path / "train.json").write_text(json.dumps(coco_split(card, [record])))
    (again,) = read_split(card, "train")
    assert again.area is None


def test_ids_may_not_stand_twice(tmp_path):
    card = write_split(tmp_path, [make_image(1), make_image(1)], [make_annotation(3), make_annotation(3)])
    first, second = scan_split(card, "train").errors
    assert "image 1" in first
    assert "annotation 3" in second


def test_a_class_that_the_card_lacks_is_refused_only_where_it_is_used(tmp_path):
    categories = [{"id": 7, "name": "car"}, {"id": 2, "name": "persn"}]
    assert len(read_split(write_split(tmp_path, [make_image(1)], [make_annotation(0)], categories), "train")) == 1
    card = write_split(tmp_path, [make_image(1)], [make_annotation(i, category_id=2) for i in range(3)], categories)
    (error,) = scan_split(card, "train").errors
    assert "'persn' is not a known class" in error
    assert "did you mean 'person'?" in error


def test_all_problems_are_collected_and_the_first_is_raised(tmp_path):
    bad = [make_annotation(i, bbox=[1, 2, 0, 5]) for i in range(3)]
    card = write_split(tmp_path, [make_image(1)], bad)
    assert len(scan_split(card, "train").errors) == 3
    with pytest.raises(UserError, match=r"annotation 0: .*\(2 more: see mmfuse check"):
        read_split(card, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "'images' is not a list"),
        ('{"images": [], "annotations": [3], "categories": []}', "'annotations' is not a list of mappings"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no image"),
    ],
)
def test_a_file_that_is_no_coco_json_is_named(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=rf"train.json: .*{message}"):
        read_split(make_card(tmp_path), "train")


def test_missing_files_unknown_splits_and_readers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train.json: No such file"):
        read_split(make_card(tmp_path), "train")
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_split(make_card(tmp_path), "trian")
    with pytest.raises(UserError, match="'cocoo' is not a known reader; did you mean 'coco'"):
        read_split(make_card(tmp_path, reader="cocoo"), "train")


def test_the_digest_follows_the_content_and_not_the_folder(tmp_path):
    digests = []
    for folder, box in (("a", [1, 2, 10, 5]), ("b", [1, 2, 10, 5]), ("c", [1, 2, 10, 6])):
        root = tmp_path / folder
        root.mkdir()
        card = write_split(root, [make_image(1), make_image(2)], [make_annotation(0, bbox=box)])
        digests.append(split_digest(read_split(card, "train")))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_digest_of_plain_records_is_kept(tmp_path):
    card = write_split(tmp_path, [make_image(1), make_image(2)], [make_annotation(1)])
    records = read_split(card, "train")
    assert split_digest(records) == "3c462d6506429b00037c05627306d742abff2fce58f65ffb0519d6d0485885a8"
    degree = dataclasses.replace(records[0], occlusion=np.array([1]))
    other = dataclasses.replace(
        records[0], objects_of={"rgb": Objects(degree.boxes, degree.labels, degree.ignore, (1, 1))}
    )
    assert len({split_digest([r]) for r in (records[0], degree, other)}) == 3


def test_an_image_may_lack_a_sensor_where_the_card_allows_it(tmp_path):
    images = [make_image(1, modalities={"thermal": "t/1.png"}), make_image(2)]
    card = dataclasses.replace(write_split(tmp_path, images, []), missing="allow")
    assert [list(r.files) for r in read_split(card, "train")] == [["thermal"], ["rgb", "thermal"]]
    write_split(tmp_path, [make_image(1, modalities={})], [])
    (error,) = scan_split(card, "train").errors
    assert "image 1: has no file of any sensor" in error


def test_an_annotation_with_the_id_zero_is_a_warning(tmp_path):
    card = write_split(tmp_path, [make_image(1)], [make_annotation(0)])
    (warning,) = scan_split(card, "train").warnings
    assert "annotation 0: pycocotools loses a match" in warning


@pytest.mark.parametrize(
    ("objects_of", "message"),
    [
        (3, "'objects_of' doesn't map modalities"),
        ({"lidar": []}, "'objects_of' doesn't map modalities"),
        ({"rgb": [3]}, "'objects_of' doesn't map modalities"),
        ({"rgb": [{"category_id": 9, "bbox": [1, 2, 3, 4]}]}, "objects_of.rgb[0]: there is no category 9"),
        (
            {"rgb": [{"category_id": 7, "bbox": [1, 2, 3], "occlusion": 10**30}]},
            "objects_of.rgb[0]: box [1, 2, 3] is not four finite",
        ),
    ],
)
def test_objects_of_other_modalities_are_checked(tmp_path, objects_of, message):
    card = write_split(tmp_path, [make_image(1, objects_of=objects_of)], [])
    (tmp_path / "rgb").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "rgb/1.png")
    (error,) = scan_split(card, "train").errors
    assert message in error
    assert "image 1" in error


def test_struck_sensors_are_told_as_far_as_the_card_knows_them(tmp_path):
    card = write_split(tmp_path, [make_image(1, struck=["depth", "rgb"]), make_image(2)], [])
    assert [record.struck for record in read_split(card, "train")] == [("rgb",), ()]
    assert coco_split(card, read_split(card, "train"))["images"][0]["struck"] == ["rgb"]
    card = write_split(tmp_path, [make_image(1, struck="rgb")], [])
    with pytest.raises(UserError, match="image 1: struck 'rgb' is not a list"):
        read_split(card, "train")


def test_what_a_reader_does_not_use_is_refused(tmp_path):
    card = write_split(tmp_path, [make_image(1)], [])
    with pytest.raises(UserError, match=r"labels.one_based: has no use for COCO JSON"):
        read_split(dataclasses.replace(card, labels=Labels(one_based=True)), "train")
    layout = Layout({"rgb": "{id}", "thermal": "{id}"}, {"rgb": "{id}"})
    with pytest.raises(UserError, match=r"layout.annotations: has no use for COCO JSON"):
        read_split(dataclasses.replace(card, layout=layout), "train")
    with pytest.raises(UserError, match=r"layout.annotations: the reader 'voc' needs it"):
        read_split(dataclasses.replace(card, reader="voc"), "train")


def test_ground_truth_is_what_pycocotools_reads(tmp_path, capsys):
    card = write_split(tmp_path, [make_image(1), make_image(4)], [make_annotation(0), make_annotation(9, iscrowd=1)])
    truth = COCO()
    truth.dataset = coco_ground_truth(read_split(card, "train"), card.classes)
    truth.createIndex()
    assert truth.getImgIds() == [1, 4]
    assert truth.loadAnns([1]) == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0}
    ]
    assert truth.loadAnns([2])[0]["iscrowd"] == 1
    assert [c["name"] for c in truth.loadCats([1, 2])] == ["person", "car"]


@pytest.mark.skipif(not (SHARED / "roadscene").is_dir(), reason="the RoadScene data is not here")
def test_roadscene_has_the_published_counts():
    card = load_card(Path(__file__).parents[3] / "datasets" / "roadscene.yaml", str(SHARED / "roadscene"))
    splits = [read_split(card, split) for split in ("train", "val", "test")]
    assert [len(records) for records in splits] == [95, 25, 45]
    assert [sum(len(r.boxes) for r in records) for records in splits] == [631, 213, 286]
