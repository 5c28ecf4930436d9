import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.calibration import Calibration
from mmfuse.data.annotations.records import Record
from mmfuse.data.images.decode import read_image
from mmfuse.evaluation import robustness as module
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.corruptions import CORRUPTIONS, MISSING, faulty
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.results import relative_area
from mmfuse.evaluation.robustness import Trial, frozen
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

BY_NAME = {c.name: c for c in CORRUPTIONS}
SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1, range=(0.0, 60000.0), mean=(0.5,), std=(0.2,))}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(folder / f"{i}_rgb.png")
        Image.fromarray(rng.integers(0, 60000, (32, 64), dtype=np.uint16)).save(folder / f"{i}_t.png")
        files = {"rgb": folder / f"{i}_rgb.png", "thermal": folder / f"{i}_t.png"}
        made.append(
            Record(100 + i, files, 64, 32, np.array([[4, 4, 30, 20]], np.float32), np.array([0]), np.array([False]))
        )
    return made


class Watching(torch.nn.Module):
    """Finds the object of every image whose thermal image is there, and keeps what it saw."""

    classes = ("thing",)
    sensors = SENSORS
    modalities = tuple(SENSORS)

    def __init__(self, finds="thermal"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.finds = finds
        self.seen = []

    def detect(self, images, present, *, soft):
        found = []
        for row in range(len(images["rgb"])):
            there = {m: bool(mask[row]) for m, mask in present.items()}
            self.seen.append({m: images[m][row] for m in images if there[m]})
            box = torch.tensor([[4.0, 4, 30, 20]])
            found.append(
                Detections(box, torch.tensor([0.9]), torch.tensor([0])) if there[self.finds] else Detections.empty()
            )
        return found


def trial(detector, records, **changes):
    return Trial(detector, records, records, (32, 64), 4, **{"workers": 0, "seed": 3, **changes})


def shown(records, detector=None, **changes):
    """The images of each record as a loader without corruption gives them."""
    return [{m: read_image(r.files[m], SENSORS[m]) for m in SENSORS} for r in records]


def same(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def test_the_area_is_relative_to_the_clean_score():
    assert relative_area([0.4] * 6) == pytest.approx(1)
    assert relative_area([1, 0, 0, 0, 0, 0]) == pytest.approx(0.1)
    assert relative_area([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]) == pytest.approx(0.5)
    assert relative_area([0.0, 0.1]) is None
    assert relative_area([0.5, 0.5, 0.25]) == pytest.approx(0.875)


def test_one_modality_alone_is_corrupted_as_the_function_says(records):
    detector = Watching()
    for name, modality in (("shift", "thermal"), ("noise", "rgb"), ("under_exposure", "rgb")):
        detector.seen.clear()
        trial(detector, records).scores(BY_NAME[name], modality, 4)
        other = {"rgb": "thermal", "thermal": "rgb"}[modality]
        for record, clean, saw in zip(records, shown(records), detector.seen, strict=True):
            assert same(saw[other], clean[other])
            state = np.random.SeedSequence([3, record.image_id]).generate_state(1, np.uint64)
            wanted = BY_NAME[name](clean[modality], SENSORS[modality], 4, int(state[0]))
            assert same(saw[modality], wanted)
            assert not same(saw[modality], clean[modality])


def test_each_image_and_seed_has_its_own_noise(records):
    (twin,) = [dataclasses.replace(records[0], image_id=500)]
    seen = []
    for seed in (3, 4):
        detector = Watching()
        trial(detector, [records[0], twin], seed=seed).scores(BY_NAME["noise"], "thermal", 2)
        seen += [saw["thermal"] for saw in detector.seen]
    assert all(not same(seen[i], seen[j]) for i in range(4) for j in range(i))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(records):
    seen = []
    for workers in (0, 1):
        detector = Watching()
        trial(detector, records, workers=workers).scores(BY_NAME["noise"], "thermal", 2)
        seen.append([saw["thermal"] for saw in detector.seen])
    assert all(same(a, b) for a, b in zip(*seen, strict=True))


def test_a_missing_sensor_is_missing_in_a_share_of_the_images(records):
    detector = Watching()
    told = []
    clean = coco_scores(records, collect(detector, module.eval_loader(records, SENSORS, (32, 64), 4, 0)), ("thing",))
    assert clean.ap == pytest.approx(1)
    detector.seen.clear()
    curve = trial(detector, records).curve(MISSING, "thermal", clean, told.append)
    assert sum(told) == 5 * len(records)
    for severity in range(1, 6):
        part = detector.seen[10 * (severity - 1) : 10 * severity]
        lacking = {r.image_id for r, saw in zip(records, part, strict=True) if "thermal" not in saw}
        assert lacking == faulty([r.image_id for r in records], severity, 3)
        assert all("rgb" in saw for saw in part)
    assert curve.ap[5] == 0
    assert all(a > b for a, b in zip(curve.ap, curve.ap[1:], strict=False))
    assert curve.ap[0] == clean.ap
    assert curve.ap50 == pytest.approx(curve.ap)  # found exactly or not at all
    assert curve.levels == MISSING.levels


def test_losing_the_only_sensor_finds_nothing_in_those_images(records):
    class Single(Watching):
        sensors = {"rgb": SENSORS["rgb"]}  # noqa: RUF012
        modalities = ("rgb",)

    detector = Single(finds="rgb")
    assert trial(detector, records).scores(MISSING, "rgb", 5).ap == 0
    assert detector.seen == []
    assert 0 < trial(detector, records).scores(MISSING, "rgb", 3).ap < 1
    assert len(detector.seen) == 4


def test_a_frozen_sensor_shows_the_previous_frame(records):
    detector = Watching()
    trial(detector, records).scores(BY_NAME["frozen"], "thermal", 3)
    struck = faulty([r.image_id for r in records], 3, 3)
    clean = shown(records)
    for i, (record, saw) in enumerate(zip(records, detector.seen, strict=True)):
        late = i - 1 if record.image_id in struck and i > 0 else i
        assert same(saw["thermal"], clean[late]["thermal"])
        assert same(saw["rgb"], clean[i]["rgb"])


def test_frames_come_from_the_images_that_are_not_scored_too(records):
    detector = Watching()
    part = dataclasses.replace(trial(detector, records), scored=records[1::2])
    part.scores(BY_NAME["frozen"], "thermal", 5)
    clean = shown(records)
    assert len(detector.seen) == 5
    for i, saw in zip((1, 3, 5, 7, 9), detector.seen, strict=True):
        assert same(saw["thermal"], clean[i - 1]["thermal"])


def test_a_frame_is_of_the_same_sequence_size_and_calibration(records):
    poses = [Calibration((64, 32), (50.0 + i, 50.0, 32.0, 16.0)) for i in range(6)]
    names = ["a", "b", "a", "b", "b", "a"]
    made = [
        dataclasses.replace(r, sequence=s, calibration={"thermal": c})
        for r, s, c in zip(records[:6], names, poses, strict=True)
    ]
    made[2] = dataclasses.replace(made[2], files={"rgb": made[2].files["rgb"]})  # lacks the modality
    made[3] = dataclasses.replace(made[3], width=32)
    changed = frozen(made, "thermal", [r.image_id for r in made])
    assert [r.image_id for r in changed] == [r.image_id for r in made]
    sources = [0, 1, None, 3, 1, 0]
    for record, own, source in zip(changed, made, sources, strict=True):
        assert record.files["rgb"] == own.files["rgb"]
        assert record.files.get("thermal") == (None if source is None else made[source].files["thermal"])
        if source is not None:
            assert record.calibration["thermal"] == poses[source]
    assert frozen(made, "thermal", [])[5] is made[5]
    fixed = [dataclasses.replace(made[0], calibration={}), made[5]]
    assert frozen(fixed, "thermal", [made[5].image_id])[1].calibration == {}
