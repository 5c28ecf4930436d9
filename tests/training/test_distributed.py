from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from timm.layers import SyncBatchNormAct
from torch import nn

from mmfuse.model.build import create_detector
from mmfuse.training import distributed
from mmfuse.training.distributed import World, note_begun, was_begun


def test_one_process_trains_the_model_itself():
    model = nn.Conv2d(1, 1, 1)
    assert World(0, 1, torch.device("cpu")).wrap(model) is model


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_share_gradients_and_on_cuda_statistics_without_losing_activations(device, monkeypatch):
    wrapped = []
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model: wrapped.append(model) or model)
    torch.manual_seed(0)
    detector = create_detector("d-2", {"rgb": 3}, 2).eval()
    images = {"rgb": torch.randn(1, 3, 128, 128)}
    with torch.no_grad():
        before = detector(images)
        model = World(0, 2, torch.device(device)).wrap(detector)
        after = model(images)
    assert wrapped == [model]
    torch.testing.assert_close(after.class_logits, before.class_logits)
    torch.testing.assert_close(after.box_codes, before.box_codes)
    kinds = {type(part) for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds) == (device == "cuda")
    assert (SyncBatchNormAct in kinds) == (device == "cuda")


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one that torchrun started, and returns what sets how often it restarted its processes."""

    def start(restarts, agent=True):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": 2, "RANK": 0}
        names |= {"TORCHELASTIC_USE_AGENT_STORE": agent, "TORCHELASTIC_RESTART_COUNT": restarts}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))
        return store

    return start


def test_only_a_run_that_this_torchrun_began_is_gone_on_with(torchrun, tmp_path, monkeypatch):
    """A folder of another run is refused after restarts, too, or it would be gone on with unasked."""
    begun, other = tmp_path / "begun", tmp_path / "other"
    note_begun(begun)  # without torchrun there is nobody to note it
    assert not was_begun(begun)
    store = torchrun(restarts=0)
    assert not was_begun(begun)
    note_begun(begun)
    assert not was_begun(begun)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert was_begun(begun)
    assert not was_begun(other)
    monkeypatch.chdir(tmp_path)
    assert was_begun(begun.relative_to(tmp_path))
    del store
    another = torchrun(restarts=1)
    assert not was_begun(begun)
    del another
