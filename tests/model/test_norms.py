from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from benchmarks.counters import count
from mmfuse.model.build import create_detector
from mmfuse.model.norms import Excite, NormAct, keep_less


def pair(activation):
    """Returns timm's norm and ours, with the same drawn weights and statistics."""
    torch.manual_seed(0)
    plain = BatchNormAct2d(6, eps=1e-3, momentum=0.3, act_layer=activation)
    for value in (plain.weight.data, plain.bias.data, plain.running_mean):
        value.normal_()
    ours = deepcopy(plain)
    keep_less(ours)
    assert type(ours) is NormAct
    return plain, ours


def run(norm, x, gradient, half=False):
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        out = norm(x)
    found = torch.autograd.grad(out, (x, norm.weight, norm.bias), gradient.to(out.dtype))
    return out, *found, norm.running_mean, norm.running_var, norm.num_batches_tracked


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_gradients_and_statistics_are_timms(activation, layout):
    plain, ours = pair(activation)
    x = (torch.randn(3, 6, 5, 4) * 3 + 1).contiguous(memory_format=layout)
    gradient = torch.randn_like(x)
    for _ in range(2):
        expected, found = run(plain, x, gradient), run(ours, x, gradient)
        for theirs, mine in zip(expected, found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    plain.eval(), ours.eval()
    assert torch.equal(plain(x), ours(x))


def test_half_precision_stays_half_and_close():
    plain, ours = pair(nn.SiLU)
    x = torch.randn(3, 6, 5, 4).bfloat16()
    gradient = torch.randn_like(x)
    expected, found = run(plain, x, gradient, half=True), run(ours, x, gradient, half=True)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for theirs, mine in zip(expected, found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gpu_finds_the_same(dtype, layout):
    plain, ours = (norm.cuda() for norm in pair(nn.SiLU))
    x = (torch.randn(4, 6, 16, 16) * 3 + 1).to("cuda", dtype).contiguous(memory_format=layout)
    gradient = torch.randn_like(x)
    half = dtype == torch.bfloat16
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    for theirs, mine in zip(run(plain, x, gradient, half), run(ours, x, gradient, half), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_a_constant_map_has_finite_gradients():
    _, ours = pair(nn.SiLU)
    for value in run(ours, torch.full((2, 6, 3, 3), 1e4), torch.ones(2, 6, 3, 3)):
        assert value.isfinite().all()


def test_parts_that_are_frozen_get_no_gradient():
    plain, ours = pair(nn.SiLU)
    x = torch.randn(2, 6, 3, 3)
    for norm in (plain, ours):
        norm.weight.requires_grad_(False)
        norm(x).sum().backward()
        assert norm.weight.grad is None
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


def test_one_map_is_kept_instead_of_two():
    def kept(norm):
        maps = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: maps.add(x.data_ptr()) if x.shape == (2, 6, 8, 8) else None, lambda _: None
        ):
            norm(torch.randn(2, 6, 8, 8, requires_grad=True))
        return len(maps)

    plain, ours = pair(nn.SiLU)
    assert (kept(plain), kept(ours)) == (2, 1)


def test_a_second_gradient_is_an_error():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(NormAct(4, act_layer=nn.SiLU)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "options",
    [{"act_layer": nn.ReLU}, {"act_layer": nn.SiLU, "drop_layer": nn.Dropout}, {"act_layer": nn.SiLU, "affine": False}],
)
def test_what_gains_nothing_or_is_more_than_both_is_timms(options):
    torch.manual_seed(0)
    plain = BatchNormAct2d(4, **options)
    ours = deepcopy(plain)
    keep_less(ours)
    x = torch.randn(2, 4, 3, 3)
    outputs = []
    for norm in (plain, ours):
        torch.manual_seed(1)
        outputs.append(norm(x))
    assert torch.equal(*outputs)
    assert type(outputs[0].grad_fn) is type(outputs[1].grad_fn)


def test_a_network_keeps_its_parameters_and_names():
    net = timm.create_model("lcnet_035", features_only=True)
    before = {name: value.data_ptr() for name, value in net.state_dict(keep_vars=True).items()}
    keep_less(net)
    assert before == {name: value.data_ptr() for name, value in net.state_dict(keep_vars=True).items()}
    assert sum(isinstance(part, NormAct) for part in net.modules()) > 20


def test_one_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        NormAct(4, act_layer=nn.SiLU)(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize("placement", ["first", "boxes"])
def test_a_detector_has_them_in_backbones_and_heads(placement):
    detector = create_detector(
        "d-4", {"a": 3, "b": 1}, num_classes=2, backbone="efficientnet_lite0", placement=placement
    )
    parts = {name: type(part) for name, part in detector.named_modules() if isinstance(part, BatchNormAct2d)}
    assert set(parts.values()) == {NormAct}
    assert any("head" in name for name in parts)
    assert any("backbone" in name for name in parts)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_squeeze_and_excite_is_timms_and_its_mean_has_no_gradient_as_large_as_a_map(layout, half):
    torch.manual_seed(0)
    plain = SqueezeExcite(8, act_layer=nn.SiLU)
    ours = deepcopy(plain)
    keep_less(ours)
    assert type(ours) is Excite
    x = (torch.randn(3, 8, 6, 5) * 3 + 1).contiguous(memory_format=layout)
    gradient = torch.randn_like(x)

    def run(module):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = module(given.bfloat16() if half else given)
        return out, *torch.autograd.grad(out, (given, *module.parameters()), gradient.to(out.dtype))

    tolerance = {"rtol": 3e-2, "atol": 3e-2} if half else {"rtol": 1e-5, "atol": 1e-6}
    for mine, theirs in zip(run(ours), run(plain), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **tolerance)
    written = [count(lambda module=module: run(module)).bytes["div"] for module in (ours, plain)]
    assert written[0] * 10 < written[1]
    assert torch.equal(ours.eval()(x), plain.eval()(x))
