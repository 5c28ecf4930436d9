import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.config import DataRecipe
from mmfuse.data.cards import Card
from mmfuse.data.loader import eval_loader, measure, train_loader
from mmfuse.data.readers import Record
from mmfuse.errors import UserError
from mmfuse.sensor import Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
RECIPE = DataRecipe(workers=0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i}_rgb.png")
        Image.fromarray(rng.integers(0, 60000, (24, 32), dtype=np.uint16)).save(folder / f"{i}_t.png")
        files = {"rgb": folder / f"{i}_rgb.png", "thermal": folder / f"{i}_t.png"}
        boxes = np.array([[2, 2, 20, 20], [4, 4, 30, 22]], np.float32)
        made.append(Record(100 + i, files, 32, 24, boxes, np.array([i % 2, 0]), np.array([False, i == 0])))
    return made


@pytest.fixture
def card(tmp_path):
    return Card("tiny", tmp_path, "coco", SENSORS, ("a", "b"), {}, (), "", "", "", tmp_path / "card.yaml")


def make_loader(card, records, batch_size=4, data=RECIPE, seed=3, **ranks):
    return train_loader(card, records, ["rgb", "thermal"], (32, 32), data, batch_size, seed, **ranks)


def same(a, b):
    return (
        a.image_ids == b.image_ids
        and all(torch.equal(a.images[m], b.images[m]) for m in a.images)
        and all(torch.equal(x, y) for x, y in zip(a.targets.boxes, b.targets.boxes, strict=True))
        and all(torch.equal(x, y) for x, y in zip(a.targets.labels, b.targets.labels, strict=True))
        and torch.equal(a.scale, b.scale)
    )


def error_of(batches):
    """Returns the message; an exception that were kept would keep the workers too, and they end late when collected."""
    try:
        list(batches)
    except UserError as error:
        return str(error)
    return None


def test_a_batch_has_the_shapes_and_types_of_its_sensors(card, records):
    loader = make_loader(card, records)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 2
    batch = batches[0]
    assert batch.images["rgb"].shape == (4, 3, 32, 32)
    assert batch.images["rgb"].dtype == torch.uint8
    assert batch.images["thermal"].shape == (4, 1, 32, 32)
    assert batch.images["thermal"].dtype == torch.uint16
    assert batch.present["rgb"].tolist() == [True] * 4
    assert batch.scale.shape == (4,)


def test_an_epoch_is_a_function_of_seed_and_epoch(card, records):
    first, other = make_loader(card, records), make_loader(card, records)
    epochs = [list(first.epoch(e)) for e in (0, 1)]
    for e in (1, 0):
        assert all(same(a, b) for a, b in zip(other.epoch(e), epochs[e], strict=True))
    assert not same(epochs[0][0], epochs[1][0])
    assert not same(epochs[0][0], next(make_loader(card, records, seed=4).epoch(0)))


def test_an_image_is_augmented_anew_in_each_epoch(card, records):
    loader = make_loader(card, records[:1], batch_size=1)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    assert first.image_ids == second.image_ids
    assert not torch.equal(first.images["thermal"], second.images["thermal"])


def test_images_of_an_epoch_are_distinct_and_none_is_left_out_for_ever(card, records):
    loader = make_loader(card, records)
    epochs = [[i for batch in loader.epoch(e) for i in batch.image_ids] for e in range(12)]
    assert all(len(set(ids)) == len(ids) == 8 for ids in epochs)
    assert set().union(*epochs) == {record.image_id for record in records}


def test_an_epoch_can_start_at_a_batch(card, records):
    loader = make_loader(card, records, batch_size=3)
    whole = list(loader.epoch(2))
    assert len(whole) == 3
    assert all(same(a, b) for a, b in zip(loader.epoch(2, start_batch=1), whole[1:], strict=True))
    assert len(list(loader.epoch(2))) == 3


def test_ranks_share_the_batches_of_one_process(card, records):
    whole = list(make_loader(card, records).epoch(1))
    parts = [list(make_loader(card, records, rank=r, world_size=2).epoch(1)) for r in (0, 1)]
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert even.image_ids == batch.image_ids[0::2]
        assert odd.image_ids == batch.image_ids[1::2]
        assert torch.equal(odd.images["rgb"], batch.images["rgb"][1::2])
    with pytest.raises(UserError, match=r"train.batch_size: 4 can't be shared evenly by 3"):
        make_loader(card, records, rank=0, world_size=3)


def test_few_images_are_repeated_with_other_augmentation(card, records):
    loader = make_loader(card, records[:2], batch_size=6)
    (batch,) = loader.epoch(0)
    assert sorted(batch.image_ids) == [100] * 3 + [101] * 3
    twins = [batch.images["thermal"][i].float() for i, number in enumerate(batch.image_ids) if number == 100]
    assert not torch.equal(twins[0], twins[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing_and_outlive_an_epoch_cut_short(card, records):
    alone, helped = make_loader(card, records), make_loader(card, records, data=DataRecipe(workers=1))
    next(helped.epoch(0))
    for e in (0, 1):
        assert all(same(a, b) for a, b in zip(helped.epoch(e), alone.epoch(e), strict=True))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_in_a_worker_is_one_line(card, records, tmp_path, workers):
    (tmp_path / "bad.png").write_text("no image")
    bad = dataclasses.replace(records[0], files={**records[0].files, "rgb": tmp_path / "bad.png"})
    trained = error_of(make_loader(card, [bad], data=DataRecipe(workers=workers)).epoch(0))
    assert trained == f"{tmp_path / 'bad.png'}: is not an image; give a PNG, JPEG, TIFF or WebP file"
    assert error_of(eval_loader([bad], SENSORS, (32, 32), 2, workers)) == trained


def test_evaluation_keeps_order_and_all_images(records):
    loader = eval_loader(records, SENSORS, (48, 48), 4, 0)
    batches = list(loader)
    assert [len(b) for b in batches] == [4, 4, 3]
    assert len(loader) == 3
    assert [i for b in batches for i in b.image_ids] == [r.image_id for r in records]
    first = batches[0]
    assert first.scale.tolist() == [1.5] * 4
    assert first.targets.boxes[0].tolist() == [[3, 3, 30, 30]]
    assert first.targets.boxes[1].tolist() == [[3, 3, 30, 30], [6, 6, 45, 33]]
    assert (first.images["rgb"][:, :, 36:] == 0).all()


def test_an_absent_modality_is_zero_and_marked(records):
    lacking = dataclasses.replace(records[1], files={"rgb": records[1].files["rgb"]})
    (batch,) = eval_loader([records[0], lacking], SENSORS, (32, 32), 2, 0)
    assert batch.present["thermal"].tolist() == [True, False]
    assert batch.present["rgb"].tolist() == [True, True]
    assert batch.images["thermal"].dtype == torch.uint16
    assert (batch.images["thermal"][1].float() == 0).all()
    assert batch.images["thermal"][0].float().max() > 0


def test_mixed_bit_depths_are_refused(records, tmp_path):
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "a.png")
    shallow = dataclasses.replace(records[1], files={**records[1].files, "thermal": tmp_path / "a.png"})
    with pytest.raises(UserError, match=r"thermal: .* mix uint16 and uint8"):
        list(eval_loader([records[0], shallow], SENSORS, (32, 32), 2, 0))


def test_wrong_requests_are_named(card, records):
    with pytest.raises(UserError, match=r"'termal' is not a known modality .*did you mean 'thermal'"):
        train_loader(card, records, ["termal"], (32, 32), RECIPE, 2, 0)
    with pytest.raises(UserError, match="no image to train on"):
        make_loader(card, [])
    with pytest.raises(UserError, match=r"data.workers: -1"):
        make_loader(card, records, data=DataRecipe(workers=-1))


def test_statistics_are_those_of_all_encoded_pixels(records):
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1, "inverse_depth", near=1.0, far=30.0)}
    measured = measure(records, sensors)
    rgb = np.stack([np.array(Image.open(r.files["rgb"])) for r in records]).reshape(-1, 3)
    np.testing.assert_allclose(measured["rgb"].mean, rgb.mean(0), rtol=1e-9)
    np.testing.assert_allclose(measured["rgb"].std, rgb.std(0), rtol=1e-9)
    raw = torch.from_numpy(np.stack([np.array(Image.open(r.files["thermal"])) for r in records]))
    encoded = sensors["thermal"].encode(raw[:, None]).double()
    np.testing.assert_allclose(measured["thermal"].mean, encoded.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(measured["thermal"].std, encoded.std((0, 2, 3), correction=0).clamp(min=1e-6), rtol=1e-4)


def test_statistics_have_a_floor_and_need_an_image(records, tmp_path):
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(tmp_path / "a.png")
    flat = dataclasses.replace(records[0], files={"thermal": tmp_path / "a.png"})
    assert measure([flat], {"thermal": Sensor(1)})["thermal"].std == (1e-6,)
    with pytest.raises(UserError, match="rgb: no training image"):
        measure([flat], SENSORS)
