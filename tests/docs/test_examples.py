"""What README and pages show in blocks runs as it stands, or says in a comment above it why it isn't run.

`<!-- not run: REASON -->` stands on the line before such a block. Commands of it are still read by the command line's
own parser, and Python is compiled. Blocks of `text` are what a program printed.
"""

import ast
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from mmfuse.cli import _parser, main
from mmfuse.data.annotations.cards import load_card
from mmfuse.recipes import load_recipe
from mmfuse.training.loop import train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
RECIPE = {"card", "modalities", "model", "data", "train", "init", "doubt"}
FEWER = {"train.epochs=20": "train.epochs=1", "train.epochs=60": "train.epochs=1"}
ELSEWHERE = ("make ", "pip install ", "python -m benchmarks ")
"""How lines begin whose words `test_pages` looks up."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `why` it isn't run, if it isn't."""

    page: str
    line: int
    language: str
    text: str
    why: str | None

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """The lines of a shell, each in words, those that go on with a backslash as one."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language in ("", "sh") else []
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def calls(self):
        """What follows `mmfuse` in its commands."""
        words = [(words, [i for i, word in enumerate(words) if word == "mmfuse"]) for words in self.commands]
        return [words[at[0] + 1 :] for words, at in words if at]


@cache
def blocks(page):
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(page.name, line, match["language"], match["text"], match["why"]))
    return found


def all_blocks(*languages):
    found = [block for page in PAGES for block in blocks(page) if block.language in languages]
    assert found
    return found


@pytest.fixture(scope="module")
def trained(paired_set, tmp_path_factory):
    """A folder with what pages name: cards, recipes, images, and runs of each sensor and of both."""
    folder = tmp_path_factory.mktemp("examples")
    card = yaml.safe_load(paired_set.read_text()) | {"root": str(paired_set.parent)}
    (folder / "datasets").mkdir()
    for name in ("roadscene", "my_rig"):
        (folder / f"datasets/{name}.yaml").write_text(yaml.safe_dump(card))
    recipe = {
        "card": "../../datasets/roadscene.yaml", "model": {"size": "d-4"}, "doubt": "off",
        "data": {"input_size": [96, 128], "workers": 0}, "train": {"batch_size": 4, "epochs": 1, "device": "cpu"},
    }  # fmt: skip
    (folder / "configs/roadscene").mkdir(parents=True)
    for name in ("rgb", "thermal", "rgb_thermal"):
        path = folder / f"configs/roadscene/{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"modalities": name.split("_")}))
        train(path, folder=folder / "runs" / name)
    for modality, name, pattern in (("rgb", "a.jpg", "*.jpg"), ("thermal", "b.png", "*.png")):
        images = sorted((paired_set.parent / modality).rglob(pattern))
        shutil.copy(images[0], folder / name)
        (folder / "cam" / modality).mkdir(parents=True)
        for number, image in enumerate(images[:3]):
            shutil.copy(image, folder / "cam" / modality / f"{number}{image.suffix}")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, in which the test then is."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    shutil.move(folder / "runs/rgb_thermal", folder / "runs/fused")
    for path in folder.glob("runs/*/config.yaml"):
        path.write_text(path.read_text().replace(str(trained), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def test_comments_that_say_why_stand_at_a_block():
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall("^<!-- not run:", text, re.M)) == sum(b.why is not None for b in blocks(page)), page.name
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(blocks(page)), f"{page.name}: a fence isn't read"


def test_blocks_are_of_languages_that_are_tried():
    known = ("", "sh", "python", "yaml", "text")
    assert [b.place for page in PAGES for b in blocks(page) if b.language not in known and b.why is None] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_line_takes_the_commands(page, capsys):
    for words in [words for block in blocks(page) for words in block.calls]:
        try:
            options, rest = _parser().parse_known_args(words)
        except SystemExit as error:
            pytest.fail(f"{page.name}: mmfuse {shlex.join(words)}: {error.code} {capsys.readouterr().err}")
        sensors = rest[::2] if options.verb.__name__ == "_predict" else []
        assert all(word.startswith("--") for word in sensors), (page.name, words)
        assert sensors or not rest, (page.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_line_has_the_options_of_commands_in_sentences(page, capsys):
    for text in re.findall(r"`mmfuse ([a-z]+ [^`\n]*--[^`]*)`", page.read_text()):
        with pytest.raises(SystemExit):
            main([text.split()[0], "--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        sensors = {"--rgb", "--thermal", "--depth"} if text.startswith("predict") else set()
        assert set(re.findall(r"(?<=\s)--[\w-]+", text)) <= known | sensors, (page.name, text)


def test_python_that_is_not_run_compiles():
    for block in all_blocks("python"):
        ast.parse(block.text, block.place)


def test_cards_and_recipes_of_pages_are_right(tmp_path, paired_set):
    """Some show a part alone: the rest is that of a card or recipe that is right. Those that aren't run are others."""
    card = yaml.safe_load(paired_set.read_text())
    recipe = {"card": str(paired_set), "modalities": ["rgb", "thermal"]}
    for i, block in enumerate(all_blocks("yaml")):
        given = list(yaml.safe_load_all(block.text))
        if block.why is not None:
            continue
        assert len(given) == 1, block.place
        is_recipe = given[0].keys() <= RECIPE and not isinstance(given[0].get("modalities"), dict)
        path = tmp_path / f"{i}.yaml"
        path.write_text(yaml.safe_dump((recipe if is_recipe else card) | given[0]))
        if is_recipe:
            load_recipe(path)
        else:
            load_card(path, root=tmp_path)


@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.why for b in blocks(p))], ids=lambda page: page.stem)
def test_what_a_page_shows_runs(page, here, capsys):
    if page.name == "README.md":
        shutil.rmtree("runs/fused")  # it trains this one
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.why is not None:
            continue
        if block.language == "python":
            text = block.text
            for many, few in FEWER.items():
                text = text.replace(many, few)
            exec(compile(text, block.place, "exec"), names)
        for words in block.commands:
            if words[0] == "mmfuse":
                code = main([FEWER.get(word, word) for word in words[1:]])
                assert code == 0, (block.place, words, capsys.readouterr().err)
            else:
                assert shlex.join(words).startswith(ELSEWHERE), f"{block.place}: {words} isn't tried; say why"


def test_the_readme_is_short_and_its_library_block_shorter():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 14


def test_extras_that_pages_name_exist():
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    named = {
        e
        for page in PAGES
        for found in re.findall(r"(?:mmfuse|\.)\[([\w,]+)\]", page.read_text())
        for e in found.split(",")
    }
    assert named
    assert named <= extras
