import ast
import importlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

import mmfuse
from mmfuse.model.checkpoint import save_detector

HEAVY = ("torchvision", "timm", "torch._dynamo", "sympy", "matplotlib", "pycocotools", "open3d", "effdet")


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def imported(program, names):
    ending = f"; import json, sys; print(json.dumps([name for name in {names} if name in sys.modules]))"
    return json.loads(python("-c", program + ending).splitlines()[-1])


def test_import_is_light():
    everything = "import mmfuse; [getattr(mmfuse, name) for name in dir(mmfuse)]"
    assert imported(everything, HEAVY) == []


def test_the_command_line_is_there_before_torch():
    parsed = "import mmfuse.cli; mmfuse.cli._parser().format_help()"
    assert imported(parsed, ("torch", "numpy", *HEAVY)) == []


def test_a_prediction_imports_no_more_than_its_network_needs(tmp_path):
    """Nothing that draws charts, scores or computes geometry, and none of the readers of videos and bags."""
    torch.manual_seed(0)
    detector = mmfuse.create_detector("d-4", {"x": 1}, 1, input_size=(64, 64))
    save_detector(tmp_path / "x.safetensors", detector, {})
    Image.new("L", (64, 64)).save(tmp_path / "x.png")
    words = [
        "predict",
        str(tmp_path / "x.safetensors"),
        "--x",
        str(tmp_path / "x.png"),
        "--out",
        str(tmp_path / "o.png"),
    ]
    unwanted = ("matplotlib", "pycocotools", "open3d", "effdet", "scipy", "pandas", "av", "rosbags")
    assert imported(f"from mmfuse.cli import main; main({words})", unwanted) == []
    assert (tmp_path / "o.png").exists()


def test_public_names_come_when_asked_for():
    tree = ast.parse(Path(mmfuse.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.name: node.module for node in typed.body for alias in node.names}
    assert told == {name: f"mmfuse.{home}" for name, home in mmfuse._HOMES.items()}
    assert set(told) <= set(dir(mmfuse))
    for name, home in told.items():
        assert getattr(mmfuse, name) is getattr(importlib.import_module(home), name)
    assert not hasattr(mmfuse, "utils")


def test_a_verb_is_its_function_whatever_was_imported_before():
    assert python("-c", "import mmfuse.verbs.compare, mmfuse; print(callable(mmfuse.compare))") == "True\n"


def test_version_has_one_source():
    assert python("-m", "mmfuse", "--version") == f"mmfuse {mmfuse.__version__}\n"
    assert version("mmfuse") == mmfuse.__version__
