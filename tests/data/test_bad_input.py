"""What goes wrong in datasets, one row each, as `check` tells it; what is put right is counted or documented.

Archives whose members leave their folder are in `test_archives.py`.
"""

import json
import os
import struct
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.coco import coco_ground_truth
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.data.samples import load_sample
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image
from mmfuse.sensor import Sensor

WIDTH, HEIGHT = 32, 24
MODALITIES = {"rgb": {"channels": 3}, "thermal": {"channels": 1}, "depth": {"channels": 1, "encoding": "metres"}}


class Rig:
    """Three images of each of three sensors in one split, right until a test spoils them."""

    def __init__(self, folder):
        self.folder = folder / "root"
        self.card = {
            "name": "rig",
            "root": ".",
            "reader": "coco",
            "modalities": {m: dict(values) for m, values in MODALITIES.items()},
            "classes": ["car"],
            "splits": {"train": "train.json"},
        }
        self.images, self.annotations, self.categories = [], [], [{"id": 1, "name": "car"}]
        rng = np.random.default_rng(0)
        for number in (1, 2, 3):
            files = {m: f"{m}/{number}.png" for m in MODALITIES}
            self.images.append({"id": number, "modalities": files, "width": WIDTH, "height": HEIGHT})
            self.annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 8, 8]})
            self.save(files["rgb"], rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            self.save(files["thermal"], rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
            self.save(files["depth"], rng.integers(1000, 9000, (HEIGHT, WIDTH), dtype=np.uint16))

    def save(self, name, pixels, **options):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)

    def pixels(self, name):
        return np.array(Image.open(self.folder / name))

    def depth_in(self, metres_per_count):
        """Writes all depth anew, as float, from its millimetres."""
        for image in self.images:
            metres = self.pixels(image["modalities"]["depth"]).astype(np.float32) / 1000
            image["modalities"]["depth"] = image["modalities"]["depth"].replace(".png", ".tif")
            self.save(image["modalities"]["depth"], (metres / metres_per_count).astype(np.float32))

    def write(self):
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / "train.json").write_text(json.dumps(content))
        (self.folder / "card.yaml").write_text(yaml.safe_dump(self.card, sort_keys=False))
        return self.folder / "card.yaml"

    def check(self):
        report = check(self.write())
        no_val = "there is no split 'val'"
        return report, [line for line in report.warnings if no_val not in line]

    def sample(self, index=0):
        card = load_card(self.write())
        return load_sample(read_split(card, "train")[index], card.modalities)


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def files(**named):
    return lambda rig: rig.images[0]["modalities"].update(named)


def box(*values):
    return lambda rig: rig.annotations[0].update(bbox=list(values))


def link(rig):
    os.rename(rig.folder / "rgb/1.png", rig.folder.parent / "1.png")
    (rig.folder / "rgb/1.png").symlink_to(rig.folder.parent / "1.png")


def cut(name, **options):
    """Writes a file of an image anew by its suffix, and leaves two thirds of it."""

    def spoil(rig):
        pixels = rig.pixels("rgb/1.png")
        rig.save(name, pixels, **options)
        path = rig.folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        rig.images[0]["modalities"]["rgb"] = name

    return spoil


def bomb(rig):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    (rig.folder / "rgb/1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def deep(rig):
    rig.save("thermal/2.png", rig.pixels("thermal/2.png").astype(np.uint16) * 100)


def eight_bits_alone(rig):
    rig.card["modalities"]["depth"]["dtype"] = "float32"


def palette_depth(rig):
    rig.save("depth/1.png", Image.fromarray((rig.pixels("depth/1.png") // 40).astype(np.uint8)).convert("P"))


def no_depth(rig):
    for image in rig.images:
        rig.save(image["modalities"]["depth"], np.zeros((HEIGHT, WIDTH), np.uint16))


def millimetres_as_metres(rig):
    rig.card["modalities"]["depth"]["unit"] = 1.0


def metres_as_millimetres(rig):
    rig.depth_in(1.0)


def wrong_disparity(rig):
    rig.card["modalities"]["depth"]["disparity"] = [0.001, 0]


def twice(table):
    return lambda rig: getattr(rig, table).append(dict(getattr(rig, table)[0]))


ERRORS = {
    "path with ..": (files(rgb="../1.png"), ["image 1: '../1.png' leads out of", "below the root"]),
    "absolute path": (files(rgb="/etc/1.png"), ["image 1: '/etc/1.png' leads out of", "below the root"]),
    "link out of the root": (link, ["image 1: 'rgb/1.png' leads out of", "below the root"]),
    "pair file not named": (lambda rig: rig.images[0]["modalities"].pop("depth"), ["image 1", "'depth'", "add it"]),
    "pair file missing": (lambda rig: os.remove(rig.folder / "depth/2.png"), ["depth/2.png", "No such file", "give"]),
    "other size": (
        lambda rig: rig.save("thermal/3.png", rig.pixels("thermal/3.png")[:20]),
        ["image 3", "rgb/3.png is 32 x 24", "thermal/3.png is 32 x 20", "register them to one size"],
    ),
    "other size than labelled": (
        lambda rig: rig.images[1].update(width=33),
        ["rgb/2.png: is 32 x 24", "image 2 is labelled as 33 x 24", "mend one"],
    ),
    "16 bits among 8": (deep, ["thermal: images of uint16: 1", "thermal/2.png", "2 of uint8", "thermal/1.png", "one"]),
    "other type than the card's": (eight_bits_alone, ["depth: images of uint16: 3", "depth/1.png", "float32", "mend"]),
    "cut png": (cut("rgb/9.png"), ["rgb/9.png", "give a whole image file"]),
    "cut jpeg": (cut("rgb/9.jpg", quality=95), ["rgb/9.jpg", "give a whole image file"]),
    "cut tiff": (cut("rgb/9.tif"), ["rgb/9.tif", "give a"]),
    "cut webp": (cut("rgb/9.webp", lossless=True), ["rgb/9.webp", "give a"]),
    "decompression bomb": (bomb, ["rgb/1.png", "million pixels", "give a smaller image"]),
    "depth in palette colours": (palette_depth, ["depth/1.png", "palette", "write"]),
    "depth zero in all": (no_depth, ["train: depth: no image measures anything: 3", "depth/1.png", "mend"]),
    "millimetres as metres": (millimetres_as_metres, ["train: depth: unit: 1 makes", "far 20 m", "is it 0.001, which"]),
    "metres as millimetres": (metres_as_millimetres, ["depth: unit: 0.001 makes", "near is 0.5", "is it 1, which"]),
    "wrong disparity": (wrong_disparity, ["train: depth: disparity: [0.001, 0.0] makes", "mend one of them"]),
    "inverted box": (box(12, 4, -8, 8), ["annotation 1: box [12, 4, -8, 8] has no area", "mend or remove it"]),
    "NaN box": (box(1, float("nan"), 8, 8), ["annotation 1: box [1, nan, 8, 8] is not four finite numbers", "mend"]),
    "box outside": (box(40, 4, 8, 8), ["annotation 1: box [40, 4, 8, 8] lies outside the image of 32 x 24", "mend"]),
    "unknown class": (
        lambda rig: rig.categories[0].update(name="cra"),
        ["annotation 1: 'cra' is not a known class", "did you mean 'car'?"],
    ),
    "image id twice": (twice("images"), ["image 1: its id is not a whole number of its own", "give it one"]),
    "annotation id twice": (twice("annotations"), ["annotation 1: its id is not a whole number of its own", "give it"]),
    "NaN in JSON": (lambda rig: rig.annotations[0].update(score=float("nan")), ["holds NaN", "write numbers"]),
    "NaN for an area": (lambda rig: rig.annotations[0].update(area=float("nan")), ["annotation 1: area: nan", "mend"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_is_one_line_that_names_the_entry_and_a_fix(rig, fault):
    spoil, parts = ERRORS[fault]
    spoil(rig)
    (error,) = rig.check()[0].errors
    assert all(part in error for part in parts), error
    assert "\n" not in error


def test_a_good_rig_has_nothing_to_tell(rig):
    report, warnings = rig.check()
    assert (report.errors, warnings) == ([], [])


@pytest.mark.parametrize("fault", ["cut png", "decompression bomb", "NaN box", "path with ..", "other size"])
def test_training_stops_at_the_same_line(rig, fault):
    ERRORS[fault][0](rig)
    (error,) = rig.check()[0].errors
    with pytest.raises(UserError) as raised:
        [rig.sample(index) for index in range(3)]
    assert str(raised.value) == error


def reorder(rig):
    """Pairs the sorted files of one sensor with the same files of another in the order of another listing."""
    names = [image["modalities"]["thermal"] for image in rig.images]
    for image, name in zip(rig.images, [names[1], names[0], names[2]], strict=True):
        image["modalities"]["thermal"] = name


def black_depth(rig):
    rig.save("depth/2.png", np.zeros((HEIGHT, WIDTH), np.uint16))


WARNINGS = {
    "pairs in another order": (reorder, ["train: thermal: 2 of 3 pairs", "rgb/1.png", "thermal/2.png", "by their"]),
    "depth zero in one": (black_depth, ["train: depth: images without any measurement: 1", "depth/2.png", "check"]),
    "constant image": (
        lambda rig: rig.save("thermal/3.png", np.full((HEIGHT, WIDTH), 40, np.uint8)),
        ["train: thermal: images of one single value: 1", "thermal/3.png", "check the sensor"],
    ),
    "box partly outside": (box(-9, 4, 18, 8), ["train: boxes that reach more than a pixel out", ": 1;", "clipped"]),
    "annotation id 0": (lambda rig: rig.annotations[0].update(id=0), ["annotation 0", "count ids from 1"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", WARNINGS)
def test_a_warning_counts_and_names_what_training_can_live_with(rig, fault):
    spoil, parts = WARNINGS[fault]
    spoil(rig)
    report, (warning,) = rig.check()
    assert all(part in warning for part in parts), warning
    assert report.errors == []
    rig.sample()


def test_bad_boxes_are_left_out_and_counted_where_the_card_says_so(rig):
    rig.card["labels"] = {"bad_boxes": "drop"}
    box(12, 4, -8, 8)(rig)
    rig.annotations[1]["bbox"] = [40, 4, 8, 8]
    report, warnings = rig.check()
    assert report.errors == []
    assert report.splits["train"].left_out == 2
    assert "train: boxes without finite numbers or area, or outside their image: 2; they are left out" in warnings
    assert [len(record.boxes) for record in read_split(load_card(rig.write()), "train")] == [0, 0, 1]


def test_the_id_0_is_counted_anew_for_scoring(rig):
    rig.annotations[0]["id"] = 0
    truth = coco_ground_truth(read_split(load_card(rig.write()), "train"), ["car"])
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3]


def test_alpha_is_left_out(rig):
    colour = rig.pixels("rgb/1.png")
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH, 1)
    rig.save("rgb/1.png", np.concatenate((colour, alpha), 2))
    report, warnings = rig.check()
    assert (report.errors, warnings) == ([], [])
    np.testing.assert_array_equal(rig.sample().images["rgb"], colour.transpose(2, 0, 1))


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_its_colours(rig, transparent):
    image = Image.fromarray(rig.pixels("rgb/1.png")).quantize(16)
    colour = np.array(image.convert("RGB"))
    rig.save("rgb/1.png", image, **({"transparency": bytes(range(16))} if transparent else {}))
    report, warnings = rig.check()
    assert (report.errors, warnings) == ([], [])
    np.testing.assert_array_equal(rig.sample().images["rgb"], colour.transpose(2, 0, 1))


@pytest.mark.parametrize("encoding", ["percentile", "clahe"])
def test_a_palette_becomes_its_greys(rig, encoding):
    greys = np.array([[200, 10], [90, 90]], np.uint8)
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8)).convert("P")
    image.putpalette([200] * 3 + [10] * 3 + [90] * 3)
    rig.save("p.png", image)
    np.testing.assert_array_equal(read_image(rig.folder / "p.png", Sensor(1, encoding))[0], greys)


def test_an_image_is_turned_as_its_tag_says(rig):
    """The file holds the image lying on its side, and the tag that tells a viewer to turn it upright."""
    upright = rig.pixels("rgb/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rig.save("rgb/1.png", np.rot90(upright), exif=exif)
    report, warnings = rig.check()
    assert (report.errors, warnings) == ([], [])
    np.testing.assert_array_equal(rig.sample().images["rgb"], upright.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("notes: !!python/object/apply:os.system ['touch x']", ["card.yaml:1", "tag", "write a plain value"]),
        ("notes: &a x\nsource: *a", ["card.yaml:2", "alias '*a'", "write it out"]),
    ],
)
def test_a_card_with_tags_or_aliases_is_refused(rig, line, parts, monkeypatch):
    card = rig.write()
    monkeypatch.chdir(rig.folder)
    card.write_text(f"{line}\n{card.read_text()}")
    (error,) = check(card).errors
    assert all(part in error for part in parts), error
    assert not (rig.folder / "x").exists()
