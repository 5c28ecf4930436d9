"""Starts a detector from trained ones: from one for each modality, or from any other of ours, as far as it fits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfuse.architecture import Architecture
from mmfuse.errors import UserError
from mmfuse.model.backbones import default_name
from mmfuse.model.detector import SHARED, STACKED, Detector, FusionDetector
from mmfuse.model.effdet_weights import Imported
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
    values = _backbones(singles) | _under(("class_head.", "box_head."), singles[main])
    detector.load_state_dict(values | _pyramid(detector, singles, main), strict=False)


def adopt(detector: Detector, source: Detector) -> Imported:
    """Sets what fits of a detector from any other of ours, and returns what that was.

    Backbones are taken by the names of modalities. Pyramids of one kind and size are taken whole, edges by what they
    read; edges of sensors that the source lacks start at `FAINT`, so that at first the others answer as they did. Of
    the class head's last layer the rows of classes of the same name are taken, the others stay fresh. What judges
    sensors isn't taken.

    Raises:
        UserError: they have no modality in common.
    """
    sources = {m: source.member(m) if isinstance(source, BoxEnsemble) else source for m in source.modalities}
    common = [m for m in detector.modalities if m in sources]
    if not common:
        raise UserError(f"reads {', '.join(source.modalities)}, none of {', '.join(detector.modalities)}")
    if isinstance(detector, BoxEnsemble):
        each = {m: adopt(detector.member(m), sources[m]) for m in common}
        others = tuple(f"member {m} fresh" for m in detector.modalities if m not in each)
        return Imported(
            tuple(common),
            sum(one.loaded for one in each.values()),
            tuple(dict.fromkeys(line for one in each.values() for line in one.adapted)),
            tuple(f"{m}: {line}" for m, one in each.items() for line in one.left) + others,
        )
    assert isinstance(detector, FusionDetector)
    singles = {m: single for m in common if isinstance(single := sources[m], FusionDetector)}
    main = singles[common[0]]
    values = _backbones(singles) | _under(("class_head.", "box_head.", "alignment."), main)
    if detector.pyramid.graph == main.pyramid.graph and list(detector.pyramid.channels) == list(main.pyramid.channels):
        values |= _under(("pyramid.", f"backbones.{STACKED}."), main)
    elif _alike(detector, main):
        values |= _pyramid(detector, singles, common[0])
    values |= _class_rows(detector, main)
    own = detector.state_dict()
    taken = {key: x for key, x in values.items() if key in own and own[key].shape == x.shape}
    detector.load_state_dict(taken, strict=False)
    shared = [name for name in detector.classes if name in main.classes]
    adapted: list[str] = []
    if detector.classes != main.classes:
        fresh = [name for name in detector.classes if name not in shared]
        adapted.append(f"classes: {', '.join(shared) or 'none'} from it, {', '.join(fresh) or 'none'} fresh")
    if (lacking := [m for m in detector.modalities if m not in common]) and not detector.stacked:
        adapted.append(f"{', '.join(lacking)}: fresh, with a faint share at first")
    return Imported(tuple(common), len(taken), tuple(adapted), _left(own, taken))


def _left(own: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns a line for each part of which something wasn't taken."""
    counts: dict[str, list[int]] = {}
    for key in own:
        words = key.split(".")
        if words[0] in ("backbones", "pyramid", "class_head", "box_head", "alignment"):
            part = ".".join(words[: 2 if words[0] == "backbones" else 1])
            count = counts.setdefault(part, [0, 0])
            count[0] += key not in taken
            count[1] += 1
    return tuple(f"{part}: {fresh} of {all_} tensors fresh" for part, (fresh, all_) in counts.items() if fresh)


def _alike(detector: FusionDetector, other: FusionDetector) -> bool:
    """Whether both have one pyramid but for the sensors that it reads."""
    here, there = Architecture.of(detector.spec), Architecture.of(other.spec)
    placements = ("first", "every")
    return (
        here.pyramid == there.pyramid
        and len(detector.pyramid.graph) == len(other.pyramid.graph)
        and detector.levels == other.levels
        and (len(detector.modalities) == 1 or here.placement in placements)
        and (len(other.modalities) == 1 or there.placement in placements)
        and type(detector.pyramid.merges[0]) is type(other.pyramid.merges[0])
        and detector.pyramid.merges[0].learned
        and not any(node.gate for node in detector.pyramid.graph)
    )


def _class_rows(detector: FusionDetector, other: FusionDetector) -> dict[str, Tensor]:
    """Returns the class head's last layer with the rows that the other has for classes of the same name."""
    found = {}
    for name in ("weight", "bias"):
        key = f"class_head.predict.pointwise.{name}"
        own, theirs = detector.state_dict()[key], other.state_dict()[key]
        if own.shape[1:] != theirs.shape[1:]:
            continue
        rows = own.clone().unflatten(0, (-1, len(detector.classes)))
        given = theirs.unflatten(0, (-1, len(other.classes)))
        for k, label in enumerate(detector.classes):
            if label in other.classes:
                rows[:, k] = given[:, other.classes.index(label)]
        found[key] = rows.flatten(0, 1)
    return found


def _backbones(singles: Mapping[str, FusionDetector]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for modality, single in singles.items():
        values |= _under((f"backbones.{modality}.", f"backbones.{SHARED}."), single)
    return values


def _pyramid(detector: FusionDetector, singles: Mapping[str, FusionDetector], main: str) -> dict[str, Tensor]:
    """Returns the tensors of the pyramid: nodes of `main`, and of each modality what brings its features in."""
    apart = (".laterals.", ".merge.")
    own = _under(("pyramid.nodes.",), singles[main])
    values = {key: x for key, x in own.items() if not any(part in key for part in apart)}
    for modality, single in singles.items():
        values |= _under((f"pyramid.extend.{modality}.",), single)
    for index in range(len(detector.pyramid.graph)):
        values |= _edges(detector, singles, main, index)
    return values


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
            alike.append(number if singles.get(owner) is singles[main] else None)
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
