import io

import pytest
from PIL import Image

from mmfuse.errors import UserError
from mmfuse.report import charts, grids
from mmfuse.run import Run
from mmfuse.training import display, loop
from mmfuse.training.loop import train

PICTURES = ("first_batch.png", "training.png", "validation.png")


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """What is shown: the image ids of each first batch, the epochs of each chart, the images of each found grid."""
    shown = {"batch": [], "rows": [], "found": []}
    for name, real, told in (
        ("batch", grids.batch_grid, lambda batch, *_, **__: batch.image_ids),
        ("rows", charts.training_progress, lambda rows, _: [row["epoch"] for row in rows]),
        ("found", grids.found_grid, lambda samples, *_, **__: [sample.image_id for sample in samples]),
    ):

        def spy(*args, name=name, real=real, told=told, **options):
            shown[name].append(told(*args, **options))
            return real(*args, **options)

        monkeypatch.setattr(display, real.__name__, spy)
    return shown


def test_pictures_are_renewed_each_time_that_a_training_is_scored(recipe_file, tmp_path, drawn):
    changes = ["train.epochs=3", "train.evaluate_every=2"]
    run = train(recipe_file("rgb", "thermal"), changes, folder=tmp_path / "run")
    for name in PICTURES:
        assert (run.folder / name).read_bytes().startswith(b"\x89PNG")
    assert len(drawn["batch"]) == 1
    assert drawn["rows"] == [[1, 2], [1, 2, 3]]
    assert len(drawn["found"]) == 2
    assert all(ids == drawn["found"][0] and 0 < len(ids) <= display.SHOWN for ids in drawn["found"])
    assert not (run.folder / "tensorboard").exists()


def test_a_resumed_training_goes_on_showing_all_epochs(recipe_file, tmp_path, train_one_epoch, drawn):
    recipe, folder = recipe_file("rgb"), tmp_path / "run"
    train_one_epoch(recipe, folder)
    train(recipe, folder=folder, resume=True)
    assert len(drawn["batch"]) == 1
    assert drawn["rows"] == [[1], [1, 2]]


def test_other_processes_show_nothing(recipe_file, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(loop, "Display", lambda *args: made.append(args))
    world = loop.World.from_environment("cpu")
    monkeypatch.setattr(type(world), "is_first", property(lambda self: False))
    recipe = loop.load_recipe(recipe_file("rgb"))
    assert loop.prepare_training(recipe, Run(tmp_path / "run"), world).display is None
    assert made == []


def test_tensorboard_has_the_figures_of_each_epoch(recipe_file, tmp_path, train_one_epoch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = recipe_file("rgb")
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epochs: 2, log: tensorboard"))
    folder = tmp_path / "run"
    train_one_epoch(recipe, folder)
    run = train(recipe, folder=folder, resume=True)
    logged = accumulators.EventAccumulator(str(folder / "tensorboard"))
    logged.Reload()
    for key in ("loss", "lr", "val_ap", "class_loss"):
        events = [(event.step, event.value) for event in logged.Scalars(key)]
        assert events == [(row["epoch"], pytest.approx(row[key], rel=1e-5, abs=1e-8)) for row in run.metrics]
    shown = logged.Images("validation")
    assert [event.step for event in shown] == [row["epoch"] for row in run.metrics]
    last = Image.open(io.BytesIO(shown[-1].encoded_image_string))
    assert last.tobytes() == Image.open(folder / "validation.png").tobytes()


def test_a_log_that_cannot_be_written_is_told_before_anything_else(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(display, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.log: tensorboard isn't installed; run pip install 'mmfuse\[log\]'"):
        train(recipe_file("rgb"), ["train.log=tensorboard"], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"train\.log: 'tensorbord' is not a known value; did you mean 'tensorboard'"):
        train(recipe_file("rgb"), ["train.log=tensorbord"], folder=tmp_path / "run")


def test_the_bar_tells_the_loss_of_each_step_and_ap(recipe_file, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(loop.tqdm, "set_postfix", lambda self, figures, **_: told.append(dict(figures)))
    run = train(recipe_file("rgb"), folder=tmp_path / "run")
    assert [set(one) for one in told] == [{"loss"}] * 2 + [{"loss", "AP", "best"}] * 2
    assert all(float(one["loss"]) > 0 for one in told)
    assert told[-1]["AP"] == f"{run.metrics[0]['val_ap']:.3f}"
