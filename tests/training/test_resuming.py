"""What may change where a run goes on, what may not, and what is written down of it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from mmfuse.cli import main
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.recipes import Recipe, TrainRecipe, load_recipe
from mmfuse.run import Run, is_over
from mmfuse.strict_yaml import save_yaml
from mmfuse.training import loop
from mmfuse.training.loop import train
from mmfuse.training.optim import rate_at
from mmfuse.training.resuming import changed_keys


@pytest.fixture(scope="module")
def first_place(paired_set, tmp_path_factory):
    """A folder with a recipe, its set, a run of it and one that was interrupted after the first of two epochs."""
    folder = tmp_path_factory.mktemp("first") / "place"
    shutil.copytree(paired_set.parent, folder / "set")
    (folder / "r.yaml").write_text(
        f"card: set/{paired_set.name}\nmodalities: [rgb]\nmodel: {{size: d-4}}\n"
        "data: {input_size: [96, 128], workers: 0}\ntrain: {epochs: 2, batch_size: 4, lr: 0.05}\n"
    )
    train(folder / "r.yaml", folder=folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        real = loop.Training._train_epoch

        def interrupted(self, epoch, bar):
            if epoch == 1:
                raise KeyboardInterrupt
            return real(self, epoch, bar)

        patch.setattr(loop.Training, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "r.yaml", folder=folder / "run")
    return folder


@pytest.fixture
def place(first_place, tmp_path):
    """All that, in another place."""
    return shutil.copytree(first_place, tmp_path / "place")


@pytest.fixture
def no_steps(monkeypatch):
    """Lets no step be taken, and nothing be scored."""
    monkeypatch.setattr(loop.Training, "run_epochs", None)


def resume(place, *keys, run="run", **options):
    return train(place / "r.yaml", keys, folder=place / run, resume=True, **options)


def written_of(place, run="run"):
    return json.loads((place / run / "environment.json").read_text())


def change(place, split, edit):
    """Changes the annotations of a split."""
    file = place / "set" / f"{split}.json"
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def move_boxes(values):
    for annotation in values["annotations"][:3]:
        annotation["bbox"][2] -= 2


def halve(values):
    values["images"] = values["images"][:4]
    there = {image["id"] for image in values["images"]}
    values["annotations"] = [a for a in values["annotations"] if a["image_id"] in there]


def swap_classes(values):
    for annotation in values["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 2 + 1


def test_keys_that_change_nothing_learnt_are_free_and_written_down(place, tmp_path):
    keys = ["data.workers=1", "train.device=cpu", f"data.cache={tmp_path}/cache", "train.save_every=1", "doubt=report"]
    keys += ["train.patience=5", "data.on_bad_sample=skip", "name=other", f"data.root={place}/set"]
    run = resume(place, *keys)
    whole = checkpoint.read(place / "whole" / "last.safetensors")[0]
    assert all(torch.equal(whole[key], value) for key, value in checkpoint.read(run.last)[0].items())
    assert run.recipe == load_recipe(place / "r.yaml", keys)
    (note,) = written_of(place)["resumed"]
    assert note["after"] == {"epoch": 1, "steps": 0}
    assert note["keys"]["data.workers"] == [0, 1]
    assert set(note["keys"]) == {"card", *(key.partition("=")[0] for key in keys)}
    assert note["data"] == {}


@pytest.mark.parametrize(
    "key",
    ["train.evaluate_every=2", "train.epochs=9", "train.epochs=1", "card=elsewhere.yaml", "data.root=null"],
)
def test_a_free_key_may_change(key, tmp_path):
    save_yaml(tmp_path / "config.yaml", Recipe("r", "card.yaml", ("rgb",)).to_dict())
    path = tmp_path / "r.yaml"
    path.write_text("card: card.yaml\nmodalities: [rgb]\n")
    assert key.partition("=")[0] in {"data.root", *changed_keys(Run(tmp_path), load_recipe(path, [key]))}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("train.lr=1", "train.lr=0.002, not 1.0"),
        ("train.batch_size=3", "train.batch_size=16, not 3"),
        ("train.seed=1", "train.seed=0, not 1"),
        ("train.ema_decay=0.5", "train.ema_decay=0.9998, not 0.5"),
        ("train.warmup_epochs=2", "train.warmup_epochs=1.0, not 2.0"),
        ("train.freeze=[pyramid]", r"train.freeze=\[\], not \['pyramid'\]"),
        ("data.hflip=0", "data.hflip=0.5, not 0.0"),
        ("data.input_size=[64, 64]", r"data.input_size=None, not \[64, 64\]"),
        ("model.size=d1", "model.size='d0', not 'd1'"),
        ("model.pretrained=true", "model.pretrained=False, not True"),
        ("modalities=[rgb, thermal]", r"modalities=\['rgb'\], not \['rgb', 'thermal'\]"),
        ("init=runs/b", "init='/first/runs/a', not '.*/runs/b'"),
        ("init={rgb: runs/a}", "init='/first/runs/a', not None and init.rgb=None, not '.*/runs/a'"),
    ],
)
def test_a_key_of_what_is_learnt_may_not_change(key, told, tmp_path):
    recipe = Recipe("r", "card.yaml", ("rgb",), init="/first/runs/a")
    save_yaml(tmp_path / "config.yaml", recipe.to_dict())
    (tmp_path / "r.yaml").write_text("card: card.yaml\nmodalities: [rgb]\ninit: runs/a\n")
    assert set(changed_keys(Run(tmp_path), load_recipe(tmp_path / "r.yaml"))) == {"card", "init"}  # it moved
    with pytest.raises(UserError, match=f"was trained with {told}; go on with that, or choose another folder$"):
        changed_keys(Run(tmp_path), load_recipe(tmp_path / "r.yaml", [key]))


def test_more_epochs_have_the_rates_of_the_new_number_from_there_on(place, capsys):
    before = Run(place / "run").metrics
    run = resume(place, "train.epochs=3")
    assert "goes on with train.epochs 3 (was 2)" in capsys.readouterr().out
    rows, recipe = run.metrics, replace(run.recipe.train, epochs=3)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0] == before[0]
    assert [row["lr"] for row in rows[1:]] == [rate_at(step, recipe, 2) for step in (3, 5)]
    assert run.finished
    assert resume(place, "train.epochs=3").metrics == rows


def test_a_finished_run_takes_more_epochs_and_stays_as_it_is_with_fewer(place, no_steps, capsys):
    config = place / "whole" / "config.yaml"
    before = config.read_text()
    assert resume(place, "train.epochs=1", run="whole").finished
    assert "is finished with 2 epochs, and stays so; train.epochs=1 is less" in capsys.readouterr().out
    assert config.read_text() == before
    with pytest.raises(TypeError):  # it would train
        resume(place, "train.epochs=3", run="whole")


def test_a_run_that_was_cut_short_does_not_end_with_fewer_epochs_than_it_has(place, no_steps):
    config = place / "whole" / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3", 1))
    with pytest.raises(UserError, match=r"^train.epochs: 1 is less than the 2 of .*/whole; use at least 2, or train"):
        resume(place, "train.epochs=1", run="whole")


def test_a_last_epoch_is_scored_where_fewer_are_wanted(place, monkeypatch):
    (row,) = Run(place / "run").metrics
    monkeypatch.setattr(loop.Training, "_step", None)
    header = checkpoint.read(place / "run" / "last.safetensors")
    header[1]["rows"][0].pop("val_ap")
    checkpoint.save(place / "run" / "last.safetensors", *header)
    (place / "run" / "metrics.csv").unlink()
    run = resume(place, "train.epochs=1")
    assert run.finished
    assert [again["val_ap"] for again in run.metrics] == [row["val_ap"]]


@pytest.mark.parametrize(
    ("split", "edit", "told"),
    [
        ("train", move_boxes, r"train: in \d images boxes moved, such as .*\.png"),
        ("train", halve, r"train: 4 images are gone, such as .*\.png"),
        ("train", swap_classes, r"train: in \d images classes changed, such as .*\.png"),
        ("val", move_boxes, r"val: in \d images boxes moved, such as .*\.png"),
    ],
)
@pytest.mark.parametrize("run", ["run", "whole"])
def test_data_that_changed_is_named_and_refused(place, no_steps, split, edit, told, run):
    change(place, split, edit)
    before = {file: file.read_bytes() for file in (place / run).iterdir()}
    with pytest.raises(UserError, match=f"/{run}: its data changed: {told}; put it back, .* --accept-changed-data$"):
        resume(place, run=run)
    assert {file: file.read_bytes() for file in (place / run).iterdir()} == before


def test_data_that_changed_is_learnt_from_and_written_down_where_that_is_accepted(place, capsys):
    before = written_of(place)["splits"]
    change(place, "train", halve)
    run = resume(place, accept_changed_data=True)
    assert run.finished
    assert "goes on with changed data (train)" in capsys.readouterr().out
    written = written_of(place)
    assert written["splits"]["train"] != before["train"]
    assert written["splits"]["val"] == before["val"]
    (note,) = written["resumed"]
    assert note["splits_before"] == before
    assert note["data"]["train"].startswith("4 images are gone")
    assert resume(place) == run  # it is the run's own now
    change(place, "train", move_boxes)
    with pytest.raises(UserError, match=r"train: in \d images boxes moved"):
        resume(place)


def test_the_best_is_scored_anew_on_a_val_split_that_changed(place, monkeypatch):
    old = Run(place / "run").metrics[0]["val_ap"]
    change(place, "val", lambda values: values["annotations"].pop())
    figures, real = iter([0.7, 0.6]), loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *arguments: replace(real(*arguments), ap=next(figures)))
    run = resume(place, accept_changed_data=True)
    assert [row["val_ap"] for row in run.metrics] == [0.7, 0.6]
    assert written_of(place)["resumed"][0]["val_ap_before"] == {"1": old}
    notes = checkpoint.read(run.best)[1]["notes"]
    assert (notes["epoch"], notes["val"]["ap"]) == (1, 0.7)


def test_classes_of_other_names_are_named_and_others_in_number_never_taken(place, no_steps):
    card = next((place / "set").glob("*.yaml"))
    values = yaml.safe_load(card.read_text())
    names = values["classes"]
    card.write_text(yaml.safe_dump(values | {"classes": [*names[1:], names[0]]}))
    with pytest.raises(UserError, match=rf"its data changed: classes: {', '.join([*names[1:], names[0]])}, not "):
        resume(place)
    card.write_text(yaml.safe_dump(values | {"classes": [*names, "tram"]}))
    with pytest.raises(UserError, match=r"the classes are .*, tram, not .*; train in another folder, from this run"):
        resume(place, accept_changed_data=True)


def test_a_sensor_that_the_card_describes_otherwise_is_refused(place, no_steps):
    card = next((place / "set").glob("*.yaml"))
    values = yaml.safe_load(card.read_text())
    values["modalities"]["rgb"]["range"] = [0, 100]
    card.write_text(yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=r"rgb: range is \(0.0, 100.0\), the run was trained with \(\); make them equal"
    ):
        resume(place)


def test_what_is_not_known_of_the_data_is_not_taken_for_unchanged(place, no_steps):
    (place / "run" / "data.json").unlink()
    with pytest.raises(TypeError):  # digests are enough, it would train
        resume(place)
    (place / "run" / "data.json").unlink()
    change(place, "train", move_boxes)
    with pytest.raises(UserError, match="train: isn't what it was, of which too little was kept to say more"):
        resume(place)
    (place / "run" / "environment.json").write_text("[]")
    with pytest.raises(UserError, match=r"environment.json: isn't what a training wrote; put it back, or remove it"):
        resume(place)
    (place / "run" / "environment.json").unlink()
    with pytest.raises(UserError, match="its data changed: train: isn't what it was"):
        resume(place)


def test_another_torch_is_told_in_a_line_and_written_down(place, monkeypatch, capsys):
    monkeypatch.setattr(loop.Training, "run_epochs", lambda self: None)
    file = place / "run" / "environment.json"
    torch_now = written_of(place)["versions"]["torch"]
    file.write_text(file.read_text().replace(f'"torch": "{torch_now}"', '"torch": "1.0"'))
    resume(place)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "goes on" in line)
    assert line.endswith(f"run: goes on with torch {torch_now} (was 1.0)")
    written = written_of(place)
    assert written["versions"]["torch"] == "1.0"
    assert [note["versions"]["torch"] for note in written["resumed"]] == [torch_now]
    resume(place)  # nothing changed since
    assert written_of(place) == written


@pytest.mark.parametrize("run", ["run", "whole"])
def test_a_best_that_is_gone_is_an_error(place, no_steps, run):
    (place / run / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"best.safetensors: is gone, and with it the best epoch so far; put it back"):
        resume(place, run=run)


def test_a_state_that_is_gone_is_an_error(place, no_steps):
    (place / "run" / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"last.safetensors: is gone, and with it the state after epoch 1; put it back"):
        resume(place)


def test_a_finished_run_of_data_that_moved_is_that_of_the_new_place(place, no_steps):
    run = resume(place, run="whole")
    assert run.recipe.card.startswith(str(place))


def test_a_run_goes_on_where_a_card_and_a_root_are_given(place, capsys):
    (place / "set").rename(place / "moved")
    card = next((place / "moved").glob("*.yaml"))
    card = card.rename(place / "card.yaml")
    words = ["train", str(place / "r.yaml"), "--out", str(place / "run"), "--resume"]
    assert main(words) == 2
    assert "give --card where it moved" in capsys.readouterr().err
    assert main([*words, "--card", str(card), "--root", str(place / "moved")]) == 0
    assert Run(place / "run").recipe.data.root == str(place / "moved")


def test_changed_data_is_accepted_on_the_command_line(place):
    change(place, "train", move_boxes)
    words = ["train", str(place / "r.yaml"), "--out", str(place / "run"), "--resume"]
    assert main(words) == 2
    assert main([*words, "--accept-changed-data"]) == 0


@pytest.mark.parametrize(
    ("aps", "patience", "over"),
    [
        ([0.1, 0.2, 0.15], 2, False),
        ([0.1, 0.2, 0.15, 0.2], 2, True),  # as good is no better
        ([0.1, 0.2, None, 0.1, None], 2, False),  # epochs without a score don't count
        ([0.1, 0.2, 0.1, 0.1, 0.1], 0, False),
        ([0.0, 0.0], 1, True),
        ([], 1, False),
    ],
)
def test_patience_counts_evaluations_since_the_best(aps, patience, over):
    rows = [{"epoch": i} | ({} if ap is None else {"val_ap": ap}) for i, ap in enumerate(aps, 1)]
    assert is_over(rows, TrainRecipe(epochs=9, patience=patience)) == over


def test_patience_ends_a_run_and_a_larger_one_goes_on(place, monkeypatch, capsys):
    figures, real = iter([0.5, 0.4, 0.4, 0.6]), loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *arguments: replace(real(*arguments), ap=next(figures)))
    keys = ["train.epochs=4", "data.input_size=[64, 64]"]
    run = train(place / "r.yaml", [*keys, "train.patience=1"], folder=place / "short")
    said = "short: stopped after epoch 2, by 1 evaluations without a better val AP"
    assert said in capsys.readouterr().out
    assert [row["val_ap"] for row in run.metrics] == [0.5, 0.4]
    assert checkpoint.read(run.best)[1]["notes"]["epoch"] == 1
    assert run.finished
    assert resume(place, *keys, "train.patience=1", run="short") == run
    assert f"{said}; a larger train.patience, or 0, goes on" in capsys.readouterr().out
    resume(place, *keys, "train.patience=3", run="short")
    assert [row["val_ap"] for row in run.metrics] == [0.5, 0.4, 0.4, 0.6]
    assert "stopped" not in capsys.readouterr().out
