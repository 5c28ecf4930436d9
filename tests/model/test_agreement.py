"""Whether sensors show the same scene: the measure itself, and what a detector makes of it."""

import pytest
import torch
from test_doubting import PLACEMENTS, doubtful, same
from tiny import make, raw

from benchmarks.counters import count
from mmfuse.model import checkpoint
from mmfuse.model.agreement import Agreement, Witness, edges, usual_edges
from mmfuse.model.doubt import Judgement

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def scenes(count, seed=0, size=128):
    """Boxes on a plain ground: what sensors of one rig see, each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, 1, size, size)
    for one in found:
        for x, y, w, h, value in torch.rand(8, 5, generator=generator).tolist():
            left, top = int(x * size * 0.8), int(y * size * 0.8)
            one[0, top : top + 8 + int(h * 40), left : left + 8 + int(w * 40)] = 0.2 + value
    return found


def seen(shown, channels, invert=False, noise=0.05):
    generator = torch.Generator().manual_seed(9)
    image = (-1 if invert else 1) * shown.repeat(1, channels, 1, 1)
    return image + noise * torch.randn(image.shape, generator=generator)


def rig(shown):
    """Three sensors of one scene: `a` shows it as it is, `b` in colours, `c` the other way round."""
    return {
        "a": seen(shown, 1),
        "b": seen(shown, 3) * torch.tensor([1.0, 0.3, 0.6]).view(3, 1, 1),
        "c": seen(shown, 4, True),
    }


def swapped(images, modality, *rows):
    """The images with a sensor's frame of another scene."""
    other = rig(scenes(len(next(iter(images.values()))), seed=77))[modality]
    changed = images[modality].clone()
    changed[list(rows)] = other[list(rows)]
    return images | {modality: changed}


def fitted(modalities="abc", least=0.3, clear=0.5):
    agreement = Agreement(tuple(modalities))
    shown = rig(scenes(32, seed=5))
    for k, m in enumerate(modalities):
        agreement.usual[k] = usual_edges(shown[m]).mean(0)
    agreement.least.fill_(least)
    agreement.clear.fill_(clear)
    return agreement


def watching(modalities="abc", **options):
    """A detector that believes each sensor by itself, and sets them beside one another."""
    detector = doubtful(modalities, **options)
    for own in detector.doubts.values():
        own.threshold.fill_(torch.inf)
    detector.agreement = fitted(modalities)
    return detector


def test_sensors_of_one_scene_agree_however_they_show_it_and_those_of_two_do_not():
    images = rig(scenes(24))
    together, apart = fitted()(images), fitted()(swapped(images, "b", *range(24)))
    assert together.shape == (24, 3, 3)
    torch.testing.assert_close(together, together.mT, equal_nan=True)
    assert together.diagonal(dim1=1, dim2=2).isnan().all()
    for other in (0, 2):
        assert together[:, 1, other].min() > 0.5
        assert apart[:, 1, other].max() < 0.25
    torch.testing.assert_close(apart[:, 0, 2], together[:, 0, 2])


def test_what_all_scenes_share_is_no_agreement():
    shown = scenes(24) + torch.linspace(0, 1, 128).mul(8).floor().remainder(2)[:, None]  # a road, as it were: stripes
    images = rig(shown)
    apart = {"a": images["a"], "b": images["b"].roll(1, 0)}
    agreement, naive = Agreement("ab"), Agreement("ab")
    for k, m in enumerate("ab"):
        agreement.usual[k] = usual_edges(images[m]).mean(0)
    gap, naive_gap = (
        (of({m: images[m] for m in "ab"})[:, 0, 1].min() - of(apart)[:, 0, 1].max()).item() for of in (agreement, naive)
    )
    assert gap > naive_gap


def test_strength_and_sign_of_contrast_do_not_count():
    images = rig(scenes(4))
    agreement = fitted("ab")
    faint = {"a": images["a"] * 1e-3, "b": -images["b"] * 1e3}
    torch.testing.assert_close(agreement(faint)[:, 0, 1], agreement({m: images[m] for m in "ab"})[:, 0, 1])


def test_edges_have_the_direction_of_the_structure_tensor():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1
    upright = edges(image)[0, :, :, 6:8].mean((1, 2))
    level = edges(image.mT)[0, :, 6:8].mean((1, 2))
    assert upright[0] > 0.5
    assert level[0] == pytest.approx(-upright[0])
    assert upright[1] == pytest.approx(0)
    assert upright[2] == pytest.approx(upright[0])
    two = torch.cat((image, -image), 1)  # channels that cancel in grey don't
    torch.testing.assert_close(edges(two), edges(image))


def test_a_blank_image_and_one_of_no_fixed_size_are_no_trouble():
    values = fitted("ab")({"a": torch.zeros(2, 1, 64, 96), "b": torch.randn(2, 3, 64, 96)})
    assert values[:, 0, 1].isfinite().all()
    assert values[:, 0, 1].abs().max() < 0.3


def test_a_sensor_that_is_not_given_is_not_compared():
    witness = fitted().witness({"a": torch.randn(2, 1, 64, 64)}, {})
    assert witness.agrees.all()
    assert witness.clearly.all()
    assert not witness.stuck.any()


# ---- what comes of it


def witness(agrees, clearly=None, stuck=()):
    """Of one image of three sensors, the pairs (0, 1), (0, 2), (1, 2)."""

    def square(pairs):
        full = torch.ones(1, 3, 3, dtype=torch.bool)
        for (i, j), value in zip(((0, 1), (0, 2), (1, 2)), pairs, strict=True):
            full[0, i, j] = full[0, j, i] = bool(value)
        return full

    again = torch.tensor([[k in stuck for k in range(3)]])
    return Witness(square(agrees), square(agrees if clearly is None else clearly), again)


@pytest.mark.parametrize(
    ("agrees", "clearly", "stuck", "there", "doubted", "dropped", "disagreeing"),
    [
        ((1, 1, 1), None, (), "abc", "", "", ""),
        ((0, 0, 1), None, (), "abc", "", "a", "a"),  # two against one
        ((0, 0, 0), None, (), "abc", "", "", "abc"),  # each says something else
        ((0, 1, 1), None, (), "abc", "", "", ""),  # c agrees with both
        ((0, 1, 1), None, (), "ab", "", "", "ab"),  # of two nobody knows which
        ((0, 1, 1), None, (0,), "ab", "", "a", "ab"),  # but the one that repeats itself
        ((0, 1, 1), None, (0, 1), "ab", "", "", "ab"),  # a stream that stands still
        ((1, 1, 1), (0, 1, 1), (1,), "ab", "", "b", ""),  # a frozen frame must clearly agree
        ((1, 1, 1), None, (0, 1, 2), "abc", "", "", ""),
        ((0, 0, 1), None, (), "abc", "b", "b", "ac"),  # a doubted witness doesn't count
        ((0, 1, 1), None, (0,), "ab", "b", "a", ""),  # a doubted one is better than old news
        ((1, 1, 1), None, (0,), "ab", "b", "a", ""),  # and vouches for nobody
        ((1, 1, 1), None, (0,), "ab", "ab", "a", ""),
        ((1, 1, 1), None, (0, 1), "ab", "b", "b", ""),
        ((1, 1, 1), None, (0,), "a", "", "", ""),  # never the last
        ((1, 1, 1), None, (1,), "abc", "bc", "bc", ""),
        ((1, 1, 1), None, (0, 1), "abc", "", "", ""),  # both clearly show what c shows
        ((1, 0, 0), None, (0, 1), "abc", "", "ab", "c"),  # old news doesn't vouch for old news, nor outvote c
        ((0, 0, 0), None, (0, 1), "abc", "", "ab", "abc"),
    ],
)
def test_who_is_dropped(agrees, clearly, stuck, there, doubted, dropped, disagreeing):
    names = "abc"
    doubts = torch.tensor([[2.0 if m in doubted else 0.5 for m in names]])
    present = torch.tensor([[m in there for m in names]])
    for doubting in ("drop", "report"):
        judged = Judgement.of(doubts, present, doubting, witness(agrees, clearly, stuck))
        told = [
            "".join(m for m, one in zip(names, row[0].tolist(), strict=True) if one)
            for row in (judged.dropped, judged.disagreeing)
        ]
        assert told == [dropped if doubting == "drop" else "", disagreeing]


@pytest.mark.parametrize(
    ("clearly", "doubts", "dropped"),
    [
        ((1, 1, 1), (1.05, 0.5), ""),  # what is doubted a little counts a little less, and vouches
        ((1, 1, 1), (0.5, 1.05), ""),
        ((0, 1, 1), (0.5, 1.05), "a"),
        ((1, 1, 1), (0.5, torch.inf), "b"),
    ],
)
def test_weighing_hears_what_is_doubted_a_little(clearly, doubts, dropped):
    there = torch.tensor([[True, True, False]])
    judged = Judgement.of(torch.tensor([[*doubts, torch.nan]]), there, "weigh", witness((1, 1, 1), clearly, (0,)))
    assert "".join(m for m, one in zip("abc", judged.dropped[0].tolist(), strict=True) if one) == dropped


def test_old_news_is_better_than_an_image_that_says_nothing():
    doubts, there = torch.tensor([[torch.inf, 0.5, torch.nan]]), torch.tensor([[True, True, False]])
    for doubting in ("drop", "weigh"):
        judged = Judgement.of(doubts, there, doubting, witness((1, 1, 1), None, (1,)))
        assert judged.dropped.tolist() == [[True, False, False]]


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_odd_sensor_costs_what_a_missing_one_costs(placement):
    detector, images = watching(placement=placement), rig(scenes(3))
    struck = swapped(images, "c", 1)
    outputs = detector(struck)
    assert outputs.judgement.dropped.tolist() == [[False] * 3, [False, False, True], [False] * 3]
    assert outputs.judgement.disagreeing.tolist() == outputs.judgement.dropped.tolist()
    present = {"c": torch.tensor([True, False, True])}
    same(detector.decode(outputs), detector.decode(detector(struck, present)))
    told = detector(struck, doubt="report")
    assert told.judgement.disagreeing.tolist() == outputs.judgement.disagreeing.tolist()
    same(detector.decode(told), detector.decode(detector(struck, doubt="off")))


@torch.no_grad()
@pytest.mark.parametrize("placement", ["first", "boxes"])
def test_of_two_sensors_a_frozen_one_is_dropped_and_nobody_knows_else(placement):
    detector = watching("ab", placement=placement)
    images = {m: x for m, x in rig(scenes(3)).items() if m in "ab"}
    struck = swapped(images, "b", 1)
    found = detector(struck)
    assert not found.judgement.dropped.any()
    assert found.judgement.disagreeing.tolist() == [[False, False], [True, True], [False, False]]
    frozen = detector(struck, stuck={"b": torch.tensor([True, True, False])})
    assert frozen.judgement.dropped.tolist() == [[False, False], [False, True], [False, False]]
    same(detector.decode(frozen), detector.decode(detector(struck, {"b": torch.tensor([True, False, True])})))


def test_detections_tell_it():
    detector = watching("ab")
    detector.agreement.least.fill_(2)
    (found,) = detector.detect({"a": raw("a")["a"][0], "b": raw("b")["b"][0]})
    assert (found.dropped, found.disagreeing) == ((), ("a", "b"))


@torch.no_grad()
def test_it_is_one_graph_folded_and_saved(tmp_path):
    detector, images = watching(), swapped(rig(scenes(2)), "a", 1)
    plain = detector(images)
    wanted = plain.judgement.dropped
    assert wanted.tolist() == [[False] * 3, [True, False, False]]
    assert torch.equal(detector.folded()(images).judgement.dropped, wanted)
    compiled = torch.compile(detector, fullgraph=True, backend="eager")(images)
    assert torch.equal(compiled.judgement.dropped, wanted)
    torch.testing.assert_close(compiled.class_logits, plain.class_logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(detector.to(torch.bfloat16)(images).judgement.dropped, wanted)
    detector.float()
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    again = checkpoint.load(tmp_path / "x.safetensors")
    assert torch.equal(again.agreement.usual, detector.agreement.usual)
    assert torch.equal(again(images).judgement.dropped, wanted)


def test_a_detector_that_was_calibrated_before_there_was_agreement_is_read(tmp_path):
    detector = doubtful("ab")
    detector.agreement = None
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    assert checkpoint.load(tmp_path / "x.safetensors").agreement is None


@torch.no_grad()
def test_it_costs_little_and_waits_for_nothing():
    agreement, images = fitted(), rig(scenes(1, size=512))
    counted = count(lambda: agreement.witness(images, {}))
    assert counted.waits == {}
    assert counted.calls.total() <= 72 * len(images)
    assert counted.bytes.total() < 22 * 4 * 192 * 192 * sum(x.shape[1] for x in images.values())


def test_one_modality_has_nothing_to_agree_with():
    detector = make("a")
    detector.begin_doubt()
    assert detector.agreement is None
