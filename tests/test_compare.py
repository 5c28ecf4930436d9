import json
from pathlib import Path

import pytest
from PIL import Image

from mmfuse import compare as compare_module
from mmfuse.errors import UserError
from mmfuse.evaluate.significance import Difference
from mmfuse.predict import predict
from mmfuse.score import evaluate
from mmfuse.train.loop import train

compare = compare_module if callable(compare_module) else compare_module.compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture
def report(folder, recipe_file):
    recipes = [recipe_file("rgb"), recipe_file("thermal"), recipe_file("rgb", "thermal")]
    return compare(recipes, seeds=[0, 1], out=folder, rounds=20)


def test_recipes_are_trained_for_each_seed_and_set_in_one_table(report, folder):
    assert [model["name"] for model in report["models"]] == ["rgb", "thermal", "rgb_thermal"]
    assert all(model["seeds"] == [0, 1] and len(model["ap"]) == 2 for model in report["models"])
    assert json.loads((folder / "comparison.json").read_text()) == report
    assert report["card"] == "Synthetic streets"
    assert report["models"][2]["parameters"] > 1.5 * report["models"][0]["parameters"]
    text = (folder / "report.md").read_text()
    assert "better than the best single:" in text
    for picture in ("ap.png", "training.png", "shares.png", "gallery.png"):
        assert picture in text
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("low", "better"), [(0.01, True), (-0.01, False)])
def test_fused_is_better_only_above_every_single_one(low, better, report, folder, monkeypatch):
    bounds = iter([0.02, low] * 9)
    difference = lambda *a, **k: Difference(0.05, next(bounds), 0.09, 1)  # noqa: E731
    monkeypatch.setitem(compare.__globals__, "paired_bootstrap", difference)
    monkeypatch.setitem(compare.__globals__, "_pictures", lambda *a: None)
    names = ["rgb-seed0", "thermal-seed0", "rgb_thermal-seed0"]
    (verdict,) = compare([folder / "runs" / name for name in names], out=folder / "again")["verdicts"]
    assert verdict["model"] == "rgb_thermal"
    if better:
        assert verdict["better"] is True
    else:
        assert verdict["better"] is False
        assert "best single: no" in verdict["text"]


def test_what_cannot_be_compared_is_one_line(report, folder, tmp_path):
    rgb = folder / "runs" / "rgb-seed0"
    empty = tmp_path / "empty"
    empty.mkdir()
    for inputs, message in (
        ([rgb], "is one model"),
        ([rgb, rgb], "given twice"),
        ([empty], "neither a run nor recipes"),
    ):
        with pytest.raises(UserError, match=message):
            compare(inputs, out=tmp_path / "out")


def test_a_run_is_scored_with_and_without_a_sensor(report, folder):
    run = folder / "runs" / "rgb_thermal-seed0"
    whole = evaluate(run)
    evaluate(run, without=["rgb"])
    stored = json.loads((run / "test-without-rgb.json").read_text())
    assert stored["without"] == ["rgb"]
    assert stored["digest"] == json.loads((run / "test.json").read_text())["digest"]
    assert len(whole.detections) == 4
    soft = evaluate(run, soft=True)
    assert json.loads((run / "test-soft.json").read_text())["scores"] == soft.scores.to_dict()
    assert json.loads((run / "test.json").read_text())["scores"] == whole.scores.to_dict()
    assert any(soft.detections[k].scores.tolist() != whole.detections[k].scores.tolist() for k in whole.detections)
    for options, message in (
        ({"without": ["depth"]}, "'depth' is not a known modality"),
        ({"without": ["rgb", "thermal"]}, "leaves none"),
        ({"split": "tset"}, "did you mean 'test'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(run, **options)


def test_files_are_predicted_and_drawn(report, folder, paired_set, tmp_path):
    run = folder / "runs" / "rgb_thermal-seed0"
    rgb = next((paired_set.parent / "rgb").rglob("*.jpg"))
    thermal = next((paired_set.parent / "thermal").rglob(f"{rgb.stem}.png"))
    found = predict(run, {"rgb": rgb, "thermal": thermal}, picture=tmp_path / "p.png", threshold=0.0)
    assert len(found)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(predict(run, {"thermal": thermal}, threshold=0.0))
    (tmp_path / "text.png").write_text("no image")
    for images, message in (
        ({"depth": rgb}, "'depth' is not a known modality"),
        ({}, "no image given"),
        ({"rgb": tmp_path / "none.png"}, "none.png"),
        ({"rgb": tmp_path / "text.png"}, "is not an image"),
        ({"rgb": rgb, "thermal": tmp_path / "small.png"}, "differ in size"),
        ({"thermal": rgb}, "holds uint8, but the sensor's files are uint16"),
    ):
        Image.new("I;16", (8, 8)).save(tmp_path / "small.png")
        with pytest.raises(UserError, match=message):
            predict(run, images)


def test_an_existing_run_is_used_again(report, folder, recipe_file):
    before = (folder / "runs" / "rgb-seed0" / "last.safetensors").stat().st_mtime_ns
    train(recipe_file("rgb"), folder=folder / "runs" / "rgb-seed0", resume=True)
    assert (folder / "runs" / "rgb-seed0" / "last.safetensors").stat().st_mtime_ns == before


def test_differences_are_taken_to_the_reference(report, folder):
    runs = [folder / "runs" / f"{name}-seed0" for name in ("rgb", "thermal", "rgb_thermal")]
    again = compare(runs, reference="rgb", out=folder / "named", rounds=5)
    assert again["reference"] == "rgb"
    assert [m["difference"] and m["difference"]["to"] for m in again["models"]] == [None, "rgb", "rgb"]
    assert [v["model"] for v in again["verdicts"]] == ["rgb_thermal"]
    assert set(again["models"][2]["differences"]) == {"rgb", "thermal"}
    with pytest.raises(UserError, match=r"^reference: 'rbg' is not a known model .*did you mean 'rgb'\?$"):
        compare(runs, reference="rbg", out=folder / "named")


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["placement", "weighting", "pyramids", "backbone", "scaling"])
def test_an_ablation_runs_on_any_card(ablation, paired_set, tmp_path):
    root = Path(__file__).parents[1] / "configs" / "ablations" / ablation
    tiny = ["model.size=d-4", "data.input_size=[96, 128]", "data.workers=0", "train.epochs=1", "train.batch_size=4"]
    tiny += ["model.pretrained=false"]
    result = compare([root], [f"card={paired_set}", *tiny], out=tmp_path, rounds=2)
    assert {model["name"] for model in result["models"]} == {path.stem for path in root.glob("*.yaml")}
    assert len(result["verdicts"]) == (5 if ablation == "placement" else 0)
    assert (tmp_path / "ap.png").exists()
    assert (tmp_path / "gallery.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {model['name']} " in text for model in result["models"])
