import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.recipes import TrainRecipe
from mmfuse.training.freezing import freeze
from mmfuse.training.loop import train
from mmfuse.training.optim import build_optimizer


def test_frozen_parts_stay_to_the_last_bit_and_the_rest_learns(recipe_file, tmp_path):
    start = train(recipe_file("rgb", "thermal"), ["train.epochs=1", "doubt=off"], folder=tmp_path / "start")
    words = [f"init={start.folder}", "train.freeze=[backbones.rgb, class_head]", "train.epochs=2", "doubt=off"]
    run = train(recipe_file("rgb", "thermal"), words, folder=tmp_path / "run")
    before = checkpoint.load(start.folder).state_dict()
    after = checkpoint.load(run.last.with_name("best.safetensors")).state_dict()
    changed = {key.split(".")[0] + ("." + key.split(".")[1] if key.startswith("backbones") else "")
               for key, x in after.items() if not torch.equal(x, before[key])}  # fmt: skip
    assert {"backbones.rgb", "class_head"} & changed == set()
    metrics = run.metrics
    assert metrics[0]["epoch"] == 0
    state = checkpoint.read(run.last)[0]
    learnt = {key: x for key, x in state.items() if "backbones.thermal" in key and key.endswith("weight")}
    assert learnt


@pytest.mark.parametrize("placement", ["first", "boxes"])
def test_parts_are_named_and_hold_their_norms(placement):
    detector = create_detector("d-4", {"a": 1, "b": 1}, 1, placement=placement).train()
    held = freeze(detector, ["backbones"])
    frozen = [name for name, p in detector.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("backbones." in name for name in frozen)
    assert len([m for m in held if type(m).__name__ == "Backbone"]) == 2


def test_a_part_that_is_not_there_is_one_line():
    detector = create_detector("d-4", {"a": 1, "b": 1}, 1)
    with pytest.raises(
        UserError, match=r"train.freeze: 'backbones.c' is not a known part; did you mean 'backbones.[ab]'"
    ):
        freeze(detector, ["backbones.c"])
    with pytest.raises(
        UserError, match=r"train.freeze: backbones, pyramid, class_head, box_head leaves nothing to train"
    ):
        freeze(detector, ["backbones", "pyramid", "class_head", "box_head"])


def test_backbones_may_learn_slower():
    detector = create_detector("d-4", {"a": 1}, 1)
    count = len(list(detector.parameters()))
    for rate, scales in ((1.0, {1.0}), (0.1, {1.0, 0.1})):
        groups = build_optimizer(detector, TrainRecipe(backbone_rate=rate)).param_groups
        assert {group["scale"] for group in groups} == scales
        assert sum(len(group["params"]) for group in groups) == count
    slow = {id(p) for group in groups if group["scale"] == 0.1 for p in group["params"]}
    assert slow == {id(p) for p in detector.backbones.parameters()}


def test_the_rate_of_each_group_is_scaled(recipe_file, tmp_path, monkeypatch):
    seen = []
    take = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: seen.append([g["lr"] for g in self.param_groups]) or take(self)
    )
    words = ["train.epochs=1", "train.backbone_rate=0.1", "doubt=off"]
    train(recipe_file("thermal"), words, folder=tmp_path / "run")
    assert seen
    for rates in seen:
        assert rates == pytest.approx([rates[0]] * 2 + [0.1 * rates[0]] * 2)
