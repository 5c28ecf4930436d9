"""The library block of the README runs as it stands, line by line, in a folder where its files lie."""

import re
import shutil
from pathlib import Path

import yaml

from mmfuse.training.loop import train

README = Path(__file__).parents[2] / "README.md"


def test_each_line_of_the_library_block_runs(paired_set, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"As a library:\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    card = yaml.safe_load(paired_set.read_text()) | {"root": str(paired_set.parent)}
    Path("datasets").mkdir()
    Path("datasets/roadscene.yaml").write_text(yaml.safe_dump(card))
    recipe = {
        "card": "../../datasets/roadscene.yaml", "model": {"size": "d-4"}, "doubt": "off",
        "data": {"input_size": [96, 128], "workers": 0}, "train": {"batch_size": 4, "epochs": 1, "device": "cpu"},
    }  # fmt: skip
    Path("configs/roadscene").mkdir(parents=True)
    for name in ("rgb", "thermal", "rgb_thermal"):
        path = Path("configs/roadscene") / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"modalities": name.split("_")}))
        if "_" not in name:
            train(path)
    shutil.copy(next((paired_set.parent / "rgb").rglob("*.jpg")), "a.jpg")
    shutil.copy(next((paired_set.parent / "thermal").rglob("*.png")), "b.png")
    names: dict[str, object] = {}
    exec(block.replace("train.epochs=20", "train.epochs=1"), names)
    assert len(list(Path("found").rglob("*.png"))) == 4
    assert [row.name for row in names["table"].models] == ["rgb", "thermal", "rgb_thermal"]
    assert len(block.strip().splitlines()) <= 14
