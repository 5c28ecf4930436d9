"""Builds a detector from names and numbers: `create_detector`."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmfuse.architecture import Architecture, Flavour, Placement
from mmfuse.errors import UserError, unknown_name
from mmfuse.images.sight import Sight
from mmfuse.model import graphs
from mmfuse.model.alignment import Alignment
from mmfuse.model.backbones import Backbone, OwnBackbone, default_name
from mmfuse.model.detector import CLASS_PRIOR, SHARED, STACKED, Detector, FusionDetector
from mmfuse.model.effdet_weights import import_effdet, read_checkpoint
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.fusion import merge_type
from mmfuse.model.heads import PER_PLACE, Head
from mmfuse.model.layers import initialise
from mmfuse.model.nodes import Graph
from mmfuse.model.pyramid import Pyramid
from mmfuse.sensor import Sensor

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def create_detector(
    size: str,
    modalities: Mapping[str, int],
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    sensors: Mapping[str, Sensor] | None = None,
    pyramid: str = "bifpn",
    placement: Placement = "first",
    fusion: str | None = None,
    flavour: Flavour = "tf",
    backbone: str | Mapping[str, str] | None = None,
    backbones: Mapping[str, nn.Module] | None = None,
    share_backbone: bool = False,
    align: str | None = None,
    width: int | None = None,
    pyramid_depth: int | None = None,
    head_depth: int | None = None,
    input_size: tuple[int, int] | None = None,
    pretrained: bool | str | Path = False,
    weights: str | Path | None = None,
) -> Detector:
    """Builds a detector, with fresh weights unless `weights` or `pretrained` says otherwise.

    Placement "boxes" makes a `BoxEnsemble`, all others a `FusionDetector`.

    - `modalities`: channels that the backbone of each modality reads, such as {"rgb": 3, "thermal": 1}.
    - `num_classes`: how many classes; or give their names as `classes`.
    - `sensors`: how raw pixels become those channels; by default 8-bit intensities.
    - `input_size`: height and width at which it sees; by default the size's own resolution, square.
    - `backbones`: modules of your own for some modalities, see `backbones.OwnBackbone`; such a detector is loaded with
      them: `mmfuse.load(path, backbones=…)`.
    - `pretrained`: start from ImageNet's weights for the backbones: True, or a file of timm's; see `pretrained`.
    - `weights`: a name of `effdet_weights.PUBLISHED`, a file of effdet's weights, or a run or checkpoint of ours; what
      they set, adapt and leave goes to the log.
    - `size`, and all from `pyramid` to `head_depth`: see `Architecture`.

    Raises:
        UserError: a name or number that doesn't fit.
    """
    architecture = Architecture(
        size,
        pyramid,
        placement,
        fusion,
        flavour,
        dict(backbone) if isinstance(backbone, Mapping) else backbone,
        share_backbone,
        align,
        width,
        pyramid_depth,
        head_depth,
    )
    _check_modalities(modalities)
    for name in sensors or {}:
        if name not in modalities:
            raise UserError(f"sensors: {unknown_name(name, modalities, 'modality of this detector')}")
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(num_classes or 0))
    if not names or num_classes not in (None, len(names)):
        raise UserError(f"num_classes: {num_classes} with {len(names)} class names; give one of them, at least 1")
    measured = {m: _measured((sensors or {}).get(m) or Sensor(count), count) for m, count in modalities.items()}
    settled = architecture.settled(modalities)
    sees = settled.scale.input_size(input_size)
    own = dict(backbones or {})
    for name in own:
        if name not in modalities:
            raise UserError(f"backbones: {unknown_name(name, modalities, 'modality of this detector')}")
    if own and (settled.placement == "channels" or settled.share_backbone):
        raise UserError(
            "backbones: one backbone reads all modalities here; use placement: first, share_backbone: false"
        )
    detector = _build(settled, measured, names, sees, pretrained, own)
    if weights is not None:
        _set_weights(detector, weights)
    return detector


def _set_weights(detector: Detector, weights: str | Path) -> None:
    """Sets weights from a file of effdet's or of ours, and logs what that did."""
    from mmfuse.model.checkpoint import is_checkpoint, load
    from mmfuse.model.grafting import adopt

    log = logging.getLogger(__name__)
    if is_checkpoint(weights):
        try:
            log.warning("%s", adopt(detector, load(weights)).to_text())
        except UserError as error:
            raise UserError(f"weights: {weights} {error}") from None
        return
    state = read_checkpoint(weights)
    for part in detector.members.values() if isinstance(detector, BoxEnsemble) else [detector]:
        assert isinstance(part, FusionDetector)
        log.warning("%s", import_effdet(part, state).to_text())


def _build(
    architecture: Architecture,
    sensors: Mapping[str, Sensor],
    classes: Sequence[str],
    input_size: tuple[int, int],
    pretrained: bool | str | Path,
    own: Mapping[str, nn.Module],
) -> Detector:
    spec: dict[str, Any] = {
        "modalities": {m: sensor.encoded_channels for m, sensor in sensors.items()},
        "classes": list(classes),
        "sensors": {m: sensor.to_dict() for m, sensor in sensors.items()},
        "input_size": list(input_size),
        **({"own_backbones": sorted(own)} if own else {}),
        **dataclasses.asdict(architecture),
    }
    sight = Sight(sensors, input_size, architecture.scale.coarsest_stride)
    if architecture.placement == "boxes":
        members = {
            m: _build(
                architecture.member(m), {m: sensor}, classes, input_size, pretrained, {m: own[m]} if m in own else {}
            )
            for m, sensor in sensors.items()
        }
        return BoxEnsemble(members, sight, spec)
    from mmfuse.model.norms import keep_less

    scale, bias = architecture.scale, architecture.flavour == "tf"
    assert architecture.fusion is not None
    merge, stack = merge_type(architecture.fusion), graphs.stack_of(architecture.pyramid)
    backbones = _backbones(architecture, sensors, pretrained, own)
    streams = (STACKED,) if architecture.placement == "channels" else tuple(sensors)
    graph = graphs.build(stack, scale.levels, streams, scale.pyramid_depth, architecture.placement)
    channels = {m: backbones[SHARED if SHARED in backbones else m].channels for m in streams}
    alignment = _alignment(architecture, graph, channels)
    neck = Pyramid(graph, channels, scale.width, merge, same=bias, bias=bias)
    initialise(neck)
    heads = (scale.width, scale.head_depth, len(scale.levels), PER_PLACE)
    detector = FusionDetector(
        sensors,
        classes,
        scale.levels,
        scale.anchor_scale,
        backbones=backbones,
        alignment=alignment,
        pyramid=neck,
        class_head=Head(*heads, len(classes), prior=CLASS_PRIOR, bias=bias),
        box_head=Head(*heads, 4, prior=0.0, bias=bias),
        sight=sight,
        spec=spec,
    )
    keep_less(detector)
    return detector


def _backbones(
    architecture: Architecture,
    sensors: Mapping[str, Sensor],
    pretrained: bool | str | Path,
    own: Mapping[str, nn.Module],
) -> dict[str, Backbone]:
    """Returns the backbone of each modality, or the one that reads all."""
    scale = architecture.scale
    inputs = {m: (sensor.encoded_channels, architecture.backbone_of(m)) for m, sensor in sensors.items()}
    channels, name = next(iter(inputs.values()))
    if architecture.placement == "channels":
        inputs = {STACKED: (sum(count for count, _ in inputs.values()), name)}
    elif architecture.share_backbone:
        if len(set(inputs.values())) > 1:
            given = {m: count for m, (count, _) in inputs.items()}
            raise UserError(f"share_backbone: {given} differ in channels or backbone; don't share it")
        inputs = {SHARED: (channels, name)}
    drop_path = 0.2 if scale.backbone.startswith("b") and architecture.backbone is None else 0.0
    return {
        owner: OwnBackbone(owner, own[owner], count)
        if owner in own
        else Backbone(
            chosen or default_name(scale, architecture.flavour), count, pretrained=pretrained, drop_path=drop_path
        )
        for owner, (count, chosen) in inputs.items()
    }


def _alignment(architecture: Architecture, graph: Graph, channels: Mapping[str, Sequence[int]]) -> Alignment | None:
    if architecture.align is None:
        return None
    with torch.random.fork_rng(devices=[]):  # so that a seed draws all else as without alignment
        width, bias = architecture.scale.width, architecture.flavour == "tf"
        return Alignment(architecture.align, graph, channels, width, bias=bias)


def _check_modalities(modalities: Mapping[str, int]) -> None:
    if not modalities:
        raise UserError("modalities: is empty; name at least one, such as {'rgb': 3}")
    for name in modalities:
        if not name.isidentifier() or name in (SHARED, STACKED) or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"modalities: {name!r} can't be a name; use letters, digits and _, and no word of PyTorch's, "
                f"'{SHARED}' or '{STACKED}'"
            )


def _measured(sensor: Sensor, channels: int) -> Sensor:
    """Returns the sensor with statistics: its own, or those of 8-bit images (ImageNet's for three channels)."""
    if sensor.encoded_channels != channels:
        encoded = sensor.encoded_channels
        raise UserError(f"modalities: {channels} channels, but the sensor encodes to {encoded}; make them equal")
    if sensor.mean and sensor.std:
        return sensor
    if sensor.encoding == "intensity" and channels == 3 and not sensor.range:
        return dataclasses.replace(sensor, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mean, std = (127.5, 64.0) if sensor.encoding == "intensity" and not sensor.range else (0.5, 0.5)
    return dataclasses.replace(sensor, mean=(mean,) * channels, std=(std,) * channels)
