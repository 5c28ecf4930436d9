"""Two processes that share a batch train as one process does that has it whole."""

import json

import pytest
import torch
import yaml
from shared import in_two_processes, trained

from mmfuse.recipes import load_recipe

PLAIN = "train.branch_losses=0"
CASES = {
    "branches": ["train.branch_losses=1", "train.distillation=1"],
    "dropout": [PLAIN, "train.modality_dropout=0.9"],
    "faults": [PLAIN, "train.faults=0.9"],
    "lacking": ["train.branch_losses=1"],
    "ensemble": ["model.placement=boxes"],
}


@pytest.fixture
def recipes(paired_set, recipe_file, tmp_path):
    """A recipe for each case; of the images of the last ones, which make two batches, one alone has thermal."""
    listing = json.loads((paired_set.parent / "train.json").read_text())
    for image in listing["images"][1:]:
        del image["modalities"]["thermal"]
    (paired_set.parent / f"{tmp_path.name}.json").write_text(json.dumps(listing))
    values = yaml.safe_load(paired_set.read_text())
    values |= {"root": str(paired_set.parent), "missing": "allow"}
    values["splits"] |= {"train": f"{tmp_path.name}.json"}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(values))
    path, found = recipe_file("rgb", "thermal"), {}
    for name, changes in CASES.items():
        card = [f"card={tmp_path / 'card.yaml'}"] if name in ("lacking", "ensemble") else []
        found[name] = load_recipe(path, [*changes, *card, "data.input_size=[64, 64]", "train.optimizer=sgd"])
    return found


def test_two_processes_train_as_one_does(recipes, tmp_path):
    """With images of a sensor in one process alone, or in none: each waits for the batch norms of the other."""
    torch.manual_seed(5)
    for (name, recipe), two in zip(recipes.items(), in_two_processes(recipes, tmp_path), strict=True):
        (losses, first), (theirs, second) = two
        wanted, one = trained(recipe, tmp_path / f"alone-{name}")
        assert losses == theirs == pytest.approx(wanted, rel=1e-3), name
        for key, value in one.items():
            said = f"{name}: {key}: {{}}".format
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-4, msg=said)
            torch.testing.assert_close(second[key], first[key], rtol=1e-5, atol=1e-6)
