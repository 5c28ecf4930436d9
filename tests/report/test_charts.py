from png import pixels

from mmfuse.report.charts import comparison_bars, robustness_curves, share_heatmap, share_panels, training_curves


def scores(ap):
    return {"per_condition": {"day": {"ap": ap + 0.1}, "night": {"ap": None}}}


def comparison(difference):
    models = [
        {"name": name, "modalities": m, "seeds": [0, 1], "ap": ap, "scores": [scores(a) for a in ap], "difference": d}
        for name, m, ap, d in (("rgb", ["rgb"], [0.3, 0.4], None), ("both", ["rgb", "d"], [0.5, 0.6], difference))
    ]
    return {
        "card": "street",
        "split": "test",
        "models": models,
        "reference": "rgb",
        "verdicts": [{"model": "both", "verdict": "yes", "text": "both ≥ best single: yes"}],
    }


def test_comparison_bars_show_differences_where_there_are_any(tmp_path):
    comparison_bars(comparison(None), tmp_path / "bars.png")
    comparison_bars(
        comparison({"to": "rgb", "mean": 0.2, "low": 0.1, "high": 0.3, "rounds": 100}), tmp_path / "both.png"
    )
    assert pixels(tmp_path / "both.png").shape[1] > pixels(tmp_path / "bars.png").shape[1]


def test_comparison_bars_have_a_row_for_each_of_many_models(tmp_path):
    many = comparison(None)
    many["models"] = [{**model, "name": f"{model['name']} {i}"} for i in range(6) for model in many["models"]]
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
    known = {"rgb": [share, share], "depth": [1 - share, 1 - share]}
    group = {"images": 4, "shares": known, "mean_share": {"rgb": share, "depth": 1 - share}}
    group |= {"delta_ap": {"rgb": delta, "depth": -0.02}}
    empty = {"images": 0, "shares": None, "mean_share": None, "delta_ap": {"rgb": None, "depth": None}}
    return {
        **{"name": "street", "split": "test", "modalities": ["rgb", "depth"], "levels": [3, 4], "by_image": by_image},
        **{"whole": group, "per_condition": {c: empty if c == "fog" else group for c in conditions}},
        "correlation": {"spearman": None, "pairs": 2, "why": "fewer than 3 pairs"},
    }


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
    values = [{"corruption": name, "modality": m, "ap": [0.5, 0.4, 0.4, 0.3, 0.2, last]} for name, m, last in curves]
    return {"name": "street", "split": "test", "images": 3, "clean": {"ap": 0.5}, "curves": values}


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
    seven = drawn("seven", *((f"corruption {i}", f"m{i}", 0.1) for i in range(7)))
    assert seven.shape[0] > 1.5 * one.shape[0]
    assert seven.shape[1] > 2 * one.shape[1]
