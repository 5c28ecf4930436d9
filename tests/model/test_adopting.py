"""Starting from any other detector of ours, as far as it fits."""

import logging

import pytest
import torch
from tiny import inputs, make

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.model.grafting import adopt

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def other(modalities="ab", **options):
    """A detector of other weights than `make` gives, as after a training."""
    made = make(modalities, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return made


def logits(detector, images):
    with torch.no_grad():
        return detector(images).class_logits


def test_the_same_detector_is_taken_whole():
    source, detector = other("abc"), make("abc")
    found = adopt(detector, source)
    assert torch.equal(logits(detector, inputs("abc")), logits(source, inputs("abc")))
    assert (found.adapted, found.left) == ((), ())
    assert found.loaded == len(detector.state_dict()) - sum(
        k.startswith(("mean_", "std_")) for k in detector.state_dict()
    )


def test_fewer_sensors_answer_as_the_source_does_without_the_others():
    source, detector = other("abc"), make("ab")
    found = adopt(detector, source)
    torch.testing.assert_close(logits(detector, inputs("ab")), logits(source, inputs("ab")), rtol=1e-3, atol=1e-3)
    assert found.left == ()


def test_more_sensors_answer_at_first_as_the_source_did():
    source, detector = other("ab"), make("abc")
    found = adopt(detector, source)
    wanted, got = logits(source, inputs("ab")), logits(detector, inputs("abc"))
    assert (got - wanted).abs().mean() < 0.1 * (logits(make("abc"), inputs("abc")) - wanted).abs().mean()
    assert found.adapted == ("c: fresh, with a faint share at first",)
    assert any(line.startswith("backbones.c: ") for line in found.left)


def test_classes_are_taken_by_name():
    source = other("a", num_classes=None, classes=["dog", "cat", "cow"])
    detector = make("a", num_classes=None, classes=["cat", "bird", "dog"])
    fresh = logits(detector, inputs("a"))
    found = adopt(detector, source)
    mine, theirs = logits(detector, inputs("a")), logits(source, inputs("a"))
    torch.testing.assert_close(mine[..., 0], theirs[..., 1])
    torch.testing.assert_close(mine[..., 2], theirs[..., 0])
    assert not torch.allclose(mine[..., 1], theirs[..., 2])
    assert not torch.allclose(mine[..., 1], fresh[..., 1])  # its features are the source's
    assert found.adapted == ("classes: cat, dog from it, bird fresh",)


def test_another_size_takes_what_fits_and_tells_the_rest():
    source, detector = other("a"), make("a", size="small")
    found = adopt(detector, source)
    backbone = detector.backbones["a"].state_dict()
    assert all(torch.equal(x, source.backbones["a"].state_dict()[key]) for key, x in backbone.items())
    parts = [line.partition(":")[0] for line in found.left]
    assert parts == ["pyramid", "class_head", "box_head"]
    assert found.to_text().splitlines()[0] == f"loaded {found.loaded} tensors for a"


def test_another_pyramid_and_placement_take_backbones_and_heads():
    for options in ({"pyramid": "panet"}, {"placement": "last"}):
        source, detector = other("ab"), make("ab", **options)
        found = adopt(detector, source)
        own, theirs = detector.backbones["a"].state_dict(), source.backbones["a"].state_dict()
        assert all(torch.equal(x, theirs[key]) for key, x in own.items())
        assert torch.equal(detector.class_head.predict.pointwise.weight, source.class_head.predict.pointwise.weight)
        assert [line.partition(":")[0] for line in found.left] == ["pyramid"], options


def test_boxes_take_members_and_give_them():
    source, detector = other("ab", placement="boxes"), make("ab", placement="boxes")
    adopt(detector, source)
    for m in "ab":
        assert torch.equal(logits(detector.member(m), inputs(m)), logits(source.member(m), inputs(m)))
    fused = make("ab")
    adopt(fused, source)
    torch.testing.assert_close(
        logits(fused, inputs("a")), logits(source.member("a"), inputs("a")), rtol=1e-2, atol=1e-2
    )
    single = other("b")
    found = adopt(detector, single)
    assert torch.equal(logits(detector.member("b"), inputs("b")), logits(single, inputs("b")))
    assert found.left == ("member a fresh",)


def test_a_run_of_other_sensors_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^reads b, none of a$"):
        adopt(make("a"), other("b"))
    checkpoint.save_detector(tmp_path / "best.safetensors", other("b"), {})
    with pytest.raises(UserError, match=r"^weights: .* reads b, none of a$"):
        make("a", weights=tmp_path)


def test_create_detector_starts_from_a_run_or_a_checkpoint(tmp_path, caplog):
    source = other("ab")
    checkpoint.save_detector(tmp_path / "best.safetensors", source, {})
    for weights in (tmp_path, str(tmp_path / "best.safetensors")):
        with caplog.at_level(logging.WARNING):
            detector = make("ab", weights=weights).eval()
        same = source.to(memory_format=torch.channels_last)
        with torch.no_grad():
            found, wanted = (one(inputs("ab")).box_codes for one in (detector, same))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        key = "pyramid.nodes.0.merge.weight"
        assert torch.equal(detector.state_dict()[key], source.state_dict()[key])
        assert "tensors for a, b" in caplog.text
    (tmp_path / "absent").mkdir()
    with pytest.raises(UserError, match=r"absent/best.safetensors: does not exist"):
        create_detector("tiny", {"a": 1}, 1, weights=tmp_path / "absent")
