"""Finds objects in the image files of one scene, and shows them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mmfuse.errors import UserError, unknown_name
from mmfuse.images.scenes import read_scene
from mmfuse.model.checkpoint import load
from mmfuse.model.doubt import Doubting
from mmfuse.report.pictures import overlay
from mmfuse.run import Run
from mmfuse.sample import Detections, Scene


def predict(
    run: str | Path | Run,
    images: Mapping[str, str | Path],
    *,
    picture: str | Path | None = None,
    threshold: float = 0.3,
    doubt: Doubting | None = None,
) -> Detections:
    """Returns the objects of one scene, best first, down to a score of `threshold`.

    `images` maps modalities of the run to files, of one size unless the card says how to register them; one that is
    left out is treated as a broken sensor. Boxes are in pixels of the reference's file.
    `picture` is where to write the sensors side by side with the boxes drawn in. `doubt` is as for `Detector.detect`,
    the recipe's if None.

    Raises:
        UserError: the run or a file can't be read, a modality isn't the run's, sizes differ, or the
            threshold is no score.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold: {threshold} is not allowed; use a score from 0 to 1")
    run = run if isinstance(run, Run) else Run(Path(run))
    detector = load(run.best)
    for modality in images:
        if modality not in detector.modalities:
            raise UserError(f"{unknown_name(modality, detector.modalities, 'modality of this run')}")
    if not images:
        raise UserError(f"no image given; give at least one of {', '.join(detector.modalities)}")
    found = detector.detect(images, threshold=threshold, doubt=doubt or run.recipe.doubt)[0]
    if picture is not None:
        scene = read_scene(Scene(images), detector.sensors)
        left, top, *_ = next((s.border for s in detector.sensors.values() if s.register == "none"), (0, 0))
        within = replace(found, boxes=found.boxes - torch.tensor([left, top, left, top]))
        overlay(scene, detector.sensors, within, detector.classes, Path(picture), threshold=threshold)
    return found
