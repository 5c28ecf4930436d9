import dataclasses
import shutil

import pytest
import torch

from mmfuse.config import load_recipe
from mmfuse.data.cards import load_card
from mmfuse.data.loader import eval_loader
from mmfuse.data.readers import read_split
from mmfuse.errors import UserError
from mmfuse.evaluate.coco import coco_scores
from mmfuse.evaluate.inference import collect
from mmfuse.model.grafting import FAINT
from mmfuse.sensor import Sensor
from mmfuse.train import checkpoint, loop
from mmfuse.train.loop import train
from mmfuse.train.start import read_start


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

    monkeypatch.setattr(loop._Training, "_train_epoch", stop)
    with pytest.raises(_Stop):
        train(recipe, folder=folder)
    monkeypatch.undo()
    return kept[0]


def test_at_step_0_its_ap_is_the_best_single_ones(fused_file, singles, tmp_path, monkeypatch):
    """Scored against what the best one finds confidently: AP 1 is agreement in every box, and its order."""
    detector = at_step_0(fused_file, tmp_path / "run", monkeypatch).ema.module
    recipe = load_recipe(fused_file)
    card = load_card(recipe.card)
    records = read_split(card, "val")
    batches = list(eval_loader(records, {m: card.modalities[m] for m in recipe.modalities}, (96, 128), 4, 0))
    best = checkpoint.load(singles / "thermal")
    found = {
        name: collect(d, [dataclasses.replace(b, images={m: b.images[m] for m in d.modalities}) for b in batches])
        for name, d in {"best": best, "fused": detector, "other": checkpoint.load(singles / "rgb")}.items()
    }
    agreed = []
    for record in records:
        sure = found["best"][record.image_id][:10]
        boxes, labels = sure.boxes.numpy(), sure.labels.numpy()
        agreed.append(dataclasses.replace(record, boxes=boxes, labels=labels, ignore=labels < 0))
    ap = {name: coco_scores(agreed, each, card.classes).ap for name, each in found.items()}
    assert ap["best"] > 0.5
    assert ap["fused"] == pytest.approx(ap["best"], abs=1e-3)
    assert ap["other"] < 0.5 * ap["best"]


def test_the_best_is_no_worse_than_the_start(fused_file, tmp_path, monkeypatch):
    figures = iter([0.3, 0.2, 0.1])
    real = loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *a: dataclasses.replace(real(*a), ap=next(figures)))
    run = train(fused_file, folder=tmp_path / "run")
    assert checkpoint.read(run.best)[1]["notes"]["epoch"] == 0
    assert [row["epoch"] for row in run.metrics] == [1, 2]


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
    with pytest.raises(UserError, match=r"was trained with init\.rgb='.*/rgb', not None; choose another folder$"):
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
        (["init={rgb: THERMAL}"], r"^init: rgb: .*/thermal reads thermal; give a run of rgb alone$"),
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
