import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mmfuse
from mmfuse.cli import main
from mmfuse.errors import UserError
from mmfuse.evaluation.score import evaluate
from mmfuse.model import checkpoint
from mmfuse.run import Run
from mmfuse.verbs.compare import compare
from mmfuse.verbs.publish import publish
from mmfuse.verbs.robustness import robustness

CLASSES = {"person": "<img src=x onerror=alert(1)>", "car": "a | `b`", "bicycle": "![c](http://e.example/c.png)"}


@pytest.fixture(scope="module")
def made(paired_set, tmp_path_factory):
    """A folder with a comparison of two runs of a card whose class names and licence are markup."""
    folder = tmp_path_factory.mktemp("made")
    card = yaml.safe_load(paired_set.read_text()) | {
        "root": str(paired_set.parent), "classes": list(CLASSES.values()), "labels": {"aliases": CLASSES},
        "licence": "Ours, <script>alert(1)</script>\n# not a heading", "source": "a rig",
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    for modalities in (["rgb"], ["rgb", "thermal"]):
        recipe = {
            "card": "card.yaml", "modalities": modalities, "model": {"size": "d-4"}, "doubt": "off",
            "data": {"input_size": [96, 128], "workers": 0}, "train": {"epochs": 1, "batch_size": 4, "device": "cpu"},
        }  # fmt: skip
        (folder / f"{'_'.join(modalities)}.yaml").write_text(yaml.safe_dump(recipe))
    names = [folder / f"{name}.yaml" for name in ("rgb", "rgb_thermal")]
    compare(names, corruptions=["fog"], severities=[5], rounds=5, out=folder / "report")
    run = folder / "report" / "runs" / "rgb_thermal-seed0"
    robustness(run, corruptions=["fog"], severities=[5], rounds=5)
    return folder / "report", Run(run)


@pytest.fixture
def run(made, tmp_path):
    """A copy of the fused run, to be changed."""
    shutil.copytree(made[1].folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "streets"
    assert publish(made[1], out, comparison=made[0]) == str(out)
    return (out / "README.md").read_text()


def section(page, title):
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_page_tells_what_was_measured_and_nothing_of_this_machine(made, page):
    report, run = made
    comparison = json.loads((report / "comparison.json").read_text())
    fused = next(model for model in comparison["models"] if model["name"] == "rgb_thermal")
    scores = json.loads((run.folder / "test.json").read_text())
    without = json.loads((run.folder / "test-without-rgb.json").read_text())
    digests = json.loads((run.folder / "environment.json").read_text())["splits"] | {"test": scores["digest"]}
    assert sorted(digests) == ["test", "train", "val"]
    for split, digest in digests.items():
        assert f"- split {split}: digest {digest}" in page
    own = section(page, "How well it finds them")
    assert re.search(rf"test +\| rgb \+ thermal \| +{scores['scores']['ap']:.3f} ", own)
    assert re.search(rf"test +\| thermal +\| +{without['scores']['ap']:.3f} ", own)
    ahead = fused["difference"]
    assert f"{ahead['mean']:+.3f} [{ahead['low']:+.3f}, {ahead['high']:+.3f}]" in page
    assert comparison["verdicts"][0]["text"] in page
    for title in ("When sensors are lost", "When sensors lie"):
        assert f"### {title}\n" in page
    assert "## rgb_thermal: robustness on the test split" in page
    assert "a rig" in page
    for place in (str(report.parent), str(Path.home()), str(Path.cwd())):
        assert place not in page


def test_the_page_says_units_and_what_training_saw(page, made):
    sensors = checkpoint.load(made[1].best).sensors
    seen = sensors["thermal"].seen
    table = section(page, "What it sees")
    assert re.search(rf"thermal +\| +1 \| +\w+ \| +– \| +{seen[0]:g} to {seen[1]:g} \|", table)
    assert "at 96 x 128 pixels" in table


def test_depth_has_its_unit_on_the_page():
    from mmfuse.report.model_card import _unit
    from mmfuse.sensor import Sensor

    assert _unit(Sensor(1, "inverse_depth", unit=0.001)) == "0.001 m"
    assert _unit(Sensor(1, "inverse_depth", disparity=(35130, 1091.5))) == "disparity: 35130 / (count - 1091.5) m"
    assert _unit(Sensor(1, "celsius", unit=0.04, range=(0, 60))) == "0.04 K"
    assert _unit(Sensor(3)) is None


def test_markup_of_others_is_shown_as_it_is(page):
    assert "<img" not in page
    assert "<script" not in page
    assert "](http" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "a \\| \\`b\\`" in page
    assert "\n# not a heading" not in page
    head = yaml.safe_load(page.split("---\n")[1])
    assert head == {
        "library_name": "mmfuse", "pipeline_tag": "object-detection", "tags": ["mmfuse", "rgb", "thermal"]
    }  # fmt: skip


def test_the_five_lines_of_the_page_run(made, page, paired_set, tmp_path, monkeypatch):
    publish(made[1], tmp_path / "path" / "to" / "this" / "folder")
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((paired_set.parent / "rgb").rglob("*.jpg")), "rgb.png")
    shutil.copy(next((paired_set.parent / "thermal").rglob("*.png")), "thermal.png")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(block.splitlines()) <= 5
    names: dict[str, object] = {}
    exec(block, names)
    assert names["found"].boxes.shape[1] == 4


def test_what_is_pushed_is_loaded_and_predicts(made, hub, paired_set, tmp_path, capsys):
    _, run = made
    assert main(["publish", str(run.folder), "--to", "hub:me/streets"]) == 0
    name = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch("hub:me/streets@[0-9a-f]{40}", name)
    own, loaded = (checkpoint.load(place).state_dict() for place in (run.best, name))
    assert all(torch.equal(own[key], loaded[key]) for key in own)
    page = hub.repositories["me/streets"][0][1]["README.md"].decode()
    assert 'mmfuse.load("hub:me/streets")' in page
    images = [str(next((paired_set.parent / m).rglob(f"*.{s}"))) for m, s in (("rgb", "jpg"), ("thermal", "png"))]
    words = ["predict", name, "--rgb", images[0], "--thermal", images[1], "--threshold", "0", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["objects"]


def test_the_address_of_the_hub_is_the_environment_s(hub, tmp_path):
    """In a process of its own, as a user sets it."""
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(mmfuse.__file__).parents[1])
    words = [sys.executable, "-m", "mmfuse", "predict", "hub:me/nothing", "--rgb", "a.png"]
    asked = subprocess.run(words, env=environment, capture_output=True, text=True)
    told = "mmfuse: hub:me/nothing: there is nothing of that name on the Hub; check the name"
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith(told)
    assert asked.stderr.count("\n") == 1


def test_a_comparison_of_another_training_is_refused(made, run, tmp_path):
    report, _ = made
    (tmp_path / "other").mkdir()
    for name, values in (
        ("is not JSON", "{"),
        ("has none of the run", json.dumps(json.loads((report / "comparison.json").read_text()) | {"models": []})),
    ):
        (tmp_path / "other" / "comparison.json").write_text(values)
        with pytest.raises(UserError, match=r"comparison.json: (holds no comparison|isn't of .* as it is now)"):
            publish(run, tmp_path / name, comparison=tmp_path / "other")
    with pytest.raises(UserError, match=r"comparison.json: holds no comparison; give the folder"):
        publish(run, tmp_path / "x", comparison=tmp_path / "nowhere")
    torch.manual_seed(9)
    detector = mmfuse.create_detector(
        "d-4", {"rgb": 3, "thermal": 1}, classes=list(CLASSES.values()), input_size=(96, 128)
    )
    checkpoint.save_detector(run.best, detector, {"name": "rgb_thermal"})
    scores = json.loads((run.folder / "test.json").read_text())
    scores["scores"]["ap"] += 0.001
    (run.folder / "test.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=r"isn't of .*run as it is now; compare it anew, or leave"):
        publish(run, tmp_path / "x", comparison=report)
    assert not (tmp_path / "x").exists()
    (run.folder / "robustness-val.json").write_text('{"split": "val"}')
    with pytest.raises(UserError, match=r"robustness-val\.json: holds no robustness that can be read; remove it, or"):
        publish(run, tmp_path / "x")
    (run.folder / "robustness-val.json").unlink()
    assert not (tmp_path / "x").exists()
    publish(run, tmp_path / "x")
    assert "robustness on" not in (tmp_path / "x" / "README.md").read_text()  # that was another detector's


def test_a_run_whose_card_is_gone_and_that_was_never_scored_is_published(run, tmp_path):
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config | {"card": "/nowhere/card.yaml"}))
    for path in run.folder.glob("*.json"):
        path.unlink()
    publish(run, tmp_path / "x")
    page = (tmp_path / "x" / "README.md").read_text()
    assert "- its licence: not known; ask who made it" in page
    assert "How well" not in page


def test_soft_and_undoubted_scores_are_no_rows_of_their_own(run, tmp_path):
    evaluate(run, soft=True)
    publish(run, tmp_path / "x")
    assert len(re.findall(r"(?m)^\| test ", (tmp_path / "x" / "README.md").read_text())) == 3


@pytest.mark.parametrize(
    ("to", "options", "problem"),
    [
        ("folder", {"private": True}, "private: folder is a folder"),
        ("hub:me", {}, "hub:me: is not a name on the Hub"),
        ("hub:me/x@v1", {}, "hub:me/x@v1: a revision can't be chosen"),
    ],
)
def test_where_it_can_t_be_published_is_one_line(made, hub, to, options, problem):
    with pytest.raises(UserError, match=problem):
        publish(made[1], to, **options)
    assert hub.repositories == {}


def test_a_folder_without_a_run_or_best_is_one_line(run, tmp_path, capsys):
    run.best.unlink()
    for folder in (run.folder, tmp_path / "no"):
        assert main(["publish", str(folder), "--to", str(tmp_path / "x")]) == 2
        assert "best.safetensors: does not exist; train first" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
