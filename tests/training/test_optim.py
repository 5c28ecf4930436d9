import copy

import pytest
import torch
from torch import nn

from mmfuse.model.build import create_detector
from mmfuse.model.fusion import FUSIONS
from mmfuse.recipes import TrainRecipe
from mmfuse.training.optim import build_optimizer, rate_at


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_kernels_alone_are_decayed(fusion, optimizer):
    detector = create_detector("d-4", {"a": 1, "b": 1}, 2, fusion=fusion)
    decayed, free = build_optimizer(detector, TrainRecipe(optimizer=optimizer, weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    kernels = {id(p) for p in decayed["params"]}
    for name, parameter in detector.named_parameters():
        is_kernel = name.endswith("weight") and (parameter.ndim == 4 or ".gates." in name)
        assert (id(parameter) in kernels) == is_kernel, name
    assert len(decayed["params"]) + len(free["params"]) == len(list(detector.parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_step_is_the_plain_one_where_channels_come_last(optimizer):
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 2))
    one = one.to(memory_format=torch.channels_last)
    other = copy.deepcopy(one)
    fused, plain = (build_optimizer(model, TrainRecipe(optimizer=optimizer, lr=0.04)) for model in (one, other))
    for group in plain.param_groups:
        assert group["fused"]
        group |= {"fused": False, "foreach": False}
    for step in range(3):
        images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
        for model, steps in ((one, fused), (other, plain)):
            steps.zero_grad()
            parts = model if step else model[:-1]  # what a sensor needs that no image of a batch has gets no gradient
            parts(images).square().sum().backward()
            steps.step()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_rate_warms_up_to_its_peak_and_falls_to_zero():
    recipe = TrainRecipe(epochs=10, batch_size=32, lr=0.2, warmup_epochs=1)
    rates = torch.tensor([rate_at(step, recipe, 10) for step in range(100)])
    assert rates[0] == pytest.approx(0.1 / 11)
    assert rates.argmax() == 10
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert (rates[:11].diff() > 0).all()
    assert (rates[10:].diff() < 0).all()
    assert rates[-1] < 1e-3 * 0.1
