import inspect
import json
import time
from importlib.metadata import PackageNotFoundError
from itertools import count

import numpy as np
import pytest
import torch

import mmfuse
from benchmarks import forward, growth, loader, losses, postprocess, results, training
from benchmarks.__main__ import MODULES, main
from benchmarks.results import Bar, Row
from benchmarks.side_by_side import alternate, fastest, median, side_by_side
from mmfuse.errors import UserError
from mmfuse.model.fusion import FUSIONS
from mmfuse.recipes import DataRecipe


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


def test_the_interval_holds_the_median_and_closes_on_equal_rounds():
    middle, low, high = median(np.array([1.0, 5.0, 2.0, 3.0, 4.0]))
    assert (middle, low <= 3 <= high, low < high) == (3, True, True)
    assert median(np.full(3, 2.0)) == (2, 2, 2)


def test_the_fastest_is_the_one_with_the_best_round(monkeypatch):
    clock, calls = [0.0], count()

    def uneven():
        clock[0] += 1 if next(calls) == 2 else 9

    def even():
        clock[0] += 2

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert fastest({"even": even, "uneven": uneven}) == "uneven"
    assert alternate({"even": even}, 2)["even"].tolist() == [2, 2]


def run(tmp_path, name, *options):
    """Runs a benchmark and returns its result as it was written."""
    main([name, *options, "--threads", "1", "--results", str(tmp_path)])
    return json.loads((tmp_path / f"{name}.json").read_text())


def names(result, measure):
    return [row["name"] for row in result["rows"] if row["measure"] == measure]


def test_without_a_name_all_benchmarks_are_listed(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(f"    {name}" in text for name in ("tables", *MODULES))


def test_a_result_says_how_it_was_made_and_is_printed_as_a_table(tmp_path, capsys):
    result = run(tmp_path, "fusions", "--size", "d-4", "--side", "128", "--rounds", "2")
    assert result["command"] == "python -m benchmarks fusions --rounds 2 --size d-4 --side 128 --threads 1"
    assert result["rounds"] == 2
    assert result["hardware"].keys() == {"cpu", "cores", "threads", "device", "load"}
    assert result["hardware"]["threads"] == 1
    assert result["versions"].keys() == {"python", "mmfuse", "effdet", "timm", "torch", "torchvision"}
    assert capsys.readouterr().out == results.table(result)
    for measure in ("forward", "forward and backward"):
        assert sorted(names(result, measure)) == sorted((*FUSIONS, "fast again"))
        assert names(result, measure)[0] == "fast"


def test_the_benchmark_of_the_loader_runs_small(tmp_path):
    small = ("--images", "4", "--side", "64", "--batch-size", "2", "--workers", "0", "--rounds", "1")
    result = run(tmp_path, "loader", *small)
    assert names(result, "time") == ["PIL + transforms.v2", "PIL + transforms.v2, uint8", "mmfuse", "mmfuse, cached"]
    assert {row["unit"] for row in result["rows"]} == {"samples / s"}


def test_the_loaders_that_are_compared_give_alike_samples(tmp_path):
    records = loader.make_pairs(tmp_path, 2)
    plain = loader.plain_loader(records, DataRecipe(workers=0), 64, 2, as_float=False)
    ours = loader.our_loader(records, DataRecipe(workers=0), 64, 2)
    (theirs,), (batch,) = plain, ours.epoch(0)
    for m, image in batch.images.items():
        assert theirs[m].shape == image.shape
        assert theirs[m].dtype == image.dtype == torch.uint8
    assert all(boxes.shape[1] == 4 for boxes in (*theirs["boxes"], *batch.targets.boxes))


WAYS = ["effdet", "mmfuse", "mmfuse again"]
SMALL = ("--side", "128", "--batch", "2", "--classes", "7", "--rounds", "2")


@pytest.mark.parametrize(("name", "counted"), [("losses", ["bytes written"]), ("postprocess", [])])
def test_the_benchmarks_beside_effdet_run_small(tmp_path, name, counted):
    result = run(tmp_path, name, *SMALL)
    assert {row["measure"] for row in result["rows"]} == {"time", *counted}
    for measure in ("time", *counted):
        assert names(result, measure) == WAYS
    assert result["rows"][0]["ratio"] == 1
    assert [row["name"] for row in result["rows"] if row["bar"]] == ["mmfuse"] * (1 + len(counted))


def test_the_benchmark_of_forward_runs_small(tmp_path):
    result = run(tmp_path, "forward", *SMALL)
    assert names(result, "time") == ["effdet", "mmfuse", "mmfuse, folded", "mmfuse again"]
    assert names(result, "ATen calls") == ["effdet", "mmfuse", "mmfuse, folded"]
    assert {row["layout"] for row in result["rows"] if row["measure"] == "time"} <= {"contiguous", "channels last"}
    bars = {
        (row["measure"], row["name"]): (row["bar"]["must"], row["bar"]["aim"]) for row in result["rows"] if row["bar"]
    }
    assert bars == {
        ("time", "mmfuse"): (1.0, 0.85),
        ("time", "mmfuse, folded"): (0.8, 0.65),
        ("ATen calls", "mmfuse"): (0.6, None),
        ("ATen calls", "mmfuse, folded"): (0.35, None),
    }


@pytest.mark.long
def test_the_benchmark_of_the_exported_detector_runs_small(tmp_path):
    result = run(tmp_path, "exported", "--side", "128", "--classes", "7", "--rounds", "2")
    assert names(result, "time") == ["effdet", "mmfuse, folded", "mmfuse, exported", "mmfuse, exported, again"]
    (bar,) = (row["bar"] for row in result["rows"] if row["bar"])
    assert (bar["must"], bar["aim"]) == (0.42, 0.36)


def test_outputs_that_differ_are_not_timed():
    found = forward.sides("d0", 128, 1, 3)
    forward.check(found, 3)
    logits, codes = found["mmfuse"]["contiguous"]()
    for other in ((logits + 2e-4, codes), (logits, codes + 2e-4)):
        with pytest.raises(AssertionError, match="mmfuse, contiguous"):
            forward.check({"effdet": found["effdet"], "mmfuse": {"contiguous": lambda other=other: other}}, 3)


def test_a_size_that_effdet_lacks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^size: 'd-4' is not one of effdet's; use one of d0, "):
        run(tmp_path, "forward", "--size", "d-4")


def test_the_benchmark_of_training_runs_small(tmp_path, monkeypatch):
    def built(peak, name, *problem):
        inspect.signature(training.MAKERS[name]).bind(*problem)
        return {training.tensor_peak: 60, training.resident_peak: 70}[peak] * 2**20

    monkeypatch.setattr(training, "in_own_process", built)
    result = run(
        tmp_path, "training", "--side", "128", "--batch", "2", "--classes", "3", "--objects", "2", "--rounds", "1"
    )
    assert names(result, "time") == ["effdet", "mmfuse", "mmfuse again"]
    for measure, value in (("peak of tensors", 60), ("peak of the process", 70)):
        assert names(result, measure) == ["effdet", "mmfuse"]
        assert all(row["value"] == value for row in result["rows"] if row["measure"] == measure)
    assert {row["measure"] for row in result["rows"] if row["bar"]} == {"time", "peak of tensors"}


def test_training_steps_with_other_losses_are_not_timed():
    problem = ("d0", 128, 2, 3, 2, "contiguous")
    steps = {name: {"contiguous": make(*problem)} for name, make in training.MAKERS.items()}
    training.check(steps)
    ours = steps["mmfuse"]["contiguous"]
    with pytest.raises(AssertionError, match="mmfuse, contiguous, step 0"):
        training.check(steps | {"mmfuse": {"contiguous": lambda: ours() * 1.01}})


def test_the_peak_of_tensors_counts_what_backward_needs(monkeypatch):
    def made(length):
        def step():
            leaf = torch.zeros(length, requires_grad=True)
            (leaf * 1.0).exp().exp().sum().backward()

        return step

    monkeypatch.setitem(training.MAKERS, "made", made)
    peak = training.tensor_peak("made", 1_000_000)
    assert 4 <= peak / 4_000_000 < 7
    assert training.resident_peak("made", 10) > 50 * 2**20


def test_another_process_has_as_many_threads():
    assert training.in_own_process(torch.get_num_threads) == torch.get_num_threads()


def test_the_benchmark_of_growth_runs_small(tmp_path):
    small = ("--size", "d-4", "--side", "128", "--rounds", "2", "--largest", "512")
    result = run(tmp_path, "growth", *small)
    for form in ("eager", "folded"):
        assert names(result, form) == [
            "backbone / one modality",
            "two modalities / two single detectors",
            "third modality / backbone",
            "one of two missing / both",
            "exponent of time over pixels, 256 to 512 px",
            "detect, 1 objects / 1",
            "detect, 10 objects / 1",
            "detect, 100 objects / 1",
            "detect, 500 objects / 1",
        ]
    rows = {row["name"]: row for row in result["rows"] if row["measure"] == "eager"}
    share = rows["backbone / one modality"]["ratio"]
    assert rows["two modalities / two single detectors"]["bar"]["must"] == pytest.approx((1 + share) / 2 + 0.03)
    assert rows["one of two missing / both"]["bar"]["must"] == pytest.approx(1 / (1 + share) + 0.03)


def test_the_exponent_is_that_of_the_times(monkeypatch):
    (detector, *_) = growth._detectors("d-4", 3)
    monkeypatch.setattr(growth, "alternate", lambda ways, rounds: {k: np.full(rounds, int(k) ** 2.4) for k in ways})
    (row,) = growth.pixels("eager", detector, [256, 512], 3)
    assert (row.ratio, row.low, row.high) == pytest.approx((1.2, 1.2, 1.2))


def test_outputs_with_other_numbers_of_objects_are_not_timed(monkeypatch):
    (detector, *_) = growth._detectors("d-4", 9)
    real = growth.outputs_of
    monkeypatch.setattr(growth, "outputs_of", lambda detector, side, objects: real(detector, side, min(objects, 99)))
    with pytest.raises(AssertionError, match="99 detections on outputs with 100 objects"):
        growth.objects("eager", detector, 128, 1)


def test_losses_that_differ_are_not_timed():
    given = losses.problem("d0", 128, 1, 3)
    found = losses.sides(given, 2)
    losses.check(given, found)
    total, *others, gradient = found["mmfuse"]()
    with pytest.raises(AssertionError):
        losses.check(given, found | {"mmfuse": lambda: (total * 1.001, *others, gradient)})
    with pytest.raises(AssertionError):
        losses.check(given, found | {"mmfuse": lambda: (total, *others, gradient * 1.001 + 1e-6)})


def test_detections_that_differ_are_not_timed():
    found = postprocess.sides(postprocess.problem("d0", 128, 1, 3))
    postprocess.check(found)
    (one,) = found["effdet"]()
    with pytest.raises(AssertionError):
        postprocess.check(found | {"mmfuse": lambda: [one.rescale(0.999)]})
    with pytest.raises(AssertionError):
        postprocess.check(found | {"mmfuse": lambda: [one[:99]]})


RESULT = {
    "command": "python -m benchmarks it --rounds 7",
    "date": "2026-01-02",
    "hardware": {"cpu": "a CPU", "cores": 2, "threads": 2, "device": None, "load": 0.25},
    "versions": {"torch": "2.10.0", "effdet": "0.4.1"},
}


def result_of(*rows):
    return RESULT | {"rows": [results.asdict(row) for row in rows]}


def test_a_table_follows_from_the_numbers():
    text = results.table(
        result_of(
            Row("time", "a", 120.4, "ms", 1.0, 1.0, 1.0),
            Row("time", "b", 60.2, "ms", 0.5, 0.4, 0.6, Bar(0.8, 0.65)),
            Row("time", "c", 84, "ms", 0.7, 0.6, 0.8, Bar(0.8, 0.65)),
            Row("time", "d", 1.234, "ms", 1.0, 0.9, 1.1, Bar(0.8, 0.65)),
            Row("calls", "e", 12, "calls", 0.801, bar=Bar(0.8)),
        )
    )
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["measure", "side", "value", "ratio", "95 % interval", "must", "aim", "reached"]
    assert cells[2] == ["time", "a", "120 ms", "1.000", "[1.000, 1.000]", "–", "–", "–"]
    assert cells[3][-3:] == ["0.800", "0.650", "aim"]
    assert cells[4][-1] == "met"
    assert cells[5][2] == "1.23 ms"
    assert cells[5][-1] == "missed"
    assert cells[6] == ["calls", "e", "12 calls", "0.801", "–", "0.800", "–", "missed"]
    assert lines[-1] == (
        "`python -m benchmarks it --rounds 7`; a CPU, 2 cores, 2 threads, load 0.2; "
        "torch 2.10.0, effdet 0.4.1; 2026-01-02."
    )


def test_results_are_written_as_they_come(tmp_path):
    def found():
        yield Row("time", "a", 2, "ms", 1.0)
        (path,) = tmp_path.iterdir()
        assert [row["value"] for row in json.loads(path.read_text())["rows"]] == [2]
        yield "b: left out"
        yield Row("time", "a", 3, "ms", 1.0)

    options = {"small": True, "only": "d0, 1", "fast": False, "minutes": 2.0, "empty": ""}
    path = results.save("it", options, found(), tmp_path)
    result = json.loads(path.read_text())
    assert [row["value"] for row in result["rows"]] == [3]
    assert result["notes"] == ["b: left out"]
    assert result["command"] == "python -m benchmarks it --small --only 'd0, 1' --minutes 2.0"


def test_results_from_a_gpu_bear_its_name(tmp_path, monkeypatch):
    where = results.hardware() | {"device": "NVIDIA H200 (80 GB)"}
    monkeypatch.setattr(results, "hardware", lambda: where)
    assert results.save("it", {}, [Row("time", "a")], tmp_path).name == "it_nvidia_h200_80_gb.json"


def test_versions_are_told_of_a_package_that_is_not_installed(monkeypatch):
    def lacking(name):
        if name in ("mmfuse", "effdet"):
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(results, "version", lacking)
    found = results.versions()
    assert found["mmfuse"] == mmfuse.__version__
    assert found["torch"] == "1.2.3"
    assert "effdet" not in found


def test_ways_have_a_table_for_each_size():
    text = results.ways_table(
        result_of(
            Row("bandwidth", "copy", 4169, "GB/s"),
            Row("d0, batch 1: latency", "effdet", 20, "ms", 1.0),
            Row("d0, batch 1: kernels", "effdet", 1200, "kernels"),
            Row("d0, batch 1: latency", "ours", 1.0, "ms", 0.05),
            Row("d0, batch 9: throughput", "ours", 3035.2, "img/s", 0.8),
            Row("d1, batch 1: latency", "ours", 40, "ms", 1.0),
        )
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert cells[0] == ["d0", "batch 1: latency", "batch 9: throughput"]
    assert cells[2:4] == [["effdet", "1.000: 20 ms", "–"], ["ours", "0.050: 1 ms", "0.800: 3035 img/s"]]
    assert [cells[4], cells[6]] == [["d1", "batch 1: latency"], ["ours", "1.000: 40 ms"]]
    alone = results.ways_table(result_of(Row("step", "a", 2, "ms", 1.0), Row("memory", "a", 7, "MiB")))
    assert [cell.strip() for cell in alone.splitlines()[2].strip("|").split("|")] == ["a", "1.000: 2 ms", "7 MiB"]


def test_tables_replace_what_is_between_the_marks_and_nothing_else(tmp_path):
    page, text = (
        tmp_path / "page.md",
        "# Page\n\n<!-- table: {} -->\n{}<!-- end -->\n\nText.\n<!-- table: {} -->\n{}<!-- end -->\nEnd.\n",
    )
    page.write_text(text.format("one", "old\n", "two", ""))
    tables = {}
    for name in ("one", "two"):
        tables[name] = result_of(Row("time", f"side of {name}", 1, "ms", 1.0))
        (tmp_path / f"{name}.json").write_text(json.dumps(tables[name]))
    main(["tables", "--page", str(page), "--results", str(tmp_path)])
    wanted = text.format(*(x for name in tables for x in (name, "\n" + results.table(tables[name]) + "\n")))
    assert page.read_text() == wanted
    results.rewrite(page, tmp_path)
    assert page.read_text() == wanted


def test_a_table_without_result_or_end_leaves_the_page_as_it_was(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "one.json").write_text(json.dumps(result_of(Row("time", "a", 1, "ms", 1.0))))
    for text, message in (
        (
            "<!-- table: one -->\n<!-- end -->\n<!-- table: two -->\n<!-- end -->\n",
            "table two needs .*run python -m benchmarks two",
        ),
        ("<!-- table: one -->\n<!-- table: one -->\n<!-- end -->\n", "2 tables begin, but not each ends"),
    ):
        page.write_text(text)
        with pytest.raises(UserError, match=message):
            results.rewrite(page, tmp_path)
        assert page.read_text() == text


def test_every_table_of_the_page_is_a_benchmark_s():
    text = results.PAGE.read_text()
    for name in ("forward", "training", "losses", "postprocess", "exported", "growth", "epoch"):
        assert f"<!-- table: {name} -->" in text
        assert name in MODULES


def test_the_page_has_the_tables_of_the_results_as_they_are(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(results.PAGE.read_text())
    results.rewrite(page)
    assert page.read_text() == results.PAGE.read_text(), "run .venv/bin/python -m benchmarks tables"
