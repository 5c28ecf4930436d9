"""What all tests share: one thread, which is fastest for tiny tensors, and a small embedded set.

Here, since with several workers no conftest of a folder below is read where the summary is written, is also what tells
of the table in `faults/`.
"""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hub_stub
import pytest
import torch

from mmfuse.data import measuring
from mmfuse.embedded.dataset import generate
from mmfuse.training import display

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _undrawn():
    """Trainings draw no pictures, which would take longer than their steps, but in `training/test_display.py`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("batch_grid", "found_grid", "training_progress"):
            patch.setattr(display, name, lambda *_, **__: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _measured_here(tmp_path_factory):
    """Keeps what is measured of sensors away from the user's own cache."""
    folder, real = tmp_path_factory.mktemp("measured"), measuring._folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_folder", lambda data: real(data) if data.cache else folder)
        yield


@pytest.fixture(scope="session")
def paired_set(tmp_path_factory):
    """The card of an embedded set of 8 training, 4 validation and 4 test images."""
    return generate(tmp_path_factory.mktemp("set"), counts={"train": 8, "val": 4, "test": 4}, seed=0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a checkout's `build/` may hold modules that are gone, and would be left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("mmfuse", "configs", "datasets"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    words = ["-m", "pip", "wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    (built,) = folder.glob("mmfuse-*.whl")
    return built


@pytest.fixture
def recipe_file(paired_set, tmp_path):
    """Writes a tiny recipe for some modalities and returns its path."""

    def write(*modalities, name=None):
        path = tmp_path / f"{name or '_'.join(modalities)}.yaml"
        path.write_text(
            f"card: {paired_set}\nmodalities: [{', '.join(modalities)}]\nmodel: {{size: d-4}}\n"
            "data: {input_size: [96, 128], workers: 0}\ntrain: {epochs: 2, batch_size: 4, lr: 0.05}\n"
        )
        return path

    return write


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stub of the Hub, which is the one that is asked, and an empty cache."""
    from huggingface_hub import constants

    with hub_stub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False)
        monkeypatch.setenv("HF_TOKEN", "token")
        yield running


def pytest_terminal_summary(terminalreporter):
    """Prints how many faults of each kind were tried, held and fell."""
    held, fell, names = Counter(), Counter(), []
    for outcome, counter in (("passed", held), ("failed", fell), ("error", fell)):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", ()):
                if key == "fault" and (report.when == "call" or report.failed):
                    counter[value[0]] += 1
                    names += [value[1]] if report.failed else []
    if held or fell:
        terminalreporter.section("faults")
        terminalreporter.write_line("kind  tried  held  fell")
        for kind in sorted(held.keys() | fell.keys()):
            terminalreporter.write_line(f"{kind:4}  {held[kind] + fell[kind]:5}  {held[kind]:4}  {fell[kind]:4}")
        terminalreporter.write_line(f" all  {(held + fell).total():5}  {held.total():4}  {fell.total():4}")
        for name in names:
            terminalreporter.write_line(f"fell: {name}")
