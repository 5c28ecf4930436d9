import pytest
import torch
from torch import nn

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.sample import Targets


class Net(nn.Module):
    """Three convolutions, whose maps have strides 8, 16 and 32."""

    def __init__(self, channels=1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.next = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 2, 2), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x):
        maps = [self.stem(x)]
        for part in self.next:
            maps.append(part(maps[-1]))
        return maps


def images(batch=2):
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(batch, c, 128, 128, generator=generator) for m, c in (("rgb", 3), ("thermal", 1))}


@pytest.mark.parametrize("placement", ["first", "last", "boxes"])
def test_a_module_of_the_user_s_is_a_backbone(placement, tmp_path):
    torch.manual_seed(0)
    detector = create_detector("d-4", {"rgb": 3, "thermal": 1}, 2, placement=placement, backbones={"thermal": Net()})
    boxes, labels = torch.tensor([[5.0, 5, 60, 60]]), torch.tensor([1])
    detector.train()
    detector.loss(detector(images()), Targets([boxes] * 2, [labels] * 2))["total"].backward()
    own = [p for name, p in detector.named_parameters() if "backbones.thermal" in name]
    assert len(own) == 12
    assert all(p.grad is not None for p in own)
    checkpoint.save_detector(tmp_path / "x.safetensors", detector.eval(), {})
    again = checkpoint.load(tmp_path / "x.safetensors", backbones={"thermal": Net()})
    raw = {m: torch.randint(0, 256, (x.shape[1], 100, 130), dtype=torch.uint8) for m, x in images().items()}
    (one,), (other,) = detector.detect(raw), again.detect(raw)
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-5)
    (folded,) = again.folded().detect(raw)
    torch.testing.assert_close(folded.scores, other.scores, rtol=1e-3, atol=1e-4)
    for backbones in (None, {"rgb": Net(3)}):
        with pytest.raises(UserError, match=r"backbones: the detector has own ones for \['thermal'\], given are"):
            checkpoint.load(tmp_path / "x.safetensors", backbones=backbones)


class Wrong(nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return self.maps(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Net(3), r"backbones: thermal: can't read images of 1 channels \(.*\); give a module that does"),
        (Wrong(lambda x: [x]), r"backbones: thermal: of 128 x 128 gives \[\(2, 1, 128, 128\)\]; give three maps"),
        (Wrong(lambda x: Net()(x)[:2]), r"gives \[\(2, 8, 16, 16\), \(2, 8, 8, 8\)\]; give three maps \(B, c, h, w\)"),
        (Wrong(lambda x: [1, 2, 3]), r"gives \['int', 'int', 'int'\]; give three maps"),
    ],
)
def test_a_module_that_gives_other_maps_is_one_line(net, message):
    with pytest.raises(UserError, match=message) as caught:
        create_detector("d-4", {"rgb": 3, "thermal": 1}, 2, backbones={"thermal": net})
    assert "\n" not in str(caught.value)


def test_own_backbones_need_a_sensor_each():
    with pytest.raises(UserError, match=r"backbones: 'radar' is not a known modality of this detector"):
        create_detector("d-4", {"rgb": 3}, 2, backbones={"radar": Net()})
    with pytest.raises(UserError, match=r"backbones: one backbone reads all modalities here"):
        create_detector("d-4", {"a": 1, "b": 1}, 2, backbones={"a": Net()}, placement="channels")
