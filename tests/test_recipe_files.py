"""The recipes and cards that come with the package: each one builds, and an ablation changes what it says alone."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from mmfuse.architecture import Placement
from mmfuse.model.build import create_detector
from mmfuse.model.fusion import FUSIONS
from mmfuse.model.graphs import PYRAMIDS
from mmfuse.recipes import load_recipe
from mmfuse.run import input_size
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
ABLATIONS = sorted(path for path in (ROOT / "configs" / "ablations").iterdir())


@pytest.fixture(scope="module")
def detector_of():
    """Builds the detector that a recipe asks for, once for all that ask for the same."""
    built = {}

    def build(recipe):
        card = read_yaml(Path(recipe.card))
        sensors = {m: Sensor(**card["modalities"][m]) for m in recipe.modalities}
        channels = {m: sensor.encoded_channels for m, sensor in sensors.items()}
        options = recipe.to_dict()["model"] | {"pretrained": False, "classes": card["classes"], "sensors": sensors}
        key = repr((channels, options))
        if key not in built:
            with torch.device("meta"):
                built[key] = create_detector(modalities=channels, **options)
        return built[key]

    return build


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_builds_the_detector_of_its_card(path, detector_of):
    recipe = load_recipe(path)
    detector = detector_of(recipe)
    assert detector.modalities == recipe.modalities
    assert all(side % detector.stride == 0 for side in input_size(recipe))


@pytest.mark.parametrize("folder", ABLATIONS, ids=lambda path: path.name)
def test_an_ablation_changes_one_thing(folder):
    recipes = {path.stem: load_recipe(path).to_dict() for path in folder.glob("*.yaml")}
    changed = {
        "pyramids": {"pyramid", "pyramid_depth", "fusion"},
        "weighting": {"fusion"},
        "placement": {"placement"},
        "branches": {"fusion", "align", "modality_dropout", "branch_losses", "distillation"},
        "sensors": set[str](),
        "roadscene": {"placement", "fusion", "branch_losses"},
        "osd": {"branch_losses"},
        "backbone": {"backbone", "pyramid", "pyramid_depth", "fusion"},
        "scaling": {"size", "backbone", "width", "pyramid_depth", "head_depth"},
    }[folder.name]
    first = next(iter(recipes.values()))
    for name, recipe in recipes.items():
        assert recipe["name"] == name
        assert recipe["card"] == first["card"]
        for key in ("model", "train"):
            kept = [{k: v for k, v in r[key].items() if k not in changed} for r in (recipe, first)]
            assert kept[0] == kept[1]
        assert folder.name == "branches" or not recipe["init"]
        if folder.name != "scaling":
            moves = {"shift", "rotation"} if folder.name == "branches" else set()
            assert all(recipe["data"][key] == value for key, value in first["data"].items() if key not in moves)
        if folder.name not in ("placement", "sensors", "roadscene", "osd"):
            assert recipe["modalities"] == first["modalities"]


def test_ablations_name_every_pyramid_and_placement():
    def chosen(folder, key):
        return {load_recipe(path).to_dict()["model"][key] for path in (ROOT / "configs/ablations" / folder).glob("*")}

    assert chosen("pyramids", "pyramid") == PYRAMIDS.keys()
    assert chosen("placement", "placement") == set(get_args(Placement))
    assert chosen("weighting", "fusion") == FUSIONS.keys()
