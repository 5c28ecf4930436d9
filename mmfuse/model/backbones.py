"""Backbones: timm models that give features at strides 8, 16 and 32."""

import difflib
from typing import Any

import timm
from timm.models import FeatureInfo
from torch import Tensor, nn

from mmfuse.errors import UserError
from mmfuse.model.norms import keep_less
from mmfuse.scaling import Size

STRIDES = [8, 16, 32]

PRETRAINED_TAGS = {
    **{f"tf_efficientnet_b{n}": "aa_in1k" for n in range(8)},
    **{f"efficientnet_b{n}": tag for n, tag in enumerate(("ra_in1k", "ft_in1k", "ra_in1k", "ra2_in1k", "ra2_in1k"))},
    **{f"lcnet_{width}": "ra2_in1k" for width in ("050", "075", "100")},
}
"""Weights that an untagged name stands for, pinned because timm's own default changes."""


class Backbone(nn.Module):
    """A timm `features_only` model; `channels` are those of its maps at strides 8, 16 and 32."""

    def __init__(self, name: str, in_channels: int, *, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        plain = name.partition(".")[0]
        if not timm.is_model(plain):
            near = difflib.get_close_matches(plain, timm.list_models(), n=1) or ["resnet18"]
            raise UserError(f"backbone: {name!r} is not a timm model; use one of timm.list_models(), as {near[0]!r}")
        if pretrained and plain == name and name in PRETRAINED_TAGS:
            name = f"{name}.{PRETRAINED_TAGS[name]}"
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            self.net = timm.create_model(
                name, pretrained, features_only=True, out_indices=(-3, -2, -1), in_chans=in_channels, **options
            )
        except OSError as error:
            raise UserError(
                f"backbone: the weights of {name!r} can't be downloaded ({type(error).__name__}); connect, or use "
                "pretrained: false"
            ) from None
        except RuntimeError as error:
            raise UserError(
                f"backbone: {name!r} can't give feature maps ({' '.join(str(error).split())[:120]}); use another"
            ) from None
        info = self.net.feature_info
        assert isinstance(info, FeatureInfo)
        if list(info.reduction()) != STRIDES:
            raise UserError(f"backbone: {name!r} has strides {info.reduction()}, not {STRIDES}; use another")
        self.channels: list[int] = info.channels()
        keep_less(self.net)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turns images (B, C, H, W) into maps (B, channels, h, w) at strides 8, 16 and 32."""
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [x.permute(0, 3, 1, 2) if last else x for x in self.net(images)]


def default_name(size: Size, flavour: str) -> str:
    """Returns the timm name of a size's own backbone; "tf" pads as TensorFlow does."""
    if not size.backbone.startswith("b"):
        return size.backbone
    return f"{'tf_' if flavour == 'tf' else ''}efficientnet_{size.backbone}"
