"""Backbones: timm models that give features at strides 8, 16 and 32."""

import difflib
import logging
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from mmfuse.errors import UserError
from mmfuse.model.layers import Foldable, folded
from mmfuse.model.pretrained import downloading, weights_of
from mmfuse.scaling import Size

STRIDES = [8, 16, 32]

PRETRAINED_TAGS = {
    **{f"tf_efficientnet_b{n}": "aa_in1k" for n in range(8)},
    **{f"efficientnet_b{n}": tag for n, tag in enumerate(("ra_in1k", "ft_in1k", "ra_in1k", "ra2_in1k", "ra2_in1k"))},
    **{f"lcnet_{width}": "ra2_in1k" for width in ("050", "075", "100")},
}
"""Weights that an untagged name stands for, pinned because timm's own default changes."""


class Backbone(Foldable):
    """A timm `features_only` model; `channels` are those of its maps at strides 8, 16 and 32.

    `pretrained` is a file of timm's weights, or True for those that `pretrained.weights_of` knows. They are for three
    channels: the first filters of one are the sum of theirs, those of more repeat them, scaled to that sum (timm).
    """

    def __init__(
        self, name: str, in_channels: int, *, pretrained: bool | str | Path = False, drop_path: float = 0.0
    ) -> None:
        import timm
        from timm.models import FeatureInfo

        super().__init__()
        plain = name.partition(".")[0]
        if not timm.is_model(plain):
            near = difflib.get_close_matches(plain, timm.list_models(), n=1) or ["resnet18"]
            raise UserError(f"backbone: {name!r} is not a timm model; use one of timm.list_models(), as {near[0]!r}")
        if pretrained and plain == name and name in PRETRAINED_TAGS:
            name = f"{name}.{PRETRAINED_TAGS[name]}"
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        weights = weights_of(name, pretrained) if pretrained else None
        if weights is not None:
            options["pretrained_cfg_overlay"] = {"state_dict": weights}
            logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # that it leaves the classifier out
        try:
            with downloading(name) if pretrained and weights is None else nullcontext():
                self.net = timm.create_model(
                    name,
                    bool(pretrained),
                    features_only=True,
                    out_indices=(-3, -2, -1),
                    in_chans=in_channels,
                    **options,
                )
        except RuntimeError as error:
            raise UserError(
                f"backbone: {name!r} can't give feature maps ({' '.join(str(error).split())[:120]}); use another"
            ) from None
        info = self.net.feature_info
        assert isinstance(info, FeatureInfo)
        if list(info.reduction()) != STRIDES:
            raise UserError(f"backbone: {name!r} has strides {info.reduction()}, not {STRIDES}; use another")
        self.channels: list[int] = info.channels()

    def fold(self) -> None:
        """Folds batch norms of the network, as tracing it shows; one that can't be traced stays as it is."""
        for source, target in _pairs(self.net):
            norm = self.net.get_submodule(target)
            self.net.set_submodule(target, folded(self.net.get_submodule(source), norm))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turns images (B, C, H, W) into maps (B, channels, h, w) at strides 8, 16 and 32."""
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [x.permute(0, 3, 1, 2) if last else x for x in self.net(images)]


class OwnBackbone(Backbone):
    """A module of the user's, which turns images (B, C, H, W) into maps (B, c, h, w) at strides 8, 16 and 32.

    Raises:
        UserError: it doesn't.
    """

    def __init__(self, modality: str, net: nn.Module, in_channels: int) -> None:
        super(Backbone, self).__init__()
        self.net = net
        side, mode = 4 * STRIDES[-1], net.training
        try:
            with torch.no_grad():
                maps = list(net.eval()(torch.zeros(2, in_channels, side, side)))
        except Exception as error:  # whatever a module does that isn't made for this
            problem = f"can't read images of {in_channels} channels ({' '.join(str(error).split())[:120]})"
            raise UserError(f"backbones: {modality}: {problem}; give a module that does") from None
        finally:
            net.train(mode)
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in maps]
        sizes = [(side // stride,) * 2 for stride in STRIDES]
        if [shape[2:] if len(shape) == 4 else None for shape in shapes] != sizes:
            wanted = f"three maps (B, c, h, w) at strides {', '.join(map(str, STRIDES))}"
            raise UserError(f"backbones: {modality}: of {side} x {side} gives {shapes}; give {wanted}")
        self.channels = [x.shape[1] for x in maps]


def default_name(size: Size, flavour: str) -> str:
    """Returns the timm name of a size's own backbone; "tf" pads as TensorFlow does."""
    if not size.backbone.startswith("b"):
        return size.backbone
    return f"{'tf_' if flavour == 'tf' else ''}efficientnet_{size.backbone}"


class _Tracer(fx.Tracer):
    """Sees a convolution or batch norm as one call, timm's own kinds included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Returns the names of convolutions and of the batch norms that can be folded into them."""
    try:
        calls = [node for node in _Tracer().trace(net).nodes if node.op == "call_module"]
    except Exception:  # whatever a network does that can't be traced
        return []
    parts = dict(net.named_modules())
    times = Counter(call.target for call in calls)
    pairs = []
    for call in calls:
        source, norm = call.args[0], parts[str(call.target)]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        alone = len(source.users) == times[source.target] == times[call.target] == 1
        foldable = isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        if alone and foldable and isinstance(parts[str(source.target)], nn.Conv2d):
            pairs.append((str(source.target), str(call.target)))
    return pairs
