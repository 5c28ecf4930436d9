import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data import cache as cache_module
from mmfuse.data import loader as loader_module
from mmfuse.data.annotations.cards import Card
from mmfuse.data.cache import ImageCache
from mmfuse.data.loader import eval_loader, fill_cache, train_loader
from mmfuse.data.parallel import spare_cores
from mmfuse.errors import UserError
from mmfuse.recipes import DataRecipe
from mmfuse.sensor import Calibration, Sensor

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}
RECIPE = DataRecipe(workers=0)


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


def test_epochs_that_follow_one_another_are_read_at_one_go_until_the_last(card, records, monkeypatch):
    begun, good = [], loader_module._good
    monkeypatch.setattr(loader_module, "_good", lambda batches: begun.append(1) or good(batches))
    made = make_loader(card, records, epochs=3)
    for e in range(3):
        assert all(same(a, b) for a, b in zip(made.epoch(e), make_loader(card, records).epoch(e), strict=True))
    assert sum(begun) == 1 + 3
    assert len(list(made._order)) == 2 * 3  # none is read that comes after
    assert len(list(made.epoch(5))) == 2


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 15), (64, 1, 16), (16, 4, 3)]
)
def test_workers_are_the_cores_to_spare(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert spare_cores(None, processes) == workers
    assert spare_cores(7, processes) == 7


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_in_a_worker_is_one_line(card, records, tmp_path, workers):
    (tmp_path / "bad.png").write_text("no image")
    bad = dataclasses.replace(records[0], files={**records[0].files, "rgb": tmp_path / "bad.png"})
    trained = error_of(make_loader(card, [bad], data=DataRecipe(workers=workers)).epoch(0))
    assert trained == f"{tmp_path / 'bad.png'}: is not an image; give a PNG, JPEG, TIFF or WebP file"
    assert error_of(eval_loader([bad], SENSORS, (32, 32), 2, workers)) == trained


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_modality_sees_elsewhere_comes_with_the_batch(card, records, workers):
    data = dataclasses.replace(RECIPE, shift={"thermal": 100.0}, hflip=0.0, scale_jitter=(1.0, 1.0), workers=workers)
    batch = next(make_loader(card, records, data=data).epoch(0))
    assert batch.own.keys() == {"thermal"}
    own = batch.own["thermal"]
    assert [len(boxes) for boxes in own.boxes] == [len(labels) for labels in own.labels]
    pairs = [(a, b) for a, b in zip(own.boxes, batch.targets.boxes, strict=True) if len(a) == len(b)]
    assert pairs
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert batch.to(torch.device("cpu")).own.keys() == {"thermal"}
    assert not next(make_loader(card, records).epoch(0)).own


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
    with pytest.raises(UserError, match=r"workers: -1"):
        make_loader(card, records, data=DataRecipe(workers=-1))


SKIP = dataclasses.replace(RECIPE, on_bad_sample="skip")


def test_a_bad_image_is_replaced_by_the_next_good_one_and_reported(card, records, tmp_path, with_bad):
    bad = with_bad(3, 4, 10)
    loader = make_loader(card, bad, batch_size=11, data=SKIP)
    (whole,) = make_loader(card, records, batch_size=11).epoch(0)
    (batch,) = loader.epoch(0)
    takes = {103: 105, 104: 105, 110: 100}
    assert batch.image_ids == [takes.get(i, i) for i in whole.image_ids]
    for row, image_id in enumerate(whole.image_ids):
        assert torch.equal(batch.images["rgb"][row], whole.images["rgb"][row]) == (image_id not in takes)
    reason = f"{tmp_path / 'bad.png'}: is not an image; give a PNG, JPEG, TIFF or WebP file"
    assert loader.skipped == dict.fromkeys(takes, reason)
    (again,) = make_loader(card, bad, batch_size=11, data=SKIP).epoch(0)
    assert same(again, batch)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_skipping_hangs_neither_on_workers_nor_on_ranks(card, with_bad):
    bad = with_bad(1, 2, 7)
    whole = make_loader(card, bad, data=SKIP)
    helped = make_loader(card, bad, data=dataclasses.replace(SKIP, workers=2))
    ranks = [make_loader(card, bad, data=SKIP, rank=r, world_size=2) for r in (0, 1)]
    for e in (0, 1, 2):
        batches = list(whole.epoch(e))
        assert all(same(a, b) for a, b in zip(helped.epoch(e), batches, strict=True))
        for batch, *parts in zip(batches, *[rank.epoch(e) for rank in ranks], strict=True):
            assert [part.image_ids for part in parts] == [batch.image_ids[0::2], batch.image_ids[1::2]]
    assert set(whole.skipped) == {101, 102, 107}
    assert helped.skipped == whole.skipped == ranks[0].skipped | ranks[1].skipped


def test_images_that_are_all_bad_end_it_though_bad_ones_are_skipped(card, with_bad):
    bad = with_bad(*range(11))
    message = error_of(make_loader(card, bad, data=SKIP).epoch(0))
    assert message.startswith("32 images in a row can't be used; the last: ")
    assert "bad.png: is not an image" in message


def test_evaluation_never_skips(with_bad):
    assert "bad.png" in error_of(eval_loader(with_bad(5), SENSORS, (32, 32), 4, 0))


def test_a_cache_that_cannot_be_written_is_no_bad_sample(card, records, tmp_path):
    (tmp_path / "cache").write_text("a file")
    message = error_of(
        make_loader(card, records, data=dataclasses.replace(SKIP, cache=str(tmp_path / "cache"))).epoch(0)
    )
    assert "cache" in message
    assert "can't be written" in message


@pytest.mark.parametrize("data", [RECIPE, SKIP])
def test_records_without_any_modality_are_left_out_and_counted(card, records, data):
    lacking = [
        dataclasses.replace(r, files={"other": r.files["rgb"]} if i < 3 else r.files) for i, r in enumerate(records)
    ]
    loader = make_loader(card, lacking, data=data)
    assert loader.absent == 3
    assert make_loader(card, records).absent == 0
    assert all(same(a, b) for a, b in zip(loader.epoch(0), make_loader(card, records[3:]).epoch(0), strict=True))
    assert loader.skipped == {}
    with pytest.raises(UserError, match="no image to train on"):
        make_loader(card, lacking[:3])
    assert "has no file for any" in error_of(eval_loader(lacking, SENSORS, (32, 32), 4, 0))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_no_batch(card, records, tmp_path, workers, monkeypatch):
    kept = dataclasses.replace(RECIPE, cache=str(tmp_path / "cache"), workers=workers)
    first = make_loader(card, records, data=kept)
    for loader in (first, first, make_loader(card, records, data=kept)):
        for e in (0, 1):
            assert all(same(a, b) for a, b in zip(loader.epoch(e), make_loader(card, records).epoch(e), strict=True))
    monkeypatch.setattr(cache_module, "read_record", None)
    assert len(list(make_loader(card, records, data=kept).epoch(0))) == 2
    assert len(list(eval_loader(records[:8], SENSORS, (32, 32), 4, 0, ImageCache(tmp_path / "cache").images))) == 2


CAMERA = Calibration((32, 24), (30.0, 30.0, 15.5, 11.5))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_costly_images_are_prepared_once_and_ahead(records, home, capsys, monkeypatch, workers):
    sensors = {"rgb": SENSORS["rgb"], "thermal": Sensor(1, "normals", calibration=CAMERA)}
    data = dataclasses.replace(RECIPE, workers=workers)
    fill_cache(records, sensors, data)
    shown = capsys.readouterr().err
    assert "caching thermal" in shown
    assert "11/11" in shown
    assert len(list(home.rglob("*.safetensors"))) == 11
    monkeypatch.setattr(cache_module, "_save", None)
    fill_cache(records, sensors, data)
    batches = list(eval_loader(records, sensors, (32, 32), 4, 0))
    assert batches[0].images["thermal"].shape == (4, 4, 32, 32)


def test_nothing_is_prepared_ahead_for_cheap_sensors(records, home, capsys):
    fill_cache(records, SENSORS, RECIPE)
    assert not home.exists()
    assert capsys.readouterr().err == ""


def test_a_bad_image_ends_filling_or_is_left_to_the_training(records, home, tmp_path):
    sensors = {"rgb": SENSORS["rgb"], "thermal": Sensor(1, "normals", calibration=CAMERA)}
    (tmp_path / "bad.png").write_text("no image")
    bad = [dataclasses.replace(records[0], files={"thermal": tmp_path / "bad.png"}), *records[1:]]
    with pytest.raises(UserError, match=r"bad.png: is not an image"):
        fill_cache(bad, sensors, RECIPE)
    fill_cache(bad, sensors, SKIP)
    assert len(list(home.rglob("*.safetensors"))) == 10


def test_samples_without_objects_keep_their_place(card, records):
    bare = dataclasses.replace(
        records[0], boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), ignore=np.zeros(0, bool)
    )
    (batch,) = eval_loader([bare, records[1], bare], SENSORS, (24, 32), 3, 0)
    assert [len(b) for b in batch.targets.boxes] == [0, 2, 0]
    assert [x.tolist() for x in batch.targets.labels] == [[], [1, 0], []]
    assert batch.targets.boxes[0].shape == (0, 4)
