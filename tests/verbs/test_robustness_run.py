import json
from dataclasses import asdict

import pytest

from mmfuse.cli import main
from mmfuse.errors import UserError
from mmfuse.evaluation.results import Clean
from mmfuse.evaluation.robustness import Trial
from mmfuse.evaluation.score import evaluate
from mmfuse.run import Run
from mmfuse.training.loop import train
from mmfuse.verbs.robustness import robustness


@pytest.fixture(scope="module")
def trained(paired_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(
        f"card: {paired_set}\nmodalities: [rgb, thermal]\nmodel: {{size: d-4}}\n"
        "data: {input_size: [96, 128], workers: 0, scale_jitter: [1, 1], hflip: 0}\n"
        "train: {epochs: 6, batch_size: 4, lr: 0.4, ema_decay: 0, evaluate_every: 6}\n"
    )
    return train(folder / "recipe.yaml", folder=folder / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, without what other tests found."""
    for name in ("config.yaml", "best.safetensors", "metrics.csv"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    return Run(tmp_path)


@pytest.fixture
def counted(monkeypatch):
    """The corruption, modality and severity of each time that images are changed."""
    calls = []
    changed = Trial._changed

    def count(self, corruption, modality, severity, *rest):
        calls.append((corruption.name, modality, severity))
        return changed(self, corruption, modality, severity, *rest)

    monkeypatch.setattr(Trial, "_changed", count)
    return calls


def measured(run, **options):
    return robustness(run, **{"rounds": 5, **options})


def read(run, name="robustness-test.json"):
    return json.loads((run.folder / name).read_text())


def test_curves_start_at_what_evaluate_says_and_end_without_the_sensor(run):
    result = measured(run, corruptions=["missing"], split="train")
    clean = evaluate(run, split="train").scores
    without = evaluate(run, split="train", without=["rgb"]).scores
    assert len({0.0, clean.ap, without.ap}) == 3
    assert result.clean == Clean(clean.ap, clean.ap50)
    curve = result.curves[0]
    assert (curve.corruption, curve.modality) == ("missing", "rgb")
    assert (curve.ap[0], curve.ap[5]) == (clean.ap, without.ap)
    assert (curve.ap50[0], curve.ap50[5]) == (clean.ap50, without.ap50)
    assert [c.modality for c in result.curves] == ["rgb", "thermal"]
    assert (result.faults, result.verdict) == ((), None)  # a sensor that is missing doesn't lie
    assert json.loads(json.dumps(asdict(result))) == read(run, "robustness-train.json")


def test_each_fault_stands_beside_the_sensor_missing_from_the_images_that_it_strikes(run):
    result = measured(run, corruptions=["missing", "frozen"], split="train")
    tried = [("frozen", m, s) for m in ("rgb", "thermal") for s in range(1, 6)]
    assert [(f.corruption, f.modality, f.severity) for f in result.faults] == tried
    missing = (*result.curves[0].ap[1:], *result.curves[1].ap[1:])
    for f, without in zip(result.faults, missing, strict=True):
        assert f.ap_without == pytest.approx((without,))
        assert f.difference.mean == pytest.approx(f.ap[0] - without)
        assert f.difference.rounds == 5
    assert result.verdict.verdict in ("no", "not shown")


def test_each_suiting_modality_is_corrupted_alone_at_five_severities(run, counted):
    measured(run, corruptions=["agc", "shift", "over_exposure"])
    wanted = [("shift", "rgb"), ("shift", "thermal"), ("over_exposure", "rgb"), ("agc", "thermal")]
    assert counted == [(*pair, severity) for pair in wanted for severity in range(1, 6)]
    assert [(c["corruption"], c["modality"]) for c in read(run)["curves"]] == wanted
    counted.clear()
    measured(run, modalities=["thermal"], corruptions=["shift", "blur"], severities=[3], split="val")
    assert counted == [(name, "thermal", 3) for name in ("shift", "blur")]
    assert read(run, "robustness-val.json")["split"] == "val"


def test_curves_that_are_there_are_kept_and_not_scored_again(run, counted):
    first = measured(run, corruptions=["fog"], severities=[2, 5])
    measured(run, corruptions=["fog"], severities=[2, 5])
    assert len(counted) == 4
    both = measured(run, corruptions=["blur"], modalities=["rgb"], severities=[2, 5])
    assert len(counted) == 6
    assert [(c.corruption, c.modality) for c in both.curves] == [
        ("blur", "rgb"),
        ("fog", "rgb"),
        ("fog", "thermal"),
    ]
    assert both.curves[1:] == first.curves


def test_severities_are_scored_when_they_are_asked_for(run, counted):
    first = measured(run, corruptions=["fog"], modalities=["rgb"], severities=[5, 2])
    assert counted == [("fog", "rgb", 2), ("fog", "rgb", 5)]
    assert [ap is None for ap in first.curves[0].ap] == [False, True, False, True, True, False]
    assert first.curves[0].area_ap is None
    assert [f.severity for f in first.faults] == [2, 5]
    whole = measured(run, corruptions=["fog"], modalities=["rgb"])
    assert [severity for *_, severity in counted] == [2, 5, 1, 3, 4]
    assert whole.faults[1::3] == first.faults
    assert (whole.curves[0].ap[2], whole.curves[0].ap[5]) == (first.curves[0].ap[2], first.curves[0].ap[5])


def test_a_run_of_one_modality_has_curves_and_no_verdict(paired_set, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"card: {paired_set}\nmodalities: [rgb]\nmodel: {{size: d-4}}\ndata: {{input_size: [96, 128], workers: 0}}\n"
        "train: {epochs: 1, batch_size: 4}\n"
    )
    alone = train(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    result = measured(alone, corruptions=["missing", "crossover", "lens_dirt"])
    assert [c.corruption for c in result.curves] == ["missing", "lens_dirt"]
    assert result.curves[0].ap[5] == 0
    assert (result.faults, result.verdict) == ((), None)


@pytest.mark.parametrize("change", ["seed", "limit", "detector", "levels", "rounds"])
def test_curves_of_something_else_are_scored_again(run, counted, change):
    asked = {"corruptions": ["fog"], "modalities": ["rgb"], "severities": [1]}
    measured(run, **asked)
    options = {"seed": {"seed": 1}, "limit": {"limit": 3}, "rounds": {"rounds": 6}}.get(change, {})
    if change == "detector":
        _touch(run)
    if change == "levels":
        stored = read(run)
        stored["curves"][0]["levels"][0] = 0.9
        (run.folder / "robustness-test.json").write_text(json.dumps(stored))
    measured(run, **asked, **options)
    assert len(counted) == 2


def _touch(run):
    """Changes a weight of the detector a little."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(run.best, "pt") as file:
        tensors, notes = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(k for k, v in tensors.items() if v.is_floating_point() and v.ndim == 4)
    tensors[name] = tensors[name] * 1.001
    save_file(tensors, run.best, notes)


def test_what_was_whole_survives_an_interruption(run, monkeypatch):
    changed = Trial._changed

    def interrupted(self, corruption, modality, severity, *rest):
        if (corruption.name, severity) == ("fog", 3):
            raise KeyboardInterrupt
        return changed(self, corruption, modality, severity, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "_changed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured(run, corruptions=["blur", "fog"], modalities=["rgb"])
    stored = [[c["corruption"], *(ap is not None for ap in c["ap"])] for c in read(run)["curves"]]
    assert stored == [["blur", *[True] * 6], ["fog", True, True, True, False, False, False]]
    result = measured(run, corruptions=["blur", "fog"], modalities=["rgb"])
    assert [c.corruption for c in result.curves] == ["blur", "fog"]
    assert None not in result.curves[1].ap
    assert len(result.faults) == 10


def test_a_limit_spreads_over_the_split_and_is_clean_at_severity_0(run, counted):
    result = measured(run, corruptions=["fog"], modalities=["rgb"], limit=2)
    assert result.images == 2
    whole = measured(run, corruptions=["fog"], modalities=["rgb"], limit=99)
    assert whole.images == 4
    assert whole.digest == read(run, "test.json")["digest"] != result.digest
    assert result.curves[0].ap[0] == result.clean.ap


def test_the_verb_prints_and_writes_the_page_and_the_picture(run, capsys):
    words = ["robustness", str(run.folder), "--corruption", "shift", "--modality", "thermal", "--severity", "3"]
    assert main(words) == 0
    text = capsys.readouterr().out
    page = (run.folder / "robustness-test.md").read_text()
    assert text.strip() == page.strip()
    assert "| shift      | thermal |" in page
    assert (run.folder / "robustness-test.png").read_bytes().startswith(b"\x89PNG")
    assert "AP as a sensor fails" in (run.folder / "report.html").read_text()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["termal"]}, "modality: 'termal' is not a known modality of this run; did you mean 'thermal'?"),
        ({"corruptions": ["blurr"]}, "corruption: 'blurr' is not a known corruption; did you mean 'blur'?"),
        ({"corruptions": ["agc"], "modalities": ["rgb"]}, "corruption: agc suits none of rgb; choose others"),
        ({"limit": 0}, "limit: 0 is not allowed; use at least 1"),
        ({"rounds": 0}, "rounds: 0 is not allowed; use at least 1"),
        ({"severities": [0]}, "severity: 0 is not allowed; use whole numbers from 1 to 5"),
        ({"split": "tset"}, "tset"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, options, message):
    with pytest.raises(UserError) as caught:
        measured(run, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(run.folder.glob("robustness*"))


def test_no_run_and_a_broken_file_are_one_line(run, tmp_path, capsys):
    assert main(["robustness", str(tmp_path / "nowhere")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    path = run.folder / "robustness-test.json"
    measured(run, corruptions=["fog"], modalities=["rgb"])
    good = read(run)
    for text in ("{", "[]", json.dumps(good | {"curves": [{"levels": 1}]})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"robustness-test.json: .* remove it"):
            measured(run, corruptions=["fog"])
        assert path.read_text() == text
