from dataclasses import replace

import pytest

from mmfuse.recipes import ModelRecipe, Recipe, TrainRecipe
from mmfuse.training.advice import advice, data_advice

SCRATCH = Recipe("r", "card.yaml", ("rgb",), train=TrainRecipe(epochs=100))
STARTED = replace(SCRATCH, model=ModelRecipe(pretrained=True))


@pytest.mark.parametrize(
    ("recipe", "ap", "images", "steps", "said"),
    [
        (SCRATCH, 0.001, 32, 1, "100 steps are few; next, try train.epochs=2000 with --resume"),
        (SCRATCH, 0.001, 32, 4, "it learnt from scratch; next, try model.pretrained=true"),
        (SCRATCH, 0.3, 32, 4, "it learnt from scratch; next, try model.pretrained=true"),
        (SCRATCH, 0.001, 9000, 400, "it learnt from scratch"),
        (STARTED, 0.001, 32, 4, "400 steps are few; next, try train.epochs=500 with --resume"),
        (replace(SCRATCH, init="run"), 0.001, 32, 40, "model.size d0 has much to learn; next, try d-1"),
        (replace(STARTED, model=ModelRecipe("d-2", pretrained=True)), 0.001, 32, 40, "mmfuse check card.yaml"),
        (STARTED, 0.001, 9000, 400, "look at the data with mmfuse check card.yaml, or try another train.lr"),
    ],
)
def test_what_to_try_next_goes_by_what_the_run_was(recipe, ap, images, steps, said):
    line = advice(recipe, ap, images, steps)
    assert said in line
    assert f"best val AP {ap:.3f} of {images} training images" in line
    assert "\n" not in line


@pytest.mark.parametrize(("recipe", "images"), [(STARTED, 32), (SCRATCH, 500)])
def test_a_run_that_found_something_is_left_alone_if_it_had_a_start_or_many_images(recipe, images):
    assert advice(recipe, 0.05, images, 4) is None


def test_waiting_for_data_is_told_where_it_is_much():
    assert data_advice(0.29, 4) is None
    assert data_advice(0.5, 4).startswith(
        "50% of the time goes into waiting for data from 4 workers; next, try data.cache"
    )
