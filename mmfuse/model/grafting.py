"""Starts a detector of several modalities from trained ones of one each: at first it does what the best one does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfuse.architecture import Architecture
from mmfuse.errors import UserError
from mmfuse.model.backbones import default_name
from mmfuse.model.detector import SHARED, Detector, FusionDetector
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.fusion import Merge
from mmfuse.model.nodes import Feature
from mmfuse.model.pyramid import PyramidNode

FAINT = 1e-3
"""Weight of an edge from a modality that isn't the best: too small to be seen in AP, large enough to learn."""

_NAMES, _NUMBERS = ("size", "pyramid", "flavour", "share_backbone"), ("width", "pyramid_depth", "head_depth")


def misfit(detector: Detector, modality: str, single: FusionDetector) -> str | None:
    """Returns why `single`, a detector of that modality, can't be its start in `detector`; None where it can."""
    here, there = Architecture.of(detector.spec), Architecture.of(single.spec)
    for key, own, theirs in (
        ("classes", list(detector.classes), list(single.classes)),
        *((f"model.{k}", getattr(here, k), getattr(there, k)) for k in _NAMES),
        ("model.backbone", _backbone_name(here, modality), _backbone_name(there, modality)),
        *((f"model.{k}", getattr(here.scale, k), getattr(there.scale, k)) for k in _NUMBERS),
    ):
        if own != theirs:
            return f"has {key} {theirs!r}, the recipe {own!r}; give a run like the recipe, or change {key}"
    if here.fusion != there.fusion and single.pyramid.merges[0].factors() is None:
        return f"merges by {there.fusion}, which {here.fusion} can't go on from; set model.fusion: {there.fusion}"
    return None


def graft(detector: Detector, singles: Mapping[str, FusionDetector], main: str) -> None:
    """Sets the detector's weights from those of `singles`, by modality; all of them fit it (`misfit`).

    Backbones and the convolutions that bring a modality's features into the pyramid are each modality's own; all else
    is that of `main`. Its edges keep their weights and those of other modalities start at `FAINT`, so the outputs are
    nearly its own while every edge has a gradient: train on with `keep_open`. A modality without a detector keeps its
    fresh branch. Members of a `BoxEnsemble` become the `singles`.

    Raises:
        UserError: the placement, a shared backbone, a pyramid with gates or fusion sum makes this impossible.
    """
    if isinstance(detector, BoxEnsemble):
        for modality, single in singles.items():
            detector.members[modality].load_state_dict(single.state_dict())
        return
    assert isinstance(detector, FusionDetector)
    architecture = Architecture.of(detector.spec)
    if len(detector.modalities) > 1:
        for impossible, what, fix in (
            (
                architecture.placement not in ("first", "every"),
                f"placement {architecture.placement}",
                "placement: first",
            ),
            (SHARED in detector.backbones, "share_backbone", "share_backbone: false"),
            (any(node.gate for node in detector.pyramid.graph), f"pyramid {architecture.pyramid}", "pyramid: bifpn"),
            (not detector.pyramid.merges[0].learned, f"fusion {architecture.fusion}", "fusion: fast"),
        ):
            if impossible:
                raise UserError(f"{what} can't start from single modalities; use model.{fix}")
    common, apart = ("pyramid.nodes.", "class_head.", "box_head."), (".laterals.", ".merge.")
    values = {key: x for key, x in _under(common, singles[main]).items() if not any(part in key for part in apart)}
    for modality, single in singles.items():
        values |= _under((f"backbones.{modality}.", f"backbones.{SHARED}.", f"pyramid.extend.{modality}."), single)
    for index in range(len(detector.pyramid.graph)):
        values |= _edges(detector, singles, main, index)
    detector.load_state_dict(values, strict=False)


def keep_open(detector: nn.Module) -> None:
    """Lifts weights of edges that ReLU would shut to `FAINT`, in place, so that a step can't end an edge for good."""
    with torch.no_grad():
        for part in detector.modules():
            if isinstance(part, Merge) and part.rectified:
                part.get_parameter("weight").clamp_(min=FAINT)


def _backbone_name(architecture: Architecture, modality: str) -> str:
    return architecture.backbone_of(modality) or default_name(architecture.scale, architecture.flavour)


def _edges(detector: FusionDetector, singles: Mapping[str, FusionDetector], main: str, index: int) -> dict[str, Tensor]:
    """Returns laterals, weights of edges, gain and gates of a node; detectors of one pyramid have the same nodes."""
    node, where = detector.pyramid.graph[index], f"pyramid.nodes.{index}"
    own = _node(detector, index).merge
    values, alike = dict[str, Tensor](), list[int | None]()
    for place, source in enumerate(node.inputs):
        owner = source.modality if isinstance(source, Feature) else main
        theirs = singles[owner].pyramid.graph[index] if owner in singles else None
        from_place = theirs.inputs.index(source) if theirs and source in theirs.inputs else None
        moved = {f"{where}.laterals.{from_place}.": f"{where}.laterals.{place}."} if from_place is not None else {}
        if place in node.merged:
            number = theirs.merged.index(from_place) if theirs and from_place is not None else None
            alike.append(number if owner == main else None)
            if number is not None and type(_node(singles[owner], index).merge) is type(own):
                moved[f"{where}.merge.gates.{number}."] = f"{where}.merge.gates.{len(alike) - 1}."
        for before, after in moved.items():
            values |= {after + k.removeprefix(before): x for k, x in _under((before,), singles[owner]).items()}
    started = own.starting_from(_node(singles[main], index).merge, alike, FAINT)
    if own.rectified:
        started["weight"] = started["weight"].clamp(min=FAINT)
    return values | {f"{where}.merge.{name}": x for name, x in started.items()}


def _under(prefixes: tuple[str, ...], detector: FusionDetector) -> dict[str, Tensor]:
    return {key: x for key, x in detector.state_dict().items() if key.startswith(prefixes)}


def _node(detector: FusionDetector, index: int) -> PyramidNode:
    node = detector.pyramid.nodes[index]
    assert isinstance(node, PyramidNode)
    return node
