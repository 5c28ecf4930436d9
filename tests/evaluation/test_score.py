import json
import shutil
from dataclasses import asdict

import pytest

from mmfuse.errors import UserError
from mmfuse.evaluation.curves import THRESHOLD, best_thresholds
from mmfuse.evaluation.score import evaluate
from mmfuse.model import checkpoint
from mmfuse.strict_yaml import read_yaml
from mmfuse.training.loop import train


@pytest.fixture(scope="module")
def shifted_set(paired_set, tmp_path_factory):
    """The embedded set, with objects of thermal's own: the first of the reference's, 3 pixels to the left."""
    folder = tmp_path_factory.mktemp("own")
    for split in ("train", "val", "test"):
        values = json.loads((paired_set.parent / f"{split}.json").read_text())
        for image in values["images"]:
            (first, *_) = [a for a in values["annotations"] if a["image_id"] == image["id"]]
            x, *rest = first["bbox"]
            image["objects_of"] = {"thermal": [{**first, "bbox": [max(x - 3, 0), *rest]}]}
        (folder / f"{split}.json").write_text(json.dumps(values))
    for m in ("rgb", "thermal", "depth"):
        shutil.copytree(paired_set.parent / m, folder / m)
    card = folder / "card.yaml"
    card.write_text(paired_set.read_text())
    return card


def test_own_boxes_count_where_a_modality_is_seen_alone(shifted_set, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"card: {shifted_set}\nmodalities: [rgb, thermal]\nmodel: {{size: d-4}}\n"
        "data: {input_size: [96, 128], workers: 0, boxes: own}\ntrain: {epochs: 1, batch_size: 4}\n"
    )
    fused = train(recipe, folder=tmp_path / "fused")
    whole = evaluate(fused)
    assert whole.scores.boxes > 4
    assert evaluate(fused, without=["rgb"]).scores.boxes == 4
    assert evaluate(fused, without=["thermal"]).scores.boxes == whole.scores.boxes
    alone = train(recipe, ["modalities=[thermal]"], folder=tmp_path / "alone")
    found = evaluate(alone)
    assert found.scores.boxes == 4
    assert found.digest == whole.digest
    assert json.loads((alone.folder / "test.json").read_text())["boxes"] == "own"
    assert read_yaml(alone.folder / "config.yaml")["data"]["boxes"] == "own"
    by_reference = train(recipe, ["modalities=[thermal]", "data.boxes=reference"], folder=tmp_path / "reference")
    assert evaluate(by_reference).scores.boxes == whole.scores.boxes


@pytest.mark.parametrize("key", ["shift", "rotation"])
def test_a_modality_to_be_moved_is_in_the_card(recipe_file, tmp_path, key):
    with pytest.raises(UserError, match=rf"data\.{key}: 'termal' is not a known modality of .*thermal"):
        train(recipe_file("rgb"), [f"data.{key}={{termal: 3}}"], folder=tmp_path / "run")
    run = train(recipe_file("rgb"), [f"data.{key}={{thermal: 3}}", "train.epochs=1"], folder=tmp_path / "run")
    assert run.finished


def test_thresholds_are_chosen_on_validation_alone(recipe_file, tmp_path):
    run = train(recipe_file("rgb"), ["train.epochs=3", "train.ema_decay=0"], folder=tmp_path / "run")
    chosen = checkpoint.thresholds(run.best)
    on_val, on_test = evaluate(run, split="val"), evaluate(run)
    assert chosen == best_thresholds(on_val.matches, on_val.detector.classes) != {}
    assert chosen != best_thresholds(on_test.matches, on_test.detector.classes)
    for found in (on_val, on_test):
        told = found.curves.confusion
        assert told.chosen_on == "val"
        assert told.thresholds == {name: chosen.get(name, THRESHOLD) for name in found.detector.classes}
    written = (run.folder / "test.json").read_text()
    assert json.loads(written)["curves"] == json.loads(json.dumps(asdict(on_test.curves)))
    assert max(map(len, written.splitlines())) > 400  # a curve is a line
    tensors, header = checkpoint.read(run.best)
    del header["notes"]["thresholds"]
    checkpoint.save(run.best, tensors, header)
    told = evaluate(run).curves.confusion
    assert (told.chosen_on, set(told.thresholds.values())) == (None, {THRESHOLD})
