"""What is new is defined in one place, here, and learnt from and loaded without a change to the package."""

import json
from functools import partial

import pytest
import torch

import mmfuse
from mmfuse.data.annotations import readers
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.records import Annotation
from mmfuse.model.checkpoint import save_detector
from mmfuse.model.fusion import FUSIONS, Merge
from mmfuse.model.graphs import PYRAMIDS, repeated
from mmfuse.sample import Targets
from mmfuse.strict_yaml import read_yaml, save_yaml


def semicolons(content, size):
    """A line for each object: name;left;top;right;bottom, in pixels."""
    for number, line in enumerate(content.decode().splitlines(), 1):
        name, *corners = line.split(";")
        yield Annotation(name, tuple(map(float, corners)), line, f"line {number}")


@pytest.fixture
def lines_card(paired_set, tmp_path):
    """The card of the embedded set with its labels as text, a file for each image."""
    values, root = read_yaml(paired_set), paired_set.parent
    for split, file in values["splits"].items():
        listing = json.loads((root / file).read_text())
        for image in listing["images"]:
            path = tmp_path / "set" / "labels" / split / f"{image['id']:06d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            boxes = [(a["category_id"], *a["bbox"]) for a in listing["annotations"] if a["image_id"] == image["id"]]
            lines = [f"{values['classes'][k - 1]};{x};{y};{x + w};{y + h}\n" for k, x, y, w, h in boxes]
            path.write_text("".join(lines))
    for m in values["modalities"]:
        (tmp_path / "set" / m).mkdir()
        for split in values["splits"]:
            (tmp_path / "set" / m / split).mkdir()
            for path in (root / m / split).iterdir():
                (tmp_path / "set" / m / split / path.name).write_bytes(path.read_bytes())
    del values["conditions"]
    values |= {
        "root": "set",
        "reader": "semicolons",
        "splits": {split: {"folder": split} for split in values["splits"]},
        "layout": {
            "files": {"rgb": "rgb/{folder}/{id}.jpg"} | {m: m + "/{folder}/{id}.png" for m in ("thermal", "depth")},
            "annotations": {"rgb": "labels/{folder}/{id}.txt"},
        },
    }
    save_yaml(tmp_path / "card.yaml", values)
    return tmp_path / "card.yaml"


def test_a_reader(lines_card, paired_set, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setitem(readers.READERS, "semicolons", partial(readers.read_each, semicolons))
    read, known = (readers.read_split(load_card(card), "train") for card in (lines_card, paired_set))
    assert [record.boxes.tolist() for record in read] == [record.boxes.tolist() for record in known]
    assert [record.labels.tolist() for record in read] == [record.labels.tolist() for record in known]
    run = mmfuse.train(
        recipe_file("rgb", "thermal"),
        [f"card={lines_card}", "train.epochs=1", "train.batch_size=8"],
        folder=tmp_path / "run",
    )
    assert mmfuse.load(run.best).classes == load_card(lines_card).classes


class Largest(Merge):
    """The input of the largest weight counts three times as much as each of the others."""

    @staticmethod
    def normalise(weight, present):
        largest = weight.masked_fill(present == 0, -torch.inf).amax(-2, keepdim=True)
        counted = weight.sigmoid() * torch.where(weight == largest, 3.0, 1.0) * present
        return counted / counted.sum(-2, keepdim=True)


def ladder(stream):
    """Bottom-up: a level reads its own map and what the finer one made of its own."""
    finer, out = (), {}
    for level in stream.levels:
        finer = out[level] = stream.merge(level, stream.current[level], finer)
    return out


@pytest.mark.parametrize(
    ("table", "name", "new", "option"),
    [(FUSIONS, "largest", Largest, "fusion"), (PYRAMIDS, "ladder", repeated(ladder), "pyramid")],
)
def test_a_fusion_or_a_pyramid(table, name, new, option, tmp_path, monkeypatch):
    monkeypatch.setitem(table, name, new)
    torch.manual_seed(0)
    detector = mmfuse.create_detector("d-4", {"a": 3, "b": 1}, 2, **{option: name}).train()
    images = {"a": torch.randn(3, 3, 64, 64), "b": torch.randn(3, 1, 64, 64)}
    present = {"b": torch.tensor([True, False, True])}
    targets = Targets([torch.tensor([[4.0, 8, 40, 50]])] * 3, [torch.tensor([1])] * 3)
    optimizer = torch.optim.SGD(detector.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        detector.loss(detector(images, present), targets)["total"].backward()
        optimizer.step()
    assert [key for key, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    save_detector(tmp_path / "x.safetensors", detector, {})
    loaded = mmfuse.load(tmp_path / "x.safetensors")
    assert loaded.spec[option] == name
    assert sum(loaded.fusion_shares()[m][3] for m in "ab") == pytest.approx(1)
    with torch.no_grad():
        saved = detector.to(memory_format=torch.channels_last).eval()
        expected, found, folded = (one(images, present) for one in (saved, loaded, loaded.folded()))
    assert torch.equal(found.class_logits, expected.class_logits)
    torch.testing.assert_close(folded.class_logits, expected.class_logits, rtol=0, atol=1e-4)
