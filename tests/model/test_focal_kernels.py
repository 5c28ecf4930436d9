"""The kernels of the focal loss beside the loss on a CPU; Triton's interpreter runs them where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch

from mmfuse.model import kernels, losses
from mmfuse.model.losses import ALPHA, _FocalSum

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (2, 701, 7))
FAR_OUT = [-200.0, -90, -41, -20, -4.6, 0, 3, 20, 90, 200]


def compare(device):
    """Holds loss and gradient of every type against those of the other way in double precision."""
    from mmfuse.model.focal_kernels import FocalSum

    odds, generator = ALPHA / (1 - ALPHA), torch.Generator().manual_seed(0)
    for kind in TYPES:
        for shape in SHAPES:
            for share in (0.0, 0.5):
                logits = torch.randn(shape, generator=generator).mul(4).to(kind)
                logits.view(-1)[: len(FAR_OUT)] = torch.tensor(FAR_OUT)[: logits.numel()]
                label = torch.randint(shape[2], shape[:2], generator=generator)
                positive = torch.rand(shape[:2], generator=generator) < share
                exact = logits.double().requires_grad_()
                expected = _FocalSum.apply(exact, label[..., None], positive[..., None])
                (slope,) = torch.autograd.grad(0.7 * expected, exact)
                own = logits.to(device).requires_grad_()
                got = FocalSum.apply(own, torch.where(positive, label, -1).to(device), odds)
                torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-30)
                for _ in range(2):  # the second time as the first
                    (mine,) = torch.autograd.grad(0.7 * got, own, retain_graph=True)
                    assert mine.dtype == kind
                    rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[kind]  # to the last bit
                    atol = 1e-30 if kind != torch.float16 else 1e-7
                    torch.testing.assert_close(mine.cpu().double(), slope, rtol=rtol, atol=atol)


def test_the_kernels_give_the_loss_and_gradient_of_the_other_way():
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    script = "import warnings; warnings.simplefilter('error'); from test_focal_kernels import compare; compare('cpu')"
    paths = os.pathsep.join(path for path in (os.path.dirname(__file__), *sys.path) if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def asked_afresh():
    kernels.kernels_run.cache_clear()
    yield
    kernels.kernels_run.cache_clear()


@pytest.mark.usefixtures("asked_afresh")
def test_without_triton_the_loss_is_found_the_other_way_and_said_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmfuse.model.focal_kernels", None)
    with pytest.warns(UserWarning, match="suppression are slower than they could be: Triton doesn't run here"):
        assert not kernels.kernels_run()
    assert not kernels.kernels_run()


def test_a_cpu_asks_for_no_kernel(monkeypatch):
    monkeypatch.setattr(losses, "kernels_run", None)
    logits = torch.zeros(1, 2, 1, requires_grad=True)
    label, positive = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[True, False]])
    assert losses._focal_sum(logits, label, positive) > 0


@pytest.mark.gpu
@pytest.mark.usefixtures("asked_afresh")
def test_the_kernels_run_on_a_gpu():
    assert kernels.kernels_run()
    compare("cuda")
    logits = torch.randn(2, 9, 3, device="cuda", requires_grad=True)
    label, positive = torch.zeros(2, 9, dtype=torch.int64, device="cuda"), torch.ones(2, 9, dtype=torch.bool)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as listener:
        losses._focal_sum(logits, label, positive.cuda()).backward()
    assert {"_sum_losses", "_write_gradient"} <= {event.key for event in listener.key_averages()}
