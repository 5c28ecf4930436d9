import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, sigmoid_focal_loss

from benchmarks.counters import count
from mmfuse import boxes as box_maths
from mmfuse.model import losses
from mmfuse.model.heads import anchors, grids
from mmfuse.model.losses import _FocalSum, detection_loss, match
from mmfuse.sample import Targets

GRID = anchors(128, 128, (3, 4, 5, 6, 7), 4.0, torch.device("cpu"))
GRIDS = grids(128, 128, (3, 4, 5, 6, 7))
CLASSES = 3


def objects(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 90
    side = torch.rand(count, 2, generator=generator) * 60 + 2
    return torch.cat((corner, corner + side), 1)


def targets(*counts):
    parts = [objects(n, seed) for seed, n in enumerate(counts)]
    return Targets(parts, [torch.arange(n) % CLASSES for n in counts])


def slow_match(boxes, grid):
    """One image, one anchor after the other."""
    overlaps = box_iou(grid, boxes).tolist() if len(boxes) else [[] for _ in grid]
    matched, positive = [], []
    for row in overlaps:
        best = max(range(len(row)), key=lambda n: (row[n], -n), default=0)
        matched.append(best)
        positive.append(bool(row) and row[best] >= 0.5)
    for n in reversed(range(len(boxes))):
        best = max(range(len(grid)), key=lambda a: (overlaps[a][n], -a))
        matched[best], positive[best] = n, True
    return matched, positive


def padded(parts):
    boxes = torch.zeros(len(parts), max(map(len, parts)), 4)
    valid = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for i, part in enumerate(parts):
        boxes[i, : len(part)], valid[i, : len(part)] = part, True
    return boxes, valid


@pytest.mark.parametrize("at_once", [40, 999, 2**12, 2**22])
@pytest.mark.parametrize("shapes", [None, GRIDS])
def test_matching_is_that_of_a_loop(monkeypatch, at_once, shapes):
    monkeypatch.setattr(losses, "_IN_CACHE", at_once)
    tie = torch.tensor([[10.0, 10, 42, 42], [10, 10, 42, 42], [60, 60, 62, 62], [60, 60, 62, 62]])
    outside = torch.tensor([[-20.0, 30, 20, 300], [200, 200, 210, 210]])
    parts = [objects(7, 1), objects(0, 0), tie, objects(1, 4), torch.cat((objects(3, 5), GRID[100:101])), outside]
    grid = GRID if shapes or at_once > 40 else GRID[::3].contiguous()
    matched, positive = match(*padded(parts), grid, shapes)
    for i, part in enumerate(parts):
        expected_match, expected_positive = slow_match(part, grid)
        assert positive[i].tolist() == expected_positive
        assert matched[i][positive[i]].tolist() == [
            m for m, p in zip(expected_match, expected_positive, strict=True) if p
        ]
        assert int(positive[i].sum()) >= len({tuple(b.tolist()) for b in part if i < 5})


def test_rows_and_columns_of_a_wide_input_are_not_swapped():
    levels, wide = (3, 4, 5, 6, 7), anchors(128, 384, (3, 4, 5, 6, 7), 4.0, torch.device("cpu"))
    boxes = objects(30, 2)[None] * torch.tensor([3.0, 1, 3, 1])
    valid = torch.ones(1, 30, dtype=torch.bool)
    for got, expected in zip(
        match(boxes, valid, wide, grids(128, 384, levels)), match(boxes, valid, wide), strict=True
    ):
        assert torch.equal(got, expected)


def test_objects_that_aren_t_valid_match_nothing():
    boxes = torch.tensor([[[0.0, 0, 40, 40], [60, 60, 100, 100]]])
    _, both = match(boxes, torch.tensor([[True, True]]), GRID)
    matched, one = match(boxes, torch.tensor([[False, True]]), GRID)
    assert 0 < one.sum() < both.sum()
    assert (matched[one] == 1).all()
    assert not match(boxes, torch.tensor([[False, False]]), GRID)[1].any()


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0), (1,), (0, 4)])
def test_objects_are_filled_up_to_the_most_of_an_image_in_as_many_calls_for_any_number_of_them(counts):
    given = targets(*counts)
    boxes, labels = losses._padded(given)
    assert boxes.shape == (*labels.shape, 4) == (len(counts), max(1, *counts, 0), 4)
    for own, theirs, box, label in zip(boxes, labels, given.boxes, given.labels, strict=True):
        assert torch.equal(own[: len(box)], box)
        assert theirs.tolist() == [*label.tolist(), *[-1] * (len(theirs) - len(label))]
    few, many = (count(lambda own=own: losses._padded(own)).calls for own in (given, targets(*counts * 8)))
    assert few == many


def test_every_object_forces_its_best_anchor_though_another_overlaps_it_more():
    small = torch.tensor([[0.0, 0, 10, 10]])
    both = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 12, 9]]])
    matched, positive = match(both, torch.ones(1, 2, dtype=torch.bool), small)
    assert positive.tolist() == [[True]]
    assert matched.tolist() == [[0]]
    far = torch.tensor([[[4.0, 4, 40, 40]]])
    assert match(far, torch.ones(1, 1, dtype=torch.bool), small)[1].tolist() == [[True]]


def test_half_an_overlap_is_a_match():
    anchor = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9]])
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    assert match(box, torch.ones(1, 1, dtype=torch.bool), anchor)[1].tolist() == [[True, True, False]]


def naive_loss(logits, codes, wanted):
    """The formulas of the paper over one-hot classes."""
    hot, positive, encoded = torch.zeros_like(logits), torch.zeros(logits.shape[:2], dtype=torch.bool), codes.clone()
    for i, (boxes, labels) in enumerate(zip(wanted.boxes, wanted.labels, strict=True)):
        matched, flags = slow_match(boxes, GRID)
        for a, (n, flag) in enumerate(zip(matched, flags, strict=True)):
            if flag:
                hot[i, a, labels[n]], positive[i, a] = 1, True
                encoded[i, a] = box_maths.encode(boxes[n], GRID[a])
    normaliser = positive.sum() + 1
    focal = sigmoid_focal_loss(logits, hot, 0.25, 1.5, "sum") / normaliser
    distance = (codes - encoded).abs()
    huber = torch.where(distance <= 0.1, 0.5 * distance.square(), 0.1 * (distance - 0.05))
    return focal, huber.sum() / (4 * normaliser)


def outputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, len(GRID), CLASSES, generator=generator) * 3
    return logits.requires_grad_(), (torch.randn(batch, len(GRID), 4, generator=generator) * 0.3).requires_grad_()


@pytest.mark.parametrize("at_once", [1000, 2**16])
@pytest.mark.parametrize("shapes", [None, GRIDS])
@pytest.mark.parametrize("counts", [(2, 0, 5), (3,), (0, 1)])
def test_focal_and_huber_are_the_one_hot_formulas(monkeypatch, counts, shapes, at_once):
    monkeypatch.setattr(losses, "_IN_CACHE", at_once)
    (logits, codes), wanted = outputs(len(counts)), targets(*counts)
    got = detection_loss(logits, codes, GRID, wanted, shapes)
    focal, huber = naive_loss(logits, codes, wanted)
    torch.testing.assert_close(got["class"], focal)
    torch.testing.assert_close(got["box"], huber)
    torch.testing.assert_close(got["total"], focal + 50 * huber)
    expected = torch.autograd.grad(focal + 50 * huber, (logits, codes))
    for mine, theirs in zip(torch.autograd.grad(got["total"], (logits, codes)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def focal_inputs():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) * 4
    label = torch.randint(3, (2, 5, 1), generator=generator)
    return logits.requires_grad_(), label, torch.rand(2, 5, 1, generator=generator) < 0.5


def test_the_gradient_of_the_focal_loss_is_its_derivative():
    logits, label, positive = focal_inputs()
    assert positive.any()
    assert not positive.all()
    (slope,) = torch.autograd.grad(_FocalSum.apply(logits, label, positive), logits)
    for place in range(logits.numel()):
        step = torch.zeros(logits.numel(), dtype=torch.float64)
        step[place] = 1e-6
        up, down = (_FocalSum.apply(logits + sign * step.view_as(logits), label, positive) for sign in (1, -1))
        assert float((up - down).detach() / 2e-6) == pytest.approx(float(slope.flatten()[place]), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("value", [-200.0, -90, -20, -4.6, 0, 3, 20, 90, 200])
def test_focal_loss_and_gradient_are_exact_far_out(value):
    """Single precision against double, relative to the value itself, for a class that is wanted and one that isn't."""
    logits = torch.full((1, 2, 1), float(value), requires_grad=True)
    label, positive = torch.zeros(1, 2, 1, dtype=torch.int64), torch.tensor([[[True], [False]]])
    got = _FocalSum.apply(logits, label, positive)
    double = logits.detach().double().requires_grad_()
    expected = sigmoid_focal_loss(double, positive.double(), 0.25, 1.5, "sum") / 0.75
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-30)
    (slope,), (theirs,) = torch.autograd.grad(got, logits), torch.autograd.grad(expected, double)
    torch.testing.assert_close(slope.double(), theirs, rtol=1e-5, atol=1e-30)


def test_the_gradient_follows_what_the_loss_is_multiplied_by():
    wanted = targets(3)
    slopes = []
    for factor in (1.0, 0.5):
        logits, codes = outputs(1)
        slopes.append(torch.autograd.grad(factor * detection_loss(logits, codes, GRID, wanted)["total"], logits)[0])
    torch.testing.assert_close(slopes[1], slopes[0] / 2)


def test_a_second_gradient_is_an_error_and_not_a_wrong_one():
    (logits, codes), wanted = outputs(1), targets(3)
    loss = detection_loss(logits, codes, GRID, wanted)["total"]
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logits)


def test_the_gradient_can_t_be_differentiated():
    (logits, codes), wanted = outputs(1), targets(3)
    loss = detection_loss(logits, codes, GRID, wanted)["total"]
    (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.square().sum().backward()


@pytest.mark.slow
def test_the_loss_compiles_as_one_graph():
    (logits, codes), wanted = outputs(2), targets(2, 3)
    compiled = torch.compile(detection_loss, backend="eager", fullgraph=True)
    expected, got = (f(logits, codes, GRID, wanted, GRIDS)["total"] for f in (detection_loss, compiled))
    torch.testing.assert_close(got, expected)
    slopes = (torch.autograd.grad(x, (logits, codes)) for x in (got, expected))
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("batch", [1, 2])
def test_without_any_object_everything_is_background(batch):
    logits, codes = outputs(batch)
    got = detection_loss(logits, codes, GRID, targets(*[0] * batch))
    torch.testing.assert_close(got["class"], sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 1.5, "sum"))
    assert got["box"].item() == 0
    got["total"].backward()
    assert logits.grad.any()
    assert codes.grad is not None
    assert not codes.grad.any()


def test_extreme_outputs_and_boxes_stay_finite():
    logits = torch.full((1, len(GRID), CLASSES), 500.0)
    logits[..., 0] = -500
    logits.requires_grad_()
    codes = torch.full((1, len(GRID), 4), 1e4, requires_grad=True)
    point = Targets([torch.tensor([[5.0, 5, 5, 5], [0, 0, 1e4, 1e4]])], [torch.tensor([0, 2])])
    got = detection_loss(logits, codes, GRID, point)
    got["total"].backward()
    assert all(math.isfinite(v.item()) for v in got.values())
    assert logits.grad.isfinite().all()
    assert codes.grad.isfinite().all()


def test_half_precision_outputs_are_computed_in_single():
    (logits, codes), wanted = outputs(2), targets(2, 1)
    got = detection_loss(logits.bfloat16(), codes.bfloat16(), GRID, wanted)
    assert got["total"].dtype == torch.float32
    torch.testing.assert_close(got["total"], detection_loss(logits, codes, GRID, wanted)["total"], rtol=0.02, atol=0)
    rounded = [x.detach().bfloat16().requires_grad_() for x in (logits, codes)]
    exact = [x.detach().float().requires_grad_() for x in rounded]
    slopes = [torch.autograd.grad(detection_loss(*x, GRID, wanted)["total"], x) for x in (rounded, exact)]
    for half, single in zip(*slopes, strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, single.bfloat16())


def test_a_perfect_output_costs_nothing():
    wanted = targets(4)
    matched, positive = match(wanted.boxes[0][None], torch.ones(1, 4, dtype=torch.bool), GRID)
    codes = box_maths.encode(wanted.boxes[0][matched], GRID)
    hot = F.one_hot(wanted.labels[0][matched], CLASSES) * positive[..., None]
    assert detection_loss(hot * 60.0 - 30, codes, GRID, wanted)["total"].item() < 1e-6


@pytest.mark.parametrize("counts", [(2, 0, 5, 1), (0, 0, 3, 2), (0, 0, 0, 0)])
@pytest.mark.parametrize("first", [2, 4])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(monkeypatch, counts, first):
    """The second process has the images from `first` on, which may be none."""
    (logits, codes), wanted = outputs(4), targets(*counts)
    whole = detection_loss(logits, codes, GRID, wanted)
    world, posted, barrier = 2, [], threading.Barrier(2)

    def all_reduce(value):
        posted.append(value.clone())
        barrier.wait(300)
        value.copy_(sum(posted))
        barrier.wait(300)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    ranks = [None] * world

    def run(rank):
        part = (slice(first), slice(first, None))[rank]
        own = Targets(wanted.boxes[part], wanted.labels[part])
        ranks[rank] = detection_loss(logits[part], codes[part], GRID, own)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, value in whole.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / world, value)
