from dataclasses import replace

from png import pixels

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
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
from mmfuse.report.charts import comparison_bars, robustness_curves, share_heatmap, share_panels, training_curves

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
