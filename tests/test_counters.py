"""Counts of ATen calls, and the gates on what target assignment, loss and post-processing write, relative to effdet."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counters import count
from benchmarks.losses import check, problem, sides
from mmfuse.model import losses, postprocess
from mmfuse.model.build import create_detector
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.branches import StepLoss

TEN = torch.arange(10.0)


def test_bytes_are_those_of_outputs_but_for_views_and_empty_tensors():
    found = count(lambda: (TEN + 1).view(2, 5).t()[0].mul_(2))
    assert found.bytes == {"add": 40, "mul_": 8}
    assert found.calls == {"add": 1, "view": 1, "t": 1, "select": 1, "mul_": 1}
    assert count(lambda: torch.empty(100)).bytes.total() == 0
    assert count(lambda: TEN.double().max(0)).bytes == {"_to_copy": 80, "max": 16}
    assert count(lambda: torch.add(TEN, 1, out=torch.empty(10))).bytes == {"add": 40}


def test_backward_passes_count():
    leaf = TEN.clone().requires_grad_()
    forward = count(lambda: leaf.sin().sum())
    both = count(lambda: leaf.sin().sum().backward())
    assert both.calls["cos"] == 1
    assert forward.calls["cos"] == 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda: TEN[3].item(),
        lambda: bool((TEN > 3).any()),
        lambda: TEN[TEN > 3],
        lambda: TEN.clone().index_put_((TEN > 3,), TEN[0]),
        lambda: TEN.nonzero(),
        lambda: torch.equal(TEN, TEN + 1),
        lambda: TEN.masked_select(TEN > 3),
        lambda: TEN.to("meta"),
        lambda: torch.empty(10, device="meta").copy_(TEN),
        lambda: torch.empty(10, device="meta")[torch.tensor([1, 2])],
    ],
)
def test_what_makes_the_host_wait_is_seen(wait):
    assert count(wait).waits.total() == 1


def test_what_doesn_t_make_the_host_wait_is_not_seen():
    rows = torch.tensor([1, 2])
    assert not count(lambda: (TEN[rows], TEN.where(TEN > 3, 0).sum(), TEN.max(0))).waits
    there = torch.empty(10, device="meta")
    by_itself = lambda: (TEN.to("meta", non_blocking=True), there.copy_(TEN, non_blocking=True), there * TEN[0])  # noqa: E731
    assert not count(by_itself).waits


@pytest.fixture(scope="module")
def found():
    """effdet's way and ours for D0 at a quarter of its pixels; the losses are the same."""
    given = problem("d0", 256, 2, 90)
    found = sides(given, 50)
    check(given, found)
    return found


@pytest.fixture(scope="module")
def theirs(found):
    return count(found["effdet"])


def writing_calls(found):
    return sum(found.calls[name] for name in found.bytes)


def test_assignment_and_loss_write_a_quarter_of_effdet_s_bytes(found, theirs):
    assert count(found["mmfuse"]).bytes.total() <= 0.25 * theirs.bytes.total()


def test_assignment_and_loss_never_make_the_host_wait(found, theirs):
    assert not count(found["mmfuse"]).waits
    assert theirs.waits


def test_an_accelerator_is_asked_for_a_quarter_of_effdet_s_calls(monkeypatch):
    """A CPU gets more and smaller ones, that stay in its cache; calls don't depend on pixels and classes."""
    monkeypatch.setattr(losses, "_IN_CACHE", losses._IN_MEMORY)
    found = sides(problem("d0", 128, 4, 3), 50)
    assert writing_calls(count(found["mmfuse"])) <= 0.25 * writing_calls(count(found["effdet"]))


def test_no_output_holds_all_pairs_of_anchor_and_object():
    """Neither of one image nor of all."""
    found = sides(problem("d0", 256, 4, 2), 200)
    largest = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    with Largest():
        found["mmfuse"]()
    assert max(largest) < 200 * 9 * 32**2 / 4


ALL_THERE = {"a": torch.tensor([True] * 3), "b": torch.tensor([True] * 3)}
SOME_MISSING = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, True])}


ONE_GRAPH = [{"align": "a"}, {"fusion": "gated_spatial"}, {"placement": "channels"}, {"pyramid": "gfrnet"}]


@pytest.fixture
def far(request):
    """A detector and a batch on another device, that is, without values that anybody could wait for."""
    detector = create_detector("d-4", {"a": 3, "b": 1}, 3, **request.param)
    parts = detector.members.values() if request.param.get("placement") == "boxes" else [detector]
    detector = detector.to("meta")
    for part in parts:
        part.anchors((128, 128))
    with torch.device("meta"):
        images = {"a": torch.empty(3, 3, 128, 128), "b": torch.empty(3, 1, 128, 128)}
        targets = Targets([torch.empty(2, 4)] * 3, [torch.empty(2, dtype=torch.int64)] * 3)
    return detector, images, targets


@pytest.mark.parametrize("far", [*ONE_GRAPH, {"placement": "boxes"}], indirect=True, ids=str)
@pytest.mark.parametrize(
    ("recipe", "present"),
    [
        (TrainRecipe(), ALL_THERE),
        (TrainRecipe(modality_dropout=0.5, branch_losses=1.0, distillation=1.0), SOME_MISSING),
    ],
    ids=["plain, all there", "branches, some missing"],
)
def test_forward_loss_and_backward_never_make_the_host_wait(far, recipe, present):
    detector, images, targets = far
    step = StepLoss(detector, recipe).train()
    found = count(lambda: step(images, present, targets)["total"].backward(), "meta")
    assert not found.waits
    assert found.calls["convolution_backward"] > 20


@pytest.mark.parametrize("options", ONE_GRAPH, ids=str)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_what_a_captured_graph_runs_never_makes_the_host_wait(options, monkeypatch):
    """Fake tensors say that they are on CUDA, refuse to mix devices or to say a value, and see numbers copied there.

    Of a kernel they know what shapes it gives.
    """
    monkeypatch.setattr(postprocess, "kernels_run", lambda: True)
    with FakeTensorMode():
        with torch.device("cuda"):
            detector = create_detector("d-4", {"a": 3, "b": 1}, 3, **options).eval()
            images = {"a": torch.empty(3, 3, 128, 128), "b": torch.empty(3, 1, 128, 128)}
        detector(images)
        detector.anchors((128, 128))
        found = count(lambda: detector.decode_padded(detector(detector.normalise(images))), "cuda")
    assert not found.waits
    assert not found.calls["_pin_memory"]
    assert found.calls["convolution"] > 20


@pytest.mark.gpu
@pytest.mark.parametrize("present", [ALL_THERE, SOME_MISSING], ids=["all there", "some missing"])
@pytest.mark.parametrize("options", [{}, *ONE_GRAPH], ids=str)
def test_a_step_on_a_gpu_never_waits(options, present):
    detector = create_detector("d-4", {"a": 3, "b": 1}, 3, **options).cuda()
    step = StepLoss(detector, TrainRecipe(modality_dropout=0.5, branch_losses=1.0, distillation=1.0)).train()
    images = {"a": torch.randn(3, 3, 128, 128).cuda(), "b": torch.randn(3, 1, 128, 128).cuda()}
    boxes, labels = torch.tensor([[8.0, 8, 60, 70], [40, 30, 90, 99]]), torch.tensor([0, 2])
    for number in range(2):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            targets = Targets([boxes] * 3, [labels] * 3).to(torch.device("cuda"))
            with torch.autocast("cuda", torch.bfloat16):
                total = step(images, present, targets)["total"]
            total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
