"""The README's library block and quick start run as they stand, line by line, in a folder where their files lie."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from mmfuse.cli import _parser, main
from mmfuse.training.loop import train

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def files(paired_set, tmp_path, monkeypatch):
    """What the README's lines name, in the folder that the test then is in."""
    monkeypatch.chdir(tmp_path)
    card = yaml.safe_load(paired_set.read_text()) | {"root": str(paired_set.parent)}
    Path("datasets").mkdir()
    for name in ("roadscene", "my_rig"):
        Path(f"datasets/{name}.yaml").write_text(yaml.safe_dump(card))
    recipe = {
        "card": "../../datasets/roadscene.yaml", "model": {"size": "d-4"}, "doubt": "off",
        "data": {"input_size": [96, 128], "workers": 0}, "train": {"batch_size": 4, "epochs": 1, "device": "cpu"},
    }  # fmt: skip
    Path("configs/roadscene").mkdir(parents=True)
    for name in ("rgb", "thermal", "rgb_thermal"):
        path = Path("configs/roadscene") / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"modalities": name.split("_")}))
    shutil.copy(next((paired_set.parent / "rgb").rglob("*.jpg")), "a.jpg")
    shutil.copy(next((paired_set.parent / "thermal").rglob("*.png")), "b.png")


def test_each_line_of_the_library_block_runs(files):
    (block,) = re.findall(r"As a library:\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    for name in ("rgb", "thermal"):
        train(f"configs/roadscene/{name}.yaml")
    names: dict[str, object] = {}
    exec(block.replace("train.epochs=20", "train.epochs=1"), names)
    assert len(list(Path("found").rglob("*.png"))) == 4
    assert [row.name for row in names["table"].models] == ["rgb", "thermal", "rgb_thermal"]
    assert len(block.strip().splitlines()) <= 14


def test_each_line_of_the_quick_start_runs(files, capsys):
    """Those that take long are parsed alone."""
    (block,) = re.findall(r"Then:\n\n```\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    lines = [line[1:] for line in lines if line[0] == "mmfuse"]
    assert {"check", "train", "evaluate", "compare", "predict", "robustness"} <= {line[0] for line in lines}
    for words in lines:
        words = [word.replace("train.epochs=60", "train.epochs=1") for word in words]
        if words[0] in ("check", "train", "evaluate", "predict", "shares"):
            assert main(words) == 0, (words, capsys.readouterr().err)
        else:
            _parser().parse_known_args(words)
    assert Path("found.png").read_bytes().startswith(b"\x89PNG")
