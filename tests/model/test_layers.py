import pytest
import torch

from mmfuse.model.layers import GateUnit, Lateral, Separable, initialise


def test_initial_weights_have_the_variance_of_their_fan_in():
    torch.manual_seed(0)
    wide, deep = torch.nn.Conv2d(64, 64, 1), torch.nn.Conv2d(256, 256, 3, groups=256)
    initialise(torch.nn.Sequential(wide, deep))
    assert wide.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert deep.weight.std().item() == pytest.approx(1 / 3, rel=0.1)
    assert not wide.bias.any()


def test_a_separable_convolution_has_a_bias_at_its_end_alone():
    conv = Separable(4, 6, bias=True)
    assert conv.depthwise.bias is None
    assert conv.pointwise.bias is not None
    assert conv(torch.randn(2, 4, 5, 3)).shape == (2, 6, 5, 3)


def test_a_lateral_has_no_activation_and_a_gate_is_never_negative():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 3)
    assert Lateral(8, 4, bias=True)(x).min() < 0
    assert GateUnit(8, bias=True)(x).min() == 0
