import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from staged_gallery import (
    BOXES,
    CLASSES,
    NOTHING_FOUND,
    ONE_FALSE,
    SENSORS,
    detections,
    read,
    record,
    six_scenes,
    staged,
)

from mmfuse.evaluation.significance import Matches, Ranking
from mmfuse.report import gallery as module
from mmfuse.report.gallery import Answers, jpeg, make_gallery, notes_on, telling
from mmfuse.sample import Detections


def test_scenes_go_from_the_largest_win_to_the_largest_loss():
    gallery = six_scenes()
    assert [scene["ahead"] for scene in gallery.scenes] == [3, 2, 0, 0, -1, -3]
    assert gallery.scenes[0]["name"] == "0.png"
    assert gallery.of == 6


def test_a_scene_tells_what_became_of_each_detection():
    found = detections(
        [*BOXES.tolist(), [40, 30, 60, 46], [0, 0, 9, 9]], [0.9, 0.4, 0.5, 0.04], [0, 1, 1, 0], disagreeing=("rgb",)
    )
    gallery = staged([record(7, ignore=(1,))], {"both": {7: found}, "thermal": {}})
    (scene,) = gallery.scenes
    both, thermal = scene["found"]
    assert [row[4:] for row in both["boxes"]] == [[0.4, 1, -1], [0.5, 1, 0], [0.9, 0, 1]]
    assert both["boxes"][2][:4] == BOXES[0].tolist()
    assert (both["objects"], both["notes"]) == (1, ["rgb shows another scene"])
    assert thermal == {"boxes": [], "objects": 1, "notes": []}
    assert [row[4:] for row in scene["truth"]] == [[0, 0], [1, 1]]


def test_sensors_that_are_left_out_and_that_disagree_are_told():
    assert notes_on(Detections.empty()) == []
    two = replace(Detections.empty(), disagreeing=("rgb", "thermal"))
    assert notes_on(two) == ["rgb and thermal show different scenes"]
    both = replace(Detections.empty(), dropped=("rgb", "depth"), disagreeing=("rgb",))
    assert notes_on(both) == ["rgb, depth left out, doubted", "rgb shows another scene"]


def test_images_come_small_and_only_where_there_is_one():
    gallery = six_scenes()
    assert set(gallery.scenes[-1]["images"]) == {"thermal"}
    head, _, data = gallery.scenes[0]["images"]["rgb"].partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (64, 48)
    assert image.getpixel((5, 5)) == (90, 90, 90)
    large = Image.open(io.BytesIO(jpeg(np.zeros((900, 1800, 3), np.uint8))))
    assert large.size == (640, 320)


def test_those_that_differ_most_come_first_wins_and_losses_alike():
    ahead = np.array([0, 2, -3, 1, -1, 0, 3])
    order = telling(ahead).tolist()
    assert {*order[:2]} == {2, 6}
    assert order[2] == 1
    assert {*order[3:5]} == {3, 4}
    first = telling(np.zeros(5000, int))[:200]
    assert first.mean() == pytest.approx(2500, rel=0.1), "equal ones aren't the first frames of a film"


def finding(images, places):
    """One class, of which each image has an object that is found at these places alone."""
    hit = np.ones((1, len(places)), bool)
    ranking = Ranking(np.full(len(places), 0.9), np.array(places), hit, ~hit, np.ones(images, int))
    return Matches((ranking,), np.linspace(0, 1, 101))


@pytest.fixture(scope="module")
def many():
    return [record(i) for i in range(10_000)]


@pytest.mark.parametrize(("most_bytes", "count"), [(10**6, 200), (1000, 5), (1, 1)])
def test_ten_thousand_images_stay_few_and_small(many, monkeypatch, most_bytes, count):
    monkeypatch.setattr(module, "jpeg", lambda pixels: bytes(100))
    won, lost = range(0, 600, 2), range(1, 100, 2)
    answers = [Answers(name, {}, finding(len(many), places)) for name, places in (("both", won), ("thermal", lost))]
    gallery = make_gallery(many, answers, ("both", "thermal"), SENSORS, CLASSES, read, most_bytes)
    assert (len(gallery.scenes), gallery.of) == (count, 10_000)
    assert {abs(scene["ahead"]) for scene in gallery.scenes} == {1}
    if count == 200:
        assert {scene["ahead"] for scene in gallery.scenes} == {1, -1}, "losses are not left out"


def test_errors_are_those_that_are_shown():
    gallery = staged([record(0), record(1)], {"both": {0: ONE_FALSE}, "thermal": {1: NOTHING_FOUND}})
    assert [scene["ahead"] for scene in gallery.scenes] == [0, -1]
