"""What `fast` makes of a detector, on a CPU, and with a stand-in for CUDA graphs that runs again what was recorded."""

import pytest
import torch
from tiny import make, raw

from mmfuse import UserError
from mmfuse.model import detector as detectors
from mmfuse.model import fast

pytestmark = pytest.mark.usefixtures("tiny_sizes")


class Again:
    """Records like `fast.Recorder`: each replay reads the memory that was recorded."""

    made = 0

    def __init__(self, device):
        assert device.type == "cpu"

    def record(self, run):
        Again.made += 1
        run()
        return run


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(fast, "Recorder", Again)
    monkeypatch.setattr(fast, "_backend", lambda asked, on_cuda: "graph")
    monkeypatch.setattr(Again, "made", 0)


def same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-3, atol=1e-2)
        assert torch.equal(one.labels, other.labels)
        assert one.classes == other.classes
        assert (one.dropped, one.disagreeing) == (other.dropped, other.disagreeing)
        assert one.doubt == pytest.approx(other.doubt, rel=1e-3)


def test_on_a_cpu_it_is_folded_channels_last_and_eager():
    detector = make("ab")
    made = detector.fast()
    assert (made.backend, made.network.dtype, made.network.frozen) == ("eager", torch.float32, True)
    weights = [x for x in made.network.parameters() if x.ndim == 4 and x.shape[1] > 1 and x.shape[2] > 1]
    assert weights
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in weights)
    same(made.detect(raw("ab", 2)), detector.detect(raw("ab", 2)))
    assert not detector.frozen


def test_it_is_a_snapshot():
    detector = make("ab")
    made, before = detector.fast(), detector.detect(raw())
    for x in detector.parameters():
        x.data.zero_()
    same(made.detect(raw()), before)


@pytest.mark.parametrize("placement", ["first", "every", "last", "boxes"])
def test_a_graph_finds_what_the_detector_finds_in_batches_of_any_size(recorded, placement):
    detector = make("ab", placement=placement)
    made = detector.fast(batch=2)
    images = raw("ab", 3)
    for rows in ([0, 1], [2], [0, 1, 2], [1]):
        part = {m: x[rows] for m, x in images.items()}
        same(made.detect(part), detector.detect(part))
    assert Again.made == 1
    for m, x in images.items():
        same(made.detect({m: x}), detector.detect({m: x}))


def test_each_kind_of_batch_has_its_graph(recorded):
    detector = make("abc")
    made = detector.fast(batch=2, sensors=["a", "b"])
    assert Again.made == 1
    images = raw("abc", 2)
    pair = {m: images[m] for m in "ab"}
    same(made.detect(pair), detector.detect(pair))
    same(made.detect(dict(reversed(pair.items()))), detector.detect(pair))
    assert Again.made == 1
    same(made.detect(images), detector.detect(images))
    assert Again.made == 2
    for mask in ([True, False], [False, True], [True, True]):  # the last is as if nothing were said
        present = {"b": torch.tensor(mask)}
        same(made.detect(images, present), detector.detect(images, present))
    assert Again.made == 3
    same(made.detect(images, threshold=0.4), detector.detect(images, threshold=0.4))
    same(made.detect({m: x.float() for m, x in images.items()}), detector.detect(images))
    assert Again.made == 5


def test_graphs_are_forgotten_that_were_used_longest_ago(recorded, monkeypatch):
    monkeypatch.setattr(fast, "MOST", 2)
    made = make("ab").fast()
    images = raw("ab")
    for threshold, count in ((0.0, 1), (0.1, 2), (0.0, 2), (0.2, 3), (0.0, 3), (0.1, 4)):
        made.detect(images, threshold=threshold)
        assert Again.made == count


@pytest.mark.parametrize(
    ("placement", "doubt"),
    [
        *(("first", doubt) for doubt in ("drop", "weigh", "report", "off")),
        *((placement, "weigh") for placement in ("every", "last")),
        *(("boxes", doubt) for doubt in ("drop", "weigh")),
    ],
)
def test_sensors_are_judged_in_the_graph(recorded, placement, doubt):
    detector = make("ab", placement=placement)
    detector.begin_doubt()
    images = raw("ab", 3)
    detector.doubts["a"].threshold.fill_(1.0)
    lower, upper, _ = sorted(x.doubt["a"] for x in detector.detect(images, doubt="report"))
    detector.doubts["a"].threshold.fill_((lower + upper) / 2)
    detector.agreement.least.fill_(2.0)
    expected = detector.detect(images, doubt=doubt)
    if doubt == "drop":
        assert 0 < sum(one.dropped == ("a",) for one in expected) < 3
    if doubt != "off":
        assert any(one.disagreeing for one in expected)
    same(detector.fast(batch=2).detect(images, doubt=doubt), expected)


def test_frames_that_repeat_are_told_to_the_graph(recorded):
    detector = make("ab")
    detector.begin_doubt()
    detector.agreement.clear.fill_(2.0)
    images, contents = raw("ab", 2), torch.tensor([[128.0, 128.0]] * 2)
    stuck = {"b": torch.tensor([False, True])}
    expected = detector.find(images, {}, contents, stuck=stuck)
    assert [one.dropped for one in expected] == [(), ("b",)]
    same(detector.fast(batch=2).find(images, {}, contents, stuck=stuck), expected)


def test_what_is_not_finite_is_refused_or_left_out_as_by_the_detector(recorded):
    detector = make("ab")
    made = detector.fast(batch=2)
    images = {m: x.float() for m, x in raw("ab", 3).items()}
    images["a"][2, 0, 5, 5] = torch.nan
    expected = detector.detect(images)
    assert expected[2].dropped == ("a",)
    same(made.detect(images), expected)
    images["b"][2, 0, 5, 5] = torch.inf
    for one in (detector, made):
        with pytest.raises(UserError, match=r"a, b of image \d holds values that aren't finite"):
            one.detect(images)


def test_images_of_another_size_run_eagerly(recorded):
    detector = make("ab")
    made = detector.fast()
    images = raw("ab", 1, 256, 128)
    same(made.detect(images, resize=False), detector.detect(images, resize=False))
    same(made.detect(images), detector.detect(images))
    larger = detector.fast(size=(256, 256))
    assert larger.input_size == (256, 256)
    assert Again.made == 2


def test_boxes_are_clipped_to_what_is_not_padding(recorded):
    detector = make("ab")
    made = detector.fast(batch=2)
    for height in (64, 100, 64):
        images = raw("ab", 2, height, 128)
        found = made.detect(images)
        same(found, detector.detect(images))
        assert max(float(one.boxes[:, 3].max()) for one in found) <= height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend: 'tensorrt'"),
        ({"backend": "graph"}, "backend: graph needs a CUDA device"),
        ({"backend": "compile"}, "backend: compile needs a CUDA device"),
        ({"dtype": torch.int8}, "dtype: torch.int8 is not allowed"),
        ({"dtype": "half"}, "dtype: half is not allowed"),
        ({"size": (100, 128)}, "size: 100x128 is not a multiple of 128"),
        ({"size": (0, 128)}, "size: 0x128"),
        ({"batch": 0}, "batch: 0 is not allowed"),
        ({"sensors": ["a", "z"]}, "sensors: 'z'"),
    ],
)
def test_what_it_can_not_do_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make("ab").fast(**options)


def test_without_kernels_that_run_a_graph_is_refused_and_eager_is_taken_by_itself(monkeypatch):
    monkeypatch.setattr(fast, "kernels_run", lambda: False)
    assert fast._backend("auto", True) == fast._backend("eager", True) == "eager"
    for asked in ("graph", "compile"):
        with pytest.raises(UserError, match=f"backend: {asked} needs Triton and a C compiler"):
            fast._backend(asked, True)
    monkeypatch.setattr(fast, "kernels_run", lambda: True)
    assert fast._backend("auto", True) == "graph"
    assert fast._backend("auto", False) == "eager"


def test_a_detector_that_can_not_be_captured_says_so(recorded, monkeypatch):
    def fail(self, run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Again, "record", fail)
    with pytest.raises(UserError, match=r"can't be captured \(operation not permitted when stream is capturing\)"):
        make("ab").fast()


def test_a_graph_that_answers_otherwise_is_refused(recorded, monkeypatch):
    def lie(self, run):
        return lambda: run() + 0.5

    monkeypatch.setattr(Again, "record", lie)
    with pytest.raises(UserError, match=r"backend: graph answers with scores 0\.5\d* away"):
        make("ab").fast()


def test_a_graph_that_finds_nothing_is_refused(recorded, monkeypatch):
    monkeypatch.setattr(Again, "record", lambda self, run: lambda: -torch.ones_like(run()))
    with pytest.raises(UserError, match="backend: graph answers with scores"):
        make("ab").fast()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "images: is empty"),
        ({"a": torch.zeros(1, 3, 128, 128)}, "images: a has shape"),
        ({"a": torch.zeros(1, 1, 128, 128), "b": torch.zeros(2, 3, 128, 128)}, "images: .* differ"),
    ],
)
def test_images_that_do_not_fit_are_refused_as_by_the_detector(recorded, images, message):
    made = make("ab").fast()
    with pytest.raises(UserError, match=message):
        made.find(images, {})


def test_verbs_take_a_graph_only_where_it_pays(recorded, monkeypatch):
    asked = []
    monkeypatch.setattr(detectors.Detector, "fast", lambda self, **options: asked.append(options))
    detector = make("ab")
    for images in (None, detectors.WORTH_A_GRAPH, 5):
        detector.ready(images, 4)
    assert [one["backend"] for one in asked] == ["auto", "auto", "eager"]
    assert all(one["dtype"] == torch.float32 and one["batch"] == 4 for one in asked)


def test_a_batch_smaller_than_the_graph_is_not_answered_by_what_was_there_before(recorded):
    detector = make("ab")
    made, images = detector.fast(batch=4), raw("ab", 4)
    made.detect(images)
    dark = {m: torch.zeros_like(x[:1]) for m, x in images.items()}
    same(made.detect(dark), detector.detect(dark))


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["first", "every", "last", "boxes"])
def test_a_cuda_graph_finds_what_the_detector_finds(placement):
    detector = make("ab", placement=placement).cuda()
    made = detector.fast(batch=2, dtype=torch.float32)
    assert made.backend == "graph"
    images = {m: x.cuda() for m, x in raw("ab", 3).items()}
    for given in (images, {"b": images["b"]}, {m: x.cpu() for m, x in images.items()}):
        for one, other in zip(made.detect(given), detector.detect(given), strict=True):
            assert abs(len(one) - len(other)) <= 2
            count = min(len(one), len(other))
            torch.testing.assert_close(one.scores[:count], other.scores[:count].cpu(), rtol=1e-2, atol=2e-3)


@pytest.mark.gpu
def test_it_compiles_on_cuda():
    detector = make("a").cuda()
    images = {m: x.cuda() for m, x in raw("a", 1).items()}
    (one,), (other,) = detector.fast(backend="compile").detect(images), detector.detect(images)
    torch.testing.assert_close(one.scores, other.scores.cpu(), rtol=0, atol=0.02)
