"""What a run folder says, and where its data lies once it moved."""

import pytest

from mmfuse.errors import UserError
from mmfuse.recipes import DataRecipe, Recipe
from mmfuse.run import Run
from mmfuse.strict_yaml import save_yaml


@pytest.fixture
def folder(tmp_path):
    save_yaml(tmp_path / "config.yaml", Recipe("r", "/old/card.yaml", ("rgb",), data=DataRecipe(root="/old")).to_dict())
    return tmp_path


@pytest.mark.parametrize(
    ("moved", "card", "root"),
    [
        ({}, "/old/card.yaml", "/old"),
        ({"root": "/new"}, "/old/card.yaml", "/new"),
        ({"card": "/new/card.yaml"}, "/new/card.yaml", None),  # the old root was that of the old card's data
        ({"card": "/new/card.yaml", "root": "/data"}, "/new/card.yaml", "/data"),
    ],
)
def test_data_that_moved_is_where_one_says(folder, moved, card, root):
    before = (folder / "config.yaml").read_bytes()
    recipe = Run(folder, **moved).recipe
    assert (recipe.card, recipe.data.root) == (card, root)
    assert (folder / "config.yaml").read_bytes() == before


def test_a_card_is_looked_up_from_where_one_is(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run(folder, card="here.yaml").recipe.card == str(tmp_path / "here.yaml")


@pytest.mark.parametrize("text", ["epoch,loss\n1,much\n", "loss\n0.5\n", 'epoch\n"1', "epoch\n1,2,3\n"])
def test_metrics_that_are_none_are_one_line(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics.csv: isn't a run's metrics \(.*\); restore it, or train anew"):
        _ = Run(tmp_path).metrics
