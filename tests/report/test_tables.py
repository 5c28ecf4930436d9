import re
from dataclasses import replace

import pytest
from made_up import FAULT, robustness

from mmfuse.evaluation.results import Verdict
from mmfuse.report.sections import NOTHING, mean_and_spread
from mmfuse.report.tables import comparison_markdown, escaped, markdown_table, robustness_markdown


def cells(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_is_padded_and_aligned():
    assert markdown_table(["name", "AP"], [["rgb", 0.5], ["thermal", None]]) == (
        "| name    |  AP |\n| ------- | --: |\n| rgb     | 0.5 |\n| thermal |   – |\n"
    )


def test_names_from_files_are_no_markup():
    """Classes, conditions and the card's name come from a stranger's files."""
    for name in ("<script>alert(1)</script>", "![x](http://host/a.png)", "[x](http://host)", "`a`", "a &lt; b"):
        shown = markdown_table(["class"], [[name]]).splitlines()[-1]
        assert not re.search(r"<|\](?=\()|(?<!\\)`", shown), shown
    assert "a &amp;lt; b" in markdown_table(["class"], [["a &lt; b"]])
    assert escaped("person") == "person"


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


def section(page, title):
    text = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_each_condition_has_the_rival_that_is_hardest_there(comparison):
    header, _, *rows = section(comparison_markdown(comparison), "By condition")
    assert header == ["condition", "model", "AP", "hardest single", "Δ AP to it", "so it is"]
    assert rows == [
        ["day", "both", "0.530 ± 0.014", "thermal", "+0.030 [-0.010, +0.050]", "not shown"],
        ["night", "both", "0.330 ± 0.014", "thermal", "-0.030 [-0.050, -0.010]", "below"],
    ]


def test_each_subset_stands_beside_the_model_of_just_these_sensors(comparison):
    page = comparison_markdown(comparison)
    header, _, *rows = section(page, "When sensors are lost")
    assert header == ["model", "sensors left", "AP", "AP day", "AP night", "AP trained on these", "share"]
    assert rows == [
        ["both", "rgb + thermal", "0.430 ± 0.014", "0.530 ± 0.014", "0.330 ± 0.014", "–", "–"],
        ["both", "rgb", "0.250 ± 0.071", "0.350 ± 0.071", "0.150 ± 0.071", "0.310 ± 0.014 (rgb)", "81 %"],
        ["both", "thermal", "0.360 ± 0.000", "0.460 ± 0.000", "0.260 ± 0.000", "–", "–"],
    ]
    assert "as if the others were broken" in page
    assert page.index("## When sensors are lost") < page.index("## AP per class")


def test_page_says_the_verdict_and_how_it_was_made(comparison):
    page = comparison_markdown(comparison)
    assert "**both ≥ best single: yes (+0.080 AP)**" in page.splitlines()
    assert (
        "both isn't below its best single in 0 of 2 conditions; it is below in 1, and in 1 neither is shown."
        in page.splitlines()
    )
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
    one = comparison.models[1]
    one = replace(one, seeds=(0,), ap=(0.34,), ap50=(0.5,), scores=(replace(one.scores[0], per_condition={}),))
    page = comparison_markdown(replace(comparison, models=(one,)))
    assert cells(page, "thermal")[:5] == ["thermal", "thermal", "0.340", "0.500", "–"]
    assert "±" not in page
    assert "bootstrap" not in page
    assert "By condition" not in page
    assert "When sensors are lost" not in page
    assert "best single in" not in page
    assert "When sensors lie" not in page


def test_each_fault_stands_beside_the_sensor_s_absence(comparison):
    models = (*comparison.models[:2], replace(comparison.models[2], faults=(FAULT,)))
    verdicts = (Verdict("both", "no", "both: fault ≥ without it: no (at worst)"),)
    page = comparison_markdown(replace(comparison, models=models, fault_verdicts=verdicts))
    header, _, *rows = section(page, "When sensors lie")
    assert header[:5] == ["model", "corruption", "of", "severity", "AP"]
    assert header[5:] == ["AP without it", "Δ AP", "so it is", "false", "without it"]
    assert rows == [
        [
            *("both", "noise", "rgb", "4", "0.250 ± 0.071", "0.320 ± 0.014"),
            *("-0.070 [-0.100, -0.030]", "below", "12.50", "0.13"),
        ]
    ]
    lines = page.splitlines()
    assert lines.index("**both ≥ best single: yes (+0.080 AP)**") + 2 == lines.index(f"**{verdicts[0].text}**")


def test_robustness_has_ap_and_ap50_by_severity_and_their_areas():
    text = robustness_markdown(robustness(("shift", "rgb", 0.95), ("shift", "depth", None)))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0] == ["corruption", "of", "0", "1", "2", "3", "4", "5", "area"]
    assert rows[2] == ["shift", "rgb", "0.500", "0.400", "0.300", "0.200", "0.100", "0.000", "0.500"]
    assert rows[6] == ["shift", "rgb", *["0.800"] * 5, "0.400", "0.950"]
    assert rows[7][-1] == NOTHING
    assert rows[10:] == [["shift", "px", "4", "8", "15", "22.5", "30"]]
    assert "When sensors lie" not in text
    for words in ("# street: robustness on the val split", "- images: 7 of the val split", "abab", "cdcd", "seed: 3"):
        assert words in text


def test_robustness_shows_what_was_scored_beside_the_sensor_s_absence():
    whole = robustness(("shift", "rgb", 0.95))
    curve = replace(whole.curves[0], ap=(0.5, None, None, 0.25, None, None), area_ap=None)
    verdict = Verdict("street", "no", "street: fault ≥ without it: no (at worst)")
    text = robustness_markdown(replace(whole, curves=(curve,), faults=(FAULT,), verdict=verdict))
    assert cells(text, "shift") == ["shift", "rgb", "0.500", "–", "–", "0.250", "–", "–", "–"]
    assert text.splitlines()[2] == f"**{verdict.text}**"
    assert section(text, "When sensors lie")[2][:4] == ["street", "noise", "rgb", "4"]
