"""What the pages name is there: links and pictures, files, commands."""

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import MODULES
from mmfuse.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
STANDS_FOR_ANY = re.compile("my_rig|my_set|MODEL|NAME|^tools/")  # tools/ is MMDetection's


def named(pattern):
    """Pairs of page and what a pattern finds in its code: fenced blocks and what stands between backticks."""
    found = []
    for page in PAGES:
        code = re.findall(r"^```.*?^```|`[^`\n]+`", page.read_text(), re.M | re.S)
        found += [(page.name, name) for text in code for name in re.findall(pattern, text, re.M)]
    assert found
    return found


def test_links_and_pictures_resolve():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert len(links) > 20
    assert [
        (p.name, link) for p, link in links if not re.match("https?:", link) and not (p.parent / link).exists()
    ] == []


def test_files_that_pages_name_are_there():
    paths = named(r"(?<![\w./])((?:configs|datasets|docs|benchmarks|tests|mmfuse)/[\w./-]*\w|(?:\w+/)+\w+\.py)\b")
    places = {(page, path): [ROOT / path, ROOT / "mmfuse" / path, ROOT / "docs" / path] for page, path in paths}
    gone = [named for named, files in places.items() if not any(file.exists() for file in files)]
    assert [(page, path) for page, path in gone if not STANDS_FOR_ANY.search(path)] == []


def test_verbs_that_pages_name_exist(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = set(re.findall(r"^    (\w+)", capsys.readouterr().out, re.M))
    assert "train" in verbs
    assert [(page, verb) for page, verb in named(r"(?:^|`|-m )mmfuse ([a-z]+)") if verb not in verbs] == []


def test_benchmarks_that_pages_name_exist():
    names = {"tables", "NAME", *MODULES}
    assert [(page, name) for page, name in named(r"python -m benchmarks (\w+)") if name not in names] == []
    assert [page.name for page in PAGES if "python -m benchmarks." in page.read_text()] == []


def test_targets_of_make_that_pages_name_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert [(page, target) for page, target in named(r"(?:^ *|`)make (\w+)") if target not in targets] == []


def test_figures_of_ap_that_pages_repeat_are_those_of_the_results():
    results = (ROOT / "docs" / "results.md").read_text()
    repeating = [page for page in PAGES if page.name in ("README.md", "choosing.md", "your_rig.md", "reports.md")]
    texts = {page.name: re.sub("(?ms)^```yaml.*?^```", "", page.read_text()) for page in repeating}
    figures = [(page, f) for page in texts for f in re.findall(r"[+-]?\b0\.\d{3}(?: ± 0\.\d{3})?\b", texts[page])]
    assert {page for page, _ in figures} == texts.keys()
    assert [(page, figure) for page, figure in figures if figure not in results] == []
