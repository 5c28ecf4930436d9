"""A detector exported for PyTorch: what lies in the archive, how it is opened, and that mmfuse doesn't."""

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mmfuse
from mmfuse import cli
from mmfuse.errors import UserError
from mmfuse.exporting.torch_files import opened
from mmfuse.verbs import export as export_verb

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
RNG = np.random.default_rng(0)
SCENE = {
    "rgb": RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8),
    "thermal": RNG.integers(18000, 42000, (96, 128), dtype=np.uint16),
}


@pytest.fixture(scope="module")
def archive(run, exported):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_verb, "traced", lambda *_: exported[1])
        assert cli.main(["export", str(run.folder), "--out", str(run.folder / "d.pt2")]) == 0
    return run.folder / "d.pt2"


def test_nothing_is_pickled_in_it_and_it_says_what_it_is(archive, run):
    with zipfile.ZipFile(archive) as file:
        held = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    for name, content in held.items():
        assert not content.startswith((b"\x80", b"PK")), name
        assert b'.py\\"' not in content, name  # whose line was traced
        if name.endswith("_config.json"):
            entries = json.loads(content)["config"].values()
            assert entries
            assert not any(entry["use_pickle"] for entry in entries)
    assert b"mmfuse::" not in held["models/model.json"]  # no operator of our own
    assert b"torch.ops.mmfuse" not in held["models/model.json"]
    told = json.loads(held["extra/mmfuse"])
    assert tuple(told["classes"]) == run.classes
    assert told["precision"] == "fp32"
    assert told["inputs"]["rgb"].startswith("scale it to fit into 96x128 (bilinear), and pad it right and below by ")


@pytest.mark.long  # `export` opens it in the same way
def test_the_lines_of_the_page_open_it_without_mmfuse(archive, run, tmp_path):
    text = re.search(r"<!-- not run: [^\n]*\n```python\n(import torch\n.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    rgb = torch.from_numpy(SCENE["rgb"].transpose(2, 0, 1)[None])
    thermal = torch.from_numpy(SCENE["thermal"][None, None].astype(np.float32))
    torch.save({"rgb": rgb, "thermal": thermal}, tmp_path / "images.pt")
    before = f"import sys, torch\nrgb, thermal = torch.load('images.pt').values()\nfile = {str(archive)!r}\n"
    text = text.replace('"fused.pt2"', "file").replace("480.0, 640.0", "96.0, 128.0")
    after = "\nassert 'mmfuse' not in sys.modules\ntorch.save((boxes, scores, labels, told['mmfuse']), 'found.pt')\n"
    (tmp_path / "run.py").write_text(before + text + after)
    subprocess.run([sys.executable, "-I", "run.py"], cwd=tmp_path, check=True, capture_output=True)
    boxes, scores, labels, told = torch.load(tmp_path / "found.pt")
    (expected,) = mmfuse.load(run.best).detect(SCENE)
    torch.testing.assert_close(scores[0], expected.scores, rtol=0, atol=1e-4)
    assert torch.equal(labels[0], expected.labels)
    torch.testing.assert_close(boxes[0], expected.boxes, rtol=0, atol=0.1)
    assert json.loads(told)["format"] == "mmfuse-export-1"


def test_mmfuse_doesn_t_open_it(archive, run, tmp_path, capsys, monkeypatch):
    """Whatever it holds: here a file that PyTorch would unpickle."""
    (tmp_path / "other.pt2").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    monkeypatch.chdir(tmp_path)
    for path in (archive, tmp_path / "other.pt2"):
        for use in (mmfuse.load, lambda path: mmfuse.predict(path, SCENE), mmfuse.evaluate):
            with pytest.raises(UserError, match=r"\.pt2: isn't opened by mmfuse, for PyTorch would run what such"):
                use(path)
        assert cli.main(["compare", str(run.folder), str(path)]) == 2
        assert "isn't opened by mmfuse" in capsys.readouterr().err
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"precision: int8: is for \.onnx files, out is .*d\.pt2"),
        ({"standard_nms": True}, r"standard_nms: is for \.onnx files"),
        ({"out": "d.onnx", "aot": True}, r"aot: is for \.pt2 files"),
        ({"precision": "fp8"}, "precision: 'fp8' is not a known precision; use one of fp32, fp16, int8"),
    ],
)
def test_what_isn_t_there_is_told_before(run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        mmfuse.export(run, tmp_path / options.pop("out", "d.pt2"), **options)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_nothing_is_compiled(run, tmp_path):
    from torch._inductor import config

    message = r"aot: needs a compiler of C\+\+, and none is here; install g\+\+"
    with config.patch("cpp.cxx", ("no-such-compiler",)), pytest.raises(UserError, match=message):
        mmfuse.export(run, tmp_path / "d.pt2", aot=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 0])
def test_it_is_compiled_on_wish(run, tmp_path, batch):
    """`export` compares what it finds, also without a sensor."""
    out = tmp_path / "d.pt2"
    made = mmfuse.export(run, out, aot=True, batch=batch, precision="fp16")
    assert made.compared == 3
    package = torch._inductor.aoti_load_package(str(out))
    assert json.loads(package.get_metadata()["mmfuse"])["precision"] == "fp16"
    names = zipfile.ZipFile(io.BytesIO(out.read_bytes())).namelist()
    assert any(name.endswith(".so") for name in names)


@pytest.mark.long
def test_any_number_of_images_in_half_precision(run, tmp_path):
    made = mmfuse.export(run, tmp_path / "d.pt2", batch=0, precision="fp16")
    find = opened(Path(made.path).read_bytes(), aot=False)
    images = {m: np.stack([np.atleast_3d(x).transpose(2, 0, 1)] * 3) for m, x in SCENE.items()}
    feed = images | {f"present_{m}": np.ones(3, bool) for m in images} | {"content": np.array([96, 128], np.float32)}
    boxes, scores, *_ = find(feed)
    assert boxes.shape == (3, 100, 4)
    (expected,) = mmfuse.load(run.best).detect(SCENE)
    np.testing.assert_allclose(scores[2], expected.scores, atol=1e-2)
