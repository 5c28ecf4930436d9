"""Prediction from files of sensors that are cut, registered or encoded as a whole."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.checkpoint import load, save_detector
from mmfuse.recipes import DataRecipe, ModelRecipe, Recipe
from mmfuse.run import Run
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import save_yaml
from mmfuse.verbs.predict import predict


@pytest.fixture
def trained(tmp_path):
    """Makes a run of a fresh detector with the given sensors."""

    def make(**sensors):
        torch.manual_seed(0)
        channels = {m: s.encoded_channels for m, s in sensors.items()}
        detector = create_detector("d-4", channels, classes=["thing"], sensors=sensors, input_size=(128, 128)).eval()
        recipe = Recipe("x", "card.yaml", tuple(sensors), ModelRecipe("d-4"), DataRecipe(input_size=(128, 128)))
        run = Run(tmp_path / "run")
        save_yaml(run.folder / "config.yaml", recipe.to_dict())
        save_detector(run.best, detector, {})
        return run

    return make


def write(path, size=(128, 96), dtype=np.uint8, channels=0):
    shape = (size[1], size[0], channels) if channels else (size[1], size[0])
    Image.fromarray(np.random.default_rng(0).integers(500, 3000, shape).astype(dtype)).save(path)
    return path


def test_boxes_are_in_pixels_of_the_file_border_and_all(trained, tmp_path):
    plain, cut = tmp_path / "plain.png", tmp_path / "cut.png"
    write(plain, channels=3)
    pixels = np.array(Image.open(plain))
    Image.fromarray(np.pad(pixels, ((7, 5), (10, 3), (0, 0)))).save(cut)
    expected = predict(trained(rgb=Sensor(3)), {"rgb": plain}, threshold=0.0)
    run = trained(rgb=Sensor(3, border=(10, 7, 3, 5)))
    found = predict(run, {"rgb": cut}, picture=tmp_path / "p.png", threshold=0.0)
    torch.testing.assert_close(found.boxes, expected.boxes + torch.tensor([10.0, 7, 10, 7]))
    torch.testing.assert_close(found.scores, expected.scores)


def test_another_pixel_type_than_in_training_is_refused(trained, tmp_path):
    run = trained(x=Sensor(1, dtype="uint16", range=(500, 3000)))
    with pytest.raises(UserError, match=r"x.png: holds uint8, but the sensor's files are uint16"):
        predict(run, {"x": write(tmp_path / "x.png")})
    with pytest.raises(UserError, match="images: x: holds uint8, but the sensor's files are uint16"):
        load(run.best).detect({"x": torch.zeros(1, 128, 128, dtype=torch.uint8)})


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_score_is_refused(trained, tmp_path, threshold):
    with pytest.raises(UserError, match=r"threshold: .* is not allowed; use a score from 0 to 1"):
        predict(trained(x=Sensor(1)), {"x": write(tmp_path / "x.png")}, threshold=threshold)
