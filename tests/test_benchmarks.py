import re
import time

import pytest
import torch

from benchmarks import fusions, loader, losses, postprocess
from benchmarks.side_by_side import side_by_side
from mmfuse.config import DataRecipe
from mmfuse.model.fusion import FUSIONS


def test_ratios_are_to_the_first_and_every_side_runs_in_every_round(monkeypatch):
    calls, clock = [], [0.0]

    def side(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    sides = {name: side(name, seconds) for name, seconds in (("a", 0.5), ("b", 2.0), ("c", 0.25))}
    found = side_by_side(sides, rounds=5, warm_up=1)
    assert [(r.name, r.milliseconds) for r in found] == [("a", 500), ("b", 2000), ("c", 250)]
    assert [(r.low, r.median, r.high) for r in found] == [(1, 1, 1), (4, 4, 4), (0.5, 0.5, 0.5)]
    turns = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert turns == ["cab", "abc", "bca", "cab", "abc", "bca"]


def test_the_benchmark_of_fusions_runs_small(capsys):
    fusions.main(["--size", "d-4", "--side", "128", "--rounds", "2"])
    text = capsys.readouterr().out
    assert "time / fast" in text
    for name in (*FUSIONS, "fast again"):
        assert len(re.findall(rf"^\| {name} +\|", text, re.MULTILINE)) == 2


@pytest.mark.parametrize("train", [False, True])
def test_fast_is_the_first_side(train):
    assert fusions.measure("d-4", 128, {"a": 1}, 1, train)[0].name == "fast"


def test_the_benchmark_of_the_loader_runs_small(capsys):
    loader.main(["--images", "4", "--side", "64", "--batch-size", "2", "--workers", "0", "--rounds", "1"])
    text = capsys.readouterr().out
    assert "samples / s" in text
    names = ("PIL + transforms.v2", "PIL + transforms.v2, uint8", "mmfuse", "mmfuse, cached")
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:] if line] == list(names)


def test_the_loaders_that_are_compared_give_alike_samples(tmp_path):
    records = loader.make_pairs(tmp_path, 2)
    plain = loader.plain_loader(records, DataRecipe(workers=0), 64, 2, as_float=False)
    ours = loader.our_loader(records, DataRecipe(workers=0), 64, 2)
    (theirs,), (batch,) = plain, ours.epoch(0)
    for m, image in batch.images.items():
        assert theirs[m].shape == image.shape
        assert theirs[m].dtype == image.dtype == torch.uint8
    assert all(boxes.shape[1] == 4 for boxes in (*theirs["boxes"], *batch.targets.boxes))


SIDES = ["effdet", "mmfuse", "mmfuse again", "mmfuse, with the joining"]


@pytest.mark.parametrize(("module", "columns"), [(losses, 6), (postprocess, 4)])
def test_the_benchmarks_beside_effdet_run_small(capsys, module, columns):
    module.main(["--side", "128", "--batch", "2", "--classes", "7", "--rounds", "2"])
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line]
    assert [row[0].strip() for row in rows[2:]] == SIDES
    assert {len(row) for row in rows} == {columns}
    assert rows[2][2].strip() == "1.000"


def test_losses_that_differ_are_not_timed():
    found = losses.sides(losses.problem("d0", 128, 1, 3), 2)
    losses.check(found)
    total, *others = found["effdet"]()
    with pytest.raises(AssertionError):
        losses.check(found | {"mmfuse": lambda: (total * 1.001, *others[:2])})
    *others, gradient = found["effdet"]()
    with pytest.raises(AssertionError):
        losses.check(found | {"mmfuse, with the joining": lambda: (*others, gradient * 1.001 + 1e-6)})


def test_detections_that_differ_are_not_timed():
    found = postprocess.sides(postprocess.problem("d0", 128, 1, 3))
    postprocess.check(found)
    (one,) = found["effdet"]()
    with pytest.raises(AssertionError):
        postprocess.check(found | {"mmfuse": lambda: [one.rescale(0.999)]})
    with pytest.raises(AssertionError):
        postprocess.check(found | {"mmfuse": lambda: [one[:99]]})
