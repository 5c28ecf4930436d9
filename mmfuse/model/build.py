"""Builds a detector from names and numbers: `create_detector`."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from mmfuse import scaling
from mmfuse.errors import UserError, unknown_name
from mmfuse.model import graphs
from mmfuse.model.alignment import Alignment
from mmfuse.model.backbones import Backbone, default_name
from mmfuse.model.detector import SHARED, STACKED, Detector, FusionDetector
from mmfuse.model.effdet_weights import import_effdet, read_checkpoint
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.fusion import merge_type
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
    placement: str = "first",
    fusion: str | None = None,
    flavour: str = "tf",
    backbone: str | Mapping[str, str] | None = None,
    share_backbone: bool = False,
    align: str | None = None,
    width: int | None = None,
    pyramid_depth: int | None = None,
    head_depth: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> Detector:
    """Builds a detector, with fresh weights unless `weights` or `pretrained` says otherwise.

    Args:
        size: "d0" to "d7", "d7x", or "d<number>" by the compound rule, such as "d-2".
        modalities: channels that the backbone of each modality reads, such as {"rgb": 3, "thermal": 1}.
        num_classes: how many classes; or give their names as `classes`.
        classes: the names of the classes.
        sensors: how raw pixels become those channels; by default 8-bit intensities.
        pyramid: a name of `graphs.PYRAMIDS`.
        placement: where the modalities meet, see `graphs.Placement`; "boxes" makes a `BoxEnsemble`, all others a
            `FusionDetector`.
        fusion: a name of `fusion.FUSIONS`; by default the size's own where a pyramid has one stream (one modality, or
            placement "channels" or "boxes"), "fast" where it has several.
        flavour: "tf" pads and biases like the published weights, "symmetric" like plain PyTorch.
        backbone: a timm model, or one for each modality; by default the size's own.
        share_backbone: one backbone for all modalities, which then need the same number of channels.
        align: the modality onto whose features those of all others are aligned, see `alignment.Alignment`.
        width: channels of pyramid and heads, in place of the size's.
        pyramid_depth: cells of the pyramid, in place of the size's.
        head_depth: convolutions of the heads before the last, in place of the size's.
        pretrained: start from timm's weights for the backbone.
        weights: a name of `weights.PUBLISHED` or a file of effdet's weights; what they set goes to the log.

    Raises:
        UserError: a name or number that doesn't fit.
    """
    _check_modalities(modalities)
    chosen = backbone if isinstance(backbone, Mapping) else {}
    for what, name in [("backbone", m) for m in chosen] + [("sensors", m) for m in sensors or {}]:
        if name not in modalities:
            raise UserError(f"{what}: {unknown_name(name, modalities, 'modality of this detector')}")
    for what, name, known in (
        ("flavour", flavour, ("tf", "symmetric")),
        ("placement", placement, get_args(graphs.Placement)),
        ("pyramid", pyramid, graphs.PYRAMIDS),
    ):
        if name not in known:
            raise UserError(f"{what}: {unknown_name(name, known, what)}")
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(num_classes or 0))
    if not names or num_classes not in (None, len(names)):
        raise UserError(f"num_classes: {num_classes} with {len(names)} class names; give one of them, at least 1")
    given = {"width": width, "pyramid_depth": pyramid_depth, "head_depth": head_depth}
    for what, number in given.items():
        if number is not None and number < 1:
            raise UserError(f"{what}: {number!r} is not allowed; use at least 1")
    scale = scaling.size(size)
    scale = dataclasses.replace(
        scale,
        width=width or scale.width,
        pyramid_depth=pyramid_depth or scale.pyramid_depth,
        head_depth=head_depth or scale.head_depth,
    )
    sensors = {m: _measured((sensors or {}).get(m) or Sensor(channels), channels) for m, channels in modalities.items()}
    choice = {m: (chosen.get(m) if isinstance(backbone, Mapping) else backbone) for m in modalities}
    alike = len(set(modalities.values())) == 1 and len(set(choice.values())) == 1
    if share_backbone and not alike:
        raise UserError(f"share_backbone: {dict(modalities)} differ in channels or backbone; don't share it")
    placement = placement if len(modalities) > 1 else "first"
    if share_backbone and placement in ("channels", "boxes"):
        raise UserError(f"share_backbone: placement {placement} has no backbones to share; use first")
    if placement == "channels" and len(set(choice.values())) > 1:
        raise UserError(f"backbone: {chosen} differ, but placement channels has one for all; name one")
    if align is not None:
        _check_align(align, modalities, placement)
    fusion = fusion or (scale.fusion if len(modalities) == 1 or placement in ("boxes", "channels") else "fast")
    spec: dict[str, Any] = {
        "size": size,
        "modalities": dict(modalities),
        "classes": list(names),
        "sensors": {m: s.to_dict() for m, s in sensors.items()},
        "pyramid": pyramid,
        "placement": placement,
        "fusion": fusion,
        "flavour": flavour,
        "backbone": dict(backbone) if isinstance(backbone, Mapping) else backbone,
        "share_backbone": share_backbone,
        "align": align,
        **given,
    }
    if placement == "boxes":
        shared = {k: spec[k] for k in ("classes", "pyramid", "fusion", "flavour", *given)}
        shared |= {"pretrained": pretrained, "weights": weights}
        return BoxEnsemble(
            {
                m: create_detector(size, {m: n}, sensors={m: sensors[m]}, backbone=choice[m], **shared)
                for m, n in modalities.items()
            },
            spec,
        )
    if placement == "channels":
        inputs = {STACKED: (sum(modalities.values()), next(iter(choice.values())))}
    elif share_backbone:
        inputs = {SHARED: (next(iter(modalities.values())), next(iter(choice.values())))}
    else:
        inputs = {m: (channels, choice[m]) for m, channels in modalities.items()}
    drop_path = 0.2 if scale.backbone.startswith("b") and backbone is None else 0.0
    backbones = {
        owner: Backbone(name or default_name(scale, flavour), channels, pretrained=pretrained, drop_path=drop_path)
        for owner, (channels, name) in inputs.items()
    }
    streams = (STACKED,) if placement == "channels" else tuple(modalities)
    graph = graphs.build(graphs.PYRAMIDS[pyramid], scale.levels, streams, scale.pyramid_depth, placement)
    alignment = None
    if align is not None:
        channels = {m: backbones[SHARED if share_backbone else m].channels for m in modalities}
        with torch.random.fork_rng(devices=[]):  # so that a seed draws all else as without alignment
            alignment = Alignment(align, graph, channels, scale.width, bias=flavour == "tf")
    detector = FusionDetector(
        scale,
        sensors,
        names,
        graph,
        backbones,
        merge=merge_type(fusion),
        flavour=flavour,
        spec=spec,
        alignment=alignment,
    )
    if weights is not None:
        logging.getLogger(__name__).warning("%s", import_effdet(detector, read_checkpoint(weights)).to_text())
    return detector


def _check_modalities(modalities: Mapping[str, int]) -> None:
    if not modalities:
        raise UserError("modalities: is empty; name at least one, such as {'rgb': 3}")
    for name in modalities:
        if not name.isidentifier() or name in (SHARED, STACKED) or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"modalities: {name!r} can't be a name; use letters, digits and _, and no word of PyTorch's, "
                f"'{SHARED}' or '{STACKED}'"
            )


def _check_align(align: str, modalities: Mapping[str, int], placement: str) -> None:
    if len(modalities) == 1:
        raise UserError(f"align: {align!r} is not allowed; use None for one modality")
    if align not in modalities:
        raise UserError(f"align: {unknown_name(align, modalities, 'modality of this detector')}")
    if placement in ("channels", "boxes"):
        raise UserError(f"align: {align!r} is not allowed; use None for placement {placement}")


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
