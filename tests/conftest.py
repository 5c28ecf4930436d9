"""What all tests share: one thread, which is fastest for tiny tensors, and a small embedded set."""

import hub_stub
import pytest
import torch

from mmfuse.embedded.dataset import generate

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def paired_set(tmp_path_factory):
    """The card of an embedded set of 8 training, 4 validation and 4 test images."""
    return generate(tmp_path_factory.mktemp("set"), counts={"train": 8, "val": 4, "test": 4}, seed=0)


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
