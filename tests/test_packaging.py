"""What people get who don't clone: the wheel in an environment of its own, the image, how to cite."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

import mmfuse
from mmfuse.embedded.dataset import generate

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["version"] == mmfuse.__version__
    assert cited["license"] == "Apache-2.0"


def test_the_image_takes_the_steps_of_the_makefile_and_all_that_they_need():
    steps = (ROOT / "Dockerfile").read_text()
    (target,) = re.findall(r"^RUN make (\S+)$", steps, re.M)
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    copied = {word for words in re.findall(r"^COPY (.+) \S+$", steps, re.M) for word in words.split()}
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    home = re.search(r"^WORKDIR (\S+)$", steps, re.M)[1]
    assert f"ENV PATH={home}/.venv/bin:$PATH" in steps
    libraries = re.search(r"^OPEN3D_PACKAGES = (.+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f"make {libraries} " in steps
    wheel = (ROOT / "pyproject.toml").read_text()
    assert {"README.md", "LICENSE"} <= copied
    assert 'readme = "README.md"' in wheel


@pytest.mark.long
def test_what_is_installed_from_the_wheel_trains_without_the_sources(tmp_path, wheel):
    """In a fresh environment, which finds torch and the rest beside it, but not this checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])  # a .pth there, of the checkout, isn't followed
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--ignore-installed", str(wheel)], check=True
    )
    card = generate(tmp_path / "set", counts={"train": 4, "val": 2, "test": 2}, size=(96, 128))

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*words):
        verb = [str(python.with_name("mmfuse")), *map(str, words)]
        done = subprocess.run(verb, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert mmfuse.__version__ in run("--version")
    assert "roadscene/rgb_thermal" in run("recipes")
    assert "llvip" in run("cards")
    changes = ["model.size=d-4", "data.input_size=[96,128]", "data.workers=0", "train.epochs=1", "train.batch_size=4"]
    run("train", "roadscene/rgb_thermal", f"card={card}", *changes, "--out", "run")
    assert (tmp_path / "run" / "best.safetensors").exists()
    run("shares", "run")
    assert (tmp_path / "run" / "report.html").exists(), "templates come along"
    where = [str(python), "-c", "import mmfuse.exporting, mmfuse; print(mmfuse.__file__)"]
    home = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(home).is_relative_to(tmp_path / "env")
