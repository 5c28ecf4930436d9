import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from mmfuse.errors import UserError
from mmfuse.sample import Batch, Detections, Targets


def three() -> Detections:
    boxes = torch.arange(12.0).reshape(3, 4)
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 0, 1]))


def test_detections_are_filtered_by_mask_rows_and_slice():
    found = three()
    mask = found.scores > 0.3
    for rows in (mask, mask.numpy(), mask.tolist(), torch.tensor([0, 1]), np.array([0, 1]), [0, 1], slice(2)):
        kept = found[rows]
        assert len(kept) == 2
        assert torch.equal(kept.boxes, found.boxes[:2])
        assert kept.labels.tolist() == [2, 0]
    assert found[[]].boxes.shape == (0, 4)


@pytest.mark.parametrize("number", [1, -2, np.int64(1), torch.tensor(1)])
def test_a_number_gives_detections_of_one_object(number):
    found = replace(three(), doubt={"rgb": 0.5}, dropped=("thermal",))
    one = found[number]
    assert len(one) == 1
    assert torch.equal(one.boxes, found.boxes[1:2])
    assert (one.scores.shape, one.labels.tolist()) == ((1,), [0])
    assert (one.doubt, one.dropped) == (found.doubt, found.dropped)
    assert [(round(s.item(), 1), k.item()) for _, s, k in one] == [(0.5, 0)]


@pytest.mark.parametrize("number", [3, -4, torch.tensor(True), True])
def test_a_number_out_of_range_is_an_index_error(number):
    with pytest.raises(IndexError, match="names none of 3"):
        three()[number]


def test_a_mask_of_another_length_is_an_index_error():
    with pytest.raises(IndexError):
        three()[[True, False]]


def test_coco_results_are_plain_numbers_that_pycocotools_loads():
    results = json.loads(json.dumps(three().to_coco(7)))
    assert results[0] == {"image_id": 7, "category_id": 3, "bbox": [0, 1, 2, 2], "score": pytest.approx(0.9)}
    assert Detections.empty().to_coco(7) == []
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}], "categories": [{"id": i} for i in (1, 2, 3)], "annotations": []}
    truth.createIndex()
    assert [one["category_id"] for one in truth.loadRes(results).dataset["annotations"]] == [3, 1, 2]


def test_detections_are_iterated_object_by_object():
    assert [(round(s.item(), 1), k.item()) for _, s, k in three()] == [(0.9, 2), (0.5, 0), (0.1, 1)]


def test_detections_of_unequal_length_do_not_iterate():
    with pytest.raises(ValueError, match="shorter"):
        list(Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(2)))


def test_rescale_gives_original_pixels():
    found = three()
    for scale in (0.5, torch.tensor(0.5)):
        assert torch.equal(found.rescale(scale).boxes, found.boxes * 2)
    assert torch.equal(found.rescale(0.5).scores, found.scores)


def test_nothing_found():
    none = Detections.empty()
    assert len(none) == 0
    assert list(none) == []
    assert none.boxes.shape == (0, 4)
    assert none.labels.dtype == torch.int64
    assert none.rescale(2.0).boxes.shape == (0, 4)


def test_a_batch_moves_but_for_presence():
    batch = Batch(
        [7, 8],
        {"rgb": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "thermal": torch.zeros(2, 1, 4, 4, dtype=torch.uint16)},
        {"rgb": torch.tensor([True, True]), "thermal": torch.tensor([True, False])},
        Targets([torch.zeros(1, 4), torch.zeros(0, 4)], [torch.zeros(1), torch.zeros(0)]),
        torch.ones(2),
        torch.tensor([[4, 4], [4, 3]]),
    )
    moved = batch.to(torch.device("meta"))
    assert len(moved) == 2
    assert moved.image_ids == [7, 8]
    tensors = [*moved.images.values(), *moved.targets.boxes, *moved.targets.labels, moved.scale, moved.contents]
    assert len(tensors) == 8
    assert all(t.is_meta for t in tensors)
    assert moved.images["thermal"].dtype == torch.uint16
    assert {m: p.tolist() for m, p in moved.present.items()} == {"rgb": [True, True], "thermal": [True, False]}


def test_detections_move():
    moved = three().to("meta")
    assert moved.boxes.is_meta
    assert moved.scores.is_meta
    assert moved.labels.is_meta


def named():
    return replace(three(), classes=("a", "b", "c"))


def test_detections_know_the_names_of_their_classes():
    assert named().names == ["c", "a", "b"]
    assert three().names == ["2", "0", "1"]
    for part in (named()[[0, 2]], named().to("cpu")[[0, 2]], named().rescale(2.0)[[0, 2]]):
        assert part.names == ["c", "b"]


def test_detections_as_plain_values():
    first, *_ = named().to_dicts()
    assert first == {"box": three().boxes[0].tolist(), "score": 0.9, "class": "c", "label": 2}
    assert json.loads(json.dumps(named().to_dicts())) == named().to_dicts()
    assert Detections.empty().to_dicts() == []


def test_detections_as_arrays():
    boxes, scores, labels = named().numpy()
    assert (boxes.shape, boxes.dtype) == ((3, 4), np.float32)
    assert (scores.shape, scores.dtype) == ((3,), np.float32)
    assert (labels.tolist(), labels.dtype) == ([2, 0, 1], np.int64)


def test_categories_of_coco_may_be_given():
    assert [row["category_id"] for row in named().to_coco(5)] == [3, 1, 2]
    assert [row["category_id"] for row in named().to_coco(5, [1, 18, 90])] == [90, 1, 18]


def test_detections_for_supervision(monkeypatch):
    given = {}
    stand_in = types.ModuleType("supervision")
    stand_in.Detections = lambda **values: given.update(values) or "made"
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    assert named().to_supervision() == "made"
    assert given["xyxy"].shape == (3, 4)
    assert given["class_id"].tolist() == [2, 0, 1]
    assert given["data"]["class_name"].tolist() == ["c", "a", "b"]
    np.testing.assert_allclose(given["confidence"], [0.9, 0.5, 0.1])
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="supervision isn't installed; run pip install supervision"):
        named().to_supervision()
