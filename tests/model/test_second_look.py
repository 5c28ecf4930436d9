"""What is found where sensors show different scenes."""

import pytest
import torch
from test_agreement import rig, scenes, swapped, watching
from test_doubting import PLACEMENTS, same

from mmfuse.model.doubt import shared
from mmfuse.model.postprocess import Selection
from mmfuse.sample import Detections

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def detections(boxes, scores, labels):
    return Detections(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(scores), torch.tensor(labels))


ONE = detections([[0, 0, 10, 10], [50, 50, 70, 70]], [0.8, 0.2], [0, 1])
OTHER = detections([[1, 0, 10, 10], [1, 0, 10, 10], [90, 90, 99, 99]], [0.9, 0.7, 0.1], [0, 1, 0])


def test_each_sensor_counts_for_its_share():
    found = shared([ONE, OTHER], Selection())
    assert found.scores.tolist() == pytest.approx([0.45, 0.35, 0.1, 0.05])
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.boxes[0].tolist() == [1, 0, 10, 10]  # the better of two that overlap
    assert shared([ONE, OTHER, OTHER], Selection()).scores[0] == pytest.approx(0.3)


def test_threshold_and_number_hold_for_what_is_left():
    assert shared([ONE, OTHER], Selection(threshold=0.1)).scores.tolist() == pytest.approx([0.45, 0.35])
    assert shared([ONE, OTHER], Selection(max_detections=1)).scores.tolist() == pytest.approx([0.45])
    assert shared([ONE, OTHER], Selection(iou_threshold=0.95)).scores.tolist()[:2] == pytest.approx([0.45, 0.4])


def test_where_one_finds_nothing_the_other_still_counts_for_its_share():
    empty = Detections.empty()
    assert shared([empty, ONE], Selection()).scores.tolist() == pytest.approx([0.4, 0.1])
    assert len(shared([empty, empty], Selection())) == 0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_images_of_two_scenes_are_looked_at_again(placement):
    detector = watching("ab", placement=placement)
    images = swapped({m: x for m, x in rig(scenes(3)).items() if m in "ab"}, "b", 1)
    contents = torch.tensor([[128.0, 128.0], [96.0, 128.0], [128.0, 64.0]])
    looks = []
    look = detector.look
    detector.look = lambda *asked: looks.append(asked) or look(*asked)
    found, once = detector.find(images, {}, contents), look(images, {}, contents)
    assert [sorted(asked[0]) for asked in looks] == [["a", "b"], ["a"], ["b"]]
    assert [len(x) for asked in looks[1:] for x in asked[0].values()] == [1, 1]
    assert [one.disagreeing for one in found] == [(), ("a", "b"), ()]
    assert found[1].doubt == once[1].doubt
    assert found[1].classes == detector.classes
    same([found[0], found[2]], [once[0], once[2]])
    alone = [look({m: images[m][1:2]}, {}, contents[1:2])[0] for m in "ab"]
    same([found[1]], [shared(alone, Selection())])
    assert found[1].boxes[:, 3].max() < 96.1
    high = Selection(threshold=found[1].scores[3].item())
    assert len(detector.find(images, {}, contents, high)[1]) == 3


def test_nobody_looks_again_where_it_is_known_who_is_right_or_nothing_is_to_be_left_out():
    images = rig(scenes(2))
    two, three = watching("ab"), watching()
    pair = swapped({m: images[m] for m in "ab"}, "b", 1)
    odd = swapped(images, "c", 1)
    for detector, given, options in (
        (two, pair, {"doubt": "report"}),
        (two, pair, {"doubt": "off"}),
        (two, pair, {"stuck": {"b": torch.tensor([False, True])}}),
        (three, odd, {}),
    ):
        same(detector.find(given, {}, **options), detector.look(given, {}, **options))


def test_what_overlaps_is_chosen_as_ever():
    found = shared([ONE, OTHER], Selection(soft=True)).scores.tolist()
    assert len(found) == 5
    assert found[:3] == pytest.approx([0.45, 0.35, 0.1])
    assert 0.4 * 0.13 < found[3] < 0.4 * 0.3  # lowered by the better one, not dropped


def test_who_is_left_and_shows_what_another_shows_keeps_the_image_whole():
    """A sensor that is doubted a little counts where sensors are weighed; it is in no scene of its own."""
    detector, images = watching(), swapped(rig(scenes(2)), "b", 1)
    doubts = {m: torch.tensor([0.2, 0.2]) for m in "abc"} | {"c": torch.tensor([0.2, 1.1])}
    for m, own in detector.doubts.items():
        own.forward = lambda finest, told=doubts[m]: told[: len(finest)]
    once = detector.look(images, {}, doubt="weigh")
    assert (once[1].disagreeing, once[1].dropped) == (("a", "b"), ())
    same(detector.find(images, {}, doubt="weigh"), once)
    both = detector.look(images, {}, doubt="drop")
    assert (both[1].disagreeing, both[1].dropped) == (("a", "b"), ("c",))
    assert len(detector.find(images, {})[1]) > 0
    assert not torch.equal(detector.find(images, {})[1].scores[:5], both[1].scores[:5])


def test_a_sensor_that_is_missing_or_broken_is_of_no_scene():
    detector, images = watching("ab"), swapped({m: x for m, x in rig(scenes(3)).items() if m in "ab"}, "b", 0, 1, 2)
    present = {"b": torch.tensor([True, False, True])}
    images["b"][2, :, 5, 5] = torch.nan
    found, once = detector.find(images, present), detector.look(images, present)
    assert [one.disagreeing for one in found] == [("a", "b"), (), ()]
    assert found[2].dropped == ("b",)
    same(found[1:], once[1:])
    assert not detector.training


def test_of_three_scenes_each_is_a_third():
    detector = watching()
    images = swapped(rig(scenes(2)), "c", 0)
    images["b"] = rig(scenes(2, seed=33))["b"]
    found, once = detector.find(images, {}), detector.look(images, {})
    assert found[0].disagreeing == ("a", "b", "c")
    alone = [detector.look({m: images[m][:1]}, {})[0] for m in "abc"]
    same(found[:1], [shared(alone, Selection())])
    assert found[1].disagreeing == found[1].dropped == ("b",)
    same(found[1:], once[1:])


def test_a_snapshot_looks_again_too():
    detector = watching("ab")
    images = swapped({m: x for m, x in rig(scenes(2)).items() if m in "ab"}, "a", 0)
    same(detector.fast(batch=2).find(images, {}), detector.find(images, {}))
