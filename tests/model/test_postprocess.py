"""Suppression, hard and soft, against slow versions that take one image and one box at a time."""

import math

import pytest
import torch
import torchvision
from tiny import make, raw
from torchvision.ops import batched_nms, box_iou

from benchmarks.counters import count
from mmfuse import boxes as box_maths
from mmfuse.model import postprocess
from mmfuse.model.detector import Outputs
from mmfuse.model.postprocess import Selection, best_pairs, select, select_padded

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def crowd(detector, batch, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    count = len(detector.anchors((128, 128)))
    logits = torch.randn(batch, count, classes, generator=generator)
    return Outputs(logits * spread, torch.randn(batch, count, 4, generator=generator) * 0.3, (128, 128))


def slow_decode(detector, out, size, threshold, iou, most, candidates):
    found = []
    for logits, codes in zip(out.class_logits, out.box_codes, strict=True):
        scores, order = logits.sigmoid().flatten().sort(descending=True, stable=True)
        scores, order = scores[:candidates], order[:candidates]
        order, scores = order[scores > threshold], scores[scores > threshold]
        labels, places = order % logits.shape[1], order // logits.shape[1]
        boxes = box_maths.clip(box_maths.decode(codes[places], detector.anchors(out.size)[places]), *size)
        kept = batched_nms(boxes.double(), scores.double(), labels, iou)[:most]
        found.append((boxes[kept], scores[kept], labels[kept]))
    return found


@pytest.mark.parametrize(
    ("batch", "threshold", "iou", "most", "candidates"),
    [
        (3, 0.0, 0.5, 100, 5000),
        (2, 0.0, 0.5, 3, 5000),
        (2, 0.6, 0.5, 100, 5000),
        (2, 0.0, 0.05, 40, 5000),  # few survive: the first 200 candidates don't yield 40
        (2, 0.99999, 0.5, 100, 5000),
        (2, 0.0, 0.9, 100, 30),
        (1, 0.0, 0.3, 9000, 10**6),
    ],
)
def test_decoding_is_torchvision_s_suppression_image_by_image(batch, threshold, iou, most, candidates):
    detector = make("a")
    out, size = crowd(detector, batch, 3, seed=batch), (100, 120)
    options = {"threshold": threshold, "iou_threshold": iou, "max_detections": most, "candidates": candidates}
    got = detector.decode(out, torch.tensor([size] * len(out.class_logits)), Selection(**options))
    for mine, (boxes, scores, labels) in zip(
        got, slow_decode(detector, out, size, threshold, iou, most, candidates), strict=True
    ):
        torch.testing.assert_close(mine.boxes, boxes)
        torch.testing.assert_close(mine.scores, scores)
        assert torch.equal(mine.labels, labels)
        assert len(mine) <= most


def test_suppression_grows_its_prefix_until_enough_is_kept(monkeypatch):
    """One place holds the best 700 candidates, so that the first prefix keeps one box alone."""
    detector, lengths = make("a"), []
    out = crowd(detector, 2, 3, seed=9)
    same = box_maths.encode(torch.tensor([10.0, 10, 50, 50]), detector.anchors((128, 128))[:700])
    out.box_codes[0, :700] = same
    out.class_logits[0, :700, 1] = torch.linspace(20, 10, 700)

    def count(boxes, scores, iou):
        lengths.append(len(boxes))
        return nms(boxes, scores, iou)

    nms = torchvision.ops.nms
    monkeypatch.setattr(torchvision.ops, "nms", count)
    got = detector.decode(out, None, Selection(max_detections=20))
    assert lengths == [200, 800, 3200]
    for mine, (boxes, scores, labels) in zip(
        got, slow_decode(detector, out, (128, 128), 0, 0.5, 20, 5000), strict=True
    ):
        torch.testing.assert_close(mine.boxes, boxes)
        torch.testing.assert_close(mine.scores, scores)
        assert torch.equal(mine.labels, labels)
        assert len(mine) == 20


def test_images_with_nothing_stand_between_others():
    detector = make("a")
    out = crowd(detector, 3, 3, seed=2)
    out.class_logits[1] = -30
    counts = [len(d) for d in detector.decode(out, None, Selection(0.5, max_detections=7))]
    assert counts == [7, 0, 7]
    assert [len(d) for d in detector.decode(out, None, Selection(1.0))] == [0, 0, 0]


def test_boxes_of_different_classes_don_t_suppress_each_other():
    detector = make("a")
    out = crowd(detector, 1, 3, seed=2)
    out.class_logits.fill_(-30)
    out.class_logits[0, 500] = torch.tensor([3.0, 1.0, 2.0])
    (found,) = detector.decode(out, None, Selection(0.5))
    assert found.labels.tolist() == [0, 2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())


@pytest.mark.parametrize("count", [1, 7, 60, 200, 10**6])
@pytest.mark.parametrize("peaked", [False, True])
def test_the_best_pairs_are_those_of_a_sort_of_all(count, peaked):
    """Where peaked, one anchor has most of them, so that fewer anchors than pairs are in play."""
    logits = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(count))
    if peaked:
        logits[1, 13] += 20
    values, places, labels = best_pairs(logits, count)
    expected, order = logits.flatten(1).sort(dim=1, descending=True)
    assert torch.equal(values, expected[:, :count])
    assert torch.equal(places * 5 + labels, order[:, :count])
    assert values.shape == (3, min(count, 200))


def test_best_pairs_of_half_precision_are_single():
    logits = torch.randn(1, 30, 4).bfloat16()
    values = best_pairs(logits, 20)[0]
    assert values.dtype == torch.float32
    assert torch.equal(values, logits.float().flatten(1).topk(20).values)


def test_decoding_of_outputs_is_that_of_the_detector():
    detector = make("a")
    out = crowd(detector, 2, 3, seed=1)
    grid, selection = detector.anchors((128, 128)), Selection(0.2, candidates=300, max_detections=9)
    got = postprocess.decode(out.class_logits, out.box_codes, grid, (90, 110), selection)
    for mine, (boxes, scores, labels) in zip(got, slow_decode(detector, out, (90, 110), 0.2, 0.5, 9, 300), strict=True):
        torch.testing.assert_close(mine.boxes, boxes)
        torch.testing.assert_close(mine.scores, scores)
        assert torch.equal(mine.labels, labels)


# ---- soft


def slow_soft(boxes, scores, labels, least, most):
    """One image, one box after the other: (place, score) of what is kept."""
    left, kept = {i: float(s) for i, s in enumerate(scores)}, []
    overlap = box_iou(boxes, boxes)
    while len(kept) < most:
        best = max(left, key=lambda i: (left[i], -i), default=None)
        if best is None or left[best] <= least:
            break
        kept.append((best, left.pop(best)))
        for i in left:
            if labels[i] == labels[best]:
                left[i] *= math.exp(-(float(overlap[best, i]) ** 2) / 0.5)
    return kept


def crowded(batch, count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 10 + torch.rand(batch, count, 2, generator=generator) * 30), 2)
    scores = torch.rand(batch, count, generator=generator).sort(1, descending=True).values
    return boxes, scores, torch.randint(classes, (batch, count), generator=generator)


@pytest.mark.parametrize(("most", "threshold"), [(100, 0.0), (7, 0.0), (100, 0.3)])
@pytest.mark.parametrize("classes", [1, 4])
def test_soft_suppression_lowers_scores_box_by_box(classes, most, threshold):
    boxes, scores, labels = crowded(3, 60, classes, seed=classes)
    found = select(boxes, scores, labels, Selection(threshold, max_detections=most, soft=True))
    for row, one in enumerate(found):
        expected = slow_soft(boxes[row], scores[row], labels[row], max(threshold, 0.001), most)
        places = [place for place, _ in expected]
        torch.testing.assert_close(one.scores, torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-6)
        assert torch.equal(one.boxes, boxes[row, places])
        assert torch.equal(one.labels, labels[row, places])
    assert max(len(one) for one in found) <= most


def test_soft_suppression_keeps_two_that_overlap_where_hard_drops_one():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 0, 1]])
    (hard,) = select(boxes, scores, labels, Selection())
    (soft,) = select(boxes, scores, labels, Selection(soft=True))
    assert hard.scores.tolist() == pytest.approx([0.9, 0.7])
    assert soft.scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-(0.8**2) / 0.5)])
    assert soft.labels.tolist() == [0, 1, 0]


def test_soft_suppression_takes_no_box_twice():
    """Scores of a hundred boxes in one place sink to nothing, but those of the first ones stay."""
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 100, 4) + torch.rand(1, 100, 1) * 1e-3
    scores, labels = torch.linspace(0.9, 0.2, 100)[None], torch.zeros(1, 100, dtype=torch.int64)
    few, many = (select(boxes, scores, labels, Selection(max_detections=n, soft=True))[0] for n in (10, 100))
    assert len(few) > 2
    torch.testing.assert_close(many.scores, few.scores)
    assert many.scores[0] == scores[0, 0]


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_to_choose_from(soft):
    empty = (torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64))
    assert [len(one) for one in select(*empty, Selection(soft=soft))] == [0, 0]
    boxes, _, labels = crowded(2, 5, 2, seed=0)
    assert [len(one) for one in select(boxes, torch.zeros(2, 5), labels, Selection(soft=soft))] == [0, 0]


def test_detect_offers_both():
    detector = make("a")
    hard, soft = (detector.detect(raw("a"), soft=soft)[0] for soft in (False, True))
    assert soft.scores[0] == hard.scores[0]
    assert not torch.equal(soft.scores, hard.scores)
    assert soft.scores.tolist() == sorted(soft.scores.tolist(), reverse=True)


# ---- in fixed shapes


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("threshold", "iou", "most"), [(0.0, 0.5, 60), (0.0, 0.05, 40), (0.6, 0.5, 60), (-1.0, 0.3, 80), (0.0, 0.5, 3)]
)
def test_padded_detections_are_those_of_select(soft, threshold, iou, most):
    """Also where more are wanted than there are candidates."""
    boxes, scores, labels = crowded(3, 70, 3, seed=most)
    scores[1, 5:] = 0
    boxes[2, :3] = boxes[2, 0]  # a tie of boxes, and one of scores
    scores[2, 20:23] = scores[2, 20]
    selection = Selection(threshold, iou, most, soft=soft)
    padded = select_padded(boxes, scores, labels, selection)
    assert [tuple(x.shape) for x in padded] == [(3, most, 4), (3, most), (3, most)]
    for one, *mine in zip(select(boxes, scores, labels, selection), *padded, strict=True):
        for got, expected, nothing in zip(mine, (one.boxes, one.scores, one.labels), (0, 0, -1), strict=True):
            assert torch.equal(got[: len(one)], expected)
            assert (got[len(one) :] == nothing).all()
            assert got.dtype == expected.dtype


def test_hard_suppression_goes_as_deep_as_it_must_in_fixed_shapes():
    """One place holds the best 700 candidates, so that all rounds but the first take what lies behind them."""
    boxes, scores, labels = crowded(1, 800, 2, seed=3)
    boxes[0, :700] = torch.tensor([200.0, 200, 210, 210])
    labels[0, :700] = 1
    for most in (5, 90):
        selection = Selection(max_detections=most)
        (one,) = select(boxes, scores, labels, selection)
        chosen, *_ = select_padded(boxes, scores, labels, selection)
        assert torch.equal(chosen[0, : len(one)], one.boxes)
        assert len(one) > 4


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_to_choose_from_is_all_padding(soft):
    chosen, scores, labels = select_padded(
        torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), Selection(soft=soft)
    )
    assert (chosen.shape, scores.shape, labels.shape) == ((2, 100, 4), (2, 100), (2, 100))
    assert (labels == -1).all()
    assert not scores.any()
    assert [x.shape[1] for x in select_padded(*crowded(2, 5, 2, seed=0), Selection(max_detections=0, soft=soft))] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("soft", [False, True])
def test_decoding_in_fixed_shapes_is_decoding_without_waits(soft):
    detector = make("a")
    out = crowd(detector, 2, 3, seed=1)
    selection = Selection(0.2, candidates=300, max_detections=9, soft=soft)
    given = (out.class_logits, out.box_codes, detector.anchors((128, 128)), (90, 110), selection)
    boxes, scores, labels = postprocess.decode_padded(*given)
    for row, one in enumerate(postprocess.decode(*given)):
        assert len(one) == 9
        assert torch.equal(boxes[row], one.boxes)
        assert torch.equal(scores[row], one.scores)
        assert torch.equal(labels[row], one.labels)
    found = count(lambda: postprocess.decode_padded(*given))
    assert (
        not found.waits or not soft
    )  # see test_counters for what hard suppression does on a device that is waited for
    assert not {"bincount", "torchvision::nms"} & found.calls.keys()


def a_chain(length, seed=None):
    """Boxes in a row of which each overlaps its neighbours alone by more than half: best first from one end to the
    other, or in any order.
    """
    left = torch.arange(length) * 3.0
    boxes = torch.stack((left, torch.zeros(length), left + 10, torch.full((length,), 10.0)), 1)
    return boxes if seed is None else boxes[torch.randperm(length, generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("block", [1, 7, 64, 256])
@pytest.mark.parametrize("most", [3, 100, 700])
def test_chains_are_settled_as_torchvision_does(monkeypatch, block, most):
    """Where each suppresses the next, whether that falls depends on all before it; blocks cut the chains."""
    monkeypatch.setattr(postprocess, "_BLOCK", block)
    boxes = torch.stack([a_chain(600), a_chain(600, 1), a_chain(600, 2) * 0.5])
    scores = torch.linspace(0.9, 0.1, 600).repeat(3, 1)
    scores[2, 250:] = 0
    labels = torch.zeros(3, 600, dtype=torch.int64)
    labels[1, ::5] = 1
    places = postprocess.settled(boxes.double(), scores > 0, labels, Selection(max_detections=most))
    for row, (own, values, classes) in enumerate(zip(boxes, scores, labels, strict=True)):
        there = values > 0
        kept = batched_nms(own[there].double(), values[there].double(), classes[there], 0.5)[:most]
        assert places[row].tolist() == [*kept.tolist(), *[600] * (min(most, 600) - len(kept))]


def test_passes_are_as_many_as_boxes_that_suppress_each_other_in_a_row(monkeypatch):
    """Not one for each detection; at most one for each candidate of a block, and one to see that all is settled."""

    def passes(boxes):
        steps, loop = [], postprocess._while

        def counting(going_on, step, state):
            return loop(going_on, lambda *values: steps.append(len(values)) or step(*values), state)

        labels, there = torch.zeros(1, len(boxes), dtype=torch.int64), torch.ones(1, len(boxes), dtype=torch.bool)
        with monkeypatch.context() as patched:
            patched.setattr(postprocess, "_while", counting)
            postprocess.settled(boxes[None], there, labels, Selection())
        return steps.count(2)

    apart = torch.arange(200.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    assert passes(apart) == 1
    assert passes(apart.repeat_interleave(20, 0)[:200]) == 2
    assert 150 < passes(a_chain(200)) <= 201


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_half_precision_tie_and_settle_alike(seed):
    """Of a thousand logits in bfloat16 most are equal to others; the first of them counts as the better one."""
    boxes, _, labels = crowded(2, 1000, 3, seed)
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    scores = logits.sort(dim=1, descending=True, stable=True).values.sigmoid()
    assert scores[0].unique().numel() < 700
    selection = Selection(iou_threshold=0.4)
    padded = select_padded(boxes, scores, labels, selection)
    for one, *mine in zip(select(boxes, scores, labels, selection), *padded, strict=True):
        for got, expected in zip(mine, (one.boxes, one.scores, one.labels), strict=True):
            assert torch.equal(got[: len(one)], expected)


def test_soft_suppression_waits_for_counts_alone():
    assert not count(lambda: select(*crowded(2, 50, 3, seed=1), Selection(soft=True))).waits


def test_hard_suppression_counts_on_the_host(monkeypatch):
    """Of what a device is asked, the mask of scores and suppression itself wait; what is kept is then copied once."""
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(len(x)) or to_host(x))
    found = count(lambda: select(*crowded(2, 50, 3, seed=1), Selection(max_detections=10)))
    assert found.calls["torchvision::nms"] == len(copies) == 1
    assert copies[0] <= 100
