import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data import measuring
from mmfuse.data.annotations.records import Record
from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import eval_loader
from mmfuse.data.measuring import measure
from mmfuse.errors import UserError
from mmfuse.recipes import DataRecipe
from mmfuse.sensor import Calibration, Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
SKIP = DataRecipe(workers=0, on_bad_sample="skip")
CAMERA = Calibration((32, 24), (30.0, 30.0, 15.5, 11.5))


def test_statistics_are_those_of_all_encoded_pixels(records):
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1, "inverse_depth", near=1.0, far=30.0)}
    measured = measure(records, sensors)
    rgb = np.stack([np.array(Image.open(r.files["rgb"])) for r in records]).reshape(-1, 3)
    np.testing.assert_allclose(measured["rgb"].mean, rgb.mean(0), rtol=1e-9)
    np.testing.assert_allclose(measured["rgb"].std, rgb.std(0), rtol=1e-9)
    raw = torch.from_numpy(np.stack([np.array(Image.open(r.files["thermal"])) for r in records]))
    encoded = sensors["thermal"].encode(raw[:, None]).double()
    np.testing.assert_allclose(measured["thermal"].mean, encoded.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(measured["thermal"].std, encoded.std((0, 2, 3), correction=0).clamp(min=1e-6), rtol=1e-4)


def test_statistics_have_a_floor_and_need_an_image(records, tmp_path):
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(tmp_path / "a.png")
    flat = dataclasses.replace(records[0], files={"thermal": tmp_path / "a.png"})
    assert measure([flat], {"thermal": Sensor(1)})["thermal"].std == (1e-6,)
    with pytest.raises(UserError, match="rgb: no training image"):
        measure([flat], SENSORS)


def thermal(records):
    return np.stack([np.array(Image.open(r.files["thermal"])) for r in records])


def test_deep_files_get_the_range_of_nearly_all_their_values(records):
    measured = measure(records, SENSORS)["thermal"]
    raw = thermal(records)
    assert measured.dtype == "uint16"
    assert measured.range == tuple(np.percentile(raw, (0.1, 99.9), method="inverted_cdf"))
    encoded = measured.encode(torch.from_numpy(raw)[:, None]).double().numpy()
    np.testing.assert_allclose(measured.mean, encoded.mean(), rtol=1e-6)
    np.testing.assert_allclose(measured.std, encoded.std(), rtol=1e-6)
    assert 0.4 < measured.mean[0] < 0.6


def test_8_bit_files_and_given_ranges_keep_theirs(records):
    measured = measure(records, {"rgb": Sensor(3), "thermal": Sensor(1, range=(0.0, 65535.0))})
    assert measured["rgb"].range == ()
    assert measured["rgb"].dtype == "uint8"
    assert measured["thermal"].range == (0.0, 65535.0)


def write_floats(folder, images):
    records = []
    for i, image in enumerate(images):
        Image.fromarray(image.astype(np.float32)).save(folder / f"{i}.tiff")
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        records.append(Record(i, {"thermal": folder / f"{i}.tiff"}, image.shape[1], image.shape[0], *none))
    return records


def test_what_was_not_measured_counts_for_nothing(tmp_path):
    values = np.random.default_rng(0).normal(500, 20, (3, 24, 32)).astype(np.float32)
    values[0, :7] = np.nan
    values[2] = np.nan
    records = write_floats(tmp_path, values)
    measured = measure(records, {"thermal": Sensor(1)})["thermal"]
    known = values[np.isfinite(values)]
    assert measured.dtype == "float32"
    np.testing.assert_allclose(measured.range, np.percentile(known, (0.1, 99.9), method="inverted_cdf"), rtol=1e-6)
    encoded = ((known - measured.range[0]) / (measured.range[1] - measured.range[0])).clip(0, 1)
    np.testing.assert_allclose((measured.mean[0], measured.std[0]), (encoded.mean(), encoded.std()), rtol=1e-4)
    with pytest.raises(UserError, match=r"thermal: no training image has a measured pixel"):
        measure(records[2:], {"thermal": Sensor(1)})
    with pytest.raises(UserError, match=r"thermal: no training image has a measured pixel"):
        measure(records[2:], {"thermal": Sensor(1, range=(0.0, 1.0))})


def test_a_sample_of_large_float_images_gives_their_range(tmp_path):
    values = np.random.default_rng(0).permutation(300 * 400).reshape(1, 300, 400)
    low, high = measure(write_floats(tmp_path, values), {"thermal": Sensor(1)})["thermal"].range
    assert low < 0.01 * values.size
    assert high > 0.99 * values.size


def test_images_of_one_value_have_a_range_too(tmp_path):
    measured = measure(write_floats(tmp_path, np.full((1, 24, 32), 7.0)), {"thermal": Sensor(1)})["thermal"]
    assert measured.range == (7.0, 8.0)
    assert measured.mean == (0.0,)


def test_statistics_are_of_what_the_detector_sees(records, home):
    sensors = {"rgb": Sensor(3, border=(8, 0, 0, 4)), "thermal": Sensor(1, "normals", calibration=CAMERA)}
    measured = measure(records, sensors)
    rgb = np.stack([np.array(Image.open(r.files["rgb"])) for r in records])[:, :-4, 8:].reshape(-1, 3)
    np.testing.assert_allclose(measured["rgb"].mean, rgb.mean(0), rtol=1e-9)
    assert measured["thermal"].dtype == "uint16"
    (batch,) = eval_loader(records, {"thermal": sensors["thermal"]}, (24, 32), 11, 0)
    np.testing.assert_allclose(measured["thermal"].mean, batch.images["thermal"].double().mean((0, 2, 3)), atol=1e-6)
    assert len(list(home.rglob("*.safetensors"))) == 11


def test_files_of_a_sensor_that_differ_in_type_are_refused(records, tmp_path):
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "a.png")
    shallow = dataclasses.replace(records[1], files={**records[1].files, "thermal": tmp_path / "a.png"})
    with pytest.raises(UserError, match=r"a.png: holds uint8, but the sensor's files are uint16; give"):
        measure([records[0], shallow], SENSORS)


def test_bad_images_are_left_out_of_the_statistics_where_they_are_skipped(records, with_bad):
    bad = with_bad(0, 4)
    good = [r for i, r in enumerate(records) if i not in (0, 4)]
    for m in SENSORS:
        one = {m: SENSORS[m]}
        assert measure(bad, one, SKIP) == measure(good if m == "rgb" else records, one)
    with pytest.raises(UserError, match=r"bad.png: is not an image"):
        measure(bad, SENSORS)
    with pytest.raises(UserError, match=r"rgb: no training image can be read of this modality"):
        measure(with_bad(*range(11)), SENSORS, SKIP)


def test_the_raw_values_of_training_are_kept(tmp_path):
    """Of depth the valid ones; not the prepared ones, and not those of a rig's frame."""
    values = np.random.default_rng(0).integers(800, 5000, (4, 30, 40)).astype(np.uint16)
    values[:, :10] = 0
    records = []
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        records.append(Record(i, {"x": tmp_path / f"{i}.png"}, 40, 30, *nothing))
    for encoding in ("metres", "depth_colours"):
        seen = measure(records, {"x": Sensor(1, encoding)})["x"].seen
        assert seen == pytest.approx((804, 4996), abs=6)
    assert measure(records, {"x": Sensor(1, "percentile")})["x"].seen == pytest.approx((0, 4996), abs=6)


def test_gaps_in_training_s_files_are_known(tmp_path):
    records = []
    for i in range(2):
        image = np.random.default_rng(i).uniform(10, 30, (30, 40)).astype(np.float32)
        Image.fromarray(image).save(tmp_path / f"{i}.tif")
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        records.append(Record(i, {"x": tmp_path / f"{i}.tif"}, 40, 30, *nothing))
    assert measure(records, {"x": Sensor(1)})["x"].gaps is False
    image[3, 4] = np.nan
    Image.fromarray(image).save(tmp_path / "1.tif")
    assert measure(records, {"x": Sensor(1)})["x"].gaps is True


def test_values_that_mean_not_measured_count_for_nothing(tmp_path):
    values = np.random.default_rng(0).normal(500, 20, (3, 24, 32)).astype(np.float32)
    values[0, :7] = -9999
    sensor = Sensor(1, nodata=(-9999,))
    measured = measure(write_floats(tmp_path, values), {"thermal": sensor})["thermal"]
    assert 400 < measured.range[0] < measured.range[1] < 600
    assert measured.seen == measured.range
    assert (measured.dtype, measured.gaps) == ("float32", True)
    assert measured.mean[0] == pytest.approx(0.5, abs=0.1)


def test_the_type_is_that_of_the_files_where_a_value_means_not_measured(records):
    measured = measure(records, {"rgb": Sensor(3, nodata=(0,)), "thermal": Sensor(1, nodata=(0,))})
    assert (measured["rgb"].dtype, measured["thermal"].dtype) == ("uint8", "uint16")
    assert measured["rgb"].range == ()


@pytest.fixture
def kept(records, tmp_path, monkeypatch):
    """Records of copies, a recipe with a cache in which they were measured, what was found, and how many are read."""
    own = []
    for record in records:
        files = {m: shutil.copy(file, tmp_path / file.name) for m, file in record.files.items()}
        own.append(dataclasses.replace(record, files=files))
    data = DataRecipe(cache=str(tmp_path / "cache"), workers=0)
    found = measure(own, SENSORS, data)
    read, images = [], ImageCache.images
    monkeypatch.setattr(ImageCache, "images", lambda self, *a, **k: read.append(1) or images(self, *a, **k))
    return own, data, found, read


def test_what_was_measured_is_not_measured_again(kept):
    own, data, found, read = kept
    assert measure(own, SENSORS, data) == found
    assert read == []
    assert measure(own, {"rgb": Sensor(3)}, data) == {"rgb": found["rgb"]}
    assert len(read) == len(own)


@pytest.mark.parametrize("what", ["a file", "its time", "the sensor", "the labels", "the code", "a bad sample"])
def test_what_changed_is_measured_anew(kept, monkeypatch, what):
    own, data, _, read = kept
    sensors, file = dict(SENSORS), own[2].files["rgb"]
    if what == "a file":
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(file)
    elif what == "its time":
        os.utime(file, (1, 1))
    elif what == "the sensor":
        sensors["rgb"] = Sensor(3, border=(1, 1, 1, 1))
    elif what == "the labels":
        own[2] = dataclasses.replace(own[2], calibration={"rgb": CAMERA})
    elif what == "the code":
        monkeypatch.setattr(measuring, "code_digest", lambda: "other")
    else:
        data = dataclasses.replace(data, on_bad_sample="skip")
    measure(own, sensors, data)
    assert len(read) >= len(own)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"rgb": {}}', b'{"rgb": {"mean": 7}, "thermal": 1}'])
def test_a_damaged_note_of_what_was_measured_is_made_anew(kept, content):
    own, data, found, read = kept
    (note,) = (Path(data.cache) / "measured").iterdir()
    note.write_bytes(content)
    assert measure(own, SENSORS, data) == found
    assert read
    read.clear()
    assert measure(own, SENSORS, data) == found
    assert read == []


def test_without_room_for_it_is_measured_all_the_same(records, tmp_path, monkeypatch):
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setattr(measuring, "_folder", lambda data: tmp_path / "full")
    assert measure(records, SENSORS) == measure(records, SENSORS)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_measure_what_one_does(records, with_bad):
    many = [*records, *records]
    assert measure(many, SENSORS, DataRecipe(workers=2)) == measure(many, SENSORS, DataRecipe(workers=0))
    with pytest.raises(UserError, match=r"bad\.png: is not an image; give a PNG, JPEG, TIFF or WebP file$"):
        measure([*with_bad(9), *records], {"thermal": Sensor(1), "rgb": Sensor(3)}, DataRecipe(workers=2))
