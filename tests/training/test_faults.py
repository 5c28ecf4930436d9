from dataclasses import replace

import torch

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.loader import train_loader
from mmfuse.evaluation.corruptions import UNSEEN, ObjectCorruption, objects_in
from mmfuse.images.decode import read_image
from mmfuse.recipes import DataRecipe
from mmfuse.training.faults import Strikes, Struck

DATA = DataRecipe(workers=0, hflip=0, color_jitter=0, scale_jitter=(1, 1))


def drawn(share, record, sensors, count=400):
    return [Strikes(share)(record, sensors, torch.Generator().manual_seed(seed)) for seed in range(count)]


def hides(one):
    return one[1] is not None and isinstance(one[1].fault, ObjectCorruption)


def test_one_sensor_of_the_share_is_struck_by_what_training_may_know(paired_set):
    card = load_card(paired_set)
    record, sensors = read_split(card, "train")[0], {m: card.modalities[m] for m in ("rgb", "thermal")}
    assert drawn(0.0, record, sensors) == [None] * 400
    hidden, struck = ([one for one in drawn(0.4, record, sensors) if one and hides(one) == h] for h in (True, False))
    assert 120 < len(struck) < 200
    assert {m for m, _ in struck} == {"rgb", "thermal"}
    changes = [change for _, change in struck if change is not None]
    assert 0 < len(struck) - len(changes) < 80
    assert {change.severity for change in changes} == {1, 2, 3, 4, 5}
    assert all(len(change.boxes) == 0 for change in changes)
    names = {change.fault.name for change in changes}
    assert {"noise", "blur", "gain", "over_exposure"} <= names
    assert not names & set(UNSEEN)
    assert all(change.fault.suits(sensors[change.modality]) for change in changes)

    assert 120 < len(hidden) < 200
    assert {(m, change.fault.name) for m, change in hidden} == {("rgb", "camouflage"), ("thermal", "crossover")}


def test_some_objects_are_hidden_from_one_sensor(paired_set):
    card = load_card(paired_set)
    record, sensors = read_split(card, "train")[0], {m: card.modalities[m] for m in ("rgb", "thermal")}
    every = {tuple(box) for box in objects_in(record, "rgb", sensors["rgb"]).tolist()}
    hidden = [change for _, change in filter(None, drawn(0.5, record, sensors)) if change and hides((None, change))]
    chosen = [{tuple(box) for box in change.boxes.tolist()} for change in hidden]
    assert all(some <= every for some in chosen)
    assert 0.4 < sum(map(len, chosen)) / len(chosen) / len(every) < 0.6
    change = next(c for c in hidden if c.modality == "thermal" and len(c.boxes) and c.severity == 5)
    raw = read_image(record.files["thermal"], sensors["thermal"])
    struck = change(record.image_id, "thermal", raw)
    assert torch.equal(struck, change.fault(raw, sensors["thermal"], 5, 0, change.boxes))
    assert not torch.equal(struck, raw)


def test_a_share_above_a_half_leaves_fewer_images_to_hide_objects_in(paired_set):
    card = load_card(paired_set)
    record, sensors = read_split(card, "train")[0], {m: card.modalities[m] for m in ("rgb", "thermal")}
    of = {share: [hides(one) for one in drawn(share, record, sensors)] for share in (0.8, 1.0)}
    assert 40 < sum(of[0.8]) < 120
    assert len(of[0.8]) == len(of[1.0]) == 400
    assert not any(of[1.0])


def test_a_sensor_without_boxes_in_its_image_hides_nothing(paired_set):
    card = load_card(paired_set)
    record = read_split(card, "train")[0]
    warped = {m: replace(card.modalities[m], register="rig") for m in ("rgb", "thermal")}
    assert not any(hides(one) for one in drawn(0.5, record, warped) if one)


def test_the_last_sensor_is_never_struck(paired_set):
    card = load_card(paired_set)
    record = read_split(card, "train")[0]
    assert drawn(1.0, record, {"rgb": card.modalities["rgb"]}, 50) == [None] * 50
    record.files.pop("thermal")
    assert drawn(1.0, record, {m: card.modalities[m] for m in ("rgb", "thermal")}, 50) == [None] * 50


def test_only_the_struck_image_changes(paired_set):
    card = load_card(paired_set)
    sensors = {m: card.modalities[m] for m in ("rgb", "thermal")}
    (change, *_) = [c for _, c in filter(None, drawn(1.0, read_split(card, "train")[0], sensors)) if c is not None]
    assert isinstance(change, Struck)
    other = next(m for m in sensors if m != change.modality)
    raw = {
        "rgb": torch.full((3, 8, 8), 90, dtype=torch.uint8),
        "thermal": torch.full((1, 8, 8), 7800, dtype=torch.uint16),
    }
    assert change(1, other, raw[other]) is raw[other]
    assert change(1, change.modality, raw[change.modality]).dtype == raw[change.modality].dtype


def test_batches_are_struck_alike_whenever_they_are_made(paired_set):
    card = load_card(paired_set)
    records = read_split(card, "train")

    def batch(share, epoch=0):
        loader = train_loader(
            card, records, ["rgb", "thermal"], (96, 128), DATA, 8, 0, strike=Strikes(share) if share else None
        )
        return next(loader.epoch(epoch))

    plain, struck, again = batch(0), batch(1.0), batch(1.0)
    changed = torch.zeros(8, dtype=torch.int64)
    for m in ("rgb", "thermal"):
        assert torch.equal(struck.images[m], again.images[m])
        assert torch.equal(struck.present[m], again.present[m])
        other = (struck.images[m].float() != plain.images[m].float()).flatten(1).any(1)
        changed += (other | ~struck.present[m]).long()
    assert changed.max() == 1
    assert changed.sum() >= 6
    assert not all(torch.equal(batch(1.0, 1).images[m], struck.images[m]) for m in ("rgb", "thermal"))
