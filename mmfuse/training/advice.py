"""The next thing to try where a training found next to nothing, had few images to learn from, or waits for data."""

from mmfuse.recipes import Recipe

NEAR_ZERO = 0.05
"""AP below which next to nothing is found."""

FEW_IMAGES = 500
"""Training images that are too few to learn to see from."""

ENOUGH_STEPS = 2000
"""Steps after which most detectors have found something, if they will."""

MUCH_WAITING = 0.3
"""Share of the time of an epoch's steps that is worth a line when it is spent on waiting for data."""


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


def data_advice(waiting: float, workers: int) -> str | None:
    """Returns one line for a training that spends a share of its time `waiting` for data; None where it is small."""
    if waiting < MUCH_WAITING:
        return None
    next_thing = "data.cache=FOLDER, which keeps images decoded, or more data.workers where there are cores to spare"
    return f"{waiting:.0%} of the time goes into waiting for data from {workers} workers; next, try {next_thing}"
