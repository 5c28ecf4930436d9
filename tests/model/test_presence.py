import pytest
import torch
from tiny import inputs, make

from benchmarks.counters import count
from mmfuse.errors import UserError
from mmfuse.model.fusion import FUSIONS
from mmfuse.model.presence import Presence, Rows

pytestmark = pytest.mark.usefixtures("tiny_sizes")

CPU = torch.device("cpu")
SOME, OTHERS = torch.tensor([True, False, True, False]), torch.tensor([False, False, True, True])
PRESENT = {"a": SOME, "b": torch.tensor([True, True, False, False]), "c": torch.tensor([True, True, False, True])}
DOUBT = {"a": torch.tensor([True, True, True, False]), "c": torch.tensor([False, False, True, True])}
"""What is doubted of sensors that are all there; each image keeps one."""


def on(rows):
    return rows.on(CPU).expand(rows.batch).tolist()


# ---- rows


def test_rows_that_are_all_or_none_of_the_batch_need_no_mask():
    every, none, some = (Rows.of(torch.tensor(mask)) for mask in ([True, True], [False, False], [True, False]))
    assert (every.everything, none.everything, some.everything) == (True, False, False)
    assert (every.nothing, none.nothing, some.nothing) == (False, True, False)
    assert [rows.host.tolist() for rows in (every, none, some)] == [[True, True], [False, False], [True, False]]
    assert [rows.places(CPU).tolist() for rows in (every, none, some)] == [[0, 1], [], [0]]
    x = torch.rand(2, 1, 1, 1)
    assert every.run(lambda y: y, x) is x
    assert every.keep(x) is x


def test_what_other_processes_have_is_run_on_no_image():
    """Each process must run each batch norm, whatever its own images have; what none has stays out."""
    none, some = torch.zeros(4, dtype=torch.bool), torch.tensor([True, False, False, False])
    presence = Presence.of({"a": none, "b": none, "c": none, "d": ~none, "e": some}).elsewhere(["a", "b", "d", "e"])
    assert presence.there == ("a", "b", "d", "e")
    both = presence.any(frozenset("ab"))
    x = torch.ones(4, 1, requires_grad=True)
    for rows in (presence.rows["a"], both, presence.rows["a"] & presence.rows["e"], both.within(presence.rows["e"])):
        assert not rows.nothing
        assert on(rows) == [False] * rows.batch
        made = rows.run(lambda y: 2 * y, x[: rows.batch])
        assert made.grad_fn is not None
        assert made.tolist() == [[0]] * rows.batch
    assert presence.any(frozenset("c")).nothing
    assert presence.rows["d"].everything
    assert (presence.rows["c"] & presence.rows["d"]).nothing


def test_a_function_runs_on_its_rows_alone_and_the_others_get_zero():
    seen = []

    def doubled(x, y):
        seen.append((x, y))
        return [2 * x, x + 1]

    x = torch.tensor([[1.0], [torch.nan], [3.0], [torch.inf]], requires_grad=True)
    first, second = Rows.of(SOME).run(doubled, x, None)
    assert first.tolist() == [[2], [0], [6], [0]]
    assert second.tolist() == [[2], [0], [4], [0]]
    assert seen[0][0].tolist() == [[1], [3]]
    assert seen[0][1] is None
    first.sum().backward()
    assert x.grad.tolist() == [[2], [0], [2], [0]]


def test_what_is_kept_is_all_that_counts():
    x = torch.full((4, 1, 1, 1), torch.nan)
    x[SOME] = 5
    assert Rows.of(SOME).keep(x).flatten().tolist() == [5, 0, 5, 0]
    assert Rows.of(SOME).keep(x, torch.full_like(x, 7)).flatten().tolist() == [5, 7, 5, 7]


@pytest.mark.parametrize("one", [True, False, SOME])
@pytest.mark.parametrize("other", [True, False, OTHERS])
@pytest.mark.parametrize("trusted", [(None, None), (OTHERS, None), (None, SOME), (OTHERS, SOME)])
def test_rows_are_joined_and_met_as_their_masks_are(one, other, trusted):
    a, b = (Rows(4, mask, trust) for mask, trust in zip((one, other), trusted, strict=True))
    either, both = a | b, a & b
    assert on(either) == [p or q for p, q in zip(on(a), on(b), strict=True)]
    assert on(both) == [p and q for p, q in zip(on(a), on(b), strict=True)]
    for rows, possible in ((either, a.host | b.host), (both, a.host & b.host)):
        assert (rows.host | ~torch.tensor(on(rows))).all()  # what may count is run
        assert (possible | ~rows.host).all()


@pytest.mark.parametrize("trusted", [None, OTHERS])
@pytest.mark.parametrize("one", [True, False, SOME, OTHERS])
@pytest.mark.parametrize("other", [True, SOME])
def test_rows_within_others(one, other, trusted):
    rows, outer = Rows(4, one, trusted), Rows(4, other)
    inner = rows.within(outer)
    assert inner.batch == int(outer.host.sum())
    assert on(inner) == [there for there, run in zip(on(rows), outer.host.tolist(), strict=True) if run]


# ---- presence


def test_it_says_of_every_modality_which_images_have_it():
    images = inputs("ab", batch=4)
    presence = Presence.given("abc", images, {})
    assert presence.there == ("a", "b")
    assert presence.plain
    presence = Presence.given("abc", images, {"a": SOME, "c": torch.ones(4, dtype=torch.bool)})
    assert [rows.host.tolist() for rows in presence.rows.values()] == [SOME.tolist(), [True] * 4, [False] * 4]
    assert not presence.plain
    assert presence.any(frozenset("ac")).host.tolist() == SOME.tolist()
    assert presence.any(frozenset("ab")).everything
    assert presence.any(frozenset("c")).nothing
    with pytest.raises(UserError, match="image 1 of the batch has no sensor at all"):
        Presence.given("abc", {"a": images["a"]}, {"a": SOME})


def test_sensors_are_turned_off_by_the_host_or_the_device():
    whole = Presence.given("ab", inputs("ab", batch=4), {"a": SOME})
    off = {"a": OTHERS}
    by_host, by_device = whole.without(off), whole.doubted(off)
    assert by_host.rows["a"].host.tolist() == [True, False, False, False]
    assert by_device.rows["a"].host.tolist() == SOME.tolist()
    assert on(by_device.rows["a"]) == on(by_host.rows["a"])
    assert by_host.rows["b"].everything
    assert by_device.rows["b"].everything
    again = by_device.doubted({"a": SOME, "b": SOME})
    assert [on(again.rows[m]) for m in "ab"] == [[False] * 4, (~SOME).tolist()]
    assert not by_device.plain
    assert whole.rows["a"].trusted is None


def outputs(detector, images, presence, off, way):
    """What a detector says that finds after its backbones which sensors to turn off."""
    features = detector.features(images, presence)
    return detector.merge(features, (128, 128), getattr(presence, way)(off))


ALL_THERE = ({"fusion": "fast", "placement": "first"}, {"fusion": "gated", "placement": "last"}, {"align": "a"})


@pytest.mark.parametrize(
    ("options", "present"),
    [
        *(({"fusion": fusion, "placement": "first"}, PRESENT) for fusion in FUSIONS),
        *(
            ({"fusion": fusion, "placement": place}, PRESENT)
            for fusion in ("fast", "gated")
            for place in ("every", "last")
        ),
        *(
            ({"pyramid": pyramid, "placement": place}, PRESENT)
            for pyramid in ("gfrnet", "nas_fpn")
            for place in ("first", "last")
        ),
        ({"align": "b", "placement": "last"}, PRESENT),
        *((options, None) for options in ALL_THERE),
    ],
    ids=lambda given: "all there" if given is None else "mixed" if given is PRESENT else "-".join(given.values()),
)
def test_what_the_device_doubts_counts_for_as_little_as_what_the_host_leaves_out(options, present):
    detector, images = make("abc", pyramid_depth=2, **options), inputs("abc", batch=4)
    off = DOUBT if present is None else {"a": torch.tensor([True, True, False, True])}
    presence = Presence.given("abc", images, present or {})
    with torch.no_grad():
        expected, found = (outputs(detector, images, presence, off, way) for way in ("without", "doubted"))
        anew = detector(images, {m: presence.without(off).rows[m].host for m in "abc"})
        for m, mask in off.items():
            images[m][mask] = 1e4 * torch.randn_like(images[m][mask])
        whatever = outputs(detector, images, presence, off, "doubted")
        all_trusted = detector(images, present)
    for key in ("class_logits", "box_codes"):
        wanted = getattr(expected, key)
        for other in (found, anew, whatever):
            torch.testing.assert_close(getattr(other, key), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert not torch.allclose(getattr(all_trusted, key), wanted, atol=1e-3)


def test_doubt_on_a_device_is_not_waited_for():
    detector = make("ab").to("meta")
    images = {m: x.to("meta") for m, x in inputs("ab", batch=4).items()}
    off = {"a": torch.empty(4, dtype=torch.bool, device="meta")}
    for present in (None, {"b": SOME}):
        presence = Presence.given("ab", images, present or {})
        found = count(lambda: outputs(detector, images, presence, off, "doubted"), "meta")  # noqa: B023
        assert not found.waits
