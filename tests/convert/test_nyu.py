"""NYU Depth v2 from a small file in its published layout (HDF5, axes reversed) to image files, COCO JSON and a card."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import yaml
from matlab_files import finish, start, write_texts

from mmfuse.convert import datasets as convert
from mmfuse.convert.datasets import from_nyu
from mmfuse.convert.nyu import CLASSES
from mmfuse.data.annotations.cards import Card, load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.checks.check import check
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image

NAMES = ["wall", *CLASSES[::-1], "unknown"]
SCENES = ["den_0001", "den_0002a", "den_0002b", "den_0003", *(f"hall_{i:04}" for i in range(7)), "kitchen_0001"]
COUNT = len(SCENES) + 2
WIDTH, HEIGHT = 561, 427


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """What MATLAB has: images (480, 640, 3, N), the others (480, 640, N)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (48, 64, 3, COUNT), dtype=np.uint8)
    depths = rng.uniform(0.7, 9.9, (48, 64, COUNT)).astype(np.float32)
    labels, instances = np.zeros((480, 640, COUNT), np.uint16), np.zeros((480, 640, COUNT), np.uint8)
    bed, sofa, wall = NAMES.index("bed") + 1, NAMES.index("sofa") + 1, 1
    labels[100:120, 200:260], instances[100:120, 200:260] = bed, 1
    labels[110:150, 255:300], instances[110:150, 255:300] = bed, 2
    labels[300:310, 0:50], instances[300:310, 0:50] = sofa, 1
    labels[20:30, 100:110], instances[20:30, 100:110] = sofa, 2
    labels[400:410, 400:410] = bed
    labels[200:210, 400:410], instances[200:210, 400:410] = wall, 1
    labels[0, :, 3] = len(NAMES)
    return {
        "images": coarse.repeat(10, 0).repeat(10, 1),
        "depths": depths.repeat(10, 0).repeat(10, 1),
        "labels": labels,
        "instances": instances,
    }


@dataclasses.dataclass
class Published:
    """The two files, and what the first one holds."""

    labelled: Path
    splits: Path
    arrays: dict[str, np.ndarray]

    def write(self, names: list[str] = NAMES, scenes: list[str] | None = None, **changes: np.ndarray | None) -> None:
        with start(self.labelled) as file:
            for name, array in (self.arrays | changes).items():
                if array is not None:
                    file.create_dataset(
                        name, data=array.T, chunks=(min(5, len(array.T)), *array.T.shape[1:]), compression="gzip"
                    )
            write_texts(file, "names", names)
            if scenes is not None:
                write_texts(file, "scenes", scenes)
        finish(self.labelled)

    def write_splits(self, train: object, test: object) -> None:
        scipy.io.savemat(self.splits, {"trainNdxs": train, "testNdxs": test})


TRAIN = np.arange(1, len(SCENES) + 1, dtype=np.uint16).reshape(-1, 1)
TEST = np.array([[COUNT - 1], [COUNT]], np.uint16)
ALL_SCENES = [*SCENES, "office_0001", "office_0002"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("nyu")
    files = Published(folder / "nyu_depth_v2_labeled.mat", folder / "splits.mat", arrays())
    files.write(scenes=ALL_SCENES)
    files.write_splits(TRAIN, TEST)
    return files


@pytest.fixture(scope="module")
def card(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Card:
    out = tmp_path_factory.mktemp("converted") / "new" / "nyu"
    done = from_nyu(published.labelled, published.splits, out)
    assert done.path == str(out / "card.yaml")
    assert done.splits["test"] == {"file": str(out / "test.json"), "images": 2, "boxes": 6}
    assert sorted(path.name for path in out.parent.iterdir()) == ["nyu"]
    return load_card(done.path)


def test_what_is_written_is_in_order(card: Card) -> None:
    report = check(card.path)
    assert report.errors == []
    assert [found.images for found in report.splits.values()] == [11, 1, 2]
    assert report.splits["test"].boxes["bed"] == 4


def test_pixels_are_those_of_the_file_within_the_border(card: Card, published: Published) -> None:
    record = read_split(card, "test")[1]
    assert (record.image_id, record.width, record.height) == (COUNT, WIDTH, HEIGHT)
    rgb, depth = (card.modalities[m] for m in ("rgb", "depth"))
    whole_rgb = read_image(record.files["rgb"], dataclasses.replace(rgb, border=(0, 0, 0, 0)))
    whole_depth = read_image(record.files["depth"], dataclasses.replace(depth, border=(0, 0, 0, 0)))
    np.testing.assert_array_equal(whole_rgb.permute(1, 2, 0), published.arrays["images"][..., COUNT - 1])
    np.testing.assert_array_equal(whole_depth[0], published.arrays["depths"][..., COUNT - 1])
    cut = read_image(record.files["depth"], depth)
    np.testing.assert_array_equal(depth.metres(cut)[0][0], published.arrays["depths"][44:471, 40:601, COUNT - 1])


def test_boxes_enclose_each_instance_of_a_class_in_what_is_seen(card: Card) -> None:
    record = read_split(card, "test")[0]
    found = sorted(zip([card.classes[i] for i in record.labels], record.boxes.tolist(), strict=True))
    assert found == [
        ("bed", [200 - 40, 100 - 44, 260 - 40, 120 - 44]),
        ("bed", [255 - 40, 110 - 44, 300 - 40, 150 - 44]),
        ("sofa", [0, 300 - 44, 50 - 40, 310 - 44]),
    ]
    assert not record.ignore.any()


def test_the_camera_is_that_of_what_is_seen(card: Card) -> None:
    for sensor in card.modalities.values():
        assert sensor.border == (40, 44, 39, 9)
        assert sensor.calibration is not None
        assert sensor.calibration.size == (WIDTH, HEIGHT)
        assert sensor.calibration.intrinsics == (518.8579, 519.4696, 285.5824, 209.7362)


def test_val_is_every_tenth_scene_whole(card: Card, published: Published, tmp_path: Path) -> None:
    assert [r.sequence for r in read_split(card, "val")] == ["hall_0006"]
    assert [r.image_id for r in read_split(card, "train")] == [n for n in range(1, 13) if n != 11]
    scenes = ["a", "b", "d", "e", "f", "z_1a", "z_1b", "c", "a", "i", "g", "h", "t", "u"]
    files = dataclasses.replace(published, labelled=tmp_path / "other.mat")
    files.write(scenes=scenes)
    from_nyu(files.labelled, files.splits, tmp_path / "other")
    other = load_card(tmp_path / "other" / "card.yaml")
    assert sorted(r.sequence for r in read_split(other, "val")) == ["z_1a", "z_1b"]
    files.write(scenes=None)
    from_nyu(files.labelled, files.splits, tmp_path / "plain")
    plain = read_split(load_card(tmp_path / "plain" / "card.yaml"), "val")
    assert [(r.image_id, r.sequence) for r in plain] == [(10, None)]


def test_other_classes_can_be_taken(published: Published, tmp_path: Path) -> None:
    done = from_nyu(published.labelled, published.splits, tmp_path / "x", classes=["wall", "sofa"])
    record = read_split(load_card(done.path), "test")[0]
    assert sorted(record.labels.tolist()) == [0, 1]
    with pytest.raises(UserError, match=r"classes: 'soffa' is not a known label of .*; did you mean 'sofa'\?"):
        from_nyu(published.labelled, published.splits, tmp_path / "y", classes=["soffa"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_card_that_comes_along_is_the_one_that_is_written(card: Card) -> None:
    shipped = yaml.safe_load((Path(__file__).parents[2] / "datasets" / "nyu_depth_v2.yaml").read_text())
    other = load_card(Path(__file__).parents[2] / "datasets" / "nyu_depth_v2.yaml", str(card.root))
    assert (other.modalities, other.classes) == (card.modalities, card.classes)
    assert {name: split.file for name, split in other.splits.items()} == {s: f"{s}.json" for s in shipped["splits"]}
    assert [len(read_split(other, split)) for split in other.splits] == [11, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "'labels' is not a known variable of this file"),
        (
            {"images": np.zeros((480, 640, 3), np.uint8)},
            r"images: is \(3, 640, 480\) uint8, not \(3, 3, 640, 480\) uint8",
        ),
        ({"depths": np.zeros((480, 640, 1), np.float32)}, r"depths: is \(1, 640, 480\) float32, not"),
        ({"depths": np.zeros((480, 640, COUNT))}, r"depths: is .* float64, not .* float32; give nyu_depth_v2_labeled"),
        ({"scenes": ["a"]}, f"scenes: names 1 for {COUNT} images"),
        ({"names": ["wall"]}, "classes: 'bathtub' is not a known label"),
    ],
)
def test_another_file_is_refused_in_one_line(
    published: Published, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    files = dataclasses.replace(published, labelled=tmp_path / "other.mat")
    files.write(**change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as raised:
        from_nyu(files.labelled, files.splits, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.mat"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([[0], [1]], TEST, f"trainNdxs: has entries other than 1 to {COUNT}"),
        (TRAIN, [[COUNT + 1]], f"testNdxs: has entries other than 1 to {COUNT}"),
        (TRAIN, [[1.5]], "testNdxs: has entries other than"),
        (TRAIN, "x", "testNdxs: has entries other than"),
        (TRAIN, [[12], [13]], "the image 12 is in trainNdxs and in testNdxs"),
    ],
)
def test_wrong_splits_are_refused_in_one_line(
    published: Published, tmp_path: Path, train: object, test: object, message: str
) -> None:
    files = dataclasses.replace(published, splits=tmp_path / "splits.mat")
    files.write_splits(train, test)
    with pytest.raises(UserError, match=message):
        from_nyu(files.labelled, files.splits, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["splits.mat"]


def test_the_folder_appears_whole_or_not_at_all(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    damaged = tmp_path / "damaged.mat"
    content = bytearray(published.labelled.read_bytes())
    with h5py.File(published.labelled, "r") as file:
        chunk = file["depths"].id.get_chunk_info(2)
    content[chunk.byte_offset : chunk.byte_offset + 64] = bytes(64)
    damaged.write_bytes(content)
    seen: list[bool] = []
    original = convert.nyu.write_nyu

    def watch(*arguments: object) -> object:
        try:
            return original(*arguments)  # type: ignore[arg-type]
        finally:
            seen.append(any(tmp_path.glob(".*.partial/rgb/*")) and not any(out.iterdir()))

    monkeypatch.setattr(convert.nyu, "write_nyu", watch)
    with pytest.raises(UserError, match=r"damaged.mat: can't be read as a MATLAB file"):
        from_nyu(damaged, published.splits, out)
    assert seen == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.mat", "out"]
    from_nyu(published.labelled, published.splits, out)
    assert len(list((out / "depth").iterdir())) == COUNT
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=r"out: .*out is not an empty folder; give a new one"):
        from_nyu(published.labelled, published.splits, out)
    with pytest.raises(UserError, match="is not an empty folder"):
        from_nyu(published.labelled, published.splits, damaged)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda r: (r / "depth/00013.tiff").unlink(), ["depth/00013.tiff"]),
        (lambda r: (r / "rgb/00013.png").write_bytes((r / "rgb/00013.png").read_bytes()[:-2000]), ["rgb/00013.png"]),
        (lambda r: (r / "test.json").write_text("{"), ["test.json: is not JSON"]),
        (lambda r: (r / "test.json").unlink(), ["test.json: No such file"]),
        (
            lambda r: (r / "test.json").write_text(
                (r / "test.json").read_text().replace('"rgb/00013', '"../rgb/00013')
            ),
            ["test.json: image 13", "leads out of"],
        ),
        (
            lambda r: (r / "test.json").write_text((r / "test.json").read_text().replace('"sofa"', '"soffa"')),
            ["'soffa' is not a known class"],
        ),
        (lambda r: (r / "val.json").write_text((r / "test.json").read_text()), ["is in val and in test", "the same"]),
    ],
)
def test_a_fault_planted_in_what_was_written_is_named(
    card: Card, tmp_path: Path, plant: Callable[[Path], object], words: list[str]
) -> None:
    shutil.copytree(card.root, tmp_path / "out")
    plant(tmp_path / "out")
    errors = check(tmp_path / "out" / "card.yaml").errors
    assert all(any(word in error for error in errors) for word in words), errors
