"""Weights in and out: what fits, what is adapted, and that nothing half-fits."""

import os
import pickle
import urllib.error
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracle import EfficientDet, efficientdet_model_param_dict, get_efficientdet_config, options, ours, reference, rows
from safetensors.torch import save_file
from torch import Tensor

from mmfuse import scaling
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model import effdet_weights as weights
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.model.effdet_weights import FPN_NAMES, PUBLISHED, export_effdet, import_effdet, key_map, read_checkpoint
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.fusion import FUSIONS
from mmfuse.model.pyramid import PyramidNode
from mmfuse.sample import Targets

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


MODALITIES = {"thermal": 1, "rgb": 3, "depth": 2}


def distance(detector: Detector, model: EfficientDet) -> float:
    """How far the detector is from the model with RGB alone: the others absent by omission, and by mask."""
    images = torch.randn(1, 3, 128, 256)
    others = {m: torch.randn(1, c, 128, 256) for m, c in detector.spec["modalities"].items() if m != "rgb"}
    present = {m: torch.zeros(1, dtype=torch.bool) for m in others}
    largest = 0.0
    detector.eval()
    with torch.no_grad():
        class_levels, box_levels = model(images)
        for outputs in (detector({"rgb": images}), detector({"rgb": images} | others, present)):
            outputs = outputs.members["rgb"] if isinstance(detector, BoxEnsemble) else outputs
            pairs = [(outputs.box_codes, rows(box_levels, 4))]
            if len(detector.classes) == model.config.num_classes:
                pairs.append((outputs.class_logits, rows(class_levels, len(detector.classes))))
            for found, expected in pairs:
                assert expected.std() > 0.05
                largest = max(largest, float((found - expected).abs().max()))
    return largest


def check_output(detector: Detector, model: EfficientDet) -> None:
    assert distance(detector, model) < 1e-4


@pytest.mark.parametrize(
    ("name", "level_first"),
    [
        *[("tf_efficientdet_d0", False), ("tf_efficientdet_d0", True), ("efficientdet_d1", False)],
        *[("efficientdet_q0", True), ("tf_efficientdet_d6", False), ("tf_efficientdet_d7x", True)],
    ],
)
def test_every_tensor_has_its_name_and_shape(name: str, level_first: bool) -> None:
    config = get_efficientdet_config(name)
    config.head_bn_level_first = level_first
    with torch.device("meta"):
        theirs = EfficientDet(config, pretrained_backbone=False).state_dict()
        detector = create_detector(modalities={"x": 3}, num_classes=90, **options(name))
    own, names = detector.state_dict(), key_map(detector, level_first=level_first)
    assert {names[key]: own[key].shape for key in names} == {key: value.shape for key, value in theirs.items()}
    gains = {key for key in own if key.endswith(".merge.gain")}
    assert own.keys() - names.keys() == {"mean_x", "std_x"} | gains
    assert len(gains) == len(detector.pyramid.graph)


@pytest.mark.parametrize("level_first", [False, True])
def test_values_come_back_bit_by_bit(model: EfficientDet, level_first: bool) -> None:
    state = export_effdet(ours("tf_efficientdet_d0", model), level_first=level_first)
    again = create_detector("d0", {"x": 3}, 5)
    result = import_effdet(again, state)
    assert same(export_effdet(again), dict(model.state_dict()))
    assert result.loaded == len(state)
    assert result.to_text() == f"loaded {len(state)} tensors for x"


@pytest.mark.parametrize(("pyramid", "fusion"), FPN_NAMES)
def test_every_pyramid_of_effdet_goes_in_and_out(pyramid: str, fusion: str) -> None:
    level_first = pyramid == "bifpn"
    changes = {"fpn_name": FPN_NAMES[pyramid, fusion], "head_bn_level_first": level_first}
    model = reference("efficientdet_d0", 128, 256, 2, **changes)
    detector = create_detector("d0", {"rgb": 3}, 2, pyramid=pyramid, fusion=fusion, flavour="symmetric")
    result = import_effdet(detector, model.state_dict(), edges="softmax" if fusion == "softmax" else "fast")
    assert result.loaded == len(model.state_dict())
    assert (result.adapted, result.left) == ((), ())
    check_output(detector, model)
    exported = export_effdet(detector, level_first=level_first)
    assert same(exported, dict(model.state_dict()))
    model.load_state_dict(exported, strict=True)


@pytest.fixture(scope="module")
def forms() -> dict[str, EfficientDet]:
    """A model that merges by each form, and the weights that it merges by."""
    torch.manual_seed(0)  # so that no node has weights below zero alone, which another edge would open
    names = {"fast": "bifpn_fa", "softmax": "bifpn_attn", "sum": "bifpn_sum"}
    return {form: reference("tf_efficientdet_d0", 128, 256, 5, fpn_name=name) for form, name in names.items()}


@pytest.mark.parametrize(
    ("form", "placement", "fusion"),
    [
        *(("fast", "every", fusion) for fusion in FUSIONS),  # has edges that the checkpoint has nothing like
        *(("sum", "last", fusion) for fusion in ("fast", "gated", "sum")),  # has nodes that merge pyramids
        ("softmax", "first", "fast"),
        ("fast", "channels", "fast"),
    ],
)
def test_one_sensor_of_many_gives_the_imported_output(
    forms: dict[str, EfficientDet], form: str, fusion: str, placement: str
) -> None:
    detector = create_detector("d0", MODALITIES, 5, fusion=fusion, placement=placement)
    edges = {} if form == "sum" else {"edges": form}
    if fusion == "sum" and (form != "sum" or placement == "every"):
        before = snapshot(detector)
        with pytest.raises(UserError, match=r"^weights: .*but fusion sum has no weights; use fusion fast$"):
            import_effdet(detector, forms[form].state_dict(), **edges)
        assert same(before, detector.state_dict())
        return
    import_effdet(detector, forms[form].state_dict(), **edges)
    check_output(detector, forms[form])


@pytest.mark.parametrize(
    ("pyramid", "name", "placement"),
    [
        *(("quad_fpn", "qufpn_fa", placement) for placement in ("first", "every", "last")),
        ("panet", "pan_sum", "every"),
    ],
)
def test_the_other_pyramids_go_into_many_sensors(pyramid: str, name: str, placement: str) -> None:
    model = reference("tf_efficientdet_d0", 128, 256, 5, fpn_name=name)
    detector = create_detector("d0", {"thermal": 1, "rgb": 3}, 5, pyramid=pyramid, placement=placement)
    import_effdet(detector, model.state_dict())
    check_output(detector, model)


@pytest.mark.parametrize("placement", ["first", "last"])
def test_an_image_of_one_sensor_beside_an_image_of_all(forms: dict[str, EfficientDet], placement: str) -> None:
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5, placement=placement).eval()
    import_effdet(detector, forms["sum"].state_dict())
    images = {"rgb": torch.randn(2, 3, 128, 256), "thermal": torch.randn(2, 1, 128, 256)}
    with torch.no_grad():
        expected = rows(forms["sum"](images["rgb"])[1], 4)
        found = detector(images, {"thermal": torch.tensor([True, False])}).box_codes
    assert (found[1] - expected[1]).abs().max() < 1e-4
    assert (found[0] - expected[0]).abs().max() > 1e-2


@pytest.mark.parametrize("placement", ["first", "every", "last"])
def test_gains_are_needed_and_kept(forms: dict[str, EfficientDet], placement: str, tmp_path: Path) -> None:
    detector = create_detector("d0", MODALITIES, 5, placement=placement)
    shares = detector.fusion_shares()
    import_effdet(detector, forms["sum"].state_dict())
    for modality, by_level in detector.fusion_shares().items():
        assert by_level == pytest.approx(shares[modality], abs=1e-6)
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    check_output(checkpoint.load(tmp_path / "x.safetensors"), forms["sum"])
    for key, value in detector.state_dict().items():
        if key.endswith("gain"):
            assert value != 1
            value.fill_(1)
    assert distance(detector, forms["sum"]) > 0.1
    import_effdet(detector, forms["fast"].state_dict())
    check_output(detector, forms["fast"])


@pytest.mark.long
def test_the_largest_size_goes_into_many_sensors() -> None:
    model = reference("tf_efficientdet_d7x", 256, 256, 2)
    detector = create_detector("d7x", {"rgb": 3, "thermal": 1}, 2)
    assert detector.spec["fusion"] == "fast"
    import_effdet(detector, model.state_dict())
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        class_levels, box_levels = model(images)
        outputs = detector.eval()({"rgb": images})
    torch.testing.assert_close(outputs.class_logits, rows(class_levels, 2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(outputs.box_codes, rows(box_levels, 4), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("placement", ["first", "every"])
def test_branches_start_alike(state: State, placement: str) -> None:
    modalities = {"thermal": 1, "rgb": 3, "depth": 2, "second": 3}
    detector = create_detector("d0", modalities, 5, placement=placement)
    text = import_effdet(detector, state).to_text()
    assert "for thermal, rgb, depth, second" in text
    assert "the stem of thermal from 3 input channels to 1" in text
    assert "the stem of depth from 3 input channels to 2" in text
    assert "the edges of thermal, depth, second, which start like those of rgb" in text
    assert ("nothing for" in text) == (placement == "every")
    own = detector.state_dict()
    assert torch.equal(own["pyramid.extend.thermal.conv.weight"], own["pyramid.extend.rgb.conv.weight"])
    stem = state["backbone.conv_stem.weight"]
    torch.testing.assert_close(own["backbones.thermal.net.conv_stem.weight"], stem.sum(1, keepdim=True))
    assert torch.equal(own["backbones.second.net.conv_stem.weight"], stem)
    for shares in detector.fusion_shares().values():
        assert list(shares.values()) == pytest.approx([0.25] * 5, abs=1e-6)


def test_stacked_channels_start_at_0_but_those_of_one_sensor(state: State) -> None:
    detector = create_detector("d0", MODALITIES, 5, placement="channels")
    assert import_effdet(detector, state).adapted == ("the stem, which starts at 0 for thermal, depth",)
    kernel = detector.backbones["stacked"].net.conv_stem.weight
    assert torch.equal(kernel[:, 1:4], state["backbone.conv_stem.weight"])
    assert not kernel[:, [0, 4, 5]].any()
    three = create_detector("d0", {"a": 1, "b": 1, "c": 1}, 5, placement="channels")
    assert "the stem of b from 3 input channels to 1" in import_effdet(three, state, "b").adapted
    kernel = three.backbones["stacked"].net.conv_stem.weight
    torch.testing.assert_close(kernel[:, 1], state["backbone.conv_stem.weight"].sum(1))
    assert not kernel[:, [0, 2]].any()


def test_a_pyramid_for_each_sensor_and_joints_that_learn(model: EfficientDet, state: State) -> None:
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5, placement="last")
    assert "which start as the identity" in import_effdet(detector, state).adapted[-1]
    joints = [node for node in detector.pyramid.nodes[-5:] if isinstance(node, PyramidNode)]
    images = {"rgb": torch.randn(2, 3, 128, 256), "thermal": torch.randn(2, 1, 128, 256)}
    targets = Targets([torch.tensor([[10.0, 20, 90, 70]])] * 2, [torch.tensor([1])] * 2)
    detector.train()
    detector.loss(detector(images), targets)["total"].backward()
    for joint in joints[:3]:
        for learned in (joint.merge.weight, joint.conv.pointwise.weight, joint.norm.weight):
            assert learned.grad.abs().max() > 1e-5


def test_a_detector_for_each_sensor_says_whose_it_loads(
    model: EfficientDet, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state, tmp_path / "x.pth")
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5, placement="boxes", weights=tmp_path / "x.pth")
    check_output(detector, model)
    first, second = caplog.messages
    assert first == f"loaded {len(state)} tensors for rgb"
    assert second.startswith(f"loaded {len(state)} tensors for thermal\nadapted the stem of thermal")


def test_half_precision_and_absent_counters_are_fine(model: EfficientDet, state: State) -> None:
    short = {key: value.half() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5)
    result = import_effdet(detector, short)
    assert result.left == ()
    assert distance(detector, model) < 0.5


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


def torn_head(state: State) -> None:
    state["class_net.predict.conv_pw.bias"] = torch.zeros(27)


def flat_stem(state: State) -> None:
    state["backbone.conv_stem.weight"] = torch.zeros(32)


@pytest.mark.parametrize("harm", [missing, extra, narrow, long_edges, lost_edges, wide_head, torn_head, flat_stem])
def test_what_does_not_fit_is_one_line_and_changes_nothing(state: State, harm) -> None:
    detector = create_detector("d0", {"rgb": 3, "thermal": 1}, 5)
    before = snapshot(detector)
    harm(state)
    with pytest.raises(UserError, match=r"^weights: .*; use the size, flavour and pyramid") as error:
        import_effdet(detector, state)
    assert "\n" not in str(error.value)
    assert same(before, detector.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "d1"}, "lacks"),
        ({"flavour": "symmetric"}, "unknown"),
        ({"pyramid": "fpn"}, "pyramid fpn; use bifpn or panet or quad_fpn"),
        ({"pyramid": "panet"}, "use the size, flavour and pyramid of the checkpoint"),
        ({"fusion": "sum"}, "use fusion fast"),
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
    checkpoint.save_detector(tmp_path / "own.safetensors", create_detector("d-4", {"rgb": 3}, 1), {})
    bad = "code.pth raw.pth half.pth half.safetensors text.pth empty.pth folder.pth list.pth numbers.pth absent.pth "
    bad += "own.safetensors"
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


def test_published_files_are_those_of_effdet_that_have_our_structure() -> None:
    fits = {}
    for name in efficientdet_model_param_dict:
        config = get_efficientdet_config(name)
        ours_in = [s for s in scaling.PUBLISHED.values() if config.backbone_name.endswith(f"efficientnet_{s.backbone}")]
        styles = (config.act_type, config.downsample_type, config.upsample_type)
        plain = styles == ("swish", "max", "nearest") and "mean" not in config  # AdvProp has a mean of its own
        if config.url and ours_in and plain:
            fits[name] = config.url
    assert {name: weights.RELEASE + file for name, file in PUBLISHED.items()} == fits


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_numbers_of_their_size(name: str) -> None:
    config, size = get_efficientdet_config(name), scaling.size(options(name)["size"])
    assert config.backbone_name.endswith(f"efficientnet_{size.backbone}")
    assert (config.fpn_channels, config.box_class_repeats) == (size.width, size.head_depth)
    assert config.fpn_cell_repeats == (4 if name == "efficientdet_q2" else size.pyramid_depth)
    assert (config.min_level, config.max_level) == (size.levels[0], size.levels[-1])
    assert (config.anchor_scale, tuple(config.image_size)) == (size.anchor_scale, (size.resolution,) * 2)
    assert (config.redundant_bias, config.pad_type) == ((True, "same") if name.startswith("tf_") else (False, ""))
    assert list(config.aspect_ratios) == [(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]


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
        (RuntimeError("invalid hash value"), "invalid hash.*delete .*/checkpoints/tf_efficientdet_d0_34-f153e0cf.pth"),
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
    for wrong in (
        {"modalities": {"rgb": 3, "thermal": 1}},
        {"modalities": {"rgb": 3, "thermal": 1}, "placement": "boxes"},
        {"fusion": "gated"},
        {"pyramid": "fpn"},
        {"pyramid": "quad_fpn", "fusion": "sum"},
    ):
        detector = create_detector(**({"size": "d0", "modalities": {"rgb": 3}, "num_classes": 5} | wrong))
        with pytest.raises(UserError, match="effdet has"):
            export_effdet(detector)


def test_export_refuses_a_fast_fusion_that_was_started_from_sums(forms: dict[str, EfficientDet]) -> None:
    detector = create_detector("d0", {"rgb": 3}, 5)
    import_effdet(detector, forms["sum"].state_dict())
    check_output(detector, forms["sum"])
    with pytest.raises(UserError, match=r"^fusion fast: .*effdet can't hold"):
        export_effdet(detector)
