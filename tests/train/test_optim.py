import pytest
import torch

from mmfuse.config import TrainRecipe
from mmfuse.model.build import create_detector
from mmfuse.model.fusion import FUSIONS
from mmfuse.train.optim import build_optimizer, rate_at


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
