"""The table of faults: what goes wrong around the product, each through its command line, and what comes of it.

A fault is a function that spoils a `Place` and gives the words of a command. Refused ones end with exit code 2 and one
line that tells what is wrong, and change no file; the others go on, and tell what they have to. Nothing takes more than
a minute or shows a traceback, and nothing of `theirs` ever changes. Faults that single parts can be given are tested
beside these; kills, and what is large, in `test_endurance.py`.
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from tiff_files import tiff

from mmfuse.files import sole_writer

FAULTS = {}


@dataclass(frozen=True)
class Fault:
    """Its kind, a number of the list in docs/reliability.md, what spoils a place, the exit code and what is told."""

    item: int
    spoil: object
    code: int
    told: str
    costly: bool


def refused(item, told):
    return _added(item, told, 2)


def held(item, told="", *, costly=False):
    return _added(item, told, 0, costly)


def _added(item, told, code, costly=False):
    def add(function):
        assert function.__name__ not in FAULTS
        FAULTS[function.__name__] = Fault(item, function, code, told, costly)
        return function

    return add


# ---- 1 names that lead out


@refused(1, r"splits: '../../theirs/important' is not allowed; use letters")
def a_split_that_leads_out_is_converted(place):
    place.edit(place.card, splits={"../../theirs/important": "test.json"})
    return "convert", place.card, "--to", "coco", "--out", place.set / "a.yaml"


@refused(1, r"splits: '../theirs/important' is not allowed")
def a_split_that_leads_out_is_scored(place):
    place.edit(place.card, splits={"../theirs/important": "test.json"})
    return "evaluate", place.run, "--split", "../theirs/important"


@refused(1, r"modalities: '../rgb' is not allowed")
def a_sensor_that_leads_out(place):
    place.edit(place.card, modalities={"../rgb": {"channels": 3}})
    return "check", place.card


@refused(1, r"name: '../theirs' is not allowed")
def a_recipe_whose_name_leads_out(place):
    return "train", place.recipe, "name=../theirs"


@refused(1, r"leads out of")
def a_file_that_leads_out(place):
    place.each("images", lambda image: image["modalities"].update(rgb="../theirs/important.json"))
    return "train", place.recipe, "--out", place.folder / "new"


@refused(1, r"leads out of")
def a_link_that_leads_out(place):
    file = place.file("rgb")
    file.unlink()
    file.symlink_to(place.theirs / "important.json")
    return "train", place.recipe, "--out", place.folder / "new"


@held(1, "errors: 0")
def a_condition_that_looks_like_a_path_is_text(place):
    place.edit(place.card, conditions=None)
    for split in ("train", "val", "test"):
        place.each("images", lambda image: image.update(condition="../../theirs/important"), split)
    assert place.mmfuse("evaluate", place.run).code == 0
    return "check", place.card


@held(1, "2 scenes")
def a_scene_whose_name_leads_out_is_drawn(place):
    place.each("images", lambda image: image.update(file_name="../../theirs/important.json"), "test")
    return "predict", place.run, place.card, "--out", place.folder / "drawn"


@refused(1, "leaves the folder|leads out|outside")
def an_archive_that_leads_out(place):
    with zipfile.ZipFile(place.folder / "a.zip", "w") as archive:
        archive.writestr("../theirs/important.json", "x")
    return "unpack", place.folder / "a.zip", "--out", place.folder / "new"


# ---- 2 what lies in a run folder or in the way


@held(2)
def a_result_that_is_a_link_is_replaced_not_followed(place):
    (place.run / "test.json").symlink_to(place.theirs / "important.json")
    return "evaluate", place.run


@held(2)
def a_run_whose_cache_lies_elsewhere_is_scored_without_writing_there(place):
    place.edit(place.run / "config.yaml", data__cache=str(place.theirs))
    return "evaluate", place.run


@held(2)
def a_run_that_asks_for_weights_is_scored_without_them(place):
    place.edit(place.run / "config.yaml", model__pretrained=True, model__weights="tf_efficientdet_d0")
    return "evaluate", place.run


@refused(2, "'weights' is not a known key")
def a_checkpoint_that_asks_for_weights(place):
    place.header(spec__weights="tf_efficientdet_d0")
    return "evaluate", place.run


@held(2, "2 scenes")
def a_key_that_names_a_file_in_a_checkpoint_s_notes_is_not_opened(place):
    place.header(notes={"name": str(place.theirs / "important.json"), "epoch": 1})
    return "predict", place.run, place.card, "--out", place.folder / "found.jsonl"


# ---- 3 headers and run files of a stranger


@refused(3, "spec: size: 5 is not text")
def a_size_that_is_a_number(place):
    place.header(spec__size=5)
    return "evaluate", place.run


@refused(3, "no detector has more than")
def a_width_of_a_thousand_millions(place):
    place.header(spec__width=10**9)
    return "evaluate", place.run


@refused(3, "classes")
def classes_that_are_a_number(place):
    place.header(spec__classes=7)
    return "predict", place.run, place.card


@refused(3, "sensors.rgb.mean: None is not a list")
def means_that_are_null(place):
    place.header(spec__sensors__rgb__mean=None)
    return "evaluate", place.run


@refused(3, "the tag '!!python/object/apply:os.system' is not allowed|is not allowed")
def code_in_a_run_s_recipe(place):
    (place.run / "config.yaml").write_text("!!python/object/apply:os.system ['touch x']")
    return "evaluate", place.run


@refused(3, "isn't a run's metrics")
def metrics_that_are_garbage(place):
    (place.run / "metrics.csv").write_bytes(b"\x00\xff garbage\n1,2,3\n")
    return "train", place.recipe, "--out", place.run, "--resume"


@refused(3, "can't be read as a checkpoint")
def a_checkpoint_cut_short(place):
    path = place.run / "best.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return "predict", place.run, place.card


@refused(3, "can't be read as a checkpoint|its header isn't")
def a_state_that_is_garbage(place):
    (place.run / "metrics.csv").unlink()
    (place.run / "last.safetensors").write_bytes(b"\xff" * 100)
    return "train", place.recipe, "--out", place.run, "--resume"


@refused(3, "card.yaml: .*aliases|alias")
def a_card_of_aliases(place):
    place.card.write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    return "check", place.card


@refused(3, "is not JSON")
def annotations_nested_beyond_all_reason(place):
    (place.set / "train.json").write_text("[" * 10**6)
    return "train", place.recipe, "--out", place.folder / "new"


# ---- 4 what would be waited for


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@refused(4, "Not a regular file")
def a_pipe_for_a_card(place):
    pipe(place.card)
    return "train", place.recipe, "--out", place.folder / "new"


@refused(4, "Not a regular file")
def a_pipe_for_a_recipe(place):
    pipe(place.recipe)
    return "train", place.recipe


@refused(4, "Not a regular file")
def a_pipe_for_a_split(place):
    pipe(place.set / "train.json")
    return "train", place.recipe, "--out", place.folder / "new"


@refused(4, "Not a regular file")
def a_pipe_for_an_image(place):
    pipe(place.file("thermal"))
    return "train", place.recipe, "--out", place.folder / "new"


@refused(4, "Not a regular file")
def a_pipe_for_a_checkpoint(place):
    pipe(place.run / "best.safetensors")
    return "evaluate", place.run


@refused(4, "Not a regular file")
def a_pipe_for_an_archive(place):
    pipe(place.folder / "a.tar.gz")
    return "unpack", place.folder / "a.tar.gz", "--out", place.folder / "new"


@refused(4, "could take for ever")
def a_pattern_that_would_take_for_ever(place):
    place.edit(place.card, splits={"train": {"file": "train.json", "only": "(a+)+"}})
    return "check", place.card


# ---- 5 names in reports


@held(5, costly=True)
def a_class_that_is_markup_is_shown_as_it_is(place):
    name = "<script>alert(1)</script>![x](http://x/y.png)"
    place.header(spec__classes=[name, *json_classes(place)[1:]])
    place.edit(place.card, classes=[name, *json_classes(place)[1:]])
    place.each("categories", lambda row: row.update(name=name) if row["id"] == 1 else None, "test")
    place.edit(place.card, name=name)
    shutil.copytree(place.run, place.folder / "other")
    place.edit(place.folder / "other" / "config.yaml", name="other")
    found = place.mmfuse("compare", place.run, place.folder / "other", "--out", place.folder / "report")
    assert found.code == 0, found.text
    report = (place.folder / "report" / "report.md").read_text()
    assert "alert" in report
    assert "<script" not in report
    assert "](http" not in report
    return "evaluate", place.run


def json_classes(place):
    return [row["name"] for row in json.loads((place.set / "test.json").read_text())["categories"]]


# ---- 6, 7, 8 resuming, and one writer


@refused(6, "seed")
def a_run_of_another_seed_is_not_gone_on_with(place):
    return "train", place.recipe, "train.seed=1", "--out", place.run, "--resume"


@refused(6, "holds a run already")
def a_run_is_not_trained_over(place):
    return "train", place.recipe, "--out", place.run


@refused(6, "its data changed: train: in 4 images boxes moved")
def a_run_whose_boxes_moved_is_not_gone_on_with(place):
    place.each("annotations", lambda row: row.update(bbox=[row["bbox"][0] + 1, *row["bbox"][1:]]))
    return "train", place.recipe, "train.epochs=2", "--out", place.run, "--resume"


@refused(6, "its data changed: val: 1 images are gone")
def a_run_that_lost_an_image_is_not_gone_on_with(place):
    values = json.loads((place.set / "val.json").read_text())
    gone = values["images"].pop()["id"]
    values["annotations"] = [row for row in values["annotations"] if row["image_id"] != gone]
    (place.set / "val.json").write_text(json.dumps(values))
    return "train", place.recipe, "--out", place.run, "--resume"


@refused(6, "the classes are|its data changed: classes")
def a_run_whose_classes_changed_places_is_not_gone_on_with(place):
    place.edit(place.card, classes=json_classes(place)[::-1])
    return "train", place.recipe, "train.epochs=2", "--out", place.run, "--resume"


@refused(6, "best.safetensors: is gone")
def a_run_that_lost_its_best_is_not_gone_on_with(place):
    (place.run / "best.safetensors").unlink()
    return "train", place.recipe, "train.epochs=2", "--out", place.run, "--resume"


@held(6)
def keys_that_change_nothing_learnt_do_not_stop_a_run(place):
    keys = ("data.workers=1", "train.evaluate_every=2", "train.save_every=5", "train.epochs=1")
    return "train", place.recipe, *keys, "--out", place.run, "--resume"


@refused(7, "another process is writing there")
def two_trainings_in_one_folder(place):
    shutil.rmtree(place.run)
    place.holder = sole_writer(place.run)
    place.holder.__enter__()
    return "train", place.recipe, "--out", place.run


# ---- 10 the machine


@refused(10, r"File too large|No space left")
def a_disk_that_is_full(place):
    place.limit = 20_000
    return "train", place.recipe, "--out", place.folder / "new"


@refused(10, r"File too large|No space left")
def a_disk_that_is_full_when_a_result_is_written(place):
    assert place.mmfuse("evaluate", place.run).code == 0
    place.limit = 100
    return "evaluate", place.run


@refused(10, "can't be written")
def a_run_folder_under_a_file(place):
    return "train", place.recipe, "--out", place.theirs / "important.json" / "run"


@refused(10, "is not a path that can be followed|is not a folder")
def a_root_that_is_a_loop_of_links(place):
    (place.folder / "a").symlink_to(place.folder / "b")
    (place.folder / "b").symlink_to(place.folder / "a")
    return "check", place.card, "--root", place.folder / "a"


@refused(10, "does not exist; check the path, or give --card")
def a_run_whose_data_moved(place):
    place.set.rename(place.folder / "moved")
    return "evaluate", place.run


@held(10, "AP")
def a_run_whose_data_moved_is_told_where(place):
    place.set.rename(place.folder / "moved")
    return "evaluate", place.run, "--card", place.folder / "moved" / "card.yaml"


@refused(10, "is missing|No such file|is not an image|can't be read")
def images_that_went_away(place):
    place.file("rgb", "test").unlink()
    return "evaluate", place.run


# ---- 11 what a file says


@held(11, r"image: uint16, .*\n.*errors: 0|errors: 0")
def five_bands_of_16_bits(place):
    place.edit(place.card, modalities={"rgb": {"channels": 3}, "thermal": {"channels": 5}})
    place.repaint("thermal", lambda x: tiff(np.repeat(np.atleast_3d(x), 5, -1) + np.arange(5, dtype=np.uint16)))
    return "check", place.card


@refused(11, "has 5 channels; the sensor has 1")
def more_bands_than_the_sensor_has(place):
    place.repaint("thermal", lambda x: tiff(np.repeat(np.atleast_3d(x), 5, -1)))
    return "train", place.recipe, "--out", place.folder / "new"


@refused(11, "is a TIFF of 1 bands of 16 bits .*, which can't be read")
def a_tiff_of_another_kind_is_told(place):
    place.repaint("thermal", lambda x: tiff(x, more={339: (3, [6])}))
    return "train", place.recipe, "--out", place.folder / "new"


@held(11, "errors: 0")
def white_as_the_lowest_value_is_the_same_image(place):
    before = place.mmfuse("check", place.card).out
    place.repaint("thermal", lambda x: tiff(65535 - x, photometric=0))
    after = place.mmfuse("check", place.card).out
    assert re.findall("thermal: uint16, .*", after) == re.findall("thermal: uint16, .*", before)
    return "check", place.card


@held(11, "errors: 0")
def images_that_lie_on_their_side(place):
    exif = Image.Exif()
    exif[0x0112] = 6

    def turned(pixels):
        content = BytesIO()
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(content, "PNG", exif=exif)
        return content.getvalue()

    place.repaint("thermal", turned)
    return "check", place.card


@refused(11, "images of uint8: 1, such as .*, but 7 of uint16")
def one_image_of_another_depth(place):
    path = place.file("thermal")
    Image.fromarray(np.arange(96 * 128).reshape(96, 128).astype(np.uint8)).save(path)
    return "check", place.card


@refused(11, "can't be read")
def an_image_cut_short(place):
    path = place.file("rgb")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "train", place.recipe, "--out", place.folder / "new"


# ---- 12 what COCO means


@refused(12, "iscrowd: '0' is not 0 or 1")
def crowds_as_text(place):
    place.each("annotations", lambda row: row.update(iscrowd="0"))
    return "train", place.recipe, "--out", place.folder / "new"


@held(12, r"train: 4 images, \d+ boxes \(.*\), 1 of them ignored")
def objects_that_are_to_be_ignored(place):
    first = json.loads((place.set / "train.json").read_text())["annotations"][0]["id"]
    place.each("annotations", lambda row: row.update(ignore=1) if row["id"] == first else None)
    return "check", place.card


@refused(12, "is image 1 and image 2 of train; keep one of them")
def a_file_under_two_ids(place):
    files = json.loads((place.set / "train.json").read_text())["images"][0]["modalities"]
    place.each("images", lambda image: image.update(modalities=files) if image["id"] == 2 else None)
    return "check", place.card


@held(12, "warning: train: boxes that stand twice in their image")
def boxes_that_stand_twice(place):
    path = place.set / "train.json"
    values = json.loads(path.read_text())
    values["annotations"] += [{**row, "id": row["id"] + 1000} for row in values["annotations"]]
    path.write_text(json.dumps(values))
    return "check", place.card


@held(12, "errors: 0")
def what_other_tools_write(place):
    path = place.set / "train.json"
    place.each("images", lambda image: image.update(width=float(image["width"])))
    place.each("images", lambda i: i.update(modalities={m: f.replace("/", "\\") for m, f in i["modalities"].items()}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return "check", place.card


def _outlined(row, how):
    x, y, w, h = (round(v) for v in row.pop("bbox"))
    w, h = max(w, 2), max(h, 2)
    row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if how == "mask":
        pixels = np.zeros((600, 800), np.uint8, order="F")
        pixels[y : y + h, x : x + w] = 1
        found = mask.encode(pixels)
        row["segmentation"] = {"size": found["size"], "counts": found["counts"].decode()}


@held(12, "errors: 0")
def polygons_without_boxes(place):
    place.each("annotations", lambda row: _outlined(row, "polygon"))
    return "check", place.card


@held(12, "errors: 0")
def masks_without_boxes(place):
    place.each("annotations", lambda row: _outlined(row, "mask"))
    return "check", place.card


@held(12, "they are left out")
def boxes_of_nothing_where_the_card_drops_them(place):
    place.edit(place.card, labels={"bad_boxes": "drop"})
    bad = [[], [1, 2, 3], [float("nan")] * 4, None, [5, 5, 0, 9]]
    place.each("annotations", lambda row: row.update(bbox=bad[row["id"] % 5]) if row["image_id"] == 1 else None)
    return "check", place.card


@refused(12, "has no 'modalities' but a file_name")
def plain_coco_is_told_about_layouts(place):
    place.each("images", lambda image: image.pop("modalities"))
    return "train", place.recipe, "--out", place.folder / "new"


# ---- 13 sensors that can't be what the card says


@refused(13, "thermal: all pixels of the training images have one value")
def thermal_of_one_value(place):
    place.repaint("thermal", lambda x: np.full_like(x, 3000))
    return "train", place.recipe, "--out", place.folder / "new"


@refused(13, "thermal: values from .* can't be measured")
def thermal_beyond_any_unit(place):
    place.repaint("thermal", lambda x: tiff(x.astype(np.float32) * 1e34))
    return "train", place.recipe, "--out", place.folder / "new"


@held(13, "thermal: images with infinite values: 8|thermal: images with infinite values")
def thermal_with_infinities(place):
    place.repaint("thermal", lambda x: tiff(np.where(x % 7 == 0, np.inf, x).astype(np.float32)))
    return "check", place.card


@held(13, "rgb and thermal are the same image: 4 of 4")
def thermal_that_is_a_link_to_colours(place):
    for split in ("train", "val", "test"):
        for index in range(2):
            place.file("thermal", split, index).unlink()
            place.file("thermal", split, index).symlink_to(place.file("rgb", split, index))
    for index in (2, 3):
        place.file("thermal", "train", index).unlink()
        place.file("thermal", "train", index).symlink_to(place.file("rgb", "train", index))
    return "check", place.card


@held(13, r"thermal: .*% of the pixels have the highest value, 65535; is it")
def a_value_that_is_no_measurement(place):
    place.repaint("thermal", lambda x: np.where(np.arange(x.shape[1]) < x.shape[1] // 3, 65535, x).astype(np.uint16))
    return "check", place.card


@held(13, "best val AP")
def a_value_that_the_card_says_is_no_measurement(place):
    a_value_that_is_no_measurement(place)
    place.edit(place.card, modalities__thermal__nodata=[65535])
    checked = place.mmfuse("check", place.card)
    assert "65535" not in checked.out, checked.out
    return "train", place.recipe, "--out", place.folder / "new"


# ---- 14 what a split lacks, and shares


@refused(14, "val holds no object")
def a_val_split_without_objects(place):
    place.each("annotations", lambda row: row.update(iscrowd=1), "val")
    return "train", place.recipe, "--out", place.folder / "new"


@refused(14, "can't be read")
def a_val_image_that_cannot_be_read(place):
    path = place.file("thermal", "val", 1)
    path.write_bytes(path.read_bytes()[:-2000])
    return "train", place.recipe, "data.on_bad_sample=skip", "--out", place.folder / "new"


@refused(14, r"all \d+ objects of train are too small for it to be learnt")
def objects_too_small_for_the_input(place):
    place.each("annotations", lambda row: row.update(bbox=[*row["bbox"][:2], 1.2, 1.2], area=1))
    return "train", place.recipe, "--out", place.folder / "new"


@held(14, r"objects too small to be learnt at input size \[64, 64\]: \d+")
def objects_too_small_are_counted(place):
    place.each("annotations", lambda row: row.update(bbox=[*row["bbox"][:2], 3, 3], area=9))
    return "check", place.card, "--input-size", "64", "64"


@held(14, "boxes of the class 'car' are crowds or ignore regions")
def a_class_of_crowds_alone(place):
    number = json_classes(place).index("car") + 1
    place.each("annotations", lambda row: row.update(iscrowd=int(row["category_id"] == number)))
    return "check", place.card


@held(14, "val: no image has the condition 'night'")
def a_condition_that_val_lacks(place):
    place.each("images", lambda image: image.update(condition="day"), "val")
    place.each("images", lambda image: image.update(condition="night"), "train")
    return "check", place.card


@held(14, r"val: 1 images.*\n    drawn from train: 25.0% of its images")
def a_split_that_is_a_share(place):
    place.edit(place.card, splits={"train": "train.json", "val": 0.25})
    return "check", place.card


@refused(14, "a part of train's images, such as 0.2")
def a_share_of_everything(place):
    place.edit(place.card, splits={"train": "train.json", "val": 1})
    return "train", place.recipe, "--out", place.folder / "new"


@refused(14, "4 images can't be shared by train, a, b, c, d")
def more_shares_than_images(place):
    place.edit(place.card, splits={"train": "train.json", **dict.fromkeys("abcd", 0.1)})
    return "check", place.card


@refused(14, "is in train, and the same image|is in val, and the same image")
def the_same_image_in_two_splits(place):
    shutil.copy(place.file("rgb", "train"), place.file("rgb", "val"))
    return "check", place.card


@pytest.fixture
def offline(monkeypatch):
    """No connection may be opened."""

    def refuse(*arguments):
        raise AssertionError(f"a connection was opened: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.faults if of.costly else ()) for name, of in FAULTS.items()]
)
def test_a_fault(name, place, tmp_path, monkeypatch, record_property):
    fault = FAULTS[name]
    record_property("fault", (fault.item, name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    place.limit, place.holder = None, None
    words = fault.spoil(place)
    looked_at = [place.theirs] if fault.code == 0 else [place.theirs, place.set, place.run]
    before = place.digest(*looked_at)
    with at_most_on_disk(place.limit):
        found = place.mmfuse(*words)
    if place.holder:
        place.holder.__exit__(None, None, None)
    assert found.code == fault.code, found.text
    assert re.search(fault.told, found.text), found.text
    assert "Traceback" not in found.text
    assert place.digest(*looked_at) == before
    assert not list(place.folder.rglob("*.partial"))
    if fault.code and words[0] != "check":
        assert len(found.err) == 1, found.err
        assert found.err[0].startswith("mmfuse: ")
        assert place.limit or not (place.folder / "new").exists()


@contextmanager
def at_most_on_disk(size):
    """Lets no file grow beyond a size, as if the disk were full."""
    if size is None:
        yield
        return
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
