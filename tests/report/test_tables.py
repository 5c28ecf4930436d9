import pytest

from mmfuse.report.tables import NOTHING, comparison_markdown, markdown_table, mean_and_spread, robustness_markdown


def scores(ap, day, night, person, car):
    return {
        "ap": ap,
        "ap50": ap + 0.2,
        "per_class": {"person": person, "car": car, "cat": None},
        "per_condition": {
            "day": {"ap": day, "ap50": day, "images": 5, "boxes": 9},
            "night": {"ap": night, "ap50": None, "images": 5, "boxes": 8},
        },
        "images": 10,
        "boxes": 17,
    }


def model(name, modalities, ap, difference=None):
    return {
        "name": name,
        "modalities": modalities,
        "seeds": [0, 1],
        "ap": ap,
        "ap50": [a + 0.2 for a in ap],
        "scores": [scores(a, a + 0.1, a - 0.1, a, a) for a in ap],
        "parameters": 3_880_000,
        "gmacs": 2.5,
        "latency_ms": 12.34,
        "difference": difference,
    }


def difference(to, mean, low, high):
    return {"to": to, "mean": mean, "low": low, "high": high, "rounds": 1000}


@pytest.fixture
def comparison():
    return {
        "card": "street",
        "split": "test",
        "models": [
            model(
                "rgb",
                ["rgb"],
                [0.30, 0.32],
                {"to": "thermal", "mean": -0.04, "low": -0.07, "high": 0.01, "rounds": 1000},
            ),
            model("thermal", ["thermal"], [0.34, 0.36]),
            model(
                "both",
                ["rgb", "thermal"],
                [0.42, 0.44],
                {"to": "rgb", "mean": 0.08, "low": 0.05, "high": 0.11, "rounds": 1000},
            ),
        ],
        "reference": "thermal",
        "verdicts": [{"model": "both", "better": True, "text": "both is better than the best single: yes (+0.080 AP)"}],
        "command": "mmfuse compare a b c",
        "date": "2026-01-02",
        "hardware": "2 cores",
    }


def cells(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_is_padded_and_aligned():
    assert markdown_table(["name", "AP"], [["rgb", 0.5], ["thermal", None]]) == (
        "| name    |  AP |\n| ------- | --: |\n| rgb     | 0.5 |\n| thermal |   – |\n"
    )


def test_table_escapes_what_would_break_it():
    assert "| a\\|b c |" in markdown_table(["x"], [["a|b\nc"]])


def test_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        markdown_table(["a", "b"], [["only"]])


@pytest.mark.parametrize(
    ("values", "text"), [([0.5], "0.500"), ([0.4, 0.6], "0.500 ± 0.141"), ([None, 0.25], "0.250"), ([], "–")]
)
def test_mean_and_spread(values, text):
    assert mean_and_spread(values) == text


def test_row_of_a_model(comparison):
    page = comparison_markdown(comparison)
    assert cells(page, "model") == [
        *("model", "modalities", "AP", "AP50", "AP day", "AP night"),
        *("Δ AP to thermal", "params (M)", "GMACs", "latency (ms)"),
    ]
    assert cells(page, "both") == [
        *("both", "rgb + thermal", "0.430 ± 0.014", "0.630 ± 0.014", "0.530 ± 0.014", "0.330 ± 0.014"),
        *("+0.080 [+0.050, +0.110] to rgb", "3.88", "2.50", "12.3"),
    ]
    assert cells(page, "thermal")[6] == "–"
    assert cells(page, "rgb")[6] == "-0.040 [-0.070, +0.010]"


def test_classes_have_a_column_for_each_model(comparison):
    page = comparison_markdown(comparison)
    assert cells(page, "class") == ["class", "rgb", "thermal", "both"]
    assert cells(page, "person") == ["person", "0.310 ± 0.014", "0.350 ± 0.014", "0.430 ± 0.014"]
    assert cells(page, "cat") == ["cat", "–", "–", "–"]


def test_page_says_the_verdict_and_how_it_was_made(comparison):
    page = comparison_markdown(comparison)
    assert "**both is better than the best single: yes (+0.080 AP).**" in page
    assert "1000 rounds" in page
    for line in (
        "- split: test, 10 images, 17 objects",
        "- seeds: 0, 1",
        "- command: `mmfuse compare a b c`",
        "- hardware: 2 cores",
        "- date: 2026-01-02",
    ):
        assert line in page.splitlines()


def test_one_seed_without_conditions_or_differences(comparison):
    comparison["models"] = comparison["models"][1:2]
    for one in comparison["models"]:
        one.update(seeds=[0], ap=[0.34], ap50=[0.5], scores=[{**one["scores"][0], "per_condition": {}}])
    page = comparison_markdown(comparison)
    assert cells(page, "thermal")[:5] == ["thermal", "thermal", "0.340", "0.500", "–"]
    assert "±" not in page
    assert "bootstrap" not in page


def robustness(*curves):
    return {
        "name": "street",
        "split": "val",
        "images": 7,
        "digest": "ab" * 32,
        "detector": "cd" * 32,
        "seed": 3,
        "clean": {"ap": 0.5, "ap50": 0.8},
        "curves": [
            {
                "corruption": name,
                "modality": modality,
                "unit": "px",
                "levels": [4, 8, 15, 22.5, 30],
                "ap": [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
                "ap50": [0.8, 0.8, 0.8, 0.8, 0.8, 0.4],
                "area_ap": 0.5,
                "area_ap50": area,
            }
            for name, modality, area in curves
        ],
        "environment": {"hardware": "a card", "versions": {"torch": "2.10"}, "date": "2026-01-01"},
    }


def test_robustness_has_ap_and_ap50_by_severity_and_their_areas():
    text = robustness_markdown(robustness(("shift", "rgb", 0.95), ("shift", "depth", None)))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0] == ["corruption", "of", "0", "1", "2", "3", "4", "5", "area"]
    assert rows[2] == ["shift", "rgb", "0.500", "0.400", "0.300", "0.200", "0.100", "0.000", "0.500"]
    assert rows[6] == ["shift", "rgb", *["0.800"] * 5, "0.400", "0.950"]
    assert rows[7][-1] == NOTHING
    assert rows[10:] == [["shift", "px", "4", "8", "15", "22.5", "30"]]
    for words in ("# street: robustness on the val split", "- images: 7 of the val split", "abab", "cdcd", "seed: 3"):
        assert words in text
