from copy import deepcopy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.run import Run
from mmfuse.training.distributed import ALONE, note_begun, was_begun
from mmfuse.training.loop import train
from mmfuse.training.shared_norms import SharedNorm, SharedNormAct, share_norms


def test_one_process_trains_the_model_itself():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert ALONE.wrap(model, some_unused=True) is model
    assert type(model[1]) is nn.BatchNorm2d
    assert ALONE.any_of(["b"], ["a", "b"]) == ["b"]


def test_shared_norms_are_the_same_objects_and_do_in_use_what_they_did():
    """A training holds the norms of parts that are frozen, and looks for them no more."""
    torch.manual_seed(0)
    detector = create_detector("d-2", {"rgb": 3}, 2).eval()
    norms = [part for part in detector.modules() if isinstance(part, nn.BatchNorm2d)]
    images = {"rgb": torch.randn(1, 3, 128, 128)}
    with torch.no_grad():
        before = detector(images)
        share_norms(detector)
        after = detector(images)
    assert torch.equal(after.class_logits, before.class_logits)
    assert torch.equal(after.box_codes, before.box_codes)
    kinds = [type(part) for part in detector.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert set(kinds) == {SharedNorm, SharedNormAct}
    assert [part for part in detector.modules() if isinstance(part, nn.BatchNorm2d)] == norms


@pytest.fixture
def group():
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_of_one_process_a_shared_norm_is_torchs(group, momentum, affine, device):
    torch.manual_seed(0)
    wanted = nn.BatchNorm2d(3, momentum=momentum, affine=affine).to(device)
    if affine:
        nn.init.normal_(wanted.weight)
        nn.init.normal_(wanted.bias)
    shared = deepcopy(wanted)
    share_norms(shared)
    for _ in range(2):
        x = 5 + torch.randn(4, 3, 6, 5, device=device)
        found = []
        for norm in (shared, wanted):
            norm.zero_grad()
            y = x.clone().requires_grad_()
            z = norm(y)
            (z.square() * torch.linspace(0, 1, 30, device=device).view(6, 5)).sum().backward()
            found.append([z, y.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_norm_without_any_image_remembers_nothing_and_has_a_gradient(group):
    norm = nn.BatchNorm2d(2)
    share_norms(norm)
    x = torch.zeros(0, 2, 3, 3, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == x.shape
    assert norm.weight.grad.tolist() == [0, 0]
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]
    assert norm.num_batches_tracked == 0


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one that torchrun started, and returns what sets how often it restarted its processes."""

    def start(restarts, processes=2):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": processes, "RANK": 0}
        names |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
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


def test_a_restarted_training_goes_on_by_itself(torchrun, recipe_file, tmp_path, train_one_epoch, monkeypatch):
    path, store = recipe_file("rgb"), torchrun(restarts=0, processes=1)
    train_one_epoch(path, tmp_path / "run")
    first = Run(tmp_path / "run").metrics
    with pytest.raises(UserError, match="holds a run already"):
        train(path, folder=tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run = train(path, folder=tmp_path / "run")
    assert run.finished
    assert run.metrics[:1] == first
    del store
