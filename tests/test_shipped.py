import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from mmfuse.cli import main
from mmfuse.data.annotations.cards import load_card
from mmfuse.errors import UserError
from mmfuse.recipes import load_recipe
from mmfuse.shipped import copy, find, shipped

ROOT = Path(__file__).parents[1]


def test_all_recipes_and_cards_are_named():
    assert len(shipped("recipe")) == len(list((ROOT / "configs").rglob("*.yaml")))
    assert len(shipped("card")) == len(list((ROOT / "datasets").glob("*.yaml")))
    assert find("recipe", "roadscene/rgb_thermal") == ROOT / "configs" / "roadscene" / "rgb_thermal.yaml"
    with pytest.raises(UserError, match=r"'roadscene/rgb_therml' is not a known recipe that comes along; did you mean"):
        find("recipe", "roadscene/rgb_therml")


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("roadscene/rgb_thermal", ["train.epochs=3"])
    assert (recipe.name, recipe.train.epochs) == ("rgb_thermal", 3)
    assert Path(recipe.card) == ROOT / "datasets" / "roadscene.yaml"
    with pytest.raises(UserError, match="'nothing' is not a known recipe that comes along"):
        load_recipe("nothing")
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        load_recipe("nothing.yaml")


def test_a_recipe_is_copied_with_its_card_and_finds_it_there(tmp_path):
    copied = copy("recipe", "roadscene/rgb_thermal", tmp_path)
    assert copied == [tmp_path / "configs" / "roadscene" / "rgb_thermal.yaml", tmp_path / "datasets" / "roadscene.yaml"]
    recipe = load_recipe(copied[0])
    assert Path(recipe.card) == copied[1].resolve()
    (tmp_path / "data" / "roadscene").mkdir(parents=True)
    assert load_card(recipe.card).root == (tmp_path / "data" / "roadscene").resolve()
    with pytest.raises(UserError, match=r"rgb_thermal.yaml: is there already; give another folder"):
        copy("recipe", "roadscene/rgb_thermal", tmp_path)


def test_a_recipe_is_copied_with_those_that_it_starts_from(tmp_path):
    copied = copy("recipe", "few_images/rgb_thermal", tmp_path)
    folder = tmp_path / "configs" / "few_images"
    assert copied == [folder / "rgb_thermal.yaml", tmp_path / "datasets" / "roadscene.yaml"] + [
        folder / f"{name}.yaml" for name in ("rgb", "thermal")
    ]
    starts = load_recipe(copied[0]).singles
    assert [load_recipe(starts[m]).modalities for m in ("rgb", "thermal")] == [("rgb",), ("thermal",)]


def test_verbs_list_show_and_copy(tmp_path, capsys):
    assert main(["cards"]) == 0
    assert "llvip" in capsys.readouterr().out.splitlines()
    assert main(["recipes", "roadscene/rgb"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["modalities"] == ["rgb"]
    assert main(["cards", "llvip", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'datasets' / 'llvip.yaml'}\n"
    assert main(["cards", "llvi"]) == 2
    assert "did you mean 'llvip'" in capsys.readouterr().err


def test_the_package_lists_all_its_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mmfuse").rglob("__init__.py")}
    assert set(listed) == folders | {"mmfuse.configs", "mmfuse.datasets"}


@pytest.mark.slow
def test_the_wheel_holds_recipes_and_cards_which_are_found_in_it(tmp_path, wheel):
    """Unpacked, as an installation does, and asked from another folder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    inner = [str(p.relative_to(tmp_path / "site" / "mmfuse")) for p in (tmp_path / "site" / "mmfuse").rglob("*.yaml")]
    assert len(inner) == len(shipped("recipe")) + len(shipped("card"))
    program = "import mmfuse, sys; print(mmfuse.__file__); print(mmfuse.load_recipe('roadscene/rgb_thermal').card)"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin"}
    asked = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    home, card = asked.stdout.splitlines()
    assert Path(home) == tmp_path / "site" / "mmfuse" / "__init__.py"
    assert Path(card) == tmp_path / "site" / "mmfuse" / "datasets" / "roadscene.yaml"
