"""The types in which a detector computes, exports and stores what it made: bfloat16, half, pytrees, plain tensors."""

import pytest
import torch
from tiny import inputs, make, raw

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.doubt import describe

pytestmark = pytest.mark.usefixtures("tiny_sizes")


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("placement", ["channels", "first", "boxes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_detector_detects_and_encodes_in_float32(dtype, placement, folded):
    detector = make(placement=placement)
    exact = {name: x.clone() for name, x in detector.named_buffers() if name.startswith(("mean_", "std_"))}
    cast = (detector.folded() if folded else make(placement=placement)).to(dtype)
    images = raw(batch=2)
    assert cast.dtype == dtype
    assert all(x.dtype == torch.float32 for x in cast.normalise(images).values())
    for name, x in exact.items():
        assert torch.equal(cast.get_buffer(name), x)
    found, expected = cast.detect(images, max_detections=5), detector.detect(images, max_detections=5)
    for one, other in zip(found, expected, strict=True):
        assert one.boxes.dtype == one.scores.dtype == torch.float32
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=0.1, atol=0.02)


def test_what_judges_sensors_is_not_rounded():
    detector = make()
    detector.begin_doubt()
    with torch.no_grad():
        for m, maps in detector.maps({m: 0.5 * x for m, x in inputs(batch=24).items()}).items():
            detector.doubts[m].fit(describe(maps[0]))
            detector.doubts[m].threshold.fill_(2.0)
    before = {name: x.clone() for name, x in detector.judges.named_buffers()}
    detector.bfloat16()
    after = dict(detector.judges.named_buffers())
    assert len(before) == 10
    assert all(torch.equal(after[name], x) and after[name].dtype == torch.float32 for name, x in before.items())
    found = detector.detect(raw(batch=2), doubt="report")
    assert all(set(one.doubt) == {"a", "b"} for one in found)


def test_what_detecting_made_serves_training():
    detector = make()
    detector.detect(raw())
    assert not detector.anchors((128, 128)).is_inference()


@torch.no_grad()
def test_outputs_can_be_exported():
    detector, images = make(), inputs()
    expected = detector(images, doubt="off")
    program = torch.export.export(detector, (images,), {"doubt": "off"}, strict=False)
    outputs = program.module()(images, doubt="off")
    assert type(outputs) is type(expected)
    assert outputs.size == (128, 128)
    torch.testing.assert_close(outputs.class_logits, expected.class_logits)
    torch.testing.assert_close(outputs.box_codes, expected.box_codes)


@pytest.mark.parametrize("device", ["foo", "meta2", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device, tmp_path):
    checkpoint.save_detector(tmp_path / "a.safetensors", make(), {})
    with pytest.raises(UserError, match=f"^device: '{device}' can't be used here .*; use cpu, cuda or cuda:0$"):
        checkpoint.load(tmp_path / "a.safetensors", device)
