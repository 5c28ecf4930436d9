import copy

import torch
from test_branches import make
from timm.utils.model_ema import ModelEmaV3

from benchmarks.counters import count
from mmfuse.training.average import Average


def moved(detector, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in detector.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 9)


def test_the_average_is_timms_in_two_calls():
    detector = make()
    own, timms = Average(detector, 0.99), ModelEmaV3(detector, 0.99, use_warmup=True)
    for step in (0, 7):
        moved(detector, step)
        timms.update(detector, step)
        calls = count(lambda step=step: own.update(detector, step)).calls
        assert calls == {"_foreach_lerp_": 1, "_foreach_copy_": 1}
        for name, value in timms.module.state_dict().items():
            assert torch.equal(own.module.state_dict()[name], value), name
    assert any(value.any() for value in own.module.state_dict().values() if not value.is_floating_point())


def test_what_is_restored_is_averaged_on():
    detector = make()
    average = Average(detector, 0.0)
    restored = copy.deepcopy(detector)
    moved(restored, 1)
    for module in (detector, average.module):
        module.load_state_dict(restored.state_dict())
    moved(detector, 2)
    average.update(detector, 5)
    values = (module.state_dict().values() for module in (average.module, detector))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
