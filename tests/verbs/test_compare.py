import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError
from mmfuse.evaluation import score as score_module
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.results import DifferenceTo
from mmfuse.evaluation.score import Evaluation, evaluate
from mmfuse.recipes import Recipe, load_recipe
from mmfuse.run import build_detector, input_size
from mmfuse.sample import Detections
from mmfuse.strict_yaml import save_yaml
from mmfuse.training.loop import train
from mmfuse.verbs import compare as compare_module
from mmfuse.verbs.compare import compare
from mmfuse.verbs.predict import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def recipes(paired_set, tmp_path_factory):
    """Tiny recipes by name: two single modalities and their fusion."""
    files = {}
    for modalities in (("rgb",), ("thermal",), ("rgb", "thermal")):
        name = "_".join(modalities)
        files[name] = tmp_path_factory.getbasetemp() / f"{name}.yaml"
        files[name].write_text(
            f"card: {paired_set}\nmodalities: [{', '.join(modalities)}]\nmodel: {{size: d-4}}\n"
            "data: {input_size: [96, 128], workers: 0}\ntrain: {epochs: 1, batch_size: 4, lr: 0.05}\n"
        )
    return files


@pytest.fixture(scope="module")
def report(folder, recipes):
    return compare(recipes.values(), seeds=[0, 1], out=folder, rounds=20)


def scenes(images=30):
    """Images of two conditions, in no order, with two objects each."""
    rng = np.random.default_rng(1)
    records = []
    for i in rng.permutation(images):
        corner = rng.uniform(0, 400, (2, 2))
        boxes = np.concatenate((corner, corner + 60), axis=1).astype(np.float32)
        condition = "day" if i % 2 else "night"
        records.append(
            Record(int(3 * i), {}, 500, 500, boxes, rng.integers(0, 2, 2), np.zeros(2, bool), condition, None)
        )
    return records


RECORDS = scenes()
CLASSES = ("person", "car")


def found(skill):
    """What a detector finds of RECORDS that sees a share of the objects, or one in each condition."""
    rng = np.random.default_rng(2)
    detections = {}
    for r in RECORDS:
        share = skill[r.condition] if isinstance(skill, dict) else skill
        seen = rng.random(2) < share
        boxes, labels = torch.from_numpy(r.boxes[seen]), torch.from_numpy(r.labels[seen])
        detections[r.image_id] = Detections(boxes, torch.ones(len(boxes)), labels)
    return detections


def ap(skill, condition=None):
    records = [r for r in RECORDS if condition in (None, r.condition)]
    kept = {r.image_id for r in records}
    return coco_scores(records, {i: d for i, d in found(skill).items() if i in kept}, CLASSES).ap


class Blank(torch.nn.Linear):
    classes = CLASSES
    parameter_count = 2
    device = torch.device("cpu")

    def __init__(self):
        super().__init__(1, 1)


@pytest.fixture
def staged(monkeypatch, tmp_path, paired_set):
    """Compares made-up detectors: `models` maps a name to its modalities and, by seed, its skill.

    A model's `skill` with sensors lost is `lost[name, seed, sensors left]`. Returns the comparison and the report.
    """

    def run(models, lost=None, digests=None, epochs=None, **options):
        skills, folders, evaluated, matched = dict(lost or {}), [], [], []
        for name, (modalities, by_seed) in models.items():
            for seed, skill in by_seed.items():
                skills.setdefault((name, seed, modalities), skill)
                folders.append(tmp_path / f"{name}-{seed}")
                recipe = Recipe(name=name, card=str(paired_set), modalities=modalities).to_dict()
                recipe["train"] |= {"seed": seed, "epochs": (epochs or {}).get(name, 30)}
                save_yaml(folders[-1] / "config.yaml", recipe)

        def made_up(run, *, split, without=()):
            recipe = run.recipe
            left = tuple(m for m in recipe.modalities if m not in without)
            key = (recipe.name, recipe.train.seed, left)
            evaluated.append(key)
            detections = found(skills.get(key, 0.1))
            scores = coco_scores(RECORDS, detections, CLASSES)
            return Evaluation(Blank(), RECORDS, (digests or {}).get(recipe.name, "ab"), detections, scores, {})

        match = score_module.match
        monkeypatch.setattr(compare_module, "evaluate", made_up)
        monkeypatch.setattr(score_module, "match", lambda *a: matched.append(1) or match(*a))
        without_pictures(monkeypatch)
        for measured in ("gmacs", "latency_ms"):
            monkeypatch.setattr(compare_module, measured, lambda *a: 1.0)
        comparison = compare(folders, out=tmp_path / "out", **{"rounds": 50, **options})
        assert len(matched) == len(folders), "a run is matched once"
        assert len(evaluated) == len(set(evaluated)), "nothing is evaluated twice"
        return comparison, (tmp_path / "out" / "report.md").read_text()

    return run


def without_pictures(monkeypatch):
    monkeypatch.setattr(compare_module, "_pictures", lambda *a: None)
    monkeypatch.setattr(compare_module, "_page", lambda *a: "")


def singles(rgb, thermal):
    """Two single modalities of some skill for each of the seeds 0, 1, ..."""
    return {"rgb": (("rgb",), dict(enumerate(rgb))), "thermal": (("thermal",), dict(enumerate(thermal)))}


def fused(*skills):
    return {"both": (("rgb", "thermal"), dict(enumerate(skills)))}


def table(text, title):
    lines = text.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"][2:]


def test_recipes_are_trained_for_each_seed_and_set_in_one_table(report, folder):
    assert [model.name for model in report.models] == ["rgb", "thermal", "rgb_thermal"]
    assert all(model.seeds == (0, 1) and len(model.ap) == 2 for model in report.models)
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(asdict(report)))
    assert report.card == "Synthetic streets"
    assert report.models[2].parameters > 1.5 * report.models[0].parameters
    text = (folder / "report.md").read_text()
    assert f"**{report.verdicts[0].text}**" in text
    for picture in ("ap.png", "training.png", "shares.png", "curves.png", "confusion.png", "gallery.png"):
        assert picture in text
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    for name, *figures in table(text, "F1 per class"):
        expected = [np.mean([of.confusion.f1(name) for of in model.curves]) for model in report.models]
        assert [figure.split()[0] for figure in figures] == [f"{f1:.3f}" for f1 in expected]
    assert "the threshold of each class, that training chose on validation." in text


def test_the_page_shows_each_image_and_what_each_model_finds(report, folder):
    text = (folder / "report.html").read_text()
    scenes = [json.loads(scene) for scene in re.findall(r'<script [^>]*class="scene"[^>]*>(.*?)</script>', text, re.S)]
    assert len(scenes) == report.models[0].scores[0].images == 4
    assert sum(len(scene["truth"]) for scene in scenes) == report.models[0].scores[0].boxes
    assert [set(scene["images"]) for scene in scenes] == [{"rgb", "thermal"}] * 4
    assert f"largest win of rgb_thermal over {report.models[2].difference.to}" in text
    assert report.verdicts[0].figures in text
    objects = [scene["found"][model]["objects"] for scene in scenes for model in range(3)]
    assert sum(objects) == 3 * report.models[0].scores[0].boxes
    assert all(
        name in text for name in ("Training", "Shares in the fusion", "AP per class", "By condition", "Confusion")
    )


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        ({"a": ("rgb",), "b": ("thermal",)}, ("a", "b")),
        ({"a": ("rgb",), "b": ("thermal",), "c": ("rgb", "thermal"), "d": ("rgb", "thermal")}, ("d", "b")),
        ({"c": ("rgb", "thermal"), "d": ("rgb", "thermal")}, ("d", "c")),
    ],
)
def test_the_gallery_sets_the_best_fusion_beside_its_hardest_rival(names, pair, staged):
    skills = {"a": 0.3, "b": 0.6, "c": 0.5, "d": 0.9}
    comparison, _ = staged({name: (modalities, {0: skills[name]}) for name, modalities in names.items()})
    assert compare_module._pair(comparison) == pair


def test_real_runs_have_a_row_for_each_subset(report, folder):
    one, other, both = report.models
    assert one.subsets == other.subsets == ()
    assert one.per_condition == other.per_condition == {}
    assert [row.modalities for row in both.subsets] == [("rgb", "thermal"), ("rgb",), ("thermal",)]
    assert both.subsets[0].scores == both.scores
    for row, alone in zip(both.subsets[1:], ("rgb", "thermal"), strict=True):
        assert row.alone == alone
        left_out = "thermal" if alone == "rgb" else "rgb"
        for seed, scores in enumerate(row.scores):
            stored = json.loads(
                (folder / "runs" / f"rgb_thermal-seed{seed}" / f"test-without-{left_out}.json").read_text()
            )
            assert asdict(scores) == stored["scores"]
    assert set(both.per_condition) == {c for c, s in both.scores[0].per_condition.items() if s["boxes"]}


def test_stacked_channels_and_boxes_lose_sensors_too(report, folder, recipes, tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    runs = [folder / "runs" / "rgb-seed0"]
    for placement in ("channels", "boxes"):
        recipe = tmp_path / f"{placement}.yaml"
        recipe.write_text(recipes["rgb_thermal"].read_text().replace("d-4", f"d-4, placement: {placement}"))
        runs.append(train(recipe, ["train.epochs=1"], folder=tmp_path / placement).folder)
    for model in compare(runs, out=tmp_path / "out", rounds=5).models[1:]:
        assert [row.modalities for row in model.subsets] == [("rgb", "thermal"), ("rgb",), ("thermal",)]
        assert [row.alone for row in model.subsets] == [None, "rgb", None]
        assert (tmp_path / model.name / "test-without-thermal.json").exists()


def test_faults_are_tried_on_what_has_other_sensors(report, folder, tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    runs = [folder / "runs" / f"{name}-seed{seed}" for name in ("rgb", "rgb_thermal") for seed in (0, 1)]
    options = {"corruptions": ["missing", "noise", "agc"], "severities": [5, 2], "rounds": 5}
    one, both = compare(runs, out=tmp_path, **options).models
    assert one.faults == ()
    tried = [("agc", "thermal"), ("noise", "rgb"), ("noise", "thermal")]  # what is missing doesn't lie
    keys = [(f.corruption, f.modality, f.severity) for f in both.faults]
    assert keys == [(*pair, severity) for pair in tried for severity in (2, 5)]
    left = {m: row.scores for row in both.subsets[1:] for m in ("rgb", "thermal") if m not in row.modalities}
    for f in both.faults:
        assert f.ap_without == pytest.approx([scores.ap for scores in left[f.modality]], abs=1e-9)
        assert f.difference.mean == pytest.approx(sum(f.ap) / 2 - sum(f.ap_without) / 2)
        assert f.difference.rounds == 5
    (verdict,) = json.loads((tmp_path / "comparison.json").read_text())["fault_verdicts"]
    text = (tmp_path / "report.md").read_text()
    assert verdict["text"].startswith("rgb_thermal: fault ≥ without it: ")
    assert f"**{verdict['text']}**" in text.splitlines()
    assert [row[1:4] for row in table(text, "When sensors lie")][-1] == ["noise", "thermal", "5"]


def test_faults_that_do_not_exist_are_told_before_anything_is_trained(tmp_path):
    for options, message in (
        ({"corruptions": ["nois"]}, r"^corruption: 'nois' is not a known corruption; did you mean 'noise'\?$"),
        ({"corruptions": ["all"], "severities": [6]}, "^severity: 6 is not allowed; use whole numbers from 1 to 5$"),
    ):
        with pytest.raises(UserError, match=message):
            compare([tmp_path / "nowhere"], **options)


def test_a_frame_that_a_fault_struck_is_shown_last():
    records = [replace(r, struck=("rgb",) if i in (0, 1, 4) else ()) for i, r in enumerate(RECORDS[:12])]
    records[0] = replace(records[0], boxes=records[0].boxes[:0])
    shown = compare_module._shown(records)
    assert [record.struck for record in shown] == [(), (), (), (), ("rgb",)]
    assert shown[-1] is records[1]
    assert [record.condition for record in shown[:4]].count("day") == 2
    assert len(compare_module._shown(records[:2])) == 1


def test_three_modalities_have_seven_subsets_each_beside_its_own_model(staged):
    order = ("thermal", "depth", "rgb")
    models = {
        "warm": (("thermal",), {0: 0.4, 1: 0.5}),
        "weak_pair": (("thermal", "rgb"), {0: 0.2, 1: 0.9}),
        "pair": (("rgb", "thermal"), {0: 0.6, 1: 0.7}),
        "all": (order, {0: 0.8, 1: 0.9}),
    }
    lost = {}
    for seed in (0, 1):
        lost |= {("all", seed, ("thermal", "rgb")): 0.3 + seed / 10, ("all", seed, ("thermal",)): 0.6}
        lost |= {("all", seed, ("thermal", "depth")): 0.5, ("pair", seed, ("thermal",)): 0.2}
    comparison, text = staged(models, lost)
    by_name = {model.name: model for model in comparison.models}
    assert by_name["warm"].subsets == ()
    assert [len(by_name[name].subsets) for name in ("weak_pair", "pair")] == [3, 3]
    rows = by_name["all"].subsets
    assert [row.modalities for row in rows] == [
        *(order, ("thermal", "depth"), ("thermal", "rgb"), ("depth", "rgb")),
        *(("thermal",), ("depth",), ("rgb",)),
    ]
    assert [row.alone for row in rows] == [None, None, "pair", None, "warm", None, None]
    measured = [[scores.ap for scores in row.scores] for row in rows]
    assert measured[:3] == [[ap(0.8), ap(0.9)], [ap(0.5), ap(0.5)], [ap(0.3), ap(0.4)]]
    assert rows[2].share == pytest.approx((ap(0.3) + ap(0.4)) / (ap(0.6) + ap(0.7)))
    assert rows[4].share == pytest.approx(2 * ap(0.6) / (ap(0.4) + ap(0.5)))
    assert [row.share is None for row in rows] == [row.alone is None for row in rows]
    shown = table(text, "When sensors are lost")
    assert [row[:2] for row in shown[-7:]] == [["all", " + ".join(row.modalities)] for row in rows]
    assert shown[-3][-1] == f"{100 * 2 * ap(0.6) / (ap(0.4) + ap(0.5)):.0f} %"
    assert shown[-3][4] == f"{ap(0.6, 'night'):.3f} ± 0.000"


def test_a_model_that_finds_nothing_has_no_shares(staged):
    comparison, _ = staged({**singles([0.0], [0.5]), **fused(0.6)})
    assert [row.share is None for row in comparison.models[2].subsets] == [True, True, False]


def test_single_modalities_have_no_matrix(staged):
    comparison, text = staged(singles([0.4], [0.5]))
    assert [model.subsets for model in comparison.models] == [(), ()]
    assert comparison.verdicts == ()
    assert "When sensors are lost" not in text
    assert "By condition" not in text


BY_DAY, BY_NIGHT = {"day": 0.9, "night": 0.35}, {"day": 0.4, "night": 0.8}


@pytest.mark.parametrize(
    ("models", "verdict", "words"),
    [
        ({**singles([0.3] * 3, [0.4] * 3), **fused(0.6, 0.7, 0.8)}, "yes", "; ahead in 3 of 3 seeds)"),
        ({**singles([0.6] * 3, [0.4] * 3), **fused(0.6, 0.6, 0.6)}, "yes", "+0.000 AP against rgb, "),
        (
            {**singles([0.3], [0.4]), **fused(0.8)},
            "not shown",
            "; ahead in 1 of 1 seeds; 1 seed shared with rgb, give --seeds 0 1 2)",
        ),
        (
            {**singles([0.3] * 3, [0.4] * 2), **fused(0.6, 0.7, 0.8)},
            "not shown",
            "; ahead in 3 of 3 seeds; 2 seeds shared with thermal, give --seeds 0 1 2)",
        ),
        ({**singles([0.3, 0.4, 0.3], [0.1] * 3), **fused(0.8, 0.3, 0.8)}, "no", "; ahead in 2 of 3 seeds)"),
        ({**singles([0.5] * 3, [0.7, 0.1, 0.1]), **fused(0.6, 0.6, 0.6)}, "no", " against rgb, "),
        ({**singles([0.5] * 3, [0.7, 0.1, 0.1]), **fused(0.6, 0.6, 0.6)}, "no", "; ahead in 2 of 3 seeds)"),
        ({**singles([0.3], [0.9]), **fused(0.5)}, "no", " AP against thermal, "),
        ({**singles([0.3] * 3, [BY_NIGHT] * 3), **fused(BY_DAY, BY_DAY, BY_DAY)}, "no", "; ahead in 3 of 3 seeds)"),
    ],
    ids=[
        *("ahead", "equal", "one seed", "a single with two seeds", "behind in one seed", "behind an easier single"),
        *("behind an easier single counts", "one seed below for sure", "ahead but not for sure"),
    ],
)
def test_verdict_takes_images_and_seeds(models, verdict, words, staged):
    comparison, text = staged(models)
    (given,) = comparison.verdicts
    assert (given.model, given.verdict) == ("both", verdict)
    assert given.text.startswith(f"both ≥ best single: {verdict} (")
    assert words in given.text
    assert f"**{given.text}**" in text.splitlines()


def test_verdict_shows_the_figures_of_the_hardest_single(staged):
    comparison, _ = staged({**singles([0.3] * 3, [0.4, 0.4, 0.5]), **fused(0.6, 0.7, 0.8)})
    both = comparison.models[2]
    against = both.differences["thermal"]
    assert against.mean == pytest.approx((ap(0.6) + ap(0.7) + ap(0.8) - 2 * ap(0.4) - ap(0.5)) / 3)
    assert both.difference == DifferenceTo(**asdict(against), to="thermal")
    assert comparison.verdicts[0].text == (
        f"both ≥ best single: yes ({against.mean:+.3f} AP against thermal, 95 % interval {against.low:+.3f} to "
        f"{against.high:+.3f}; ahead in 3 of 3 seeds)"
    )


def test_a_condition_is_judged_on_its_own_images(staged):
    rounds = 6
    models = {**singles([0.3, 0.4], [{"day": 0.3, "night": 0.9}] * 2), **fused(0.6, 0.5)}
    comparison, text = staged(models, rounds=rounds)
    both = comparison.models[2]
    for condition in ("day", "night"):
        records = sorted((r for r in RECORDS if r.condition == condition), key=lambda r: r.image_id)
        n = len(records)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=rounds)
        apart = []
        for weights in draws:
            copies = [r for r, times in zip(records, weights, strict=True) for _ in range(times)]
            renamed = [Record(i, {}, 500, 500, r.boxes, r.labels, r.ignore, None, None) for i, r in enumerate(copies)]
            of = {
                skill: coco_scores(renamed, {i: found(skill)[r.image_id] for i, r in enumerate(copies)}, CLASSES).ap
                for skill in (0.6, 0.5, 0.3, 0.4)
            }
            apart.append((of[0.6] + of[0.5] - of[0.3] - of[0.4]) / 2)
        ahead = both.per_condition[condition]["rgb"]
        whole = sum(sign * ap(skill, condition) for skill, sign in ((0.6, 1), (0.5, 1), (0.3, -1), (0.4, -1))) / 2
        assert ahead.mean == pytest.approx(whole)
        assert (ahead.low, ahead.high) == pytest.approx(tuple(np.quantile(apart, (0.025, 0.975))), abs=2e-3)
        assert ahead.rounds == rounds
    assert set(both.per_condition["day"]) == {"rgb", "thermal"}
    day, night = table(text, "By condition")
    assert (day[:2], day[-1]) == (["day", "both"], "not below")
    assert (night[:2], night[3], night[-1]) == (["night", "both"], "thermal", "below")
    line = "both isn't below its best single in 1 of 2 conditions; it is below in 1, and in 0 neither is shown."
    assert line in text.splitlines()


def test_models_of_other_images_or_without_rounds_are_refused(staged):
    with pytest.raises(UserError, match=r"^compare: rgb, thermal were scored on different test splits; use one card"):
        staged(singles([0.4], [0.5]), digests={"rgb": "cd"})
    with pytest.raises(UserError, match=r"^rounds: 0 is not allowed; use at least 1$"):
        compare([], rounds=0)


@pytest.mark.parametrize(("epochs", "same"), [(30, True), (31, False)])
def test_models_that_differ_in_more_than_modalities_are_told(epochs, same, staged):
    comparison, text = staged(singles([0.4], [0.5]), epochs={"rgb": 30, "thermal": epochs})
    assert comparison.same_budget is same
    assert ("The models differ in more than their modalities" in text) is not same


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
    assert json.loads((run / "test-soft.json").read_text())["scores"] == asdict(soft.scores)
    assert json.loads((run / "test.json").read_text())["scores"] == asdict(whole.scores)
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
    found = predict(run, {"rgb": rgb, "thermal": thermal}, out=tmp_path / "p.png", threshold=0.0)
    assert len(found)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(predict(run, {"thermal": thermal}, threshold=0.0))
    (tmp_path / "text.png").write_text("no image")
    for images, message in (
        ({"depth": rgb}, "'depth' is not a known modality"),
        ({}, "images: is empty; give at least one of rgb, thermal"),
        ({"rgb": tmp_path / "none.png"}, "none.png"),
        ({"rgb": tmp_path / "text.png"}, "is not an image"),
        ({"rgb": rgb, "thermal": tmp_path / "small.png"}, "differ in size"),
        ({"thermal": rgb}, "holds uint8, but the sensor's files are uint16"),
    ):
        Image.new("I;16", (8, 8)).save(tmp_path / "small.png")
        with pytest.raises(UserError, match=message):
            predict(run, images)


def test_an_existing_run_is_used_again(report, folder, recipes):
    before = (folder / "runs" / "rgb-seed0" / "last.safetensors").stat().st_mtime_ns
    train(recipes["rgb"], folder=folder / "runs" / "rgb-seed0", resume=True)
    assert (folder / "runs" / "rgb-seed0" / "last.safetensors").stat().st_mtime_ns == before


def test_differences_are_taken_to_the_reference(staged):
    models = {**singles([0.3], [0.5]), **fused(0.6)}
    comparison, _ = staged(models, reference="rgb")
    assert comparison.reference == "rgb"
    assert [m.difference and m.difference.to for m in comparison.models] == [None, "rgb", "rgb"]
    assert set(comparison.models[2].differences) == {"rgb", "thermal"}
    assert " AP against thermal, " in comparison.verdicts[0].text
    with pytest.raises(UserError, match=r"^reference: 'rbg' is not a known model .*did you mean 'rgb'\?$"):
        staged(models, reference="rbg")


ABLATIONS = Path(__file__).parents[2] / "configs" / "ablations"
TINY = ["model.size=d-4", "data.input_size=[96, 128]", "data.workers=0", "train.epochs=1", "train.batch_size=4"]
TINY += ["model.pretrained=false"]


@pytest.mark.long
def test_an_ablation_runs_on_any_card(paired_set, tmp_path):
    root = ABLATIONS / "placement"
    result = compare([root], [f"card={paired_set}", *TINY], out=tmp_path, rounds=2)
    assert {model.name for model in result.models} == {path.stem for path in root.glob("*.yaml")}
    assert len(result.verdicts) == 5
    assert (tmp_path / "ap.png").exists()
    assert (tmp_path / "gallery.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {model.name} " in text for model in result.models)


@pytest.mark.parametrize("ablation", ["placement", "weighting", "pyramids", "backbone", "scaling"])
def test_each_detector_of_an_ablation_fits_any_card(ablation, paired_set):
    for path in sorted((ABLATIONS / ablation).glob("*.yaml")):
        recipe = load_recipe(path, [f"card={paired_set}", *TINY])
        card = card_of(recipe)
        with torch.device("meta"):
            detector = build_detector(recipe, card.modalities, card.classes)
        assert (detector.classes, input_size(recipe)) == (card.classes, (96, 128)), path
