"""Exported detectors of every placement and fusion, of one sensor to three, of every kind of pixels."""

from dataclasses import replace

import pytest
import torch

import mmfuse
from mmfuse import scaling
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.fusion import FUSIONS
from mmfuse.sensor import Sensor

SENSORS = {
    "rgb": Sensor(3, dtype="uint8", mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0), seen=(0.0, 255.0)),
    "warm": Sensor(1, range=(2e4, 3e4), dtype="uint16", mean=(0.5,), std=(0.2,), seen=(19000.0, 31000.0)),
    "far": Sensor(1, "inverse_depth", dtype="uint16", mean=(0.3, 0.9), std=(0.2, 0.2), seen=(400.0, 9000.0)),
    "own": Sensor(1, "celsius", range=(-10.0, 60.0), unit=1.0, dtype="float32", gaps=True, mean=(0.4,), std=(0.2,)),
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    size = scaling.Size("tiny", 128, "test_resnet", width=8, pyramid_depth=1, head_depth=1)
    monkeypatch.setitem(scaling.PUBLISHED, "tiny", size)


def make(*modalities, doubting=True, **options):
    torch.manual_seed(0)
    sensors = {m: SENSORS[m] for m in modalities}
    channels = {m: sensor.encoded_channels for m, sensor in sensors.items()}
    detector = create_detector("tiny", channels, classes=("x", "y", "z"), sensors=sensors, **options).eval()
    for part in detector.modules():
        if isinstance(part, FusionDetector):
            part.class_head.predict.pointwise.weight.data *= 8
    if doubting and options.get("placement") != "channels":
        detector.begin_doubt()
        for doubt in detector.doubts.values():
            doubt.threshold.fill_(1e6)
    return detector


OTHERS = (
    *({"placement": placement} for placement in ("boxes", "channels", "every", "last")),
    *({"fusion": fusion} for fusion in FUSIONS),
    {"align": "rgb"},
)


@pytest.mark.long
@pytest.mark.parametrize("options", OTHERS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_sensors_are_exported(tmp_path, options, precision):
    """`export` compares it with the detector itself, also without each sensor."""
    made = mmfuse.export(make("rgb", "warm", **options), tmp_path / "d.onnx", precision=precision)
    assert made.compared == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"fusion": "gated"}, pytest.param({"placement": "boxes"}, marks=pytest.mark.long)], ids=str
)
def test_three_sensors_of_other_pixels_are_exported(tmp_path, options):
    """Depth, which isn't mixed, 16 bits and floats with gaps, of which two or one may be missing or not believed."""
    detector = make("warm", "far", "own", **options)
    scene = {
        "warm": torch.randint(18000, 32000, (1, 90, 200), dtype=torch.int32).to(torch.uint16),
        "far": torch.randint(0, 9000, (1, 90, 200), dtype=torch.int32).to(torch.uint16),
        "own": torch.rand(1, 90, 200) * 80,
    }
    scene["own"][:, 20:40, 50:90] = torch.nan
    blind = scene | {"warm": torch.full((1, 90, 200), 25000, dtype=torch.int32).to(torch.uint16)}
    sound, doubted = (detector.detect(images)[0].doubt["warm"] for images in (scene, blind))
    assert doubted > 2 * sound
    detector.doubts["warm"].threshold.mul_((sound * doubted) ** 0.5)
    detector.agreement.least[:2, :2] = 2  # where warm and far are alone, they show two scenes
    mmfuse.export(detector, tmp_path / "d.onnx")
    exported = mmfuse.load(tmp_path / "d.onnx")
    apart = {m: scene[m] for m in ("warm", "far")}
    for images in (scene, {m: scene[m] for m in ("far", "own")}, {"own": scene["own"]}, apart, blind):
        (found,), (expected,) = exported.detect(images), detector.detect(images)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)
        assert found.disagreeing == expected.disagreeing == (("warm", "far") if images is apart else ())
        assert found.dropped == expected.dropped == (("warm",) if images is blind else ())
        assert found.doubt == pytest.approx(expected.doubt, rel=1e-2)
    (alone,) = detector.detect({m: scene[m] for m in ("far", "own")})
    torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_any_number_of_images_may_be_given(tmp_path):
    detector = make("rgb", "warm", doubting=False)
    mmfuse.export(detector, tmp_path / "d.onnx", batch=0, size=(128, 256))
    exported = mmfuse.load(tmp_path / "d.onnx")
    assert exported.input_size == (128, 256)
    detector.sight = replace(detector.sight, size=(128, 256))
    for count in (1, 5):
        scenes = {"rgb": torch.randint(0, 255, (count, 3, 100, 220)).to(torch.uint8)}
        for found, expected in zip(exported.detect(scenes), detector.detect(scenes), strict=True):
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
