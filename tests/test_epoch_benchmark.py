import time
from dataclasses import replace

import pytest

from benchmarks import epoch
from mmfuse.data.loader import TrainLoader
from mmfuse.errors import UserError
from mmfuse.recipes import load_recipe
from mmfuse.training import loop


def test_each_part_counts_where_it_is_spent_and_the_first_epoch_does_not(recipe_file, tmp_path, monkeypatch):
    clock = [0.0]

    def slower(owner, name, seconds):
        real = getattr(owner, name)

        def run(*arguments, **options):
            clock[0] += seconds
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, run)

    real = TrainLoader.epoch

    def slow_batches(self, number, begun):
        for batch in real(self, number, begun):
            clock[0] += 1000 if number == 0 else 1
            yield batch

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(TrainLoader, "epoch", slow_batches)
    slower(loop.Training, "_step", 0.1)
    slower(loop, "collect", 0.01)
    slower(loop, "coco_scores", 0.02)
    slower(loop.Training, "_save", 0.003)
    slower(loop.checkpoint, "save_detector", 0.001)
    slower(loop.Training, "_validate", 0.5)
    figures = iter([0.1, 0.2])
    scores = loop.coco_scores
    monkeypatch.setattr(loop, "coco_scores", lambda *a: replace(scores(*a), ap=next(figures)))
    own = loop.Training._save
    found = epoch.parts(load_recipe(recipe_file("rgb")), tmp_path / "run")
    assert found == pytest.approx(
        {
            "waiting for data": 2,
            "steps": 0.2,
            "inference": 0.01,
            "scoring": 0.02,
            "checkpoints": 0.004,
            "rest": 0.5,
            "epoch": 2.734,
        }
    )
    assert loop.Training._save is own


def test_the_benchmark_of_an_epoch_runs_small():
    rows = epoch.measure(epochs=2, size="d-4", side=96, batch=2, images=4, workers=0)
    assert [row.name.partition(",")[0] for row in rows] == [
        "waiting for data", "steps", "inference", "scoring", "checkpoints", "rest", "epoch",
    ]  # fmt: skip
    assert sum(row.ratio for row in rows) == pytest.approx(2)
    assert rows[-1].value == pytest.approx(sum(row.value for row in rows[:-1]))


def test_an_epoch_that_is_the_first_is_not_measured():
    with pytest.raises(UserError, match="epochs: 1 leaves none after the first"):
        epoch.measure(epochs=1)
