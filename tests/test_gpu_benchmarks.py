"""The benchmarks for a GPU run small on any device, with effdet or without; what they measure is computed right."""

import json
import sys
import time

import pytest
import torch

from benchmarks import gpu_inference, gpu_training
from benchmarks.gpu_inference import Case, Notes, covered, ways
from mmfuse.errors import UserError


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
    gpu_inference.main(["--small", "--results", str(tmp_path)])
    result, rows = rows_of(tmp_path)
    assert result["command"] == "python -m benchmarks.gpu_inference --small"
    for measure in ("d-4, 1 modality, batch 1: latency", "d-4, 2 modalities, batch 2: throughput"):
        for name in ("eager", "eager, with NMS", "fused", "fused, with NMS"):
            assert rows[measure, name]["value"] > 0
    assert "fused, with NMS" in capsys.readouterr().out


def test_inference_says_that_effdet_is_missing(without_effdet):
    notes = Notes(time.monotonic())
    reference, detector = gpu_inference.models("d0", 128, 1, notes)
    assert reference is None
    assert detector.modalities == ("sensor_0",)
    assert notes.lines[0].startswith("effdet: left out")


def test_inference_runs_effdet_with_the_same_weights():
    with torch.no_grad():
        sides = ways(Case("d0", 1, 1, 128), Notes(time.monotonic() + 60))
        theirs, ours = (sides[name]() for name in ("effdet", "eager"))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_training_runs_small_beside_effdet(tmp_path, capsys):
    gpu_training.main(["--small", "--side", "128", "--batch", "2", "--results", str(tmp_path)])
    result, rows = rows_of(tmp_path)
    assert result["notes"] == []
    assert rows["full step", "effdet, eager"]["ratio"] == 1
    assert rows["full step", "mmfuse, eager"]["value"] > 0
    assert result["command"] == "python -m benchmarks.gpu_training --side 128 --batch 2 --small"
    assert "full step" in capsys.readouterr().out


def test_training_runs_small_without_effdet(without_effdet):
    rows, notes = gpu_training.measure(small=True, size="d0", side=128, batch=2)
    assert [row.name for row in rows] == ["mmfuse, eager"]
    assert len(notes) == 1
    assert notes[0].startswith("effdet: left out")


def test_what_fails_is_left_out_and_named():
    notes = Notes(time.monotonic() + 60)

    def fail():
        raise RuntimeError("no such thing\nand more")

    assert notes.attempt("made", lambda: fail()) is None
    assert notes.attempt("run", lambda: fail) is None
    assert notes.lines == ["made: left out, RuntimeError: no such thing", "run: left out, RuntimeError: no such thing"]


def test_nothing_begins_when_time_is_up(without_effdet):
    assert gpu_inference.measure(small=True, minutes=0)[0] == []
    notes = Notes(time.monotonic() - 1)
    assert notes.late("this")
    assert notes.lines == ["this: left out, no time was left"]
    assert not Notes(time.monotonic() + 60).late("that")


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
    rows, notes = gpu_training.measure(small=True, size="d0", side=128, batch=2)
    assert [row.name for row in rows] == ["effdet, eager"]
    assert notes[-1].startswith("twice: left out, AssertionError")


def test_busy_time_counts_what_overlaps_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("module", [gpu_inference, gpu_training])
def test_a_gpu_is_asked_for(module, tmp_path):
    with pytest.raises(UserError, match="device: no CUDA device was found"):
        module.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_every_way_runs_on_a_gpu():
    notes = Notes(time.monotonic() + 600)
    with torch.no_grad():
        sides = ways(Case("d-4", 2, 2, 128, compiled=True), notes)
    assert notes.lines == []
    names = ("eager", "fused", "compiled", "fused, branches on streams")
    assert {f"{name}, graph" for name in names} <= sides.keys()
    assert gpu_inference.kernels(sides["fused, graph"])[0] > 10
