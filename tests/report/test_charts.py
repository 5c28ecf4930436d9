from dataclasses import replace

import numpy as np
from png import pixels

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.curves import ClassCurve, Confusion
from mmfuse.evaluation.results import (
    Clean,
    Comparison,
    Correlation,
    Curve,
    DifferenceTo,
    ModelRow,
    Robustness,
    ShareGroup,
    Shares,
    Verdict,
)
from mmfuse.report.charts import (
    comparison_bars,
    confusion_matrices,
    robustness_curves,
    share_heatmap,
    share_panels,
    threshold_curves,
    training_curves,
    training_progress,
)

MADE_ON = Environment("2026-01-01", "3.11", {"torch": "2.10"}, "a card", 1)


def scores(ap):
    return Scores(*[ap] * 12, {}, {"day": {"ap": ap + 0.1}, "night": {"ap": None}}, 1, 1)


def comparison(difference):
    models = tuple(
        ModelRow(name, m, (0, 1), 3, ap, ap, tuple(scores(a) for a in ap), 1, 1.0, 1.0, d, {}, {}, (), ())
        for name, m, ap, d in (("rgb", ("rgb",), (0.3, 0.4), None), ("both", ("rgb", "d"), (0.5, 0.6), difference))
    )
    verdicts = (Verdict("both", "yes", "both ≥ best single: yes"),)
    return Comparison(
        "street", "test", "ab", models, "rgb", verdicts, (), True, "mmfuse compare", "2026-01-01", "a card"
    )


def test_comparison_bars_show_differences_where_there_are_any(tmp_path):
    comparison_bars(comparison(None), tmp_path / "bars.png")
    comparison_bars(comparison(DifferenceTo(0.2, 0.1, 0.3, 100, "rgb")), tmp_path / "both.png")
    assert pixels(tmp_path / "both.png").shape[1] > pixels(tmp_path / "bars.png").shape[1]


def test_comparison_bars_have_a_row_for_each_of_many_models(tmp_path):
    many = comparison(None)
    models = tuple(replace(model, name=f"{model.name} {i}") for i in range(6) for model in many.models)
    many = replace(many, models=models)
    comparison_bars(comparison(None), tmp_path / "two.png")
    comparison_bars(many, tmp_path / "twelve.png")
    assert pixels(tmp_path / "twelve.png").shape[0] > 2 * pixels(tmp_path / "two.png").shape[0]
    assert pixels(tmp_path / "twelve.png").shape[1] == pixels(tmp_path / "two.png").shape[1]


def test_training_curves_read_rows_of_a_csv(tmp_path):
    rows = [
        {"epoch": "1", "loss": "2.5", "val_ap": ""},
        {"epoch": "2", "loss": "1.5", "val_ap": "0.2"},
        {"epoch": 3, "loss": 1.0},
    ]
    training_curves({"rgb": rows, "both": rows[:1], "new": []}, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").size


def test_training_progress_has_a_panel_for_loss_ap_and_rate(tmp_path):
    """What is missing leaves its own panel empty: epoch 0 has no loss, and not every epoch is scored."""
    rows = [
        {"epoch": 0, "val_ap": 0.1, "val_ap50": 0.3},
        {"epoch": 1, "lr": 0.2, "loss": 2.0, "class_loss": 1.5, "branch_loss": 0.5},
        {"epoch": 2, "lr": 0.1, "loss": 1.5, "class_loss": 1.0, "branch_loss": 0.5, "val_ap": 0.2, "val_ap50": 0.4},
    ]

    def coloured(path):
        """How many pixels of each panel are no grey."""
        image = pixels(path)[..., :3]
        colours = (np.ptp(image, axis=-1) > 0.2).sum(0)
        return np.array([part.sum() for part in np.array_split(colours, 3)])

    training_progress(rows, tmp_path / "all.png")
    whole = coloured(tmp_path / "all.png")
    for missing, panel in (("branch_loss", 0), ("val_ap50", 1), ("lr", 2)):
        kept = [{key: value for key, value in row.items() if key != missing} for row in rows]
        training_progress(kept, tmp_path / "some.png")
        lost = (whole - coloured(tmp_path / "some.png")) / whole
        assert lost[panel] > 0.2
        assert np.abs(np.delete(lost, panel)).max() < 0.1
    training_progress(rows[:1], tmp_path / "first.png")
    assert pixels(tmp_path / "first.png").shape == pixels(tmp_path / "all.png").shape


def curve(height):
    return ClassCurve((height,) * 101, (height / 2,) * 101, tuple(height * i / 100 for i in range(101)))


def test_threshold_curves_mark_what_was_chosen(tmp_path):
    lines = {"all classes": curve(0.5), "car": curve(0.7), "bus": curve(0.3)}
    threshold_curves(lines, tmp_path / "none.png", "street", strong="all classes")
    threshold_curves(lines, tmp_path / "one.png", "street", strong="all classes", chosen={"car": 0.4, "plane": 0.1})
    plain, marked = pixels(tmp_path / "none.png"), pixels(tmp_path / "one.png")
    changed = (plain != marked).any(-1).nonzero()
    assert 10 < len(changed[0]) < 500
    assert changed[1].min() > plain.shape[1] / 2  # a dot in the right panel alone
    many = {f"class {i}": curve(i / 80) for i in range(80)}
    threshold_curves(many, tmp_path / "many.png", "street")
    assert pixels(tmp_path / "many.png").shape == plain.shape


def test_confusion_matrices_are_shaded_by_the_share_of_objects(tmp_path):
    confusion = Confusion(("car", "bus"), {}, None, ((90, 0, 10), (4, 4, 0), (0, 700, 0)))
    confusion_matrices({"": confusion}, tmp_path / "one.png", "street")
    image = pixels(tmp_path / "one.png")[..., :3]
    confusion_matrices(
        {"": replace(confusion, counts=((90, 0, 10), (4, 4, 0), (0, 0, 0)))}, tmp_path / "b.png", "street"
    )
    changed = (image != pixels(tmp_path / "b.png")[..., :3]).any(-1)
    assert 0 < changed.sum() < 400  # what is found on background changes its number, no colour
    confusion_matrices(
        {"": replace(confusion, counts=((10, 0, 90), (4, 4, 0), (0, 700, 0)))}, tmp_path / "c.png", "street"
    )
    assert (image != pixels(tmp_path / "c.png")[..., :3]).any(-1).mean() > 0.02
    confusion_matrices(dict.fromkeys("abcd", confusion), tmp_path / "four.png", "street")
    assert pixels(tmp_path / "four.png").shape[1] > 1.5 * image.shape[1]
    names = tuple(f"class {i}" for i in range(80))
    many = Confusion(names, {}, None, ((1,) * 81,) * 81)
    confusion_matrices({"": many}, tmp_path / "many.png", "street")
    assert pixels(tmp_path / "many.png").size


def test_share_heatmap(tmp_path):
    share_heatmap({"rgb": {3: 0.2, 4: 0.9}, "thermal": {3: 0.8}}, tmp_path / "shares.png")
    assert pixels(tmp_path / "shares.png").size
    share_heatmap({"rgb": {3: 1.0}}, tmp_path / "one.png")
    assert pixels(tmp_path / "one.png").size


def shares(*conditions, by_image=True, delta=0.1, share=0.25):
    known, mean = {"rgb": [share, share], "depth": [1 - share, 1 - share]}, {"rgb": share, "depth": 1 - share}
    group = ShareGroup(4, known, mean, 0.5, {}, {"rgb": delta, "depth": -0.02})
    empty = ShareGroup(0, None, None, None, {}, {"rgb": None, "depth": None})
    return Shares(
        split="test",
        digest="ab",
        detector="cd",
        name="street",
        modalities=("rgb", "depth"),
        levels=(3, 4),
        by_image=by_image,
        left_out=0,
        whole=group,
        cells=(),
        per_condition={c: empty if c == "fog" else group for c in conditions},
        correlation=Correlation(None, 2, "fewer than 3 pairs"),
        environment=MADE_ON,
    )


def test_shares_have_a_panel_for_each_condition_beside_what_ap_loses(tmp_path):
    def drawn(*conditions, **values):
        share_panels(shares(*conditions, **values), tmp_path / "shares.png")
        return pixels(tmp_path / "shares.png")

    one = drawn()
    assert (one == drawn()).all()
    assert (one != drawn(delta=0.2)).any()
    assert (one != drawn(share=0.3)).any()
    assert drawn("day", "night", "fog").shape[0] > 2.5 * one.shape[0]
    fixed = drawn("day", "fog", by_image=False)
    assert fixed.shape[0] == one.shape[0]
    assert fixed.shape[1] > 1.4 * one.shape[1]


def robustness(*curves):
    values = tuple(
        Curve(name, m, "px", (1, 2, 3, 4, 5), (0.5, 0.4, 0.4, 0.3, 0.2, last), (0.5,) * 6, 1.0, 1.0)
        for name, m, last in curves
    )
    return Robustness("test", "ab", "cd", 0, 10, "street", 3, Clean(0.5, 0.8), values, (), None, MADE_ON)


def test_robustness_has_a_panel_for_each_corruption_and_a_line_for_each_modality(tmp_path):
    def drawn(name, *curves):
        robustness_curves(robustness(*curves), tmp_path / name)
        return pixels(tmp_path / name)

    one = drawn("one", ("shift", "rgb", 0.1))
    assert (one == drawn("again", ("shift", "rgb", 0.1))).all()
    assert (one != drawn("other", ("shift", "rgb", 0.2))).any()
    two = drawn("two", ("shift", "rgb", 0.1), ("shift", "depth", 0.2))
    assert two.shape == one.shape
    assert (two != one).any()
    part = robustness(("shift", "rgb", 0.1))
    curve = replace(part.curves[0], ap=(0.5, None, None, 0.3, None, 0.1))
    robustness_curves(replace(part, curves=(curve,)), tmp_path / "part")
    assert pixels(tmp_path / "part").shape == one.shape  # a severity that wasn't scored has no marker
    assert (pixels(tmp_path / "part") != one).any()
    seven = drawn("seven", *((f"corruption {i}", f"m{i}", 0.1) for i in range(7)))
    assert seven.shape[0] > 1.5 * one.shape[0]
    assert seven.shape[1] > 2 * one.shape[1]
