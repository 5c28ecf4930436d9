import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmfuse.data.checks import readable
from mmfuse.data.checks.readable import require_readable
from mmfuse.data.samples import read_record
from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}


@pytest.fixture
def decoded(monkeypatch):
    """The ids of the images that were read whole, of which at most two may be."""
    monkeypatch.setattr(readable, "MOST_DECODED", 2)
    read = []

    def counted(record, sensors):
        read.append(record.image_id)
        return read_record(record, sensors)

    return read, counted


def test_few_are_read_whole_and_all_others_opened(records, decoded):
    read, counted = decoded
    require_readable(records, SENSORS, counted)
    assert read == [records[0].image_id, records[5].image_id]


@pytest.mark.parametrize("modality", ["rgb", "thermal"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "is not an image"),
        (lambda path: path.unlink(), "is not an image|No such file"),
        (lambda path: Image.fromarray(np.zeros((9, 9), np.uint8)).save(path), "is 9 x 9"),
    ],
)
def test_any_file_of_any_sensor_that_cannot_be_used_is_refused(records, decoded, tmp_path, modality, spoil, message):
    path = tmp_path / "bad.png"
    path.write_bytes(records[3].files[modality].read_bytes())
    spoil(path)
    bad = dataclasses.replace(records[3], files={**records[3].files, modality: path})
    for number in (3, 5):  # opened alone, and read whole
        with pytest.raises(UserError, match=message):
            require_readable([*records[:number], bad, *records[number + 1 :]], SENSORS, decoded[1])
    other = {m: sensor for m, sensor in SENSORS.items() if m != modality}
    require_readable([*records[:3], bad, *records[4:]], other, decoded[1])


def test_a_file_that_ends_too_early_is_found_where_it_is_read_whole(records, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(records[3].files["rgb"].read_bytes()[:-300])
    bad = dataclasses.replace(records[3], files={**records[3].files, "rgb": path})
    with pytest.raises(UserError, match=r"cut\.png: can't be read"):
        require_readable([*records[:3], bad], SENSORS, read_record)


def test_an_image_without_any_of_the_sensors_is_refused(records, decoded):
    bad = dataclasses.replace(records[3], files={"depth": records[3].files["rgb"]})
    with pytest.raises(UserError, match="image 103: has no file for any of rgb, thermal"):
        require_readable([*records[:3], bad, *records[4:]], SENSORS, decoded[1])
