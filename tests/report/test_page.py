import base64
import hashlib
import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import FAULT, curves, robustness
from staged_gallery import ALL_FOUND, record, six_scenes, staged

from mmfuse.environment import Environment
from mmfuse.evaluation.results import CellShares, Correlation, ShareGroup, Shares, Verdict
from mmfuse.report import page as page_module
from mmfuse.report.page import comparison_page, run_page
from mmfuse.report.parts import confusion_parts, curve_parts
from mmfuse.report.run_page import write_run_page

VOID = {"meta", "link", "img", "input", "br"}
SHARES = {"both": {"rgb": {3: 0.25, 4: 0.5}, "thermal": {3: 0.75, 4: 0.5}}}
CURVES = {"rgb": [curves(0.5)], "both": [curves(0.8), curves(1.0)]}
TRAINING = {"both": [[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "val_ap": 0.4}]]}


class Read(HTMLParser):
    """A page as what it holds: `elements` (tag, attributes), the text in each, and whether all are closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), "no attribute stands twice"
        self.elements.append((tag, dict(attributes)))
        self.text.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.text.append("")

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for i in self.open:
            self.text[i] += data

    def all(self, tag, **wanted):
        """The attributes and text of elements of a tag with these attributes."""
        return [
            (attributes, text)
            for (name, attributes), text in zip(self.elements, self.text, strict=True)
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture
def text(comparison):
    return comparison_page(comparison, six_scenes(), CURVES, SHARES, TRAINING)


def test_a_page_needs_nothing_else(text):
    page = Read(text)
    for _, attributes in page.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        for key in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert "url(" not in text
    assert "@import" not in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("://") == 0
    ((policy, _),) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = [body for attributes, body in page.all("script") if attributes.get("type") != "application/json"]
    for kind, bodies in (("script-src", scripts), ("style-src", [body for _, body in page.all("style")])):
        (body,) = bodies
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


HOSTILE = ("<script>alert(1)</script>", "</script><img src=x>", '"><b onclick=alert(1)>', "{{ 7 * 7 }}", "<!-- & 'a'")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_files_are_no_markup(comparison, name):
    """Classes, conditions, files, models and the card have names that a stranger wrote."""
    renamed = json.loads(
        json.dumps(asdict(comparison)).replace('"both"', json.dumps(name)).replace('"day"', json.dumps(name))
    )
    models = []
    for model, row in zip(comparison.models, renamed["models"], strict=True):
        scores = tuple(
            replace(s, per_class={name: 0.5}, per_condition=of["per_condition"])
            for s, of in zip(model.scores, row["scores"], strict=True)
        )
        models.append(replace(model, name=row["name"], scores=scores))
    models[2] = replace(models[2], per_condition={name: models[2].per_condition["day"]})
    comparison = replace(
        comparison,
        card=name,
        models=tuple(models),
        command=name,
        verdicts=(Verdict(name, "yes", f"{name} ≥ best single: yes ({name})"),),
    )
    gallery = staged(
        [record(0, condition=name, name=name.replace("/", "|"))],
        {name: {0: ALL_FOUND}, "rgb": {}},
        (name, "rgb"),
        (name, "car"),
    )
    plain = staged([record(0)], {"a": {0: ALL_FOUND}, "rgb": {}}, ("a", "rgb"))
    written = Read(
        comparison_page(
            comparison,
            gallery,
            {name: [curves(classes=(name, "car"))]},
            {name: {name: {3: 1.0}}},
            {name: TRAINING["both"]},
        )
    )
    expected = Read(
        comparison_page(
            replace(comparison, card="a"),
            plain,
            {"a": [curves(classes=("a", "car"))]},
            {"a": {"a": {3: 1.0}}},
            {"a": TRAINING["both"]},
        )
    )
    assert [tag for tag, _ in written.elements if tag != "option"] == [
        tag for tag, _ in expected.elements if tag != "option"
    ]
    assert [sorted(a) for t, a in written.elements if t == "img"] == [
        sorted(a) for t, a in expected.elements if t == "img"
    ]
    assert written.all("h1")[0][1] == name
    assert any(text.strip() == name for _, text in written.all("th", scope="row"))
    ((attributes, scene),) = written.all("script", **{"class": "scene"})
    assert attributes["data-condition"] == json.loads(scene)["condition"] == name
    assert json.loads(scene)["name"] == f"{name.replace('/', '|')}.png"
    assert json.loads(written.all("script", id="gallery-facts")[0][1])["classes"] == [name, "car"]


def test_half_a_character_in_a_name_is_no_end_of_a_page(comparison):
    gallery = staged([record(0, name="a\udcff")], {"a": {0: ALL_FOUND}, "rgb": {}}, ("a", "rgb"))
    page = Read(comparison_page(replace(comparison, card="b\ud800"), gallery, CURVES, {}, {}).encode().decode())
    assert page.all("h1")[0][1] == "b?"
    assert page.all("img")[0][0]["alt"] == "rgb image of a?.png"


def test_what_is_shown_has_words_for_who_cannot_see_it(text):
    page = Read(text)
    images = page.all("img")
    assert [attributes["alt"] for attributes, _ in images] == ["rgb image of 0.png", "thermal image of 0.png"]
    for attributes, _ in page.all("svg"):
        assert (
            attributes.get("aria-hidden") == "true"
            or "boxes" in attributes.get("class", "")
            or attributes["aria-label"]
        )
    for attributes, body in page.all("button"):
        assert body.strip() or attributes["aria-label"]
    labelled = " ".join(body for _, body in page.all("label"))
    for words in ("rgb", "thermal", "both", "ground truth", "score from", "names and scores", "wins", "losses"):
        assert words in labelled
    assert page.elements[0][1] == {"lang": "en"} or page.elements[1][1] == {"lang": "en"}


def test_links_lead_to_parts_each_of_which_has_a_name_of_its_own(text):
    page = Read(text)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"] for attributes, _ in page.all("a")]
    assert len(links) == len(set(links)) >= 7
    assert {link.removeprefix("#") for link in links} <= set(names)


def test_the_verdict_comes_first(comparison):
    verdicts = (Verdict("both", "no", "both: fault ≥ without it: no (at worst -0.070 AP)"),)
    text = comparison_page(replace(comparison, fault_verdicts=verdicts), six_scenes(), CURVES, {}, {})
    places = [
        text.index(words, text.index("<body>"))
        for words in ("Yes.", "+0.080 AP", "No.", "at worst", "<table", 'id="gallery"')
    ]
    assert places == sorted(places)
    assert "Is both at least as good as the best single sensor?" in text


def test_tables_hold_what_the_markdown_has_and_draw_its_intervals(comparison):
    models = (*comparison.models[:2], replace(comparison.models[2], faults=(FAULT,)))
    page = Read(comparison_page(replace(comparison, models=models), six_scenes(), CURVES, SHARES, TRAINING))
    titles = [body for _, body in page.all("h2")]
    wanted = ["Models", "Gallery", "By condition", "When sensors are lost", "When sensors lie", "AP per class"]
    assert [title for title in titles if title in wanted] == wanted
    assert titles[-5:-3] == ["Precision and recall", "Confusion"]
    assert titles[-3:] == ["Shares in the fusion", "Training", "How it was made"]
    cells = page.all("td")
    values = {
        body.split(" ")[0]: float(attributes["data-value"]) for attributes, body in cells if "data-value" in attributes
    }
    assert (values["0.430"], values["+0.080"], values["3.88"]) == (pytest.approx(0.43), 0.08, 3_880_000)
    drawn = [body.split("[")[0].strip() for attributes, body in cells if "drawn" in attributes["class"]]
    assert drawn == ["-0.040", "+0.080", "+0.030", "-0.030", "-0.070"]
    shades = {
        body: attributes["class"].split("shade-")[1] for attributes, body in cells if "shade-" in attributes["class"]
    }
    assert (shades["25.0%"], shades["75.0%"]) == ("2", "8")
    lines = page.all("line", **{"class": "span"})
    assert len(lines) == 5 + len(comparison.models[2].per_condition)


def test_curves_are_those_of_each_class_and_model_over_seeds():
    (part,) = curve_parts(CURVES)
    assert [(one.title, one.x, one.y) for one in part.charts] == [
        *(("all classes", "recall", "precision"), ("all classes", "score", "F1")),
        *(("class person", "recall", "precision"), ("class person", "score", "F1")),
    ], "a class without an object has none"
    rgb, both = part.charts[0].lines
    assert (rgb.name, both.name, both.colour) == ("rgb", "both", 1)
    assert both.points[0] == pytest.approx((0, 0.9)), "the mean over seeds"
    assert both.points[50] == pytest.approx((0.5, 0.45))
    assert part.charts[1].lines[1].points[0] == pytest.approx((0, 0.45))


def test_what_is_taken_for_what_is_summed_over_seeds():
    (part,) = confusion_parts(CURVES)
    assert part.table.header == ["model", "object", "as person", "as car", "missed", "recall", "precision"]
    rows = [[None if cell is None else str(cell) for cell in row] for row in part.table.rows]
    assert rows[0] == ["rgb", "person", "6", "1", "3", "60.0%", "54.5%"]
    assert rows[2] == ["rgb", "nothing", "5", "0", "0", None, None]
    assert rows[4] == ["both", "car", "0", "8", "4", "66.7%", "80.0%"]
    assert part.table.rows[0][2].shade == 0.6
    assert "thresholds are chosen on val" in part.note
    (part,) = confusion_parts({"rgb": [curves(chosen_on=None)]})
    assert "thresholds are 0.3, as none was chosen in training" in part.note


def test_of_many_classes_what_is_confused_most_is_told():
    classes = tuple(f"class{i}" for i in range(80))
    counts = np.zeros((81, 81), int)
    counts[range(80), range(80)] = 50
    counts[3, 7], counts[5, 2], counts[80, 4], counts[4, 80] = 10, 25, 99, 99
    (part,) = confusion_parts({"rgb": [curves(classes=classes, counts=tuple(map(tuple, counts.tolist())))]})
    assert [[str(cell) for cell in row] for row in part.table.rows] == [
        ["rgb", "class5", "class2", "25", "33.3%"],
        ["rgb", "class3", "class7", "10", "16.7%"],
    ]


def test_a_page_says_what_its_gallery_holds(comparison):
    whole = six_scenes()
    text = comparison_page(comparison, whole, CURVES, {}, {})
    assert "All 6 images, from the largest win of both over thermal" in text
    text = comparison_page(comparison, replace(whole, of=10_000), CURVES, {}, {})
    assert "Of 10000 images the 6 in which both differ most, from the largest win" in text
    assert "misses plus the false detections that it makes at a score of at least 0.3 and IoU 0.5" in text


def shares(split="val", detector="cd" * 32):
    group = ShareGroup(
        None,
        {"rgb": (0.25,), "depth": (0.75,)},
        {"rgb": 0.25, "depth": 0.75},
        0.5,
        {"rgb": 0.4, "depth": 0.2},
        {"rgb": 0.1, "depth": 0.3},
    )
    facts = Environment("2026-01-01", "3.11", {"torch": "2.10"}, "a card", 1)
    cells = (CellShares(0, {"rgb": (0.5,), "depth": (0.5,)}),)
    return Shares(
        split,
        "ab" * 32,
        detector,
        "street",
        ("rgb", "depth"),
        (3,),
        False,
        None,
        group,
        cells,
        {},
        Correlation(None, 2, "fewer"),
        facts,
    )


def test_a_run_s_page_has_curves_faults_and_shares():
    verdict = Verdict("street", "no", "street: fault ≥ without it: no (at worst)")
    curves = robustness(("shift", "rgb", 0.95), ("shift", "depth", None), ("noise", "rgb", 0.5))
    text = run_page([replace(curves, faults=(FAULT,), verdict=verdict)], [shares()])
    page = Read(text)
    assert [attributes["data-chart"] for attributes, _ in page.all("figure")] == ["shift", "noise"]
    assert [len(page.all("circle", **{"class": f"c{i}"})) for i in (0, 1)] == [12, 6]
    titles = [body for _, body in page.all("h2")]
    assert titles[0].split("? ")[1] == "No."
    wanted = [
        "AP as a sensor fails",
        "AP by severity",
        "AP50 by severity",
        "When sensors lie",
        "What the severities mean",
    ]
    assert titles[1:] == [*wanted, "Shares in the fusion", "Per cell", "How it was made"]
    assert not page.all("section", id="gallery")


def test_splits_are_told_apart():
    page = Read(
        run_page([robustness(("shift", "rgb", 0.95)), replace(robustness(("shift", "rgb", 0.95)), split="test")], [])
    )
    assert page.all("h1")[0][1] == "street"
    titles = [body for _, body in page.all("h2")]
    assert titles[0] == "AP as a sensor fails, val split"
    assert "AP as a sensor fails, test split" in titles


def test_a_run_s_page_shows_its_own_detector_alone(tmp_path):
    own, other = robustness(("shift", "rgb", 0.95)), replace(robustness(("noise", "rgb", 0.95)), detector="ef" * 32)
    for name, result in (("robustness-val", own), ("robustness-test", other), ("shares-val", shares())):
        (tmp_path / f"{name}.json").write_text(json.dumps(asdict(result)))
    (tmp_path / "shares-train.json").write_text("no JSON")
    (tmp_path / "robustness-train.json").write_text('{"split": "train"}')
    write_run_page(tmp_path, "cd" * 32)
    page = Read((tmp_path / "report.html").read_text())
    assert [attributes["data-chart"] for attributes, _ in page.all("figure")] == ["shift"]
    assert "Shares in the fusion" in [body for _, body in page.all("h2")]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_of_the_page_are_in_the_package():
    folder = Path(page_module.__file__).parent
    settings = (folder.parents[1] / "pyproject.toml").read_text()
    for name in ("page.html", "page.css", "page.js"):
        assert (folder / name).exists()
        assert f'"{name}"' in settings
