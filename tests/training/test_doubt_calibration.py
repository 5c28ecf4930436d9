from dataclasses import replace

import pytest
import torch

from mmfuse import calibrate, evaluate, load
from mmfuse.cli import main
from mmfuse.data.annotations.records import Record
from mmfuse.embedded.dataset import generate
from mmfuse.errors import UserError
from mmfuse.files import sole_writer
from mmfuse.model import checkpoint
from mmfuse.run import Run
from mmfuse.sample import Detections
from mmfuse.training.doubt_calibration import MARGIN, _chosen, is_calibrated
from mmfuse.training.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A fused run and one of RGB alone, each of one epoch on sixteen images, the fused one not yet calibrated."""
    root = tmp_path_factory.mktemp("doubted")
    card = generate(root / "set", counts={"train": 16, "val": 6, "test": 4}, size=(96, 128))
    for name, modalities in (("fused", "rgb, thermal"), ("rgb", "rgb")):
        (root / f"{name}.yaml").write_text(
            f"card: {card}\nmodalities: [{modalities}]\nmodel: {{size: d-4}}\ndoubt: off\n"
            "data: {input_size: [96, 128], workers: 0}\ntrain: {epochs: 1, batch_size: 8, lr: 0.05}\n"
        )
        train(root / f"{name}.yaml", folder=root / name)
    return root


def test_a_run_is_calibrated_in_its_checkpoint_and_detects_as_before_what_is_sound(runs, capsys):
    run = Run(runs / "fused")
    before = checkpoint.read(run.best)
    assert not is_calibrated(run)
    rows = calibrate(run)
    tensors, header = checkpoint.read(run.best)
    assert is_calibrated(run)
    assert all(torch.equal(tensors[key], value) for key, value in before[0].items())
    assert header["notes"]["doubt"]["split"] == "val"
    detector = load(run.best)
    for m, row in rows.items():
        wanted = torch.inf if row.threshold is None else row.threshold
        assert detector.doubts[m].threshold == pytest.approx(wanted)
        assert set(row.dropped) <= {"day", "night"}
        assert max(row.dropped.values()) <= 0.01
        assert max(row.agreement.sound.values()) <= 0.01
        assert 0 <= row.agreement.swapped <= 1
    assert detector.agreement.least[0, 1].isfinite()
    assert detector.agreement.least[0, 1] <= detector.agreement.clear[0, 1]
    assert detector.agreement.usual.abs().sum() > 0
    assert calibrate(runs / "fused") == rows
    assert main(["calibrate", str(runs / "fused")]) == 0
    out = capsys.readouterr().out
    assert "threshold" in out
    assert "thermal" in out


def test_what_is_dropped_is_told(runs, capsys):
    run = Run(runs / "fused")
    calibrate(run)
    detector = load(run.best)
    detector.doubts["rgb"].threshold.fill_(1e-6)
    checkpoint.save_detector(run.best, detector, checkpoint.read(run.best)[1]["notes"])
    found = evaluate(run, doubt="drop")
    assert found.dropped["rgb"]["all"] == 1
    assert found.dropped["thermal"]["all"] == 0
    assert {one.dropped for one in found.detections.values()} == {("rgb",)}
    assert evaluate(run).dropped == {}  # the recipe says off
    assert (run.folder / "test-doubt-drop.json").exists()
    assert main(["evaluate", str(run.folder), "--doubt", "drop"]) == 0
    assert "left out, doubted" in capsys.readouterr().out
    without = evaluate(run, without=["rgb"]).scores.ap
    assert found.scores.ap == pytest.approx(without)
    calibrate(run)


@pytest.mark.parametrize(("name", "message"), [("rgb", "has one modality, rgb"), ("nothing", "is not a run folder")])
def test_what_cannot_be_calibrated_is_one_line(runs, name, message, capsys):
    with pytest.raises(UserError, match=message):
        calibrate(runs / name)
    assert main(["calibrate", str(runs / name)]) == 2
    assert message in capsys.readouterr().err


def test_too_few_images_are_told_and_the_run_is_kept(recipe_file, tmp_path, capsys):
    run = train(recipe_file("rgb", "thermal"), ["train.epochs=1"], folder=tmp_path / "run")
    assert "no sensor will be doubted" in capsys.readouterr().out
    assert run.finished
    with pytest.raises(UserError, match="8 training images have all of rgb, thermal; give 16"):
        calibrate(run)


# ---- the threshold


def image(number, condition, struck=()):
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).numpy()
    label, ignore = torch.zeros(1, dtype=torch.int64).numpy(), torch.zeros(1, dtype=torch.bool).numpy()
    return Record(number, {}, 64, 64, box, label, ignore, condition, struck=struck)


def seen(doubt, hit=True):
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]]) + (0 if hit else 20)
    return Detections(box, torch.ones(1) * 0.9, torch.zeros(1, dtype=torch.int64), {"a": doubt})


class OneClass:
    classes = ("person",)


def test_the_threshold_drops_what_is_struck_and_nothing_that_is_sound():
    records = [image(i, "day" if i < 10 else "night") for i in range(20)]
    clean = {i: seen(0.5 + i / 20) for i in range(20)}
    struck = {i: seen(3.0 + i, hit=False) for i in range(20)}
    without = {i: replace(seen(0), doubt={}) for i in range(20)}
    row = _chosen("a", records, OneClass, clean, struck, without)
    assert row.threshold == pytest.approx(1.45 * MARGIN)
    assert row.dropped == {"day": 0, "night": 0}
    assert row.dropped_struck == 1
    assert (row.ap, row.ap_off) == (pytest.approx(1), pytest.approx(0.5, abs=0.3))


def test_validation_images_that_were_struck_do_not_lift_it():
    records = [image(i, "day", ("a",) if i < 4 else ()) for i in range(20)]
    clean = {i: seen(8.0 if i < 4 else 1.0 + i / 100) for i in range(20)}
    struck = {i: seen(4.0, hit=False) for i in range(20)}
    row = _chosen("a", records, OneClass, clean, struck, {i: seen(0) for i in range(20)})
    assert row.threshold < 4


def test_a_sensor_that_costs_nothing_when_struck_and_much_when_lost_is_kept():
    records = [image(i, "day") for i in range(20)]
    clean = {i: seen(1.0 + i / 100) for i in range(20)}
    struck = {i: seen(1.5 + i / 10) for i in range(20)}
    row = _chosen("a", records, OneClass, clean, struck, {i: seen(0, hit=False) for i in range(20)})
    assert row.dropped_struck <= 0.1


def test_a_threshold_is_finite_or_there_is_none():
    records = [image(i, "day") for i in range(20)]
    clean = {i: seen(1.0 + i / 100) for i in range(20)}
    row = _chosen(
        "a",
        records,
        OneClass,
        clean,
        {i: seen(torch.inf) for i in range(20)},
        {i: seen(0, hit=False) for i in range(20)},
    )
    assert row.threshold is None


def test_calibrating_and_training_do_not_write_at_once(runs, tmp_path):
    best = Run(runs / "fused").best
    before = best.read_bytes()
    with sole_writer(runs / "fused"):
        with pytest.raises(UserError, match=r"fused: another process is writing there; wait for it"):
            calibrate(runs / "fused")
        with pytest.raises(UserError, match=r"fused: another process is writing there; wait for it"):
            train(runs / "fused.yaml", folder=runs / "fused", resume=True)
    assert best.read_bytes() == before
    with pytest.raises(UserError, match="is not a run folder"):
        calibrate(tmp_path / "none" / "run")
    assert not (tmp_path / "none").exists()
