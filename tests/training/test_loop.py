import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.counters import count
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.errors import UserError
from mmfuse.files import sole_writer
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.effdet_weights import export_effdet
from mmfuse.recipes import load_recipe
from mmfuse.training import loop
from mmfuse.training.loop import train


def test_a_run_folder_holds_the_recipe_the_environment_and_a_row_an_epoch(recipe_file, tmp_path):
    path = recipe_file("rgb", "thermal")
    run = train(path, folder=tmp_path / "run")
    assert run.recipe == load_recipe(path)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert set(environment["splits"]) == {"train", "val"}
    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row["val_ap"] and row["loss"] for row in rows)
    assert all(0 < float(row["waiting"]) < 1 for row in rows)
    detector = checkpoint.load(run.best)
    assert detector.modalities == ("rgb", "thermal")
    assert len(detector.sensors["thermal"].mean) == 1
    thermal = detector.sensors["thermal"]
    assert thermal.dtype == "uint16"
    assert 1000 < thermal.range[0] < thermal.range[1] < 65535
    assert 0 < thermal.mean[0] < 1
    assert train(path, folder=run.folder, resume=True) == run


def test_the_best_epoch_is_the_best_on_the_validation_split(recipe_file, tmp_path, monkeypatch):
    figures = iter([0.3, 0.5, 0.4])
    real = loop.coco_scores

    def scores(*arguments):
        return replace(real(*arguments), ap=next(figures))

    monkeypatch.setattr(loop, "coco_scores", scores)
    run = train(recipe_file("rgb"), ["train.epochs=3"], folder=tmp_path / "run")
    assert checkpoint.read(run.best)[1]["notes"]["epoch"] == 2


def test_training_does_not_read_the_test_split(recipe_file, paired_set, tmp_path):
    shutil.copytree(paired_set.parent, tmp_path / "set")
    (tmp_path / "set" / "test.json").unlink()
    recipe = replace(load_recipe(recipe_file("rgb")), card=str(tmp_path / "set" / "card.yaml"))
    assert train(recipe, folder=tmp_path / "run").finished


def test_a_resumed_run_is_the_uninterrupted_one(recipe_file, tmp_path, train_one_epoch):
    path = recipe_file("rgb", "thermal")
    keys = "modality_dropout: 0.5, branch_losses: 1, distillation: 1, "
    path.write_text(path.read_text().replace("train: {", f"train: {{{keys}"))
    whole = train(path, folder=tmp_path / "whole")
    train_one_epoch(path, tmp_path / "cut")
    cut = train(path, folder=tmp_path / "cut", resume=True)
    assert [row["loss"] for row in cut.metrics] == [row["loss"] for row in whole.metrics]
    assert {"branch_loss", "distillation_loss"} <= whole.metrics[0].keys()
    a, b = checkpoint.read(whole.last)[0], checkpoint.read(cut.last)[0]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def same_run(one, other):
    """Whether two runs have the same figures, but for the time, and the same files, to the bit."""
    clock = ("seconds", "waiting")
    figures = [[{k: v for k, v in row.items() if k not in clock} for row in run.metrics] for run in (one, other)]
    states = [checkpoint.read(run.last) for run in (one, other)]
    for _, header in states:
        header.pop("rows")
    (a, known), (b, also_known) = states
    tensors = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    best = one.best.read_bytes() == other.best.read_bytes()
    return figures[0] == figures[1] and tensors and known == also_known and best


@pytest.mark.parametrize(
    "keys",
    [
        ["train.modality_dropout=0.5", "train.branch_losses=1", "train.distillation=1", "train.faults=0.5"],
        ["train.optimizer=sgd", "model.placement=boxes", "data.workers=1", "train.branch_losses=0"],
    ],
)
def test_a_run_resumed_within_an_epoch_is_the_uninterrupted_one(keys, recipe_file, tmp_path, train_until):
    path, keys = recipe_file("rgb", "thermal"), [*keys, "train.batch_size=2", "train.save_every=3"]
    whole = train(path, keys, folder=tmp_path / "whole")
    train_until(path, keys, tmp_path / "cut", step=7)
    assert checkpoint.read(tmp_path / "cut" / "last.safetensors", with_tensors=False)[1]["step"] == 6
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        take = loop.Training._step
        patch.setattr(
            loop.Training, "_step", lambda self, step, batch: (taken.append(step), take(self, step, batch))[1]
        )
        cut = train(path, keys, folder=tmp_path / "cut", resume=True)
    assert taken == [6, 7]
    assert same_run(whole, cut)


def test_a_run_stopped_while_it_validates_takes_no_step_twice(recipe_file, tmp_path, train_until, monkeypatch):
    path, keys = recipe_file("rgb"), ["train.save_every=2"]
    whole = train(path, keys, folder=tmp_path / "whole")
    train_until(path, keys, tmp_path / "cut", validation=2)
    monkeypatch.setattr(loop.Training, "_step", None)
    assert same_run(whole, train(path, keys, folder=tmp_path / "cut", resume=True))


@pytest.mark.parametrize(("keys", "looks"), [([], True), (["train.modality_dropout=0.1"], False)])
def test_cudnn_looks_for_its_fastest_ways_where_all_batches_have_one_shape(
    keys, looks, recipe_file, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # benchmarks in this process may have left it on

    def step(self, number, batch):
        seen.append(torch.backends.cudnn.benchmark)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_file("rgb", "thermal"), keys, folder=tmp_path / "run")
    assert seen == [looks]
    assert not torch.backends.cudnn.benchmark


def test_without_save_every_whole_epochs_are_saved_alone(recipe_file, tmp_path, train_until):
    train_until(recipe_file("rgb"), [], tmp_path / "run", step=1)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_nothing_is_saved_within_an_epoch_that_is_not_known_to_be_finite(recipe_file, tmp_path, monkeypatch, copies):
    """Figures of a step come late on some devices; one that is spoilt must not be what a run goes on from."""
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *arguments: real(*arguments) * torch.nan)
    with pytest.raises(UserError, match=r"^step 0: the norm of the gradient is nan"):
        train(recipe_file("rgb"), ["train.save_every=1"], folder=tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_weights_are_read_at_the_start_alone(recipe_file, tmp_path, monkeypatch):
    path, file = recipe_file("rgb", "thermal"), tmp_path / "start.safetensors"
    path.write_text(path.read_text().replace("{size: d-4}", "{size: d-4, weights: start.safetensors}"))
    start = export_effdet(create_detector("d-4", {"x": 3}, len(load_card(load_recipe(path).card).classes)))
    save_file(start, file)
    real = loop.Training._train_epoch

    def interrupted(self, epoch, bar):
        if epoch == 1:
            raise KeyboardInterrupt
        for branch in ("rgb", "thermal"):
            kernel = self.detector.state_dict()[f"backbones.{branch}.net.blocks.0.0.conv_dw.weight"]
            assert torch.equal(kernel, start["backbone.blocks.0.0.conv_dw.weight"])
        return real(self, epoch, bar)

    monkeypatch.setattr(loop.Training, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(path, folder=tmp_path / "run")
    monkeypatch.undo()
    file.unlink()
    run = train(path, folder=tmp_path / "run", resume=True)
    assert run.finished
    assert run.recipe.model.weights == str(file)
    assert checkpoint.load(run.best).modalities == ("rgb", "thermal")
    with pytest.raises(UserError, match=r"^weights: .*start\.safetensors does not exist"):
        train(path, folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe_file, tmp_path):
    path = recipe_file("rgb")
    run = train(path, folder=tmp_path / "run")
    before = run.last.read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        train(path, folder=run.folder)
    with pytest.raises(UserError, match=r"train\.lr=0\.05, not 0\.1; go on with that, or choose another folder$"):
        train(path, ["train.lr=0.1"], folder=run.folder, resume=True)
    assert run.last.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_before_the_update(recipe_file, tmp_path, monkeypatch):
    real = FusionDetector.loss
    updates = []

    def poisoned(self, outputs, targets):
        losses = real(self, outputs, targets)
        return losses if not updates else {**losses, "total": losses["total"] * torch.nan}

    step = torch.optim.AdamW.step
    monkeypatch.setattr(FusionDetector, "loss", poisoned)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (updates.append(1), step(self, *a, **k)))
    with pytest.raises(UserError, match=r"step 1: the loss is nan on images \[\d+, \d+, \d+, \d+\]"):
        train(recipe_file("rgb"), folder=tmp_path / "run")
    assert len(updates) == 1


def test_a_gradient_that_is_not_finite_is_never_saved(recipe_file, tmp_path, monkeypatch, copies):
    """Even if its figures come late, it is of the last step of an epoch, and nothing is scored."""
    real = torch.nn.utils.clip_grad_norm_
    norms = []

    def clip(*arguments):
        norms.append(real(*arguments))
        return norms[-1] * torch.nan if len(norms) == 4 else norms[-1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    saved, save = [], loop.checkpoint.save
    monkeypatch.setattr(loop.checkpoint, "save", lambda path, *a: (saved.append(path.name), save(path, *a)))
    with pytest.raises(UserError, match=r"^step 3: the norm of the gradient is nan on images"):
        train(recipe_file("rgb"), ["train.evaluate_every=2"], folder=tmp_path / "run")
    assert saved == ["last.safetensors"]
    assert [row["epoch"] for row in loop.Run(tmp_path / "run").metrics] == [1]


@pytest.mark.parametrize("modalities", [("rgb",), ("rgb", "thermal")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_asks_nothing_of_a_device_but_whether_sensors_are_there(modalities, optimizer, recipe_file, tmp_path):
    """That is asked of masks on the host: whether an image lacks all sensors, and whether one lacks each."""
    recipe = load_recipe(recipe_file(*modalities), [f"train.optimizer={optimizer}", "train.branch_losses=0"])
    training = loop.prepare_training(recipe, loop.Run(tmp_path / "run"), loop.World(0, 1, torch.device("cpu")))
    batch = next(training.loader.epoch(0))
    training.model.train()
    training._step(0, batch)
    assert count(lambda: training._step(1, batch)).waits == {"_local_scalar_dense": 1 + len(modalities)}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("modalities=[rgb, termal]", "did you mean 'thermal'"),
        ("data.input_size=[100, 128]", "multiples of 32"),
        ("train.epoch=1", "did you mean 'epochs'"),
        ("model.fusion=fastt", "did you mean 'fast'"),
        ("card=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(assignment, message, recipe_file, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        train(recipe_file("rgb"), [assignment], folder=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_write_one_run(recipe_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    keys = ("device=cpu", "epochs=1", "modality_dropout=0.9", "branch_losses=1", "distillation=1")
    changes = [f"train.{key}" for key in keys]
    command += ["-m", "mmfuse", "train", str(recipe_file("rgb", "thermal")), *changes, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    run = loop.Run(tmp_path / "run")
    assert run.finished
    assert json.loads((run.folder / "environment.json").read_text())["processes"] == 2


@pytest.mark.long
def test_two_processes_resume_within_an_epoch(recipe_file, tmp_path):
    """One that is interrupted in its sixth step, and one that isn't."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import sys\nfrom mmfuse.training import loop\nfrom mmfuse.cli import main\ntake = loop.Training._step\n"
        "def step(self, number, batch):\n    if number == 5:\n        sys.exit(3)\n"
        "    return take(self, number, batch)\nloop.Training._step = step\nmain(sys.argv[1:])\n"
    )
    keys = ["train.device=cpu", "train.batch_size=2", "train.save_every=1", "train.modality_dropout=0.5"]
    words = [str(recipe_file("rgb", "thermal")), *keys, "--out"]

    def two_processes(*command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        return subprocess.run(
            [*words, *command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    runs = [loop.Run(tmp_path / name) for name in ("whole", "cut")]
    done = two_processes("-m", "mmfuse", "train", *words, str(runs[0].folder))
    assert done.returncode == 0, done.stderr[-2000:]
    assert two_processes(str(script), "train", *words, str(runs[1].folder)).returncode != 0
    assert checkpoint.read(runs[1].last, with_tensors=False)[1]["step"] == 5
    done = two_processes("-m", "mmfuse", "train", *words, str(runs[1].folder), "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_run(*runs)


def test_bad_and_useless_images_are_skipped_and_counted(paired_set, tmp_path, capsys):
    root = tmp_path / "set"
    shutil.copytree(paired_set.parent, root)
    truth = json.loads((root / "train.json").read_text())
    (root / truth["images"][0]["modalities"]["rgb"]).write_bytes(b"no image")
    del truth["images"][1]["modalities"]["rgb"]
    (root / "train.json").write_text(json.dumps(truth))
    card = yaml.safe_load((root / "card.yaml").read_text()) | {"missing": "allow"}
    (root / "card.yaml").write_text(yaml.safe_dump(card))
    (tmp_path / "rgb.yaml").write_text(
        "card: set/card.yaml\nmodalities: [rgb]\nmodel: {size: d-4}\ndata: {input_size: [96, 128], workers: 0}\n"
        "train: {epochs: 1, batch_size: 4, lr: 0.05}\n"
    )
    with pytest.raises(UserError, match="is not an image"):
        train(tmp_path / "rgb.yaml", folder=tmp_path / "stops")
    train(tmp_path / "rgb.yaml", ["data.on_bad_sample=skip"], folder=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert "left out: 1 training images have none of rgb" in lines
    assert lines[lines.index("skipped: 1 training images can't be used") + 1].endswith("PNG, JPEG, TIFF or WebP file")


def test_a_val_image_that_cannot_be_read_is_refused_before_the_first_step(paired_set, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(paired_set.parent, root)
    name = json.loads((root / "val.json").read_text())["images"][2]["modalities"]["thermal"]
    (root / name).write_bytes((root / name).read_bytes()[:900])
    (tmp_path / "both.yaml").write_text(
        "card: set/card.yaml\nmodalities: [rgb, thermal]\nmodel: {size: d-4}\n"
        "data: {input_size: [96, 128], workers: 0, on_bad_sample: skip}\ntrain: {epochs: 1, batch_size: 4}\n"
    )
    with pytest.raises(UserError, match=f"{name}: can't be read"):
        train(tmp_path / "both.yaml", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_place_in_one_image_is_told_without_a_traceback(recipe_file, tmp_path):
    with pytest.raises(UserError, match=r"^data.input_size: of one image of 32 x 32 the coarsest map has one place"):
        train(recipe_file("rgb"), ["data.input_size=[32, 32]", "train.batch_size=1"], folder=tmp_path / "run")


def test_splits_without_an_object_are_refused_before_the_first_step(paired_set, recipe_file, tmp_path, monkeypatch):
    def crowds_alone(card, split):
        records = read_split(card, split)
        return [replace(r, ignore=np.ones(len(r.boxes), bool)) for r in records] if split == empty else records

    monkeypatch.setattr(loop, "read_split", crowds_alone)
    for empty in ("train", "val"):
        with pytest.raises(UserError, match=f"{empty} holds no object of person, .*; add some, or use another split"):
            train(recipe_file("rgb"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_objects_too_small_for_the_input_are_counted_and_refused_where_none_is_left(
    recipe_file, tmp_path, monkeypatch, capsys
):
    def shrunk(card, split):
        records = read_split(card, split)
        return [replace(r, boxes=np.concatenate((r.boxes[:, :2], r.boxes[:, :2] + side), 1)) for r in records]

    monkeypatch.setattr(loop, "read_split", shrunk)
    side = 1.0
    with pytest.raises(UserError, match=r"data.input_size \[96, 128\]: all \d+ objects of train are too small"):
        train(recipe_file("rgb"), folder=tmp_path / "run")
    side = 3.5
    train(recipe_file("rgb"), ["train.epochs=1"], folder=tmp_path / "run")
    assert "too small: " in capsys.readouterr().out
    side = 40.0
    train(recipe_file("rgb"), ["train.epochs=1"], folder=tmp_path / "other")
    assert "too small: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((48, 64), 7, np.uint16), "thermal: all pixels of the training images have one value; mend its files"),
        (np.full((48, 64), np.inf, np.float32), "thermal: no training image has a measured pixel; mend its files"),
        (
            np.linspace(-3e38, 3e38, 48 * 64, dtype=np.float32).reshape(48, 64),
            "thermal: values from .* can't be measured",
        ),
    ],
)
def test_a_sensor_that_measures_nothing_is_told_before_the_first_step(
    paired_set, recipe_file, tmp_path, pixels, message
):
    shutil.copytree(paired_set.parent, tmp_path / "set")
    for file in (tmp_path / "set").rglob("*.png"):
        if "thermal" in file.as_posix():
            with Image.open(file) as image:
                width, height = image.size
            Image.fromarray(np.resize(pixels, (height, width))).save(file, "TIFF")
    with pytest.raises(UserError, match=message):
        train(recipe_file("rgb", "thermal"), [f"card={tmp_path / 'set' / paired_set.name}"], folder=tmp_path / "run")


def test_two_trainings_of_one_folder_do_not_mix(recipe_file, tmp_path):
    with sole_writer(tmp_path / "run"):
        with pytest.raises(UserError, match=r"run: another process is writing there; wait for it"):
            train(recipe_file("rgb"), folder=tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []
    assert train(recipe_file("rgb"), ["train.epochs=1"], folder=tmp_path / "run").finished
