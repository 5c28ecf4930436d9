import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data.annotations.records import Objects, Record
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.corruptions import CORRUPTIONS, faulty
from mmfuse.evaluation.results import relative_area
from mmfuse.evaluation.robustness import Trial, Trials, frozen, of_another_scene, striking, suiting
from mmfuse.images.decode import read_image
from mmfuse.sample import Detections
from mmfuse.sensor import Calibration, Sensor

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
    input_size = (32, 64)

    def __init__(self, finds="thermal"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.finds = finds
        self.seen = []
        self.stuck = []

    def find(self, images, present, contents, selection, doubt, stuck):
        found = []
        for row in range(len(images["rgb"])):
            there = {m: bool(mask[row]) for m, mask in present.items()}
            self.seen.append({m: images[m][row] for m in images if there[m]})
            self.stuck.append([m for m, mask in stuck.items() if mask[row]])
            box = torch.tensor([[4.0, 4, 30, 20]])
            found.append(
                Detections(box, torch.tensor([0.9]), torch.tensor([0])) if there[self.finds] else Detections.empty()
            )
        return found


def trial(detector, records, **changes):
    nothing = {r.image_id: Detections.empty() for r in records}
    known = {"clean": nothing, "lacking": dict.fromkeys(SENSORS, nothing), "workers": 0, "seed": 3}
    return Trial(detector, records, records, 4, **known | changes)


def run(trial, name, modality, *severities, told=lambda images: 0):
    """What is found at each severity, with the detector watching."""
    trial.detector.seen.clear()
    return list(trial.run(BY_NAME[name], modality, severities, told))


def shown(records):
    """The images of each record as a loader without corruption gives them."""
    return [{m: read_image(r.files[m], SENSORS[m]) for m in SENSORS} for r in records]


def same(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def test_the_area_is_relative_to_the_clean_score():
    assert relative_area([0.4] * 6) == pytest.approx(1)
    assert relative_area([1, 0, 0, 0, 0, 0]) == pytest.approx(0.1)
    assert relative_area([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]) == pytest.approx(0.5)
    assert relative_area([0.5, 0.5, 0.25]) == pytest.approx(0.875)
    assert relative_area([0.0, 0.1]) is relative_area([0.5, None, 0.25]) is None


def test_one_modality_alone_is_corrupted_as_the_function_says(records):
    detector = Watching()
    for name, modality in (("shift", "thermal"), ("noise", "rgb"), ("under_exposure", "rgb")):
        run(trial(detector, records), name, modality, 4)
        other = {"rgb": "thermal", "thermal": "rgb"}[modality]
        for record, clean, saw in zip(records, shown(records), detector.seen, strict=True):
            assert same(saw[other], clean[other])
            state = np.random.SeedSequence([3, record.image_id]).generate_state(1, np.uint64)
            wanted = BY_NAME[name](clean[modality], SENSORS[modality], 4, int(state[0]))
            assert same(saw[modality], wanted)
            assert not same(saw[modality], clean[modality])


def test_what_changes_objects_is_told_where_they_are(records):
    other = Objects(np.array([[8, 8, 40, 40]], np.float32), np.array([0]), np.array([True]), (64, 64))
    records = [records[0], dataclasses.replace(records[1], objects_of={"thermal": other})]
    detector = Watching()
    run(trial(detector, records), "crossover", "thermal", 5)
    boxes = [torch.tensor([[4 / 64, 4 / 32, 30 / 64, 20 / 32]]), torch.tensor([[8 / 64, 8 / 64, 40 / 64, 40 / 64]])]
    for clean, saw, own in zip(shown(records), detector.seen, boxes, strict=True):
        assert same(saw["rgb"], clean["rgb"])
        assert same(saw["thermal"], BY_NAME["crossover"](clean["thermal"], SENSORS["thermal"], 5, 0, own))
        assert not same(saw["thermal"], clean["thermal"])


def test_each_image_and_seed_has_its_own_noise(records):
    (twin,) = [dataclasses.replace(records[0], image_id=500)]
    seen = []
    for seed in (3, 4):
        detector = Watching()
        run(trial(detector, [records[0], twin], seed=seed), "noise", "thermal", 2)
        seen += [saw["thermal"] for saw in detector.seen]
    assert all(not same(seen[i], seen[j]) for i in range(4) for j in range(i))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(records):
    seen = []
    for workers in (0, 1):
        detector = Watching()
        run(trial(detector, records, workers=workers), "noise", "thermal", 2)
        seen.append([saw["thermal"] for saw in detector.seen])
    assert all(same(a, b) for a, b in zip(*seen, strict=True))


def test_what_changes_all_images_is_set_beside_the_sensor_missing_from_all(records):
    told = []
    detector, lacking = Watching(), {"thermal": {r.image_id: Detections.empty() for r in records}}
    tried = trial(detector, records, lacking=lacking)
    pairs = run(tried, "noise", "thermal", 1, 4, told=told.append)
    assert all(without is lacking["thermal"] for _, without in pairs)
    assert all(set(found) == set(lacking["thermal"]) for found, _ in pairs)
    assert sum(told) == tried.images_to_run(BY_NAME["noise"], (1, 4)) == 20
    assert not same(detector.seen[0]["thermal"], detector.seen[10]["thermal"])


@pytest.mark.parametrize("name", ["missing", "frozen", "another_scene"])
def test_a_fault_of_whole_images_strikes_a_share_of_them_and_runs_once(records, name):
    told, ids = [], [r.image_id for r in records]
    clean, lacking = (
        {i: Detections(torch.full((1, 4), v), torch.ones(1), torch.zeros(1)) for i in ids} for v in (1, 2)
    )
    detector = Watching()
    tried = trial(detector, records, clean=clean, lacking={"thermal": lacking})
    pairs = run(tried, name, "thermal", 1, 3, 5, told=told.append)
    assert len(detector.seen) == sum(told) == tried.images_to_run(BY_NAME[name], (1, 3, 5)) == 10 * (name != "missing")
    for severity, (found, without) in zip((1, 3, 5), pairs, strict=True):
        struck = faulty(ids, severity, 3)
        assert len(struck) == 2 * severity
        if name == "frozen":
            struck -= {ids[0]}  # there is no frame before
        for i in ids:
            assert without[i] is (lacking if i in struck else clean)[i]
            if name == "missing":
                assert found[i] is without[i]
            else:
                assert (found[i] is clean[i]) == (i not in struck)
                assert found[i] is not lacking[i]


def boxes_of(records, found, score=0.9):
    return {
        r.image_id: Detections(torch.from_numpy(r.boxes), torch.full((1,), score), torch.tensor([0]))
        if r.image_id in found
        else Detections.empty()
        for r in records
    }


def test_a_fault_is_judged_against_the_sensor_missing_with_a_paired_interval(records):
    """Of two seeds: under noise the first finds all objects, the second half of them; without thermal none or two."""
    ids = [r.image_id for r in records]
    trials = []
    for finds, left in (("thermal", ids[:0]), ("rgb", ids[:2])):
        lacking = {"thermal": boxes_of(records, left)}
        trials.append(trial(Watching(finds), records, lacking=lacking))
    trials[1].detector.find = lambda images, present, contents, selection, doubt, stuck: (
        [Detections(torch.tensor([[4.0, 4, 30, 20], [40, 4, 60, 20]]), torch.tensor([0.9, 0.4]), torch.tensor([0, 0]))]
        * len(images["rgb"])
    )
    ((fault, found),) = Trials(trials, 50).faults(BY_NAME["noise"], "thermal", (4,))
    assert (fault.corruption, fault.modality, fault.severity) == ("noise", "thermal", 4)
    assert [set(of) for of in found] == [set(ids)] * 2
    assert fault.ap == pytest.approx((1, 1))
    wanted = tuple(coco_scores(records, t.lacking["thermal"], ("thing",)).ap for t in trials)
    assert fault.ap_without == pytest.approx(wanted)
    assert fault.ap_without[0] == 0 < fault.ap_without[1] < 0.3
    assert fault.difference.mean == pytest.approx(1 - sum(wanted) / 2)
    assert 0 < fault.difference.low < fault.difference.mean < fault.difference.high <= 1
    assert (fault.false_detections, fault.false_without) == (0.5, 0)  # one an image in one of two seeds


def test_all_that_suits_is_tried_unless_some_is_named():
    assert suiting(SENSORS) == [(c, m) for c in CORRUPTIONS for m, sensor in SENSORS.items() if c.suits(sensor)]
    chosen = [(c.name, m) for c, m in suiting(SENSORS, ["agc", "blur"], ["thermal"])]
    assert chosen == [("blur", "thermal"), ("agc", "thermal")]
    assert suiting(SENSORS, ["agc"], ["rgb"]) == []


def test_a_frozen_sensor_shows_the_previous_frame(records):
    detector = Watching()
    run(trial(detector, records), "frozen", "thermal", 3)
    clean = shown(records)
    for i, saw in enumerate(detector.seen):
        late = max(i - 1, 0)
        assert same(saw["thermal"], clean[late]["thermal"])
        assert same(saw["rgb"], clean[i]["rgb"])
    assert detector.stuck == [[], *[["thermal"]] * 9]
    detector.stuck.clear()
    run(trial(detector, records), "another_scene", "thermal", 3)
    assert not any(detector.stuck)


def test_frames_come_from_the_images_that_are_not_scored_too(records):
    detector = Watching()
    part = dataclasses.replace(trial(detector, records), scored=records[1::2])
    run(part, "frozen", "thermal", 5)
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


def test_another_scene_is_another_sequence_of_the_same_size(records):
    names = ["a", "b", "a", "b", "c", "a", "a", "a", "a", "a"]
    poses = [Calibration((64, 32), (50.0 + i, 50.0, 32.0, 16.0)) for i in range(10)]
    made = [
        dataclasses.replace(r, sequence=s, calibration={"thermal": c})
        for r, s, c in zip(records, names, poses, strict=True)
    ]
    made[2] = dataclasses.replace(made[2], files={"rgb": made[2].files["rgb"]})  # lacks the modality
    made[3] = dataclasses.replace(made[3], width=32)  # alone of its size
    ids = [r.image_id for r in made]
    changed = of_another_scene(made, "thermal", ids, 5)
    files = {r.files["thermal"]: r for r in made if "thermal" in r.files}
    assert [r.image_id for r in changed] == ids
    assert changed[2] is made[2]
    assert changed[3] is made[3]
    for record, own in zip(changed, made, strict=True):
        assert record.files["rgb"] == own.files["rgb"]
        if record is not own:
            source = files[record.files["thermal"]]
            assert source.sequence != own.sequence
            assert source.width == own.width
            assert record.calibration == source.calibration
    assert sum(record is not own for record, own in zip(changed, made, strict=True)) == 8
    assert of_another_scene(made, "thermal", ids[:1], 5)[0].files == changed[0].files
    assert of_another_scene(made, "thermal", ids[:1], 5)[1:] == made[1:]
    drawn = {of_another_scene(made, "thermal", ids, seed)[0].files["thermal"] for seed in range(20)}
    assert drawn == {made[1].files["thermal"], made[4].files["thermal"]}


def test_without_sequences_another_scene_is_any_other_image(records):
    changed = of_another_scene(records, "thermal", [r.image_id for r in records])
    assert all(a.files["thermal"] != b.files["thermal"] for a, b in zip(changed, records, strict=True))
    assert of_another_scene(records[:1], "thermal", [records[0].image_id]) == records[:1]


def test_a_fault_strikes_only_images_that_have_another_frame_to_show(records, capsys):
    """So what it costs isn't watered down by images that are as they were."""
    alone = [dataclasses.replace(r, sequence=s) for r, s in zip(records[:4], ["a", "a", "b", "c"], strict=True)]
    found = {r.image_id: Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)) for r in alone}
    ((under, without),) = run(trial(Watching("rgb"), alone, clean=found), "frozen", "thermal", 5)
    lacking = [r.image_id for r in alone if not len(without[r.image_id])]
    assert lacking == [alone[1].image_id]
    assert [i for i, one in under.items() if one is not found[i]] == lacking

    chosen = suiting(SENSORS, ["frozen", "another_scene", "missing", "noise"], ["thermal"])
    assert striking(chosen, alone, alone) == chosen
    assert capsys.readouterr().out == ""
    left = striking(chosen, alone[2:], alone[2:])
    assert [c.name for c, _ in left] == [c.name for c, _ in chosen if c.name not in ("frozen",)]
    single = [dataclasses.replace(alone[2], width=w) for w in (1, 2)]
    assert {c.name for c, _ in striking(chosen, single, single)} == {"missing", "noise"}
    told = capsys.readouterr().out.splitlines()
    assert told[-1].endswith("to show: frozen of thermal, another_scene of thermal")
