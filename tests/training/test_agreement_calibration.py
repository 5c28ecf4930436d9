import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import eval_loader
from mmfuse.model.build import create_detector
from mmfuse.sensor import Sensor
from mmfuse.training.agreement_calibration import _least, fit_agreement

SIZE = (64, 128)


def scene(seed):
    """Boxes, as RGB shows them, and as thermal does."""
    rng = np.random.default_rng(seed)
    shown = np.zeros(SIZE)
    for _ in range(6):
        y, x, h, w = rng.integers((0, 0, 8, 8), (48, 100, 30, 50))
        shown[y : y + h, x : x + w] = rng.uniform(0.3, 1)
    noisy = [np.clip(v + rng.normal(0, 0.02, SIZE), 0, 1) * 255 for v in (shown, 1 - shown)]
    return np.stack([noisy[0]] * 3, 2).astype(np.uint8), noisy[1].astype(np.uint8)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")

    def make(count, first, **values):
        made = []
        for i in range(first, first + count):
            files = {"rgb": folder / f"{i}_rgb.png", "thermal": folder / f"{i}_t.png"}
            for file, pixels in zip(files.values(), scene(i), strict=True):
                Image.fromarray(pixels).save(file)
            empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
            made.append(Record(i, files, SIZE[1], SIZE[0], *empty, "day" if i % 2 else "night", **values))
        return made

    return make


@pytest.fixture
def detector():
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1)}
    made = create_detector("d-4", {"rgb": 3, "thermal": 1}, num_classes=1, sensors=sensors, input_size=(64, 128))
    made.begin_doubt()
    return made.eval()


def loaded_by(detector):
    return lambda records: eval_loader(records, detector.sensors, detector.input_size, 4, 0)


def test_what_is_one_scene_and_what_is_two_is_learnt_from_sound_images(detector, records):
    train, val = records(8, 0), records(12, 100)
    rows = fit_agreement(detector, train, val, loaded_by(detector), 0)
    for m in ("rgb", "thermal"):
        assert rows[m].sound == {"day": 0.0, "night": 0.0}
        assert rows[m].swapped == 1
    least, clear = detector.agreement.least, detector.agreement.clear
    assert torch.equal(least, least.T)
    assert least.diagonal().isinf().all()
    assert 0 < least[0, 1] < clear[0, 1]


def test_images_that_a_fault_struck_teach_nothing(detector, records):
    train, val = records(8, 0), records(12, 100)
    fit_agreement(detector, train, val, loaded_by(detector), 0)
    wanted = detector.agreement.state_dict()
    wanted = {name: value.clone() for name, value in wanted.items()}
    broken = records(3, 300, struck=("thermal",))
    for record in broken:
        for file in record.files.values():
            Image.fromarray(np.full(SIZE if "_t" in file.name else (*SIZE, 3), 77, np.uint8)).save(file)
    fit_agreement(detector, train + broken, val, loaded_by(detector), 0)
    torch.testing.assert_close(detector.agreement.usual[1], wanted["usual"][1])
    fit_agreement(detector, train, [*val, broken[0]], loaded_by(detector), 0)
    torch.testing.assert_close(detector.agreement.clear, wanted["clear"])


def test_images_of_a_size_of_their_own_cannot_be_swapped(detector, records):
    (val,) = records(1, 400)
    rows = fit_agreement(detector, [val], [val], loaded_by(detector), 0)
    assert rows["rgb"].swapped is None


def test_thresholds_leave_out_one_and_ten_in_a_hundred_of_the_worst_condition():
    day, night = torch.arange(200) / 200 + 0.5, torch.arange(100) / 100
    least, clear = _least([day, night, torch.tensor([torch.nan])], torch.tensor([0.9, torch.nan]))
    assert (least, clear) == (pytest.approx(0.01), pytest.approx(0.1))
    assert ((night < least).sum(), (night < clear).sum()) == (1, 10)
    assert _least([day], torch.full((50,), 0.1))[0] == pytest.approx((0.51 / 1 + 0.1) / 2, abs=1e-3)
    assert _least([torch.tensor([torch.nan])], torch.zeros(3)) == (-np.inf, -np.inf)
