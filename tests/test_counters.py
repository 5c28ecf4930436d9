"""Counts of ATen calls, and the gates on what target assignment, loss and post-processing write, relative to effdet."""

import pytest
import torch

from benchmarks.counters import count
from benchmarks.losses import check, problem, sides
from mmfuse.model import losses

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
    ],
)
def test_what_makes_the_host_wait_is_seen(wait):
    assert count(wait).waits.total() == 1


def test_what_doesn_t_make_the_host_wait_is_not_seen():
    rows = torch.tensor([1, 2])
    assert not count(lambda: (TEN[rows], TEN.where(TEN > 3, 0).sum(), TEN.max(0))).waits


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
