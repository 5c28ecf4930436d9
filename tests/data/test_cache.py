import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data import cache as cache_module
from mmfuse.data.annotations.records import Record
from mmfuse.data.cache import CacheError, ImageCache
from mmfuse.data.samples import read_record
from mmfuse.errors import UserError
from mmfuse.sensor import Calibration, Sensor

CAMERA = Calibration((32, 24), (30.0, 30.0, 15.5, 11.5))
SENSORS = {
    "rgb": Sensor(3),
    "thermal": Sensor(1),
    "heat": Sensor(1, "celsius", range=(0, 50), unit=0.01),
    "depth": Sensor(1, "normals", calibration=CAMERA),
}
CHEAP = {m: SENSORS[m] for m in ("rgb", "thermal")}


@pytest.fixture
def record(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    gaps = rng.uniform(28000, 31000, (24, 32)).astype(np.float32)
    gaps[3:5] = np.nan
    images = {
        "rgb.jpg": rng.integers(0, 256, (24, 32, 3), dtype=np.uint8),
        "thermal.png": rng.integers(0, 60000, (24, 32), dtype=np.uint16),
        "heat.tiff": gaps,
        "depth.png": rng.integers(1000, 1100, (24, 32), dtype=np.uint16),
    }
    for name, image in images.items():
        Image.fromarray(image).save(folder / name)
    files = {name.partition(".")[0]: folder / name for name in images}
    return Record(1, files, 32, 24, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


@pytest.fixture
def prepared(monkeypatch):
    """The modalities of each call that prepares images."""
    calls = []

    def spy(record, sensors):
        calls.append(list(sensors))
        return read_record(record, sensors)

    monkeypatch.setattr(cache_module, "read_record", spy)
    return calls


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(a, b):
    return list(a) == list(b) and all(
        a[m].dtype == b[m].dtype and torch.equal(a[m].double().nan_to_num(-1), b[m].double().nan_to_num(-1)) for m in a
    )


def test_what_is_kept_is_what_is_prepared_and_is_made_once(tmp_path, record, prepared):
    expected = read_record(record, SENSORS)
    for _ in range(3):
        assert same(ImageCache(tmp_path / "cache").images(record, SENSORS), expected)
    assert prepared == [["rgb"], ["thermal"], ["heat"], ["depth"]]
    assert len(entries(tmp_path / "cache")) == 4


def test_recipes_of_one_sensor_or_several_share_it(tmp_path, record, prepared):
    ImageCache(tmp_path / "cache").images(record, {"thermal": SENSORS["thermal"]})
    ImageCache(tmp_path / "cache").images(record, CHEAP)
    assert prepared == [["thermal"], ["rgb"]]


def test_without_a_folder_only_costly_images_are_kept(tmp_path, record, prepared, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    ImageCache().images(record, CHEAP)
    assert not (tmp_path / "home").exists()
    for _ in range(2):
        found = ImageCache().images(record, SENSORS)
    assert same(found, read_record(record, SENSORS))
    assert prepared == [["rgb", "thermal"], ["rgb", "thermal", "heat"], ["depth"], ["rgb", "thermal", "heat"]]
    assert len(entries(tmp_path / "home" / "mmfuse")) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert ImageCache().folder == tmp_path / "user" / ".cache" / "mmfuse"


def test_the_content_of_a_file_counts_not_its_name_or_time(tmp_path, record, prepared):
    ImageCache(tmp_path / "cache").images(record, CHEAP)
    moved = replace(record, files={m: tmp_path / f"moved_{m}" for m in record.files})
    for m in record.files:
        shutil.copy(record.files[m], moved.files[m])
        os.utime(moved.files[m], (1, 1))
    prepared.clear()
    ImageCache(tmp_path / "cache").images(moved, CHEAP)
    assert prepared == []
    state = record.files["thermal"].stat()
    pixels = np.array(Image.open(record.files["thermal"]))[::-1]
    Image.fromarray(pixels).save(record.files["thermal"])
    os.utime(record.files["thermal"], ns=(state.st_atime_ns, state.st_mtime_ns))
    found = ImageCache(tmp_path / "cache").images(record, CHEAP)
    assert prepared == [["thermal"]]
    np.testing.assert_array_equal(found["thermal"][0].numpy(), pixels)


def test_a_file_that_is_written_anew_in_between_is_read_anew(tmp_path, record):
    cache = ImageCache(tmp_path / "cache")
    cache.images(record, CHEAP)
    Image.fromarray(np.full((24, 32), 7, np.uint16)).save(record.files["thermal"])
    assert (cache.images(record, CHEAP)["thermal"] == 7).all()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (1.0,), "std": (2.0,)},
        {"range": (0.0, 9.0)},
        {"dtype": "uint16"},
    ],
)
def test_what_is_measured_of_a_sensor_changes_no_image(tmp_path, record, prepared, change):
    cache = ImageCache(tmp_path / "cache")
    cache.images(record, {"thermal": Sensor(1)})
    cache.images(record, {"thermal": replace(Sensor(1), **change)})
    assert len(prepared) == 1


def test_parameters_calibration_and_size_make_other_images(tmp_path, record, prepared):
    cache, depth = ImageCache(tmp_path / "cache"), SENSORS["depth"]
    other = Calibration((32, 24), (40.0, 40.0, 15.5, 11.5))
    ways = [
        (record, depth),
        (record, replace(depth, unit=0.002)),
        (record, replace(depth, far=30.0)),
        (record, replace(depth, encoding="hha")),
        (record, replace(depth, encoding="hha", gravity=(0.0, 1.0, 0.1))),
        (record, replace(depth, border=(2, 0, 0, 0))),
        (record, replace(depth, calibration=other)),
        (
            replace(record, calibration={"depth": replace(other, pose=((1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)))}),
            depth,
        ),
        (replace(record, onto=other), depth),
        (replace(record, width=16, height=12), replace(depth, register="resize")),
        (record, replace(depth, register="resize")),
    ]
    for _ in range(2):
        for changed, sensor in ways:
            cache.images(changed, {"depth": sensor})
        assert len(prepared) == len(ways)


def test_an_image_seen_through_depth_hangs_on_that_depth(tmp_path, record, monkeypatch):
    calls = []

    def fake(record, sensors):
        calls.append(list(sensors))
        return {m: torch.full((1, 2, 2), float(len(calls))) for m in sensors}

    monkeypatch.setattr(cache_module, "read_record", fake)
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1, register="rig"), "depth": Sensor(1, "metres")}
    ImageCache(tmp_path / "cache").images(record, sensors)
    assert calls == [["rgb"], ["thermal", "depth"], ["depth"]]
    Image.fromarray(np.full((24, 32), 7, np.uint16)).save(record.files["depth"])
    ImageCache(tmp_path / "cache").images(record, sensors)
    assert calls[3:] == [["thermal", "depth"], ["depth"]]


def damages(whole):
    flipped = bytearray(whole)
    flipped[-20] ^= 4
    pickled = pickle.dumps({"image": 1})
    half = len(whole) // 2
    zeroed = whole[:half] + bytes(len(whole) - half)
    return [whole[:-1], whole[:50], b"", whole + b"more", bytes(len(whole)), zeroed, bytes(flipped), b"text", pickled]


@pytest.mark.parametrize("kind", range(9))
def test_a_damaged_entry_is_made_anew(tmp_path, record, prepared, kind):
    sensors = {"thermal": SENSORS["thermal"]}
    expected = ImageCache(tmp_path / "cache").images(record, sensors)
    expected = {m: x.clone() for m, x in expected.items()}
    (path,) = entries(tmp_path / "cache")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damages(whole)[kind])
    for _ in range(2):
        assert same(ImageCache(tmp_path / "cache").images(record, sensors), expected)
    assert len(prepared) == 2
    assert path.read_bytes() == whole


def test_several_at_once_do_no_harm(tmp_path, record):
    expected = read_record(record, CHEAP)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ImageCache(tmp_path / "cache").images, record, CHEAP) for _ in range(40)]
        assert all(same(future.result(), expected) for future in futures)
    assert len(entries(tmp_path / "cache")) == 2


def test_a_bad_file_leaves_no_entry(tmp_path, record):
    record.files["thermal"].write_text("no image")
    cache = ImageCache(tmp_path / "cache")
    with pytest.raises(UserError, match=r"thermal.png: is not an image"):
        cache.images(record, CHEAP)
    record.files["thermal"].unlink()
    with pytest.raises(UserError, match=r"thermal.png: can't be read: No such file"):
        cache.images(record, CHEAP)
    assert len(entries(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, record):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match=r"cache.*: can't be written: .*; make room there, or .*data.cache"):
        ImageCache(tmp_path / "cache").images(record, CHEAP)


def test_another_version_of_our_code_makes_other_entries(tmp_path, record, prepared, monkeypatch):
    sensors = {"thermal": SENSORS["thermal"]}
    ImageCache(tmp_path / "cache").images(record, sensors)
    monkeypatch.setattr(cache_module, "code_digest", lambda: "other")
    ImageCache(tmp_path / "cache").images(record, sensors)
    assert len(prepared) == 2
