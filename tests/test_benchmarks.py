import re
import time

import pytest

from benchmarks import fusions
from benchmarks.side_by_side import side_by_side
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
