"""The whole story on the embedded set: generate, train each sensor and their fusion, compare, report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmfuse.embedded.dataset import generate
from mmfuse.evaluation.results import Comparison
from mmfuse.recipes import DataRecipe, ModelRecipe, Recipe, TrainRecipe
from mmfuse.strict_yaml import save_yaml
from mmfuse.verbs.compare import compare

MODALITIES = ("rgb", "thermal")

SINGLE = Recipe(
    name="single",
    card="../data/card.yaml",
    modalities=MODALITIES[:1],
    model=ModelRecipe(size="d-2"),
    data=DataRecipe(input_size=(192, 256), scale_jitter=(0.8, 1.25), workers=0),
    train=TrainRecipe(epochs=16, batch_size=8, optimizer="adamw", lr=0.15, ema_decay=0.99, evaluate_every=4),
)
"""The recipe of each sensor alone; its files differ in their modality."""

FUSED = replace(
    SINGLE,
    name="_".join(MODALITIES),
    modalities=MODALITIES,
    train=replace(SINGLE.train, epochs=10, lr=0.05, evaluate_every=5, faults=0.3),
    init={m: f"{m}.yaml" for m in MODALITIES},
)
"""The recipe of the fusion, which starts from the trained sensors."""

CORRUPTIONS = ("blank_white", "noise", "frozen")
"""What the fused detector is tried on, at the highest severity: a sensor that says nothing, nonsense, or old news."""


def demo(out: str | Path = "runs/demo", seeds: Sequence[int] = (0,)) -> Comparison:
    """Runs the main job in `out`, once for each training seed, and returns the comparison of all.

    What is there already is used again.

    Raises:
        UserError: `out` holds something else.
    """
    out = Path(out)
    card = out / "data" / "card.yaml"
    if not card.exists():
        generate(out / "data")
    recipes = []
    for recipe in (*(replace(SINGLE, name=m, modalities=(m,)) for m in MODALITIES), FUSED):
        recipes.append(out / "recipes" / f"{recipe.name}.yaml")
        save_yaml(recipes[-1], recipe.to_dict())
    return compare(recipes, seeds=seeds, corruptions=CORRUPTIONS, out=out)
