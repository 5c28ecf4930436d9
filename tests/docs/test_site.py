"""The site that `make docs` builds: strictly, without anything from elsewhere, and with every public name."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mmfuse

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="the extra docs isn't installed")
pytest.importorskip("mkdocstrings", reason="the extra docs isn't installed")
from mkdocs.exceptions import PluginError  # noqa: E402


def build(config, folder):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", folder],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build("mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    loaded = [
        (page.name, url)
        for page in site.rglob("*.html")
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text())
        for url in re.findall(r'(?:src|href)="((?:https?:)?//[^"]+)"', tag)
        if 'rel="canonical"' not in tag
    ]
    assert loaded == []
    assert not [css for css in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", css.read_text())]


def test_the_first_page_is_the_readme_with_links_to_pages(site):
    links = re.findall(r'(?:href|src)="([^"]+)"', (site / "index.html").read_text())
    assert "data/" in links
    assert "pictures/demo.jpg" in links
    assert [link for link in links if "docs/" in link] == []


def test_every_public_name_is_in_the_reference(site):
    page = (site / "reference" / "index.html").read_text()
    assert [name for name in mmfuse._HOMES if f'id="mmfuse.{name}"' not in page] == []


def test_every_page_is_in_the_menu(site):
    menu = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert [
        p.name for p in (ROOT / "docs").glob("*.md") if f"- {p.name}" not in menu and f": {p.name}" not in menu
    ] == []


def test_a_broken_link_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/data.md").write_text("# Data\n")
    (tmp_path / "docs/here.md").write_text("# Here\n\n[one](gone.md) and [another](data.md#nowhere)\n")
    config = (ROOT / "mkdocs.yml").read_text().partition("nav:")[0]
    (tmp_path / "mkdocs.yml").write_text(config.replace("docs/site_hooks.py", str(ROOT / "docs/site_hooks.py")))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "gone.md" in done.stdout + done.stderr
    assert "#nowhere" in done.stdout + done.stderr


def test_links_to_files_beside_the_pages_become_their_text_if_the_files_are_there():
    hook = runpy.run_path(str(ROOT / "docs/site_hooks.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="here.md"))
    text = "[`loop.py`](../mmfuse/training/loop.py) and [data](data.md)"
    assert hook(text, page, None, None) == "`loop.py` and [data](data.md)"
    with pytest.raises(PluginError, match=r"here.md: gone.py is not there"):
        hook("[gone](../gone.py)", page, None, None)
