"""Exported files in half precision and in 8 bits: what lies in them, what they find, and what that costs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

import mmfuse
from mmfuse.errors import UserError
from mmfuse.exporting.parity import TOLERANCES, difference
from mmfuse.exporting.quantising import quantised
from mmfuse.model.build import create_detector
from mmfuse.run import Run
from mmfuse.sensor import Sensor
from mmfuse.verbs import export as export_verb

RNG = np.random.default_rng(0)
SCENE = {
    "rgb": RNG.integers(0, 256, (70, 150, 3), dtype=np.uint8),
    "thermal": RNG.integers(18000, 42000, (70, 150), dtype=np.uint16),
}


def spare_tracing(patch, file):
    """Traces nothing where it is known what comes of it: the run in fp32."""
    patch.setattr(export_verb, "traced", lambda *_: None)
    patch.setattr(export_verb, "to_onnx", lambda *_: onnx.load(file))


@pytest.fixture(scope="module")
def calibrated(run, file):
    """The run in int8, and what the quantiser was given for it."""
    given = []

    def spy(content, feeds):
        given.extend(feeds)
        return quantised(content, given)

    with pytest.MonkeyPatch.context() as patch:
        spare_tracing(patch, file)
        patch.setattr(export_verb, "quantised", spy)
        return mmfuse.export(run, run.folder / "int8.onnx", precision="int8"), given


@pytest.fixture(scope="module")
def int8(calibrated):
    return calibrated[0]


def weights(path):
    """The type of each convolution's weights, by name of these, and the network."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = node.input[1]
            if name in made and made[name].op_type == "DequantizeLinear":
                name = made[name].input[0]
            found[name.removesuffix("_quantized")] = kinds[name]
    return found, model


def test_in_half_precision_it_finds_the_same_and_takes_and_gives_the_same_types(file, tmp_path):
    torch.manual_seed(0)
    sensors = {"thermal": Sensor(1, range=(0.0, 65535.0), dtype="uint16", mean=(0.4,), std=(0.2,))}
    options = {"backbone": "test_resnet", "width": 16, "pyramid_depth": 1, "head_depth": 1, "input_size": (96, 128)}
    detector = create_detector("d-4", {"thermal": 1}, classes=("a", "b", "c"), sensors=sensors, **options).eval()
    detector.class_head.predict.pointwise.weight.data *= 8
    detector.begin_doubt()
    detector.doubts["thermal"].threshold.fill_(1e9)
    half = mmfuse.export(detector, tmp_path / "half.onnx", precision="fp16")
    found, model = weights(half.path)
    assert set(found.values()) == {TensorProto.FLOAT16}
    assert set(weights(file)[0].values()) == {TensorProto.FLOAT}
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    assert kinds["detector.judges.thermal.precision"] == TensorProto.FLOAT  # what judges sensors isn't rounded
    types = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)}
    assert types["thermal"] == TensorProto.UINT16
    assert types["boxes"] == types["scores"] == types["doubt"] == TensorProto.FLOAT
    exported = mmfuse.load(half.path)
    scene = {"thermal": SCENE["thermal"]}
    (answer,), (expected,) = exported.detect(scene), detector.detect(scene)
    assert len(answer) == len(expected) > 20
    assert difference(expected, answer, TOLERANCES["fp16"][0], 0.5, 100) is None
    assert answer.doubt == pytest.approx(expected.doubt, rel=0.02)
    assert exported.header.precision == "fp16"
    assert ", fp16, 96x128, " in half.to_text()


def test_fp16_is_held_to_its_own_bounds(run, file, tmp_path, monkeypatch):
    """Scores that are off by more than fp32 may be, and by less than fp16 may; and by more than that."""
    spare_tracing(monkeypatch, file)
    detector = mmfuse.load(run.best)
    bias = detector.class_head.predict.pointwise.bias.data
    bias += 0.03
    with pytest.raises(UserError, match="it isn't written"):
        mmfuse.export(detector, tmp_path / "d.onnx")
    assert mmfuse.export(detector, tmp_path / "d.onnx", precision="fp16").header.precision == "fp16"
    bias += 0.07
    with pytest.raises(UserError, match="it isn't written"):
        mmfuse.export(detector, tmp_path / "other.onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]


def test_in_8_bits_are_the_convolutions_that_judge_no_sensor_and_predict_nothing(file, int8):
    found, model = weights(int8.path)
    original = weights(file)[0]
    assert found.keys() == original.keys()
    floats = {name for name, kind in found.items() if kind == TensorProto.FLOAT}
    assert {kind for name, kind in found.items() if name not in floats} == {TensorProto.INT8}
    judging = {f"detector.backbones.{m}.net.{part}" for m in ("rgb", "thermal") for part in ("conv1", "layer2")}
    assert {name for name in floats if "predict" not in name and "backbones" not in name} == set()
    assert all(any(name.startswith(part) for name in floats) for part in judging)
    assert not any("layer3" in name or "layer4" in name for name in floats)  # coarser maps, which doubt doesn't look at
    assert {part for name in floats for part in ("class_head.predict", "box_head.predict") if part in name} == {
        "class_head.predict",
        "box_head.predict",
    }
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    (scale,) = [
        values[name] for name in values if name.startswith("detector.class_head.convs.0.pointwise.weight_scale")
    ]
    assert len(np.unique(scale)) > 8  # one for each channel
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}


def test_what_8_bits_cost_is_measured_on_validation_and_told(run, int8):
    header = mmfuse.load(int8.path).header
    assert header.precision == "int8"
    assert header.val_ap["fp32"] == pytest.approx(mmfuse.evaluate(run, split="val").scores.ap, abs=1e-4)
    assert header.val_ap["int8"] == mmfuse.evaluate(int8.path, split="val").scores.ap
    assert header.val_ap["fp32"] != header.val_ap["int8"]
    costs = f"AP on validation {header.val_ap['int8']:.3f}, in fp32 {header.val_ap['fp32']:.3f}"
    assert int8.to_text().endswith(costs)
    assert ", int8, 96x128, " in int8.to_text()


def test_int8_against_the_original_is_one_compare(run, int8, tmp_path):
    comparison = mmfuse.compare([run, int8.path], out=tmp_path, rounds=5)
    assert [row.name for row in comparison.models] == ["both", "both-int8"]
    original, exported = comparison.models
    assert (exported.parameters, exported.gmacs) == (original.parameters, original.gmacs)
    assert exported.latency_ms > 0
    assert exported.difference.to == "both"
    assert [row.modalities for row in exported.subsets] == [row.modalities for row in original.subsets]
    assert int8.path in comparison.command
    (found,) = mmfuse.load(int8.path).detect(SCENE)
    (expected,) = mmfuse.load(run.best).detect(SCENE)
    assert found.doubt == pytest.approx(expected.doubt, rel=1e-3)  # what judges isn't rounded
    assert found.dropped == expected.dropped
    assert not torch.equal(found.scores, expected.scores)


def test_8_bits_hold_what_validation_images_need(calibrated):
    """The quantiser is given raw images of the validation split, all sensors of them there."""
    given = calibrated[1]
    assert len(given) == 4
    assert given[0]["rgb"].dtype == np.uint8
    assert given[0]["thermal"].dtype == np.uint16
    assert given[0]["rgb"].shape[2:] != (96, 128)
    assert all(feed["present_rgb"].all() and feed["present_thermal"].all() for feed in given)
    assert len({feed["rgb"].tobytes() for feed in given}) == 4


def test_without_validation_images_there_is_no_int8(run, tmp_path):
    moved = Run(run.folder, root=tmp_path / "nowhere")
    for model in (moved, mmfuse.load(run.best)):
        with pytest.raises(UserError, match="precision: int8 needs validation images with all sensors, and none is"):
            mmfuse.export(model, tmp_path / "d.onnx", precision="int8")
    assert not list(tmp_path.iterdir())
