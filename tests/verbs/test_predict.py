"""Prediction from files of sensors that are cut, registered or encoded as a whole."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data.transforms import letterbox
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image
from mmfuse.images.scenes import prepare_scene
from mmfuse.model.build import create_detector
from mmfuse.model.checkpoint import load, save_detector
from mmfuse.recipes import DataRecipe, ModelRecipe, Recipe
from mmfuse.run import Run
from mmfuse.sensor import Calibration, Sensor
from mmfuse.strict_yaml import save_yaml
from mmfuse.verbs.predict import predict

CAMERA = Calibration((128, 96), (100.0, 100.0, 63.5, 47.5))


@pytest.fixture
def trained(tmp_path):
    """Makes a run of a fresh detector with the given sensors."""

    def make(**sensors):
        torch.manual_seed(0)
        channels = {m: s.encoded_channels for m, s in sensors.items()}
        detector = create_detector("d-4", channels, classes=["thing"], sensors=sensors).eval()
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


def test_a_rig_is_registered_as_in_training(trained, tmp_path):
    other = dataclasses.replace(CAMERA, size=(64, 48), intrinsics=(50.0, 50.0, 31.5, 23.5))
    sensors = {
        "rgb": Sensor(3, calibration=CAMERA),
        "depth": Sensor(1, "inverse_depth", register="rig", calibration=other, onto=CAMERA),
        "thermal": Sensor(1, register="rig", calibration=other, onto=CAMERA),
    }
    run = trained(**sensors)
    files = {
        "rgb": write(tmp_path / "rgb.png", channels=3),
        "depth": write(tmp_path / "depth.png", (64, 48), np.uint16),
        "thermal": write(tmp_path / "thermal.png", (64, 48)),
    }
    found = predict(run, files, picture=tmp_path / "p.png", threshold=0.0)
    assert (tmp_path / "p.png").exists()
    detector = load(run.best)
    raw = {m: read_image(path, detector.sensors[m]) for m, path in files.items()}
    scene = prepare_scene(raw, detector.sensors)
    assert {x.shape[1:] for x in scene.values()} == {(96, 128)}
    filled = {m: detector.sensors[m].without_gaps(x) for m, x in scene.items()}
    boxed, _, _ = letterbox(filled, torch.zeros(0, 4), (128, 128), detector.sensors)
    torch.testing.assert_close(found.boxes, detector.detect(boxed)[0].boxes)
    with pytest.raises(UserError, match=r"thermal: register: rig needs depth, which no sensor here gives"):
        predict(run, {"rgb": files["rgb"], "thermal": files["thermal"]})


@pytest.mark.parametrize("encoding", ["percentile", "clahe", "normals", "hha", "depth_colours"])
def test_files_are_prepared_and_raw_tensors_are_refused(trained, tmp_path, encoding):
    run = trained(x=Sensor(1, encoding, calibration=CAMERA))
    path = write(tmp_path / "x.png", dtype=np.uint16)
    assert len(predict(run, {"x": path}, picture=tmp_path / "p.png", threshold=0.0))
    detector = load(run.best)
    raw = read_image(path, detector.sensors["x"])
    with pytest.raises(UserError, match=r"images: x is raw; call mmfuse.prepare_scene"):
        detector.detect({"x": raw})
    assert len(detector.detect(prepare_scene({"x": raw}, detector.sensors))[0])


def test_another_pixel_type_than_in_training_is_refused(trained, tmp_path):
    run = trained(x=Sensor(1, dtype="uint16", range=(500, 3000)))
    with pytest.raises(UserError, match=r"x.png: holds uint8, but the sensor's files are uint16"):
        predict(run, {"x": write(tmp_path / "x.png")})
    with pytest.raises(UserError, match="images: x is uint8, but this sensor's files hold uint16"):
        load(run.best).detect({"x": torch.zeros(1, 128, 128, dtype=torch.uint8)})


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_score_is_refused(trained, tmp_path, threshold):
    with pytest.raises(UserError, match=r"threshold: .* is not allowed; use a score from 0 to 1"):
        predict(trained(x=Sensor(1)), {"x": write(tmp_path / "x.png")}, threshold=threshold)


def test_an_array_in_place_of_a_tensor_is_refused(trained):
    with pytest.raises(UserError, match=r"images: x is ndarray; give a tensor"):
        load(trained(x=Sensor(1)).best).detect({"x": np.zeros((1, 128, 128), np.uint8)})
