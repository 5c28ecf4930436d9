import json
import subprocess
import sys
from importlib.metadata import version

import mmfuse

HEAVY = ("torchvision", "timm", "torch._dynamo", "sympy", "matplotlib", "pycocotools", "open3d", "effdet")


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    program = f"import json, sys, mmfuse.cli; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    assert json.loads(python("-c", program)) == []


def test_version_has_one_source():
    assert python("-m", "mmfuse", "--version") == f"mmfuse {mmfuse.__version__}\n"
    assert version("mmfuse") == mmfuse.__version__
