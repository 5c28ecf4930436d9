"""Folds batch norms into the convolutions before them, for inference."""

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmfuse.model.alignment import OffsetNet
from mmfuse.model.backbones import Backbone
from mmfuse.model.layers import GateUnit, Lateral, Separable
from mmfuse.model.pyramid import PyramidNode


def fold_norms(module: nn.Module) -> None:
    """Folds, in place, every batch norm whose input is what one convolution gives, and nobody else reads.

    What a backbone does is found by tracing it; one that can't be traced stays as it is.
    """
    for part in list(module.modules()):
        if isinstance(part, Lateral | PyramidNode | GateUnit | OffsetNet):
            conv = part.conv.pointwise if isinstance(part.conv, Separable) else part.conv
            if isinstance(part.norm, nn.BatchNorm2d):
                part.norm = _fold(conv, part.norm)  # type: ignore[assignment]
        elif isinstance(part, Backbone):
            net = part.net
            for source, target in _pairs(net):
                net.set_submodule(target, _fold(net.get_submodule(source), net.get_submodule(target)))


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


def _fold(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Changes a convolution to do what `norm` does, and returns what is left of it: its activation, if any."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    activation = getattr(norm, "act", None)  # timm's BatchNormAct2d
    return activation if isinstance(activation, nn.Module) else nn.Identity()
