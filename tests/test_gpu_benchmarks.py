"""The benchmarks for a GPU run small on any device, with effdet or without; what they measure is computed right."""

import json
import math
import sys

import pytest
import torch

from benchmarks import gpu, gpu_inference, gpu_training, mmfuse_train
from benchmarks.__main__ import main
from benchmarks.gpu import Notes, covered
from benchmarks.gpu_inference import Case, ways
from benchmarks.results import Row
from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.errors import UserError
from mmfuse.recipes import load_recipe


@pytest.fixture
def without_effdet(monkeypatch):
    monkeypatch.setitem(sys.modules, "effdet", None)
    monkeypatch.delitem(sys.modules, "benchmarks.reference", raising=False)


def rows_of(folder):
    (path,) = folder.glob("*.json")
    result = json.loads(path.read_text())
    assert {"torch", "timm", "python"} <= result["versions"].keys()
    assert result["hardware"]["cores"]
    assert result["date"]
    return result, {(row["measure"], row["name"]): row for row in result["rows"]}


def test_inference_runs_small_without_effdet(tmp_path, capsys, without_effdet, monkeypatch):
    monkeypatch.setattr(gpu_inference, "SMALL", [Case("d-4", 1, 1, 128), Case("d-4", 2, 2, 128)])
    main(["gpu_inference", "--small", "--threads", "1", "--results", str(tmp_path)])
    result, rows = rows_of(tmp_path)
    assert result["command"] == "python -m benchmarks gpu_inference --small --minutes 7.0 --threads 1"
    for measure in ("d-4, 1 modality, batch 1: latency", "d-4, 2 modalities, batch 2: throughput"):
        for name in ("eager", "folded", "detect", "detect, folded", "detect, fast"):
            assert rows[measure, name]["value"] > 0
    assert rows["d-4, 2 modalities, batch 2: throughput", "detect, fast, one sensor alone"]["value"] > 0
    assert "detect, fast" in capsys.readouterr().out


def test_inference_says_that_effdet_is_missing(without_effdet):
    notes = Notes(0)
    reference, detector = gpu.models("d0", 128, 1, notes)
    assert reference is None
    assert detector.modalities == ("sensor_0",)
    assert notes.lines[0].startswith("effdet: left out")


def test_inference_runs_effdet_with_the_same_weights():
    with torch.no_grad():
        sides = ways(Case("d0", 1, 1, 128), Notes(math.inf))
        theirs, ours = (sides[name]() for name in ("effdet", "eager"))
        assert sides["effdet, DetBenchPredict"]().shape == (1, 100, 6)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_training_runs_small_beside_effdet(tmp_path, capsys):
    small = ("--small", "--side", "128", "--batch", "2", "--threads", "1")
    main(["gpu_training", *small, "--results", str(tmp_path)])
    result, rows = rows_of(tmp_path)
    assert result["notes"] == []
    assert rows["full step", "effdet, eager"]["ratio"] == 1
    assert rows["full step", "mmfuse, eager"]["value"] > 0
    command = "python -m benchmarks gpu_training --small --minutes 7.0 --size d0 --side 128 --batch 2 --threads 1"
    assert result["command"] == command
    assert "full step" in capsys.readouterr().out


def test_training_runs_small_without_effdet(without_effdet):
    row, note = gpu_training.measure(small=True, size="d0", side=128, batch=2)
    assert row.name == "mmfuse, eager"
    assert note.startswith("effdet: left out")


def test_sides_are_chosen_by_how_they_begin():
    (row,) = gpu_training.measure(small=True, only="mmfuse", size="d0", side=128, batch=2)
    assert (row.name, row.ratio) == ("mmfuse, eager", 1)
    with pytest.raises(UserError, match="only: 'ours' begins no side"):
        next(gpu_training.measure(small=True, only="ours"))


@pytest.mark.long
def test_a_training_from_files_is_timed_from_its_command_on(tmp_path):
    main(["mmfuse_train", "--small", "--threads", "1", "--results", str(tmp_path)])
    result, rows = rows_of(tmp_path)
    assert [note.partition(":")[0] for note in result["notes"]] == ["rgb, compiled", "rgb and thermal, compiled"]
    for case in ("rgb", "rgb and thermal"):
        assert rows[f"{case}: images", "step alone"]["ratio"] == 1
        assert {"second epoch", "loader alone"} <= {name for measure, name in rows if measure == f"{case}: images"}
        assert rows[f"{case}: start", "first step done"]["value"] > 0


@pytest.mark.long
def test_a_training_that_fails_is_one_line(tmp_path):
    recipe = mmfuse_train.write_recipe(tmp_path, "d-4", 96, 2, 2)
    (tmp_path / "train.json").unlink()
    with pytest.raises(UserError, match=r"^rgb: .*train\.json"):
        mmfuse_train.rows_of("rgb", recipe, ["modalities=[rgb]", "train.device=cpu"], tmp_path / "run")


def test_pairs_that_are_trained_on_are_as_many_as_asked(tmp_path):
    recipe = load_recipe(mmfuse_train.write_recipe(tmp_path, "d-4", 96, 2, 3))
    card = card_of(recipe)
    assert [len(read_split(card, split)) for split in ("train", "val")] == [3, 1]
    with pytest.raises(UserError, match="only: 'depth' begins no case"):
        next(mmfuse_train.measure(small=True, only="depth"))


def test_what_fails_is_left_out_and_named():
    notes = Notes(math.inf)

    def fail():
        raise RuntimeError("no such thing\nand more")

    assert notes.attempt("made", lambda: fail()) is None
    assert notes.attempt("run", lambda: fail) is None
    assert notes.taken() == [f"{what}: left out, RuntimeError: no such thing" for what in ("made", "run")]
    assert notes.taken() == []


def test_nothing_begins_when_time_is_up(without_effdet):
    found = list(gpu_inference.measure(small=True, minutes=-1))
    assert found == [f"{case}: left out, no time was left" for case in gpu_inference.SMALL]
    assert not Notes(math.inf).late("that")


def test_cases_are_chosen_by_how_they_begin(monkeypatch):
    monkeypatch.setattr(gpu_inference, "time_case", lambda case, *others, **options: [Row("time", str(case))])
    (row,) = gpu_inference.measure(small=True, only="d-4")
    assert row.name == "d-4, 2 modalities, batch 2"
    with pytest.raises(UserError, match="only: 'd9' begins no case"):
        next(gpu_inference.measure(small=True, only="d9"))


def test_every_size_has_a_turn_before_most_of_what_is_compiled():
    names = [str(case) for case in gpu_inference.cases() if not case.compiled]
    assert len(names) == len(set(names))
    assert names[0] == "d0, 1 modality, batch 1"
    order = [case.size if not case.compiled else "compiled" for case in gpu_inference.cases()]
    assert list(dict.fromkeys(order)) == ["d0", "d1", "d2", "d3", "d4", "compiled"]


def test_what_was_found_is_kept_when_a_later_case_fails(tmp_path, monkeypatch):
    def failing(case, *others, **options):
        if case.size == "d-4":
            raise RuntimeError("the device is gone")
        return [Row("time", str(case))]

    monkeypatch.setattr(gpu_inference, "time_case", failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        main(["gpu_inference", "--small", "--threads", "1", "--results", str(tmp_path)])
    assert [row["name"] for row in rows_of(tmp_path)[0]["rows"]] == ["d0, 1 modality, batch 1"]


def test_outputs_that_differ_are_not_timed():
    logits = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    gpu_inference.check("same", logits.bfloat16().float(), logits)
    with pytest.raises(AssertionError, match="other: logits"):
        gpu_inference.check("other", logits.flip(0), logits)


def test_losses_that_differ_are_not_timed(monkeypatch):
    plain = gpu_training.sides

    def doubled(*arguments, **options):
        (name, (network, losses)), *_ = plain(*arguments, **options).items()
        return {name: (network, losses), "twice": (network, lambda: losses() * 2)}

    monkeypatch.setattr(gpu_training, "sides", doubled)
    row, note = gpu_training.measure(small=True, size="d0", side=128, batch=2)
    assert row.name == "effdet, eager"
    assert note.startswith("twice: left out, AssertionError")


def test_busy_time_counts_what_overlaps_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["gpu_inference", "gpu_training", "mmfuse_train"])
def test_a_gpu_is_asked_for(name, tmp_path):
    with pytest.raises(UserError, match="device: no CUDA device was found"):
        main([name, "--threads", "1", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_every_way_runs_on_a_gpu():
    notes = Notes(math.inf)
    with torch.no_grad():
        sides = {name: run for how in (False, True) for name, run in ways(Case("d-4", 2, 2, 128, how), notes).items()}
    assert notes.lines == []
    names = ("eager", "folded", "compiled", "folded, branches on streams")
    assert {f"{name}, graph" for name in names} <= sides.keys()
    assert gpu.kernels(sides["folded, graph"])[0] > 10
