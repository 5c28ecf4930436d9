"""The next thing to try where a training found next to nothing, or had few images to learn from."""

from mmfuse.recipes import Recipe

NEAR_ZERO = 0.05
"""AP below which next to nothing is found."""

FEW_IMAGES = 500
"""Training images that are too few to learn to see from."""

ENOUGH_STEPS = 2000
"""Steps after which most detectors have found something, if they will."""


def advice(recipe: Recipe, ap: float, images: int, steps_per_epoch: int) -> str | None:
    """Returns one line for a run of a best AP on validation, from so many training images; None where there is none."""
    model, steps = recipe.model, recipe.train.epochs * steps_per_epoch
    scratch = not (model.pretrained or model.weights or recipe.init)
    few = images < FEW_IMAGES
    if ap >= NEAR_ZERO and not (few and scratch):
        return None
    epochs = -(-ENOUGH_STEPS // steps_per_epoch)
    longer = f"{steps} steps are few; next, try train.epochs={epochs} with --resume"
    if ap < NEAR_ZERO and steps < ENOUGH_STEPS / 10:
        next_thing = longer
    elif scratch:
        next_thing = "it learnt from scratch; next, try model.pretrained=true, or init=RUN of a larger dataset"
    elif steps < ENOUGH_STEPS:
        next_thing = longer
    elif few and not model.size.startswith("d-"):
        next_thing = f"model.size {model.size} has much to learn; next, try d-1"
    else:
        next_thing = f"look at the data with mmfuse check {recipe.card}, or try another train.lr"
    return f"best val AP {ap:.3f} of {images} training images: {next_thing}"
