"""What a detector does with a sensor that it doubts: in each placement, mixed batches, folded, compiled, saved."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import inputs, make, raw

from benchmarks.counters import count
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector
from mmfuse.model.doubt import Judgement, describe

pytestmark = pytest.mark.usefixtures("tiny_sizes")

PLACEMENTS = ("first", "every", "last", "boxes")


def usual(modalities="ab", batch=24):
    return {m: 0.5 * x[:batch] for m, x in inputs(modalities, batch=24).items()}


def doubtful(modalities="ab", **options):
    """A detector that has seen `usual` images, and doubts what is twice as far as the farthest of them."""
    detector = make(modalities, **options)
    detector.begin_doubt()
    with torch.no_grad():
        for m, maps in detector.maps(usual(modalities)).items():
            detector.doubts[m].fit(describe(maps[0]))
            detector.doubts[m].threshold.fill_(2 * detector.doubts[m].distance(describe(maps[0])).max())
    return detector


def blinded(images, modality, *rows):
    changed = images[modality].clone()
    changed[list(rows)] = 40.0
    return images | {modality: changed}


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("modalities", ["ab", "abc"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_doubted_sensor_costs_what_a_missing_one_costs(placement, modalities):
    detector = doubtful(modalities, placement=placement)
    images = usual(modalities, batch=3)
    struck = blinded(blinded(images, "a", 1), "b", 2)
    outputs = detector(struck)
    assert outputs.judgement.dropped.tolist() == [[i == row for i in range(len(modalities))] for row in (None, 0, 1)]
    present = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, True, False])}
    same(detector.decode(outputs), detector.decode(detector(struck, present)))
    told = detector(struck, doubt="report")
    assert not told.judgement.dropped.any()
    torch.testing.assert_close(told.judgement.doubts, outputs.judgement.doubts)
    same(detector.decode(told), detector.decode(detector(struck, doubt="off")))


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS[:3])
def test_without_anything_to_doubt_all_is_as_before_to_the_last_bit(placement):
    detector, images = doubtful(placement=placement), usual(batch=2)
    plain, off = detector(images), detector(images, doubt="off")
    assert off.judgement is None
    assert torch.equal(plain.class_logits, off.class_logits)
    assert torch.equal(plain.box_codes, off.box_codes)
    assert make(placement=placement)(images).judgement is None


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["fast", "softmax", "gated"])
def test_where_the_host_does_not_look_weights_are_zero(fusion, monkeypatch):
    detector = doubtful("abc", fusion=fusion)
    struck = blinded(usual("abc", batch=3), "b", 0, 2)
    looked = detector(struck)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    blind = detector(struck)
    torch.testing.assert_close(blind.class_logits, looked.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blind.box_codes, looked.box_codes, rtol=1e-4, atol=1e-4)
    struck["b"][0] = torch.nan
    assert detector(struck).class_logits.isfinite().all()
    assert count(lambda: detector.run(struck, *detector.checked(struck, {}), "drop")).waits == {}


@torch.no_grad()
def test_it_works_folded_and_is_saved_with_the_detector(tmp_path):
    detector, struck = doubtful(), blinded(usual(batch=2), "a", 1)
    folded = detector.folded()(struck)
    assert folded.judgement.dropped.tolist() == [[False, False], [True, False]]
    torch.testing.assert_close(folded.class_logits, detector(struck).class_logits, rtol=1e-3, atol=1e-3)
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    again = checkpoint.load(tmp_path / "x.safetensors")(struck)
    torch.testing.assert_close(again.judgement.doubts, detector(struck).judgement.doubts)


@torch.no_grad()
def test_training_is_not_judged():
    detector = doubtful().train()
    assert detector(blinded(usual(batch=4), "a", 1)).judgement is None


@torch.no_grad()
@pytest.mark.parametrize(
    ("placement", "fusion"),
    [
        *(("first", fusion) for fusion in ("fast", "softmax", "sum", "channel", "gated", "gated_spatial")),
        *((placement, fusion) for placement in ("every", "last") for fusion in ("fast", "gated")),
    ],
)
def test_weighing_lies_between_believing_and_dropping(placement, fusion):
    detector, images = doubtful(placement=placement, fusion=fusion), usual(batch=2)

    def at(doubt, doubting):
        for m, own in detector.doubts.items():
            distance = (
                detector(images, doubt="report").judgement.doubts[:, detector.modalities.index(m)] * own.threshold
            )
            own.threshold.copy_(distance.max() / (doubt if m == "a" else 1e-3))
        return detector(images, doubt=doubting).class_logits

    off = detector(images, doubt="off").class_logits
    torch.testing.assert_close(at(1e-3, "weigh"), off, rtol=1e-4, atol=1e-4)
    gone = detector(images, {"a": torch.tensor([False, False])}).class_logits
    torch.testing.assert_close(at(1e3, "weigh"), gone, rtol=1e-3, atol=1e-3)
    half = at(1.0, "weigh")
    assert (half - off).abs().max() > 1e-3
    assert (half - gone).abs().max() > 1e-3


def test_belief_is_a_half_where_dropping_begins_and_relative_to_the_best():
    doubts = torch.tensor([[0.0, 1.0], [2.0, 2.0], [3.0, torch.inf], [torch.nan, 9.0], [torch.inf, torch.inf]])
    there = ~doubts.isnan()
    judgement = Judgement.of(doubts, there, "weigh")
    wanted = [[1, 0.5], [1, 1], [1, 0], [0, 1], [1, 0]]
    torch.testing.assert_close(judgement.belief, torch.tensor(wanted, dtype=torch.float32))
    assert judgement.dropped.tolist() == [[False] * 2, [False] * 2, [False, True], [False] * 2, [False, True]]


@torch.no_grad()
def test_weighing_is_the_same_folded_and_compiled():
    detector = doubtful()
    for own in detector.doubts.values():
        own.threshold.mul_(0.4)
    images = blinded(usual(batch=2), "b", 1)
    wanted = detector(images, doubt="weigh")
    assert 0.1 < wanted.judgement.belief.min(1).values[0] < 0.99
    compiled = torch.compile(detector, fullgraph=True, backend="eager")
    for made in (detector.folded(), compiled):
        torch.testing.assert_close(made(images, doubt="weigh").class_logits, wanted.class_logits, rtol=1e-3, atol=1e-3)


def test_members_of_an_ensemble_give_what_they_are_believed():
    detector, images = doubtful(placement="boxes"), raw(batch=2, height=128, width=128)
    for own in detector.doubts.values():
        own.threshold.fill_(1e9)
    sure = detector.detect(images, doubt="weigh")
    same(sure, detector.detect(images, doubt="off"))
    detector.doubts["a"].threshold.fill_(1e-9)
    alone = detector.detect({"b": images["b"]}, doubt="off")
    weighed = detector.detect(images, doubt="weigh")
    for one, other in zip(weighed, alone, strict=True):
        assert one.scores[0] == pytest.approx(other.scores[0].item(), abs=1e-3)


def test_the_last_sensor_stays():
    doubts = torch.tensor([[3.0, 2.0, 0.5], [3.0, 2.0, 4.0], [torch.inf, torch.inf, 9.0], [5.0, torch.nan, torch.nan]])
    there = torch.tensor([[True, True, True], [True, True, True], [True, True, False], [True, False, False]])
    dropped = Judgement.of(doubts, there, "drop").dropped
    assert dropped.tolist() == [[True, True, False], [True, False, True], [False, True, False], [False, False, False]]


@pytest.mark.parametrize("placement", ["first", "boxes"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_never_believed(bad, placement):
    trusting = doubtful(placement=placement)
    for doubt in trusting.doubts.values():
        doubt.threshold.fill_(torch.inf)
    for detector in (make(placement=placement), trusting):
        images = {m: x.float() for m, x in raw(batch=3, height=128, width=128).items()}
        images["a"][1, 0, 5, 5] = bad
        images["b"][2] = bad
        found = detector.detect(images)
        assert [one.dropped for one in found] == [(), ("a",), ("b",)]
        assert math.isinf(found[1].doubt["a"])
        present = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, True, False])}
        same(found, detector.detect({m: x.nan_to_num(0, 0, 0).clamp(max=255) for m, x in images.items()}, present))
        assert detector.detect(images, doubt="report")[1].dropped == ()


def test_a_gap_of_a_sensor_that_had_gaps_in_training_is_filled():
    images = {m: x.float() for m, x in raw(batch=2, height=128, width=128).items()}
    images["a"][1, 0, 5, 5] = torch.nan
    detector = make()
    gappy = {m: replace(sensor, gaps=True) for m, sensor in detector.sensors.items()}
    detector.sight = replace(detector.sight, sensors=gappy)
    assert [one.dropped for one in detector.detect(images)] == [(), ()]
    filled = images["a"].clone()
    filled[1, 0, 5, 5] = gappy["a"].fill[0]
    same(detector.detect(images), detector.detect(images | {"a": filled}))
    images["a"][1] = torch.nan
    assert [one.dropped for one in detector.detect(images)] == [(), ("a",)]


def test_values_out_of_all_bounds_are_doubted():
    detector, own = doubtful(), usual(batch=2)
    images = {m: x * detector.get_buffer(f"std_{m}") + detector.get_buffer(f"mean_{m}") for m, x in own.items()}
    images["b"][1, 0, 7, 7] = -1e38
    assert [one.dropped for one in detector.detect(images)] == [(), ("b",)]


def test_the_only_sensor_must_be_finite():
    images = {m: x.float() for m, x in raw(batch=2, height=128, width=128).items()}
    for m in images:
        images[m][1, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"images: a, b of image 1 holds values that aren't finite"):
        make().detect(images)
    with pytest.raises(UserError, match="images: a of image 1 holds values that aren't finite"):
        make("a").detect({"a": images["a"]})


def test_unknown_words_and_impossible_doubts_are_one_line():
    with pytest.raises(UserError, match=r"doubt: 'dropp'.*did you mean 'drop'"):
        make().detect(raw(), doubt="dropp")
    stacked: Detector = make(placement="channels")
    with pytest.raises(UserError, match="placement: channels has one backbone"):
        stacked.begin_doubt()


@torch.no_grad()
def test_judging_costs_little():
    detector, images = doubtful(), usual(batch=1)
    detector.agreement = None
    on, off = (count(lambda doubt=doubt: detector(images, doubt=doubt)) for doubt in ("drop", "off"))
    assert on.calls.total() - off.calls.total() <= 70 * len(images)
    assert on.bytes.total() - off.bytes.total() < 0.015 * off.bytes.total()


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_of_two_doubted_sensors_a_blank_one_is_not_kept(placement):
    detector, images = doubtful(placement=placement), usual(batch=2)
    for own in detector.doubts.values():
        own.threshold.fill_(1e-3)
    constant = images["a"].clone()
    constant[1] = 0.3
    outputs = detector(images | {"a": constant})
    doubts = outputs.judgement.doubts
    assert (doubts >= 1).all()
    assert doubts.isinf().tolist() == [[False, False], [True, False]]
    assert outputs.judgement.dropped[1].tolist() == [True, False]


@torch.no_grad()
def test_a_blank_sensor_that_is_the_only_one_is_kept():
    detector = doubtful()
    judgement = detector({"a": torch.full_like(usual(batch=1)["a"], 0.3)}).judgement
    assert judgement.doubts[0].tolist()[0] == math.inf
    assert not judgement.dropped.any()


@pytest.mark.parametrize("doubting", ["drop", "weigh"])
def test_the_only_sensor_that_is_there_is_kept_however_much_it_is_doubted(doubting):
    """Also where one that isn't there comes before it."""
    judged = Judgement.of(torch.tensor([[math.nan, math.inf]]), torch.tensor([[False, True]]), doubting)
    assert judged.dropped.tolist() == [[False, False]]
