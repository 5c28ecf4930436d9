"""Weights in and out: what fits, what is adapted, and that nothing half-fits."""

import os
import pickle
import urllib.error
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracle import EfficientDet, flavour, get_efficientdet_config, ours, reference, rows
from safetensors.torch import save_file
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.model import weights
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.weights import PUBLISHED, export_effdet, import_effdet, key_map, read_checkpoint

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> EfficientDet:
    return reference("tf_efficientdet_d0", 128, 256, classes=5)


@pytest.fixture
def state(model: EfficientDet) -> State:
    return dict(model.state_dict())


def snapshot(detector: FusionDetector) -> State:
    return {key: value.clone() for key, value in detector.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_output(detector: FusionDetector, model: EfficientDet) -> None:
    """With its first sensor alone, as an absent entry and as a mask, the detector is the imported model."""
    images = torch.randn(2, 3, 128, 256)
    detector.eval()
    others = {m: torch.randn(2, c, 128, 256) for m, c in detector.spec["modalities"].items() if m != "rgb"}
    present = {m: torch.zeros(2, dtype=torch.bool) for m in others}
    with torch.no_grad():
        class_levels, box_levels = model(images)
        for outputs in (detector({"rgb": images}), detector({"rgb": images} | others, present)):
            if len(detector.classes) == model.config.num_classes:
                assert (outputs.class_logits - rows(class_levels, len(detector.classes))).abs().max() < 1e-4
            assert (outputs.box_codes - rows(box_levels, 4)).abs().max() < 1e-4


@pytest.mark.parametrize("level_first", [False, True])
@pytest.mark.parametrize("name", ["tf_efficientdet_d0", "efficientdet_d1", "tf_efficientdet_d6", "tf_efficientdet_d7x"])
def test_round_trip_is_exact(name: str, level_first: bool) -> None:
    config = get_efficientdet_config(name)
    config.head_bn_level_first = level_first
    with torch.device("meta"):
        keys = {key: value.shape for key, value in EfficientDet(config, pretrained_backbone=False).state_dict().items()}
        detector = create_detector(name.rpartition("_")[2], {"x": 3}, 90, flavour=flavour(name))
    exported = export_effdet(detector, level_first=level_first)
    assert {key: value.shape for key, value in exported.items()} == keys
    left = detector.state_dict().keys() - key_map(detector, level_first=level_first).keys()
    assert left == {"mean_x", "std_x"}


@pytest.mark.parametrize("level_first", [False, True])
def test_values_come_back_bit_by_bit(model: EfficientDet, level_first: bool) -> None:
    state = export_effdet(ours("tf_efficientdet_d0", model), level_first=level_first)
    again = create_detector("d0", {"x": 3}, 5)
    result = import_effdet(again, state)
    assert same(export_effdet(again), dict(model.state_dict()))
    assert result.loaded == len(state)
    assert result.to_text() == f"loaded {len(state)} tensors"


@pytest.mark.parametrize("fusion", ["fast", "gated", "channel"])
@pytest.mark.parametrize("inputs", ["first", "every"])
def test_one_sensor_of_many_gives_the_imported_output(
    model: EfficientDet, state: State, fusion: str, inputs: str
) -> None:
    modalities = {"thermal": 1, "rgb": 3, "depth": 2, "second": 3}
    detector = create_detector("d0", modalities, 5, fusion=fusion, placement=inputs)
    result = import_effdet(detector, state)
    check_output(detector, model)
    assert "the stem of thermal from 3 input channels to 1" in result.to_text()
    assert "the stem of depth from 3 input channels to 2" in result.to_text()
    assert ("nothing for" in result.to_text()) == (inputs == "every" or fusion == "gated")
    own = detector.state_dict()
    assert torch.equal(own["pyramid.extend.thermal.conv.weight"], own["pyramid.extend.rgb.conv.weight"])
    stem = state["backbone.conv_stem.weight"]
    torch.testing.assert_close(own["backbones.thermal.net.conv_stem.weight"], stem.sum(1, keepdim=True))
    assert torch.equal(own["backbones.second.net.conv_stem.weight"], stem)


def test_softmax_weights_of_effdet() -> None:
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.fpn_name = "bifpn_attn"
    config.num_classes = 2
    config.image_size = (128, 256)
    model = EfficientDet(config, pretrained_backbone=False).eval()
    for key, value in model.named_parameters():
        if key.endswith("edge_weights"):
            torch.nn.init.normal_(value)
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 2, fusion="softmax", placement="every")
    import_effdet(detector, model.state_dict())
    check_output(detector, model)


def test_sums_go_into_a_sum_or_unbounded_weights() -> None:
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.fpn_name = "bifpn_sum"
    config.num_classes = 2
    config.image_size = (128, 256)
    model = EfficientDet(config, pretrained_backbone=False).eval()
    for modalities, fusion in (({"rgb": 3}, "sum"), ({"rgb": 3, "thermal": 1}, "unbounded")):
        detector = create_detector("d0", modalities, 2, fusion=fusion)
        import_effdet(detector, model.state_dict())
        check_output(detector, model)
    for fusion in ("sum", "fast"):
        with pytest.raises(UserError, match=rf"^weights: the checkpoint doesn't fit fusion {fusion}; use unbounded$"):
            import_effdet(create_detector("d0", {"rgb": 3, "thermal": 1}, 2, fusion=fusion), model.state_dict())


def test_other_classes_keep_all_but_the_last_layer(model: EfficientDet, state: State) -> None:
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 3)
    torch.nn.init.constant_(detector.class_head.predict.pointwise.weight, 7.0)
    result = import_effdet(detector, state)
    check_output(detector, model)
    assert "last layer of the class head, which starts fresh for 3 classes" in result.to_text()
    last = detector.class_head.predict.pointwise
    assert last.weight.abs().max() < 2
    torch.testing.assert_close(last.bias, torch.full((27,), -4.59512))
    assert torch.equal(detector.class_head.predict.depthwise.weight, state["class_net.predict.conv_dw.weight"])


def test_another_backbone_is_left_as_it_is(model: EfficientDet, state: State) -> None:
    backbone = {"rgb": "tf_efficientnet_b0", "thermal": "resnet18"}
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5, backbone=backbone)
    before = snapshot(detector)
    result = import_effdet(detector, state)
    check_output(detector, model)
    assert result.left == ("the branch of thermal, whose backbone is another",)
    kept = [k for k in before if k.startswith(("backbones.thermal", "pyramid.extend.thermal"))]
    assert all(torch.equal(before[k], detector.state_dict()[k]) for k in kept)


def test_a_shared_backbone_and_a_chosen_modality(model: EfficientDet, state: State) -> None:
    detector = create_detector("d0", {"near": 3, "rgb": 3}, 5, share_backbone=True)
    import_effdet(detector, state, modality="rgb")
    check_output(detector, model)
    with pytest.raises(UserError, match=r"^modality: 'x' is not a known modality"):
        import_effdet(detector, state, modality="x")


def test_one_channel_alone(state: State) -> None:
    detector = create_detector("d0", {"thermal": 1}, 5)
    assert import_effdet(detector, state).adapted == ("the stem of thermal from 3 input channels to 1",)


def missing(state: State) -> None:
    del state["box_net.predict.conv_pw.bias"]


def extra(state: State) -> None:
    state["fpn.cell.3.fnode.0.after_combine.conv.bn.weight"] = torch.zeros(64)


def narrow(state: State) -> None:
    state["fpn.resample.3.conv.conv.weight"] = torch.zeros(32, 320, 1, 1)


def long_edges(state: State) -> None:
    state["fpn.cell.1.fnode.0.combine.edge_weights"] = torch.ones(3)


def lost_edges(state: State) -> None:
    del state["fpn.cell.1.fnode.0.combine.edge_weights"]


def wide_head(state: State) -> None:
    state["class_net.predict.conv_pw.weight"] = torch.zeros(45, 88, 1, 1)


@pytest.mark.parametrize("harm", [missing, extra, narrow, long_edges, lost_edges, wide_head])
def test_what_does_not_fit_is_one_line_and_changes_nothing(state: State, harm) -> None:
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5)
    before = snapshot(detector)
    harm(state)
    with pytest.raises(UserError, match=r"^weights: .*; use the size and flavour") as error:
        import_effdet(detector, state)
    assert "\n" not in str(error.value)
    assert same(before, detector.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "d1"}, "lacks"),
        ({"flavour": "symmetric"}, "unknown"),
        ({"pyramid": "fpn"}, "pyramid fpn; use bifpn"),
        ({"fusion": "unbounded"}, "use fast or softmax"),
        ({"backbone": "resnet18"}, "lacks"),
    ],
)
def test_another_detector_is_refused(state: State, options: dict, words: str) -> None:
    detector = create_detector(**({"size": "d0", "modalities": {"rgb": 3}, "num_classes": 5} | options))
    before = snapshot(detector)
    with pytest.raises(UserError, match=f"^weights: .*{words}"):
        import_effdet(detector, state)
    assert same(before, detector.state_dict())


def test_files_are_unwrapped(state: State, tmp_path: Path) -> None:
    wrong = {key: value + 1 for key, value in state.items()}
    forms = {
        "plain.pth": state,
        "ema.pth.tar": {"state_dict": wrong, "state_dict_ema": state, "epoch": 3, "args": Namespace(lr=0.1)},
        "module.pth": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "bench.pt": {"model": {f"module.model.{k}": v for k, v in state.items()} | {"anchors.boxes": torch.ones(2, 4)}},
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / name)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    for name in [*forms, "x.safetensors"]:
        assert same(read_checkpoint(tmp_path / name), state), name


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["MMFUSE_TEST_MARK"],)


def test_bad_files_are_one_line_and_run_nothing(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("MMFUSE_TEST_MARK", str(mark))
    torch.save({"state_dict": state, "extra": Code()}, tmp_path / "code.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Code()))
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    save_file({"x": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:500])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    bad = "code.pth raw.pth half.pth half.safetensors text.pth empty.pth folder.pth list.pth numbers.pth absent.pth"
    for name in bad.split():
        with pytest.raises(UserError, match=rf"^weights: .*{name}") as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_create_detector_reads_a_file(
    model: EfficientDet, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state, tmp_path / "x.pth")
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5, weights=tmp_path / "x.pth")
    check_output(detector, model)
    assert "loaded" in caplog.text
    assert "stem of thermal" in caplog.text
    with pytest.raises(UserError, match="did you mean 'tf_efficientdet_d0'"):
        create_detector("d0", {"rgb": 3}, 5, weights="tf_efficientdet_d00")


def test_published_files_are_effdets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PUBLISHED) == 11
    for name, file in PUBLISHED.items():
        assert get_efficientdet_config(name).url == weights.RELEASE + file


def test_names_are_downloaded_with_their_hash(
    state: State, model: EfficientDet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, **options: object) -> State:
        asked.append((url, options["check_hash"], options["weights_only"]))
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    detector = create_detector("d0", {"rgb": 3}, 5)
    import_effdet(detector, read_checkpoint("tf_efficientdet_d0"))
    check_output(detector, model)
    assert asked == [(weights.RELEASE + "tf_efficientdet_d0_34-f153e0cf.pth", True, True)]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (urllib.error.URLError("no route"), "can't be read .*connect"),
        (RuntimeError("invalid hash value"), "invalid hash"),
    ],
)
def test_no_network_is_one_line(failure: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, **options: object) -> State:
        raise failure

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(UserError, match=f"^weights: https://.*{words}") as error:
        create_detector("d0", {"rgb": 3}, 5, weights="tf_efficientdet_d0")
    assert "\n" not in str(error.value)


def test_export_refuses_what_effdet_has_not() -> None:
    for options in ({"modalities": {"rgb": 3, "thermal": 1}}, {"fusion": "gated"}, {"pyramid": "panet"}):
        with torch.device("meta"):
            detector = create_detector(**({"size": "d0", "modalities": {"rgb": 3}, "num_classes": 5} | options))
        with pytest.raises(UserError, match="effdet has"):
            export_effdet(detector)
