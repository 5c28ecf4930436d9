"""A run exported to ONNX: what the file says, finds and refuses, and what takes it for a model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import mmfuse
from mmfuse import boxes as box_maths
from mmfuse import cli
from mmfuse.errors import UserError
from mmfuse.exporting import graph
from mmfuse.exporting.parity import Tolerance, difference
from mmfuse.model.build import create_detector
from mmfuse.run import Run
from mmfuse.sample import Detections
from mmfuse.verbs import export as export_verb

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def scene(kinds=("rgb", "thermal"), height=70, width=150, seed=0):
    rng = np.random.default_rng(seed)
    images = {
        "rgb": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "thermal": rng.integers(18000, 42000, (height, width), dtype=np.uint16),
    }
    return {m: images[m] for m in kinds}


def same(found, expected):
    assert len(found) == len(expected) > 20
    assert difference(expected, found, Tolerance(0.99, 1e-4), 0.5, 100) is None
    assert found.dropped == expected.dropped
    assert found.classes == expected.classes
    assert found.doubt == pytest.approx(expected.doubt, rel=1e-3)


@pytest.mark.parametrize("kinds", [("rgb", "thermal"), ("rgb",), ("thermal",)])
def test_it_finds_what_the_detector_finds(run, file, kinds):
    """Also of scenes of several sizes at once, and without a sensor."""
    scenes = [scene(kinds, 70, 150), scene(kinds, 200, 90, 1), scene(kinds, 96, 128, 2)]
    exported = mmfuse.load(file)
    for found, expected in zip(exported.detect(scenes), mmfuse.load(run.best).detect(scenes), strict=True):
        same(found, expected)
    assert exported.modalities == ("rgb", "thermal")
    assert exported.input_size == (96, 128)
    few = exported.detect(scenes[0], threshold=0.2, max_detections=7)[0]
    same_few = mmfuse.load(run.best).detect(scenes[0], threshold=0.2, max_detections=7)[0]
    assert len(few) == len(same_few) == 7
    torch.testing.assert_close(few.scores, same_few.scores, rtol=0, atol=1e-4)


def test_its_graph_takes_raw_images_by_name(file):
    model = onnx.load(file)
    shapes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes["rgb"] == [1, 3, "height", "width"]
    assert shapes["thermal"] == [1, 1, "height", "width"]
    assert shapes["present_rgb"] == shapes["present_thermal"] == [1]
    assert (shapes["boxes"], shapes["scores"], shapes["labels"]) == ([1, 100, 4], [1, 100], [1, 100])
    assert shapes["doubt"] == shapes["dropped"] == shapes["disagreeing"] == [1, 2]
    assert shapes["content"] == [2]  # which may be left out
    assert len(shapes) == 11
    kinds = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
    assert kinds["rgb"] == onnx.TensorProto.UINT8
    assert kinds["thermal"] == onnx.TensorProto.UINT16
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert b'.py", line' not in file.read_bytes()  # which was traced, on whose machine


def test_it_says_what_it_is(run, file):
    header = mmfuse.load(file).header
    assert header.classes == run.classes
    assert header.recipe == run.recipe
    assert header.inputs == {"rgb": "raw", "thermal": "raw"}
    assert header.sensors["thermal"].range == (0.0, 65535.0)
    assert (header.version, header.size, header.batch) == (mmfuse.__version__, (96, 128), 1)
    assert len(header.digest) == 64
    assert header.parameters == mmfuse.load(run.best).parameter_count


def test_the_script_of_the_page_needs_no_mmfuse(file, tmp_path, run):
    """It prints what the detector finds, and names a sensor that is missing by leaving it out."""
    text = re.search(r"<!-- not run: [^\n]*\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert len(text.strip().splitlines()) <= 30
    assert "mmfuse" not in re.sub(r'\["mmfuse"\]', "", text)
    (tmp_path / "run.py").write_text(text)
    images = scene()
    for m, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{m}.png")
    for kinds in (("rgb", "thermal"), ("thermal",)):
        words = [f"{m}={m}.png" for m in kinds]
        done = subprocess.run(
            [sys.executable, "-I", "run.py", file, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        (found,) = mmfuse.load(run.best).detect({m: images[m] for m in kinds}, threshold=0.3)
        printed = [line.split() for line in done.stdout.splitlines()]
        assert abs(len(printed) - len(found)) <= 2 < len(found)  # some scores are about 0.3
        assert {words[0] for words in printed} == set(found.names)
        boxes = torch.tensor([[float(v) for v in words[2:]] for words in printed])
        overlap = box_maths.iou(boxes[:, None], found.boxes).amax(0)
        assert float((overlap > 0.95).float().mean()) > 0.9  # the script's images are resized in the graph


def test_predict_and_evaluate_take_it(run, file, capsys):
    found = mmfuse.predict(file, scene())
    expected = mmfuse.predict(run, scene())
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert cli.main(["evaluate", str(file), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["ap"] == pytest.approx(mmfuse.evaluate(run).scores.ap, abs=0.005)
    assert (file.parent / "d" / "test.json").exists()


def test_a_detector_that_can_t_take_any_number_of_images_is_told(run, tmp_path, monkeypatch):
    class OfTwo(nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, images, present, contents):
            return contents + contents.new_zeros(2, 2)

    monkeypatch.setattr(graph, "Finding", OfTwo)
    with pytest.raises(UserError, match="batch: this detector can't be exported for any number of images; give a"):
        mmfuse.export(run, tmp_path / "d.onnx", batch=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_suppression_is_the_standard_operator_on_wish(run, file, tmp_path):
    out = tmp_path / "nms.onnx"
    assert cli.main(["export", str(run.folder), "--out", str(out), "--standard-nms"]) == 0
    assert "NonMaxSuppression" not in {node.op_type for node in onnx.load(file).graph.node}
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("NonMaxSuppression") == 1
    assert "Loop" not in kinds
    for found, expected in zip(mmfuse.load(out).detect(scene()), mmfuse.load(run.best).detect(scene()), strict=True):
        same(found, expected)


def test_an_existing_file_is_kept(run, file):
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"d\.onnx exists already; remove it"):
        mmfuse.export(run, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (100, 128)}, r"size: \[100, 128\] is not allowed; use multiples of \d+"),
        ({"batch": -1}, "batch: -1 is not allowed"),
        ({"threshold": 2}, "threshold: 2 is not allowed"),
        ({"max_detections": 0}, "max_detections: 0 is not allowed"),
        ({"out": "d.tflite"}, "out: 'd.tflite' is not a file name for this; end it in"),
    ],
)
def test_what_can_t_be_made_is_told_before(run, tmp_path, options, message):
    options = {"out": "d.onnx"} | options
    with pytest.raises(UserError, match=message):
        mmfuse.export(
            run, tmp_path / options.pop("out") if options["out"] == "d.onnx" else options.pop("out"), **options
        )
    assert not list(tmp_path.iterdir())


def test_a_run_without_its_best_is_told(tmp_path, run):
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"best\.safetensors: does not exist; train first"):
        mmfuse.export(tmp_path, tmp_path / "d.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_differs_isn_t_written(run, file, tmp_path, monkeypatch):
    """A file of other weights than the detector's is refused, and nothing is left; it is compared on drawn scenes."""
    monkeypatch.setattr(export_verb, "traced", lambda *_: None)
    monkeypatch.setattr(export_verb, "to_onnx", lambda *_: onnx.load(file))
    detector = mmfuse.load(run.best)
    detector.class_head.predict.pointwise.bias.data += 0.1
    with pytest.raises(
        UserError, match=r"d\.onnx: scene 0: the file lacks class \d with score 0\.\d+ at .*isn't written"
    ):
        mmfuse.export(detector, tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())
    made = mmfuse.export(mmfuse.load(run.best), tmp_path / "d.onnx")
    assert (made.compared, made.drawn) == (3, True)
    assert mmfuse.export(run, tmp_path / "run.onnx").to_text().endswith("finds the same in 3 scenes")
    moved = Run(run.folder, root=tmp_path / "nowhere")
    assert mmfuse.export(moved, tmp_path / "moved.onnx").to_text().endswith("finds the same in 3 drawn scenes")


def test_sensors_with_names_of_outputs_are_told(tmp_path):
    for name in ("boxes", "present_a", "content"):
        detector = create_detector("d-4", {name: 3}, 2)
        with pytest.raises(UserError, match=f"the sensor '{name}' has the name of another input or output"):
            mmfuse.export(detector, tmp_path / "d.onnx")


def test_files_of_others_are_told(file, tmp_path):
    other = tmp_path / "other.onnx"
    model = onnx.load(file)
    (told,) = model.metadata_props
    for text, message in (
        (
            told.value.replace("mmfuse-export-1", "mmfuse-export-9"),
            "is of the format mmfuse-export-9, this version reads",
        ),
        ("{}", "wasn't written by mmfuse export"),
        ("[" * 10**5, "wasn't written by mmfuse export"),
        (told.value.replace('"batch"', '"bach"'), "bach"),
    ):
        told.value = text
        other.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=message) as error:
            mmfuse.load(other)
        assert "\n" not in str(error.value)
    del model.metadata_props[:]
    other.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"other\.onnx: wasn't written by mmfuse export"):
        mmfuse.load(other)
    for content in (file.read_bytes()[:-1000], b"", b"no graph at all"):
        other.write_bytes(content)
        with pytest.raises(UserError, match=r"other\.onnx: (can't be read as ONNX|wasn't written by)"):
            mmfuse.load(other)
    with pytest.raises(UserError, match=r"none\.onnx: No such file"):
        mmfuse.load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": 0.6}, "iou_threshold: 0.6 is asked for, the file was made for 0.5; export it so"),
        ({"max_detections": 101}, "max_detections: 101 is asked for"),
        ({"soft": True}, "soft: True is asked for"),
        ({"doubt": "off"}, "doubt: off is asked for"),
        ({"doubt": "of"}, "doubt: 'of' is not a known way to doubt"),
        ({"resize": False}, "sees images of 96x128"),
    ],
)
def test_what_was_decided_at_export_can_t_be_asked_for_otherwise(file, options, message):
    with pytest.raises(UserError, match=message):
        mmfuse.load(file).detect(scene(), **options)


def test_pixels_that_a_file_can_t_take_are_told(file):
    wrong = {"rgb": np.full((96, 128, 3), 0.5, np.float32)}
    with pytest.raises(UserError, match=r"rgb holds torch.float32, the exported detector takes uint8"):
        mmfuse.load(file).detect(wrong)


def one(score, left=0.0, label=0):
    return Detections(torch.tensor([[left, 0.0, left + 100, 100]]), torch.tensor([score]), torch.tensor([label]))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (one(0.9), None),
        (one(0.9005), None),
        (one(0.9, 0.2), None),
        (one(0.898), "lacks class 0 with score 0.9000 at 0.0, 0.0, 100.0, 100.0"),
        (one(0.902), "has, and shouldn't, class 0 with score 0.9020"),
        (one(0.9, label=1), "lacks"),
        (one(0.9, 60.0), "lacks"),
        (Detections.empty(), "lacks"),
    ],
)
def test_boxes_without_a_partner_are_told(found, says):
    told = difference(one(0.9), found, Tolerance(0.99, 1e-3), 0.5, 100)
    assert told == says if says is None else told.startswith(says)
    turned = difference(found, one(0.9), Tolerance(0.99, 1e-3), 0.5, 100)
    assert (turned is None) == (says is None)


def test_a_box_that_is_suppressed_by_one_that_came_to_be_kept_is_let_off():
    """The first two are as good as each other: with either goes what it suppresses."""
    row = {name: one(score, left) for name, score, left in (("a", 0.9, 0.0), ("b", 0.8999, 30.0), ("c", 0.5, 60.0))}
    expected, found = ([row[name] for name in names] for names in ("ac", "b"))
    joined = [
        Detections(*(torch.cat([getattr(x, part) for x in each]) for part in ("boxes", "scores", "labels")))
        for each in (expected, found)
    ]
    assert difference(*joined, Tolerance(0.99, 1e-3), 0.5, 100) is None
    assert difference(joined[0], row["c"], Tolerance(0.99, 1e-3), 0.5, 100).startswith("lacks")


def test_lines_have_partners_too():
    line = Detections(torch.tensor([[50.0, 0.0, 50.0, 80.0]]), torch.tensor([0.4]), torch.tensor([0]))
    assert difference(line, line, Tolerance(0.99, 1e-3), 0.5, 100) is None
    assert difference(line, one(0.4), Tolerance(0.99, 1e-3), 0.5, 100).startswith("lacks")


def test_boxes_at_the_end_of_the_most_are_let_off():
    assert difference(one(0.9), one(0.9, 300.0), Tolerance(0.99, 1e-3), 0.5, 1) is None
    assert difference(one(0.91), one(0.9, 300.0), Tolerance(0.99, 1e-3), 0.5, 1).startswith("lacks")
