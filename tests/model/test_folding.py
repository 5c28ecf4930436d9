import copy

import pytest
import torch
from torch import nn

from benchmarks.counters import count
from mmfuse.errors import UserError
from mmfuse.model.backbones import Backbone
from mmfuse.model.build import create_detector
from mmfuse.model.checkpoint import save_detector
from mmfuse.model.fusion import FUSIONS


def stirred(detector):
    """The detector with norms and weights that are no longer at their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in detector.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
        for merge in detector.pyramid.merges:
            merge.weight.uniform_(0.2, 2)
    return detector.eval()


def make(modalities="ab", **options):
    torch.manual_seed(0)
    return stirred(create_detector("d-4", dict.fromkeys(modalities, 3), 4, **options))


def images(modalities="ab", batch=3):
    generator = torch.Generator().manual_seed(2)
    return {m: torch.randn(batch, 3, 64, 128, generator=generator) for m in modalities}


def alike(folded, detector, given, present=None):
    with torch.inference_mode():
        expected, found = detector(given, present), folded(given, present)
    assert expected.class_logits.std() > 0.05
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.box_codes, expected.box_codes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_folded_detector_says_the_same_for_every_set_of_sensors(fusion):
    detector = make(fusion=fusion)
    folded = detector.folded()
    for given in ("ab", "a", "b"):
        alike(folded, detector, images(given))
    alike(folded, detector, images(), {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, True, False])})


@pytest.mark.parametrize(
    "options",
    [
        {"pyramid": "gfrnet"},
        {"pyramid": "nas_fpn"},
        {"pyramid": "stdn"},
        {"flavour": "symmetric"},
        {"placement": "last"},
        {"placement": "channels"},
        {"align": "a"},
        {"backbone": "resnet18"},
        {"share_backbone": True},
    ],
)
def test_whatever_the_detector_is_made_of(options):
    detector = make(**options)
    alike(detector.folded(), detector, images())


def test_other_sizes_follow():
    detector = make("a")
    folded = detector.folded()
    for shape in ((64, 64), (128, 64), (64, 64)):
        alike(folded, detector, {"a": torch.randn(1, 3, *shape)})


def test_nothing_that_can_be_folded_is_left():
    folded = make().folded()
    left = [name for name, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert {name.split(".")[0] for name in left} == {"class_head", "box_head"}  # they are constants of each place
    given = images()
    with torch.inference_mode():
        folded(given)
        calls = count(lambda: folded(given)).calls
    assert not {"batch_norm", "native_batch_norm", "relu", "div", "stack", "index", "rsqrt"} & set(calls)


def test_the_detector_itself_is_as_it_was():
    detector = make()
    before = copy.deepcopy(detector.state_dict())
    folded = detector.folded()
    assert all(torch.equal(x, before[key]) for key, x in detector.state_dict().items())
    assert detector.state_dict().keys() == before.keys()
    assert any(p.requires_grad for p in detector.parameters())
    assert not any(p.requires_grad for p in folded.parameters())
    detector.train()
    assert detector.pyramid.merges[0].training
    assert not folded.training


def test_detections_are_the_same():
    detector = make()
    pictures = {m: (x * 40 + 128).clamp(0, 255).byte() for m, x in images().items()}
    for one, other in zip(detector.folded().detect(pictures), detector.detect(pictures), strict=True):
        assert len(one.scores) == 100
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)


def test_an_ensemble_is_folded_member_by_member():
    torch.manual_seed(0)
    ensemble = create_detector("d-4", {"a": 3, "b": 3}, 4, placement="boxes")
    for member in ensemble.members.values():
        stirred(member)
    folded = ensemble.eval().folded()
    given = images()
    with torch.inference_mode():
        for expected, found in zip(ensemble(given).members.values(), folded(given).members.values(), strict=True):
            torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-4)
    assert not any(isinstance(p, nn.BatchNorm2d) for p in folded.members["a"].pyramid.modules())


def test_a_folded_detector_is_for_inference_alone(tmp_path):
    folded = make("a").folded()
    with pytest.raises(UserError, match="can't be trained; train the one"):
        folded.train()
    with pytest.raises(UserError, match="can't be saved; save the one"):
        save_detector(tmp_path / "x.safetensors", folded, {})
    assert not list(tmp_path.iterdir())
    assert folded.folded().frozen


def test_a_folded_detector_can_be_moved():
    folded = make().folded()
    moved = folded.to(torch.float64)
    with torch.inference_mode():
        found = moved({m: x.double() for m, x in images().items()})
    assert found.class_logits.dtype == torch.float64


def test_a_norm_that_others_read_around_is_not_folded():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    assert kept(Around()) == 1
    assert kept(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))) == 0
    shared = nn.Conv2d(3, 3, 1)
    assert kept(nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3))) == 2


def test_a_network_that_can_t_be_traced_stays_as_it_is():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    assert kept(Untraceable(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))) == 1


def kept(net):
    backbone = Backbone("resnet18", 3)
    backbone.net = stirred_net(net)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        before = backbone.net(x)
        backbone.fold()
        torch.testing.assert_close(backbone.net(x), before)
    return sum(isinstance(part, nn.BatchNorm2d) for part in backbone.net.modules())


def stirred_net(net):
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "lcnet_050", "mobilenetv3_small_100", "resnet18"])
def test_all_norms_of_common_backbones_are_folded(name):
    backbone = Backbone(name, 3)
    stirred_net(backbone.net)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone.eval()(x)
        backbone.fold()
        for found, expected in zip(backbone(x), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in backbone.modules())
