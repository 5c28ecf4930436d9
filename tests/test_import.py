import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_import_is_light_and_knows_its_version():
    program = (
        "import json, sys, mmfuse;"
        "heavy = sorted({'open3d', 'matplotlib', 'pycocotools', 'effdet'} & set(sys.modules));"
        "print(json.dumps([heavy, getattr(mmfuse, '__version__', None)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, own = json.loads(done.stdout)
    published = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert heavy == []
    assert version("mmfuse") == published
    assert own in (None, published)
