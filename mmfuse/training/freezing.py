"""Parts of a detector that a training leaves as they are: their weights, and the statistics of their batch norms."""

from collections.abc import Sequence

from torch import nn

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.backbones import Backbone
from mmfuse.model.detector import Detector
from mmfuse.model.ensemble import BoxEnsemble

PARTS = ("backbones", "pyramid", "class_head", "box_head")


def freeze(detector: Detector, names: Sequence[str]) -> list[nn.Module]:
    """Takes the gradients from parts of a detector, and returns what `hold` must hold in each epoch.

    A name is one of `PARTS`, or a backbone such as "backbones.rgb"; of a `BoxEnsemble`, that part of every member.

    Raises:
        UserError: a name is unknown, or nothing is left to train.
    """
    owners = [detector.member(m) for m in detector.modalities] if isinstance(detector, BoxEnsemble) else [detector]
    known: dict[str, list[nn.Module]] = {}
    for owner in owners:
        for part in PARTS:
            known.setdefault(part, []).append(owner.get_submodule(part))
        for name, backbone in owner.get_submodule("backbones").named_children():
            known.setdefault(f"backbones.{name}", []).append(backbone)
    held: list[nn.Module] = []
    for name in names:
        if name not in known:
            raise UserError(f"train.freeze: {unknown_name(name, known, 'part')}")
        for module in known[name]:
            module.requires_grad_(False)
            held += [inner for inner in module.modules() if isinstance(inner, Backbone | nn.BatchNorm2d)]
    if not any(p.requires_grad for p in detector.parameters()):
        raise UserError(f"train.freeze: {', '.join(names)} leaves nothing to train; leave out one")
    return held


def hold(held: Sequence[nn.Module]) -> None:
    """Keeps the statistics of frozen parts as they are, after a model was set to training mode."""
    for module in held:
        module.eval()
