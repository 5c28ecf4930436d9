import pytest
import timm
import torch

from mmfuse.errors import UserError
from mmfuse.model import backbones
from mmfuse.model.backbones import Backbone, default_name
from mmfuse.scaling import Size


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tinynet_e", [24, 56, 160]),
        ("test_resnet", [48, 192, 96]),
        ("mobilenetv3_small_050", [16, 24, 288]),
        ("test_convnext", [32, 48, 64]),
        ("test_mambaout", [32, 48, 64]),
    ],
)
@pytest.mark.parametrize("in_channels", [1, 2, 3, 4])
def test_maps_of_any_family_and_channel_count(name, channels, in_channels):
    backbone = Backbone(name, in_channels).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        maps = backbone(torch.randn(2, in_channels, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


def test_maps_with_channels_last_are_turned_even_where_height_equals_channels():
    backbone = Backbone("test_mambaout", 1).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 1, 256, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 32, 8), (1, 48, 16, 4), (1, 64, 8, 2)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"^backbone: 'resnet19' is not a timm model; .* 'resnet[^']*'$"),
        ("???", r"^backbone: '\?\?\?' is not a timm model; .*$"),
        ("resnet18.nonsense", r"^backbone: 'resnet18.nonsense' can't give feature maps \(.*nonsense.*\); use another$"),
        ("test_vit", r"^backbone: 'test_vit' has strides \[16, 16, 16\], not \[8, 16, 32\]; use another$"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_in_one_short_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        Backbone(name, 3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_weights_out_of_reach_are_one_line(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError,
        match=r"^backbone: the weights of 'resnet18' can't be downloaded .*; connect, give a file as pretrained, or",
    ):
        Backbone("resnet18", 3, pretrained=True)


def test_an_untagged_name_has_pinned_weights(monkeypatch):
    asked = []

    def note(name, *args, **options):
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", note)
    for name in ("tf_efficientnet_b0", "tf_efficientnet_b0.ns_jft_in1k", "resnet18"):
        with pytest.raises(UserError):
            Backbone(name, 3, pretrained=True)
    assert asked == ["tf_efficientnet_b0.aa_in1k", "tf_efficientnet_b0.ns_jft_in1k", "resnet18"]


def test_pinned_tags_exist():
    for name, tag in backbones.PRETRAINED_TAGS.items():
        assert f"{name}.{tag}" in timm.list_pretrained(f"{name}.*")


@pytest.mark.parametrize(
    ("backbone", "flavour", "name"),
    [
        ("b0", "tf", "tf_efficientnet_b0"),
        ("b6", "symmetric", "efficientnet_b6"),
        ("tinynet_e", "tf", "tinynet_e"),
        ("tinynet_e", "symmetric", "tinynet_e"),
    ],
)
def test_the_size_names_its_backbone(backbone, flavour, name):
    assert default_name(Size("x", 128, backbone, 8, 1, 1), flavour) == name
