import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from mmfuse.cli import main
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.coco import coco_ground_truth
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.loader import eval_loader
from mmfuse.errors import UserError
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.score import evaluate
from mmfuse.model import checkpoint
from mmfuse.model.detector import CLASS_PRIOR
from mmfuse.model.grafting import FAINT
from mmfuse.recipes import load_recipe
from mmfuse.run import Run
from mmfuse.sensor import Sensor
from mmfuse.training import loop, score_calibration
from mmfuse.training.loop import train
from mmfuse.training.start import read_start
from mmfuse.verbs.compare import compare


@pytest.fixture(scope="module")
def singles(paired_set, tmp_path_factory):
    """A run of each sensor, whose scores are set so that the second one is the best."""
    folder = tmp_path_factory.mktemp("singles")
    for m, ap in (("rgb", 0.1), ("thermal", 0.2)):
        (folder / f"{m}.yaml").write_text(
            f"card: {paired_set}\nmodalities: [{m}]\nmodel: {{size: d-4}}\n"
            "data: {input_size: [96, 128], workers: 0}\ntrain: {epochs: 2, batch_size: 4, lr: 0.05}\n"
        )
        run = train(folder / f"{m}.yaml", folder=folder / m)
        detector, header = checkpoint.load(run.best), checkpoint.read(run.best)[1]
        with torch.no_grad():  # as if trained for long: confident, and different from each other
            detector.class_head.predict.pointwise.weight *= 200
            detector.box_head.predict.pointwise.weight *= 3
        notes = header["notes"] | {"val": header["notes"]["val"] | {"ap": ap}}
        checkpoint.save_detector(run.best, detector, notes)
    return folder


@pytest.fixture
def fused_file(recipe_file, singles):
    path = recipe_file("rgb", "thermal")
    path.write_text(path.read_text() + f"init: {{rgb: {singles}/rgb, thermal: {singles}/thermal/best.safetensors}}\n")
    return path


class _Stop(Exception):
    pass


def at_step_0(recipe, folder, monkeypatch):
    """The training, stopped before its first step."""
    kept = []

    def stop(self, epoch, bar):
        kept.append(self)
        raise _Stop

    monkeypatch.setattr(loop.Training, "_train_epoch", stop)
    with pytest.raises(_Stop):
        train(recipe, folder=folder)
    monkeypatch.undo()
    return kept[0]


@pytest.fixture
def agreed(singles, paired_set, tmp_path):
    """Runs of each sensor and recipes that start from them, on a set whose objects are what thermal finds in it."""
    root = shutil.copytree(paired_set.parent, tmp_path / "agreed")
    best = checkpoint.load(singles / "thermal")
    card = load_card(paired_set)
    for split in ("val", "test"):
        records = read_split(card, split)
        found = collect(best, eval_loader(records, best.sensors, (96, 128), 4, 0))
        sure = [dataclasses.replace(r, ignore=np.zeros(10, bool), **_objects(found[r.image_id][:10])) for r in records]
        truth = coco_ground_truth(sure, card.classes)
        listing = json.loads((root / f"{split}.json").read_text())
        (root / f"{split}.json").write_text(json.dumps(listing | {"annotations": truth["annotations"]}))
    init = []
    for m in ("rgb", "thermal"):
        folder = shutil.copytree(singles / m, tmp_path / m)
        values = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(values.replace(str(paired_set), str(root / "card.yaml")))
        init.append(f"{m}: {folder}")
    for name, placement in (("fused", "first"), ("late", "boxes")):
        (tmp_path / f"{name}.yaml").write_text(
            f"card: agreed/card.yaml\nmodalities: [rgb, thermal]\nmodel: {{size: d-4, placement: {placement}}}\n"
            f"data: {{input_size: [96, 128], workers: 0}}\ninit: {{{', '.join(init)}}}\n"
            "train: {epochs: 0, batch_size: 4}\ndoubt: off\n"
        )
    return tmp_path


def _objects(found):
    return {"boxes": found.boxes.numpy(), "labels": found.labels.numpy(), "area": None}


def test_without_epochs_its_ap_is_the_best_single_ones(agreed):
    """Objects are what the best one finds confidently: AP 1 is agreement in every box, and its order."""
    run = train(agreed / "fused.yaml", folder=agreed / "fused")
    ap = {m: evaluate(agreed / m, split="val").scores.ap for m in ("rgb", "thermal")}
    assert ap["thermal"] > 0.5
    assert ap["rgb"] < 0.5 * ap["thermal"]
    notes = checkpoint.read(run.best)[1]["notes"]
    assert notes["epoch"] == 0
    assert notes["val"]["ap"] == pytest.approx(ap["thermal"], abs=0.02)  # faint edges swap boxes of like scores
    (row,) = run.metrics
    assert row["epoch"] == 0
    assert row["val_ap"] == notes["val"]["ap"]
    assert "loss" not in row


def test_a_run_without_epochs_is_finished_and_a_cut_one_is_not(agreed, monkeypatch, capsys):
    def stop(self):
        raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save_metrics", stop)
        with pytest.raises(_Stop):
            train(agreed / "fused.yaml", folder=agreed / "run")
    cut = loop.Run(agreed / "run")
    assert cut.best.exists()
    assert cut.last.exists()
    assert not cut.finished
    words = ["train", str(agreed / "fused.yaml"), "--out", str(agreed / "run")]
    assert main([*words, "--resume"]) == 0
    assert cut.finished
    shutil.rmtree(agreed / "rgb")
    before = cut.best.read_bytes()
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    ap = checkpoint.read(cut.best)[1]["notes"]["val"]["ap"]
    assert capsys.readouterr().out == f"{agreed}/run: best val AP {ap:.3f} at epoch 0\n"
    assert cut.best.read_bytes() == before
    assert main(words) == 2


def test_boxes_without_epochs_are_those_of_the_singles_calibrated_on_val_alone(agreed):
    listing = agreed / "agreed" / "test.json"
    listing.rename(agreed / "test.json")
    run = train(agreed / "late.yaml", folder=agreed / "late")
    (agreed / "test.json").rename(listing)
    late = checkpoint.load(run.best)
    for m in ("rgb", "thermal"):
        alone = checkpoint.load(agreed / m).state_dict()
        assert all(torch.equal(x, alone[key]) for key, x in late.member(m).state_dict().items())
    assert late.slopes[1] != 1
    assert late.prior.item() > CLASS_PRIOR
    ap = checkpoint.read(run.best)[1]["notes"]["val"]["ap"]
    assert ap == pytest.approx(evaluate(run, split="val").scores.ap, abs=1e-4)
    assert run.metrics[0]["val_ap"] == ap


def test_singles_are_compared_with_what_starts_from_them(agreed):
    inputs = [agreed / name for name in ("rgb", "thermal", "fused.yaml", "late.yaml")]
    comparison = compare(inputs, out=agreed / "out", rounds=5)
    rows = {model.name: model for model in comparison.models}
    assert [(name, row.epochs) for name, row in rows.items()][-2:] == [("fused", 0), ("late", 0)]
    # the faint edges of the other sensor move outputs a little, which turns a detection of this small set or none
    assert rows["fused"].ap == pytest.approx(rows["thermal"].ap, abs=0.05)
    assert checkpoint.load(agreed / "out" / "runs" / "late-seed0").slopes.shape == (2,)
    assert (agreed / "out" / "training.png").exists()


@pytest.mark.parametrize(("init", "epochs"), [("init={}", 0), ("train.lr=1", -1)])
def test_epochs_can_be_0_for_a_start_alone(init, epochs, fused_file):
    with pytest.raises(UserError, match=rf"train\.epochs: {epochs} is not allowed; use at least 1, or 0 with init$"):
        load_recipe(fused_file, [init, f"train.epochs={epochs}"])


def test_the_best_is_no_worse_than_the_start(fused_file, tmp_path, monkeypatch):
    figures = iter([0.3, 0.2, 0.1])
    real = loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *a: dataclasses.replace(real(*a), ap=next(figures)))
    run = train(fused_file, folder=tmp_path / "run")
    assert checkpoint.read(run.best)[1]["notes"]["epoch"] == 0
    assert [row["epoch"] for row in run.metrics] == [0, 1, 2]


def test_an_ensemble_that_trains_is_calibrated_before_each_score(fused_file, tmp_path, monkeypatch):
    fused_file.write_text(fused_file.read_text().replace("{size: d-4}", "{size: d-4, placement: boxes}"))
    fitted = []
    real = score_calibration.calibrate

    def calibrate(ensemble, *others):
        real(ensemble, *others)
        ensemble.prior.fill_(len(fitted))
        fitted.append(ensemble)

    monkeypatch.setattr(score_calibration, "calibrate", calibrate)
    figures = iter([0.1, 0.2, 0.15])
    scores = loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *a: dataclasses.replace(scores(*a), ap=next(figures)))
    run = train(fused_file, folder=tmp_path / "run")
    assert len(fitted) == 3
    assert checkpoint.read(run.best)[1]["notes"]["epoch"] == 1
    assert checkpoint.load(run.best).prior.item() == 1


def test_edges_stay_open_while_it_trains(fused_file, tmp_path):
    run = train(fused_file, ["train.lr=5"], folder=tmp_path / "run")
    state = checkpoint.read(run.last)[0]
    weights = torch.cat([v for k, v in state.items() if k.startswith("model.") and k.endswith("merge.weight")])
    assert (weights >= FAINT).all()
    assert (weights == FAINT).any()


def test_a_resumed_run_does_not_read_its_start_again(fused_file, singles, tmp_path, train_one_epoch):
    whole = train(fused_file, folder=tmp_path / "whole")
    copy = shutil.copytree(singles, tmp_path / "singles")
    fused_file.write_text(fused_file.read_text().replace(str(singles), str(copy)))
    train_one_epoch(fused_file, tmp_path / "cut")
    shutil.rmtree(copy)
    cut = train(fused_file, folder=tmp_path / "cut", resume=True)
    assert cut.recipe.init == {"rgb": f"{copy}/rgb", "thermal": f"{copy}/thermal/best.safetensors"}
    a, b = checkpoint.read(whole.last)[0], checkpoint.read(cut.last)[0]
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(UserError, match=r"was trained with init\.rgb='.*/rgb', not None and init\.thermal="):
        train(fused_file, ["init={}"], folder=cut.folder, resume=True)


def test_sensors_keep_the_statistics_of_their_run(singles, fused_file, tmp_path, monkeypatch):
    detector = checkpoint.load(singles / "thermal")
    start = read_start({"thermal": str(singles / "thermal")})
    card = load_card(load_recipe(fused_file).card)
    assert start.sensors(card.modalities) == {"thermal": detector.sensors["thermal"]}
    measured = []
    monkeypatch.setattr(loop, "measure", lambda records, sensors, data: measured.append(sensors) or sensors)
    at_step_0(load_recipe(fused_file, [f"init={{thermal: {singles}/thermal}}"]), tmp_path / "run", monkeypatch)
    assert [list(sensors) for sensors in measured] == [["rgb"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.size=d-3"], r"^init: rgb: .*/rgb has model.size 'd-4', the recipe 'd-3'; give a run like the recipe"),
        (["model.width=8"], r"^init: rgb: .*/rgb has model.width \d+, the recipe 8; give"),
        (["model.fusion=sum"], r"^init: fusion sum can't start from single modalities; use model.fusion: fast$"),
        (["model.placement=channels"], r"^init: placement channels can't start .*; use model.placement: first$"),
        (["init.rgb=nowhere"], r"^init: rgb: .*/nowhere: does not exist; train first, or check the path$"),
        (
            ["init={rgb: THERMAL}"],
            r"^init: rgb: .*/thermal reads thermal; give a run of rgb alone, or init=.*thermal for all",
        ),
        (["init.rgb=LAST"], r"^init: rgb: .*/last.safetensors: holds a training state, not a detector; give best"),
        (["init.depth=RGB"], r"init: 'depth' is not a known modality of this recipe; use one of rgb, thermal$"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(changes, message, fused_file, singles, tmp_path):
    places = {"RGB": "rgb", "THERMAL": "thermal", "LAST": "rgb/last.safetensors"}
    for word, place in places.items():
        changes = [change.replace(word, str(singles / place)) for change in changes]
    with pytest.raises(UserError, match=message) as raised:
        train(fused_file, changes, folder=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_sensor_that_was_encoded_otherwise_is_one_line(singles):
    start = read_start({"thermal": str(singles / "thermal")})
    other = Sensor(1, "metres", near=1.0)
    with pytest.raises(UserError, match=r"^init: thermal: .* has the sensor's encoding '.*', the card 'metres'; make"):
        start.sensors({"thermal": other})


def test_runs_that_were_not_scored_can_t_be_compared(singles, tmp_path):
    detector = checkpoint.load(singles / "rgb")
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    assert read_start({"rgb": str(tmp_path / "x.safetensors")}).main == "rgb"
    with pytest.raises(UserError, match=r"^init: rgb: .*x\.safetensors has no AP on a validation split, so it can't"):
        read_start({"rgb": str(tmp_path / "x.safetensors"), "thermal": str(singles / "thermal")})
    assert read_start({}) is None


def test_a_training_goes_on_from_any_run(singles, fused_file, tmp_path, capsys):
    """What fits is taken and told, and that start is scored before the first step."""
    run = train(fused_file, [f"init={singles}/thermal", "train.epochs=1", "doubt=off"], folder=tmp_path / "run")
    told = capsys.readouterr().out
    assert "tensors for thermal" in told
    assert "adapted rgb: fresh, with a faint share at first" in told
    first, last = run.metrics
    assert (first["epoch"], last["epoch"]) == (0, 1)
    assert first["val_ap"] == pytest.approx(Run(singles / "thermal").metrics[-1]["val_ap"], abs=0.05)
    assert compare([singles / "thermal", run.folder], out=tmp_path / "out").models[1].name == run.recipe.name
    for init, message in (
        (tmp_path / "absent", r"^init: .*absent.*: does not exist; train first"),
        (tmp_path / "run" / "last.safetensors", "^init: .*last.safetensors: holds a training state"),
    ):
        with pytest.raises(UserError, match=message):
            train(fused_file, [f"init={init}"], folder=tmp_path / "other")
