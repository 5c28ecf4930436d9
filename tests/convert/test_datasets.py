"""Detectors from and to effdet's files, as functions and on the command line."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from effdet import EfficientDet, get_efficientdet_config
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmfuse
from mmfuse.cli import main
from mmfuse.convert import nyu
from mmfuse.convert.datasets import to_coco
from mmfuse.convert.effdet import from_effdet, structure, to_effdet
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import split_digest
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model import effdet_weights as weights
from mmfuse.model.build import create_detector
from mmfuse.model.effdet_weights import PUBLISHED

State = dict[str, Tensor]


def effdet_model(name: str, classes: int = 4, **changes: object) -> EfficientDet:
    config = get_efficientdet_config(name)
    config.num_classes = classes
    config.image_size = (128, 128)
    config.update(changes)
    return EfficientDet(config, pretrained_backbone=False).eval()


@pytest.fixture(scope="module")
def model() -> EfficientDet:
    torch.manual_seed(3)
    return effdet_model("tf_efficientdet_d0")


@pytest.fixture
def file(model: EfficientDet, tmp_path: Path) -> Path:
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_boxes(detector: mmfuse.Detector, model: EfficientDet) -> None:
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = torch.cat([x.permute(0, 2, 3, 1).reshape(1, -1, 4) for x in model(images)[1]], 1)
        assert (detector({"rgb": images}).box_codes - expected).abs().max() < 1e-4


def test_in_and_out_on_the_command_line(model: EfficientDet, file: Path, tmp_path: Path, capsys) -> None:
    own = tmp_path / "new" / "detector.safetensors"
    assert main(["convert", "effdet", str(file), "--out", str(own)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{own}: size d0, flavour tf, pyramid bifpn, fusion fast, modalities {{'rgb': 3}}, num_classes 4"
    )
    assert lines[1:] == [f"took over {len(model.state_dict())} tensors"]
    detector = mmfuse.load(own)
    check_boxes(detector, model)
    assert detector.classes == ("0", "1", "2", "3")
    assert checkpoint.read(own)[1]["notes"]["from"] == str(file)
    for name in ("back.pth", "back.safetensors"):
        back = tmp_path / name
        assert main(["convert", str(own), "--to", "effdet", "--out", str(back), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["detector"]["fpn_name"] == "bifpn_fa"
        assert facts["detector"]["head_bn_level_first"] is False
        assert facts["left"][0].startswith("mean [123.675, ")
        state = load_file(back) if back.suffix == ".safetensors" else torch.load(back, weights_only=True)
        assert same(state, dict(model.state_dict()))
        effdet_model("tf_efficientdet_d0").load_state_dict(state, strict=True)


def test_many_sensors_and_other_classes(model: EfficientDet, file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.safetensors"
    words = ["convert", "effdet", str(file), "--modality", "thermal=1", "--modality", "rgb=3", "--out", str(out)]
    assert main([*words, "--classes", "person,car", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["detector"]["modalities"] == {"thermal": 1, "rgb": 3}
    assert result["adapted"] == [
        "the stem of thermal from 3 input channels to 1",
        "the edges of thermal, which start like those of rgb",
    ]
    assert result["left"] == ["the last layer of the class head, which starts fresh for 2 classes"]
    detector = mmfuse.load(out)
    assert detector.classes == ("person", "car")
    check_boxes(detector, model)
    assert main([*words, "--classes", "a,b,c,d"]) == 0
    assert "left" not in capsys.readouterr().out
    assert mmfuse.load(out).classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("name", "changes", "size", "expected"),
    [
        ("tf_efficientdet_d3", {}, None, {"size": "d3", "flavour": "tf", "pyramid": "bifpn", "fusion": "fast"}),
        ("tf_efficientdet_d6", {}, "d6", {"size": "d6", "flavour": "tf", "pyramid": "bifpn", "fusion": "sum"}),
        ("tf_efficientdet_d7", {}, "d7", {"size": "d7", "flavour": "tf", "pyramid": "bifpn", "fusion": "sum"}),
        ("tf_efficientdet_d7x", {}, None, {"size": "d7x", "flavour": "tf", "pyramid": "bifpn", "fusion": "sum"}),
        ("efficientdet_d1", {}, None, {"size": "d1", "flavour": "symmetric", "pyramid": "bifpn", "fusion": "fast"}),
        ("efficientdet_q0", {}, None, {"size": "d0", "flavour": "symmetric", "pyramid": "quad_fpn", "fusion": "fast"}),
        (
            "efficientdet_q2",
            {},
            None,
            {"size": "d2", "flavour": "symmetric", "pyramid": "quad_fpn", "fusion": "fast", "pyramid_depth": 4},
        ),
        (
            "tf_efficientdet_d0",
            {"fpn_name": "pan_sum", "fpn_channels": 80, "fpn_cell_repeats": 2, "box_class_repeats": 1},
            "d0",
            {"size": "d0", "flavour": "tf", "pyramid": "panet", "fusion": "sum", "width": 80, "pyramid_depth": 2}
            | {"head_depth": 1},
        ),
    ],
)
def test_the_structure_is_told_by_names_and_shapes(
    name: str, changes: dict[str, object], size: str | None, expected: dict[str, object]
) -> None:
    with torch.device("meta"):
        state = effdet_model(name, classes=7, **changes).state_dict()
        options = structure(state, size)
        assert options == expected | {"num_classes": 7}
        detector = create_detector(modalities={"x": 3}, **options)
    names = weights.key_map(detector, level_first="class_net.bn_rep.0.0.weight" in state)
    assert set(names.values()) == state.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_or_file_tells_the_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensors are needed to see it: reading them is where the size is known."""
    seen = []

    def stop(state: object, size: str | None) -> None:
        seen.append(size)
        raise UserError("stop")

    monkeypatch.setattr("mmfuse.convert.effdet.read_checkpoint", lambda source: {})
    monkeypatch.setattr("mmfuse.convert.effdet.structure", stop)
    for source in (name, tmp_path / PUBLISHED[name]):
        with pytest.raises(UserError, match="stop"):
            from_effdet(source, tmp_path / "x.safetensors")
    assert seen == [name.rpartition("_")[2].replace("q", "d")] * 2
    with pytest.raises(UserError, match=rf"^size: d-3 is not that of {name}; use {seen[0]}$"):
        from_effdet(name, tmp_path / "x.safetensors", size="d-3")


@pytest.mark.slow
def test_d7_needs_its_name(tmp_path: Path) -> None:
    torch.save(effdet_model("tf_efficientdet_d7", 1).state_dict(), tmp_path / "x.pth")
    out = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"^size: .*384, is that of d6 and d7; give the size$"):
        from_effdet(tmp_path / "x.pth", out)
    from_effdet(tmp_path / "x.pth", out, size="d7")
    assert mmfuse.load(out).anchor_scale == 5.0


def test_quad_fpn_goes_in_and_out(tmp_path: Path) -> None:
    model = effdet_model("efficientdet_q0")
    torch.save({"state_dict_ema": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "q0.pth.tar")
    from_effdet(tmp_path / "q0.pth.tar", tmp_path / "x.safetensors")
    check_boxes(mmfuse.load(tmp_path / "x.safetensors"), model)
    done = to_effdet(tmp_path / "x.safetensors", tmp_path / "back.pth")
    assert done.detector["fpn_name"] == model.config.fpn_name
    assert done.detector["head_bn_level_first"]
    assert same(torch.load(tmp_path / "back.pth", weights_only=True), dict(model.state_dict()))


def test_any_size_of_ours_comes_back(tmp_path: Path) -> None:
    detector = create_detector("d-3", {"x": 1}, classes=["a", "b"])
    checkpoint.save_detector(tmp_path / "a.safetensors", detector, {})
    done = to_effdet(tmp_path / "a.safetensors", tmp_path / "a.pth")
    assert "the names of the classes: a, b" in done.left
    from_effdet(tmp_path / "a.pth", tmp_path / "b.safetensors", size="d-3", modalities={"x": 1}, classes=["a", "b"])
    back = mmfuse.load(tmp_path / "b.safetensors")
    assert same(dict(back.state_dict()), dict(detector.state_dict()))
    assert back.spec == detector.spec


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["MMFUSE_TEST_MARK"],)


def bad(name: str, state: State, folder: Path) -> str:
    """Makes a source that can't be converted, and returns its path."""
    path = folder / f"{name}.pth"
    match name:
        case "missing":
            state.pop("box_net.predict.conv_pw.bias")
        case "extra":
            state["more"] = torch.zeros(1)
        case "shape":
            state["fpn.resample.3.conv.conv.weight"] = torch.zeros(64, 100, 1, 1)
        case "no_head":
            state.pop("class_net.predict.conv_pw.bias")
        case "anchors":
            state["class_net.predict.conv_pw.bias"] = torch.zeros(32)
        case "lite":
            state = effdet_model("tf_efficientdet_lite0").state_dict()
        case "other":
            state = torch.nn.Linear(2, 2).state_dict()
        case "mmfuse":
            path = folder / "own.safetensors"
            checkpoint.save_detector(path, create_detector("d-4", {"rgb": 3}, 1), {})
            return str(path)
    if name == "code":
        torch.save({"state_dict": state, "more": Code()}, path)
    elif name != "absent":
        torch.save(state, path)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    return str(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "lacks 'box_net.predict.conv_pw.bias'"),
        ("extra", "has an unknown 'more'"),
        ("shape", "fpn.resample.3.conv.conv.weight is (64, 100, 1, 1), not (64, 320, 1, 1)"),
        ("no_head", "aren't an EfficientDet's of effdet's"),
        ("anchors", "aren't an EfficientDet's of effdet's"),
        ("lite", "effdet's lite, don't fit"),
        ("other", "aren't an EfficientDet's of effdet's"),
        ("code", "holds more than tensors"),
        ("truncated", "damaged"),
        ("absent", "does not exist"),
        ("mmfuse", "is a checkpoint of mmfuse's"),
    ],
)
def test_a_bad_file_is_one_line_and_the_good_output_stays(
    name: str, words: str, model: EfficientDet, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMFUSE_TEST_MARK", str(tmp_path / "ran"))
    source = bad(name, dict(model.state_dict()), tmp_path)
    out = tmp_path / "out.safetensors"
    out.write_text("good")
    before = sorted(path.name for path in tmp_path.iterdir())
    check_refused(capsys, ["convert", "effdet", source, "--out", str(out)], words)
    assert out.read_text() == "good"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def check_refused(capsys, words: list[str], message: str) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mmfuse: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "d1"], "size: d1 has another width than the weights, 64; use d0"),
        (["--size", "q"], "'q' is not a size"),
        (["--modality", "rgb"], "--modality: 'rgb' is not allowed"),
        (["--modality", "rgb=0"], "--modality: 'rgb=0' is not allowed"),
        (["--modality", "rgb=3", "--modality", "rgb=1"], "--modality: 'rgb=1' is not allowed"),
        (["--modality", "a b=3"], "'a b' can't be a name"),
        (["--classes", "a,a"], "classes: 'a, a' has one twice or empty"),
        (["--classes", ""], "classes: '' has one twice or empty"),
    ],
)
def test_bad_words_are_one_line(words: list[str], message: str, file: Path, tmp_path: Path, capsys) -> None:
    check_refused(capsys, ["convert", "effdet", str(file), "--out", str(tmp_path / "x.safetensors"), *words], message)
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_name_and_no_network_are_one_line(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, **options: object) -> State:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    out = ["--out", str(tmp_path / "x.safetensors")]
    check_refused(capsys, ["convert", "effdet", "tf_efficientdet_d9", *out], "did you mean 'tf_efficientdet_d7'")
    check_refused(capsys, ["convert", "effdet", "tf_efficientdet_d0", *out], "(no route to host); connect")
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_line(file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    words = ["convert", "effdet", str(file), "--out"]
    check_refused(capsys, [*words, str(tmp_path / "x.pth")], "end it in .safetensors")
    check_refused(capsys, [*words, str(tmp_path / "folder.safetensors")], "is not a file name")
    check_refused(capsys, [*words, str(tmp_path / "file" / "x.safetensors")], "check the path")
    assert not list((tmp_path / "folder.safetensors").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": {"rgb": 3, "thermal": 1}}, "effdet has one modality"),
        ({"modalities": {"rgb": 3, "thermal": 1}, "placement": "boxes"}, "effdet has one modality"),
        ({"pyramid": "nas_fpn"}, "pyramid nas_fpn"),
        ({"fusion": "gated"}, "fusion gated"),
    ],
)
def test_what_effdet_has_not_stays_in(options: dict, message: str, tmp_path: Path, capsys) -> None:
    detector = create_detector(**({"size": "d-4", "modalities": {"rgb": 3}, "num_classes": 1} | options))
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    out = tmp_path / "out.pth"
    out.write_text("good")
    check_refused(capsys, ["convert", str(tmp_path / "x.safetensors"), "--to", "effdet", "--out", str(out)], message)
    assert out.read_text() == "good"


def test_a_source_that_is_no_detector_is_one_line(file: Path, tmp_path: Path, capsys) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for source in (file, tmp_path / "x.safetensors", tmp_path / "absent"):
        check_refused(capsys, ["convert", str(source), "--to", "effdet", "--out", str(tmp_path / "y.pth")], str(source))


@pytest.mark.parametrize(
    "words",
    [
        ["effdet"],
        ["x.safetensors"],
        ["effdet", "a.pth", "b.pth"],
        ["a", "b", "--to", "effdet"],
        ["a", "--to", "effdet", "--classes", "x"],
        ["a", "--to", "onnxx"],
        ["nyu", "a.mat"],
        ["nyu", "a.mat", "b.mat", "--size", "d0"],
        ["nyu", "a.mat", "b.mat", "--to", "coco"],
        ["ultralytics", "a.yaml", "--classes", "x"],
        ["ultralytics", "a.yaml", "b.yaml"],
    ],
)
def test_words_that_say_nothing_show_the_usage(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *words, "--out", "x.safetensors"])
    assert stopped.value.code == 2
    assert "usage: mmfuse convert" in capsys.readouterr().err


# ---- datasets


VOC = """<annotation><object><name>person</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc_card(tmp_path: Path) -> Path:
    for folder, mode in (("rgb", "RGB"), ("thermal", "L")):
        (tmp_path / folder / "train").mkdir(parents=True)
        for name in ("a", "b"):
            Image.new(mode, (64, 48), 7).save(tmp_path / folder / "train" / f"{name}.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.xml").write_text(VOC)
    card = tmp_path / "card.yaml"
    card.write_text(
        "name: tiny\nroot: .\nreader: voc\nmodalities: {rgb: {channels: 3}, thermal: {channels: 1}}\n"
        "classes: [person]\nsplits: {train: {folder: train}}\nmetrics: [miss_rate]\n"
        "layout: {entry: '{id}', sequence: '{id}', files: {rgb: 'rgb/{folder}/{id}.png', "
        "thermal: 'thermal/{folder}/{id}.png'}, annotations: {rgb: '{id}.xml'}}\n"
    )
    return card


def test_a_card_becomes_coco_and_reads_back_the_same(voc_card: Path, capsys) -> None:
    out = voc_card.parent / "as_coco.yaml"
    assert main(["convert", str(voc_card), "--to", "coco", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    file = str(voc_card.parent / "as_coco_train.json")
    assert printed == {"path": str(out), "splits": {"train": {"file": file, "images": 2, "boxes": 2}}}
    before, after = load_card(voc_card), load_card(out)
    assert (after.reader, after.classes, after.metrics) == ("coco", before.classes, ("miss_rate",))
    one, other = read_split(before, "train"), read_split(after, "train")
    assert split_digest(one) == split_digest(other)
    assert [r.sequence for r in other] == ["a", "b"]
    assert [r.files for r in one] == [r.files for r in other]
    assert main(["convert", str(voc_card), "--to", "coco", "--out", str(out)]) == 0
    assert "train, 2 images, 2 boxes" in capsys.readouterr().out


def test_a_conversion_replaces_neither_the_card_nor_its_splits(voc_card: Path, paired_set: Path) -> None:
    before = voc_card.read_text()
    for card, out, message in (
        (voc_card, voc_card, "is the card itself"),
        (voc_card, voc_card.with_suffix(".json"), "is not a file name for this; end it in .yaml"),
    ):
        with pytest.raises(UserError, match=message):
            to_coco(card, out)
    assert voc_card.read_text() == before
    values = before.replace("{folder: train}", "{file: x_train.json}").replace("reader: voc", "reader: coco")
    (voc_card.parent / "y.yaml").write_text(values)
    with pytest.raises(UserError, match=r"x_train.json is a split of .* itself; give another name than x$"):
        to_coco(voc_card.parent / "y.yaml", voc_card.parent / "x.yaml")
    (voc_card.parent / "b.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"b\.xml"):
        to_coco(voc_card, voc_card.parent / "z.yaml")
    assert not list(voc_card.parent.glob("z*"))


# ---- datasets of other layouts


def test_the_labelled_images_of_nyu_on_the_command_line(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def write(labelled: Path, splits: Path, folder: Path, classes: Sequence[str]) -> dict:
        seen.append((labelled, splits, tuple(classes)))
        (folder / "card.yaml").write_text("x")
        return {"test": {"file": "test.json", "images": 2, "boxes": 6}}

    monkeypatch.setattr(nyu, "write_nyu", write)
    words = ["convert", "nyu", str(tmp_path / "l.mat"), str(tmp_path / "s.mat"), "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    expected = f"{tmp_path}/out/card.yaml\n{tmp_path}/out/test.json: test, 2 images, 6 boxes\n"
    assert capsys.readouterr().out == expected
    assert main([*words, str(tmp_path / "other"), "--classes", "wall,night stand", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"{tmp_path}/other/card.yaml"
    files = (tmp_path / "l.mat", tmp_path / "s.mat")
    assert seen == [(*files, nyu.CLASSES), (*files, ("wall", "night stand"))]
    monkeypatch.undo()
    check_refused(capsys, [*words, str(tmp_path / "new")], "l.mat: No such file or directory; check the path")
    check_refused(capsys, [*words, str(tmp_path / "out")], "out is not an empty folder; give a new one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_ultralytics_data_on_the_command_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (64, 48), 7).save(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [person]\n")
    words = ["convert", "ultralytics", str(tmp_path / "data.yaml"), "--out"]
    assert main([*words, str(tmp_path / "card.yaml")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/card.yaml\n"
    assert len(read_split(load_card(tmp_path / "card.yaml"), "train")) == 1
    check_refused(capsys, [*words, str(tmp_path / "data.yaml")], "data.yaml is the file itself; give another name")
    (tmp_path / "data.yaml").write_text("train: &a images/train\nval: *a\nnames: [person]\n")
    check_refused(capsys, [*words, str(tmp_path / "card.yaml")], "the alias '*a' is not allowed")
