"""The detector: backbones, cross-modal pyramid and heads, with the verbs forward, loss and detect."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from mmfuse import boxes as box_maths
from mmfuse import scaling
from mmfuse.errors import UserError, unknown_name
from mmfuse.model import anchors as anchor_grid
from mmfuse.model import graphs
from mmfuse.model.backbones import Backbone, default_name
from mmfuse.model.fusion import merge_type
from mmfuse.model.heads import Head
from mmfuse.model.losses import detection_loss
from mmfuse.model.pyramid import Pyramid, initialise
from mmfuse.sample import Detections, Targets
from mmfuse.sensor import Sensor

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASS_PRIOR = -4.59511985013459
"""-log 99: every class starts at a probability of 0.01."""


@dataclass(frozen=True)
class Outputs:
    """What the network says: `class_logits` (B, A, K) and `box_codes` (B, A, 4) for an input of `size` (H, W)."""

    class_logits: Tensor
    box_codes: Tensor
    size: tuple[int, int]


class FusionDetector(nn.Module):
    """Detects objects in the images of any number of sensors. Build it with `create_detector`.

    Images of modality m are (B, C_m, H, W), of one height and width in all modalities, multiples of
    `size.coarsest_stride`. `present` maps a modality to (B,) bool, False where that image has no such sensor; a
    modality without an entry in `images` is absent from the whole batch, and its backbone doesn't run.
    """

    def __init__(
        self,
        size: scaling.Size,
        sensors: Mapping[str, Sensor],
        classes: Sequence[str],
        graph: graphs.Graph,
        backbones: Mapping[str, Backbone],
        *,
        fusion: str,
        flavour: str,
        spec: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.size = size
        self.sensors = dict(sensors)
        self.classes = tuple(classes)
        self.spec = dict(spec)
        same = bias = flavour == "tf"
        self.backbones = nn.ModuleDict(backbones)
        channels = {m: self._backbone(m).channels for m in sensors}
        self.pyramid = Pyramid(graph, channels, size.width, merge_type(fusion), same=same, bias=bias)
        initialise(self.pyramid)
        heads = (size.width, size.head_depth, len(size.levels), anchor_grid.PER_PLACE)
        self.class_head = Head(*heads, len(classes), prior=CLASS_PRIOR, bias=bias)
        self.box_head = Head(*heads, 4, prior=0.0, bias=bias)
        for modality, sensor in self.sensors.items():
            shape = (1, -1, 1, 1)
            self.register_buffer(f"mean_{modality}", torch.tensor(sensor.mean).view(shape))
            self.register_buffer(f"std_{modality}", torch.tensor(sensor.std).view(shape))
        self._anchors: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the detector can read."""
        return tuple(self.sensors)

    def _backbone(self, modality: str) -> Backbone:
        backbone = self.backbones[modality if modality in self.backbones else "shared"]
        assert isinstance(backbone, Backbone)
        return backbone

    def forward(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Outputs:
        """Runs the network on encoded, normalised images; see `normalise`.

        Raises:
            UserError: an unknown modality, a shape that doesn't fit, an image without any sensor.
        """
        batch, height, width = self._check(images, {m: s.encoded_channels for m, s in self.sensors.items()})
        stride = self.size.coarsest_stride
        if height % stride or width % stride:
            raise UserError(f"images: {height}x{width} is not a multiple of {stride} in height and width; pad them")
        present = self._check_present(images, present, batch)
        features = {}
        for modality, x in images.items():
            rows = None if present is None else present[modality]
            if rows is None or bool(rows.all()):
                features[modality] = self._backbone(modality)(x)
            elif bool(rows.any()):
                rows = rows.to(x.device)
                maps = self._backbone(modality)(x[rows])
                features[modality] = [m.new_zeros(batch, *m.shape[1:]).index_put((rows,), m) for m in maps]
        levels = self.pyramid(features, present)
        return Outputs(self.class_head(levels), self.box_head(levels), (height, width))

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Returns the scalars "class", "box" and "total" for the objects of the batch; see `losses.detection_loss`."""
        return detection_loss(outputs.class_logits, outputs.box_codes, self.anchors(outputs.size), targets)

    def normalise(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns raw images (B, C, H, W) of any type into the float32 input of `forward`."""
        return {
            m: (self.sensors[m].encode(x) - self.get_buffer(f"mean_{m}")) / self.get_buffer(f"std_{m}")
            for m, x in images.items()
        }

    def detect(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        *,
        score_threshold: float = 0.0,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        candidates: int = 5000,
    ) -> list[Detections]:
        """Finds objects in raw images: (B, C, H, W) or (C, H, W), uint8, uint16 or float in the sensor's own unit.

        The whole image is seen at its own scale: train and detect at like scales (`mmfuse.predict` letterboxes).
        Sizes that aren't multiples of the coarsest stride are padded at the right and bottom by the sensor's fill. Runs
        in inference mode.

        Raises:
            UserError: an unknown modality, a shape that doesn't fit, an image without any sensor.
        """
        images = {m: x[None] if x.ndim == 3 else x for m, x in images.items()}
        _, height, width = self._check(images, {m: s.channels for m, s in self.sensors.items()})
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.inference_mode():
                device = next(self.parameters()).device
                encoded = self.normalise({m: x.to(device) for m, x in images.items()})
                outputs = self({m: self._pad(m, x) for m, x in encoded.items()}, present)
                return self.decode(
                    outputs,
                    (height, width),
                    score_threshold=score_threshold,
                    iou_threshold=iou_threshold,
                    max_detections=max_detections,
                    candidates=candidates,
                )
        finally:
            for module in training:
                module.training = True

    def decode(
        self,
        outputs: Outputs,
        size: tuple[int, int] | None = None,
        *,
        score_threshold: float = 0.0,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        candidates: int = 5000,
    ) -> list[Detections]:
        """Turns outputs into detections clipped to `size` (H, W), the whole input if None.

        The best `candidates` pairs of anchor and class of an image, then non-maximum suppression within each class,
        then the best `max_detections` (google/automl, postprocess.py).
        """
        height, width = size or outputs.size
        batch, _, classes = outputs.class_logits.shape
        logits = outputs.class_logits.float().flatten(1)
        logits, pairs = logits.topk(min(candidates, logits.shape[1]), dim=1)
        scores, labels, places = logits.sigmoid(), pairs % classes, pairs // classes
        codes = outputs.box_codes.float().gather(1, places[..., None].expand(-1, -1, 4))
        boxes = box_maths.clip(box_maths.decode(codes, self.anchors(outputs.size)[places]), height, width)
        kept = _suppress(boxes, scores, labels, score_threshold, iou_threshold, max_detections)
        image = kept // scores.shape[1]
        counts = image.bincount(minlength=batch)
        rank = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[image]
        kept = kept[rank < max_detections]
        found = counts.clamp(max=max_detections).tolist()
        columns = (values.flatten(0, 1)[kept].split(found) for values in (boxes, scores, labels))
        return [Detections(b, s, c) for b, s, c in zip(*columns, strict=True)]

    def anchors(self, size: tuple[int, int]) -> Tensor:
        """Returns the anchors (A, 4) xyxy for an input of `size` (H, W); they are computed once a size."""
        device = next(self.parameters()).device
        key = (*size, device)
        if key not in self._anchors:
            self._anchors[key] = anchor_grid.anchors(*size, self.size.levels, self.size.anchor_scale, device)
        return self._anchors[key]

    def fusion_shares(self) -> dict[str, dict[int, float]]:
        """Returns each modality's share of the fused features, modality by level; a level adds up to 1."""
        return self.pyramid.modality_shares()

    def _pad(self, modality: str, x: Tensor) -> Tensor:
        stride, (batch, _, height, width) = self.size.coarsest_stride, x.shape
        fill = x.new_tensor(self.sensors[modality].fill)[None, :, None, None]
        padded = self.normalise({modality: fill})[modality].repeat(
            batch, 1, height + -height % stride, width + -width % stride
        )
        padded[..., :height, :width] = x
        return padded

    def _check(self, images: Mapping[str, Tensor], channels: Mapping[str, int]) -> tuple[int, int, int]:
        if not images:
            raise UserError(f"images: is empty; give at least one of {', '.join(channels)}")
        for modality, x in images.items():
            if modality not in channels:
                raise UserError(f"images: {unknown_name(modality, channels, 'modality of this detector')}")
            if x.ndim != 4 or x.shape[1] != channels[modality]:
                wanted = f"(B, {channels[modality]}, H, W)"
                raise UserError(f"images: {modality} has shape {tuple(x.shape)}; give {wanted}")
        shapes = {m: (len(x), *x.shape[2:]) for m, x in images.items()}
        first = next(iter(shapes.values()))
        if any(shape != first for shape in shapes.values()):
            raise UserError(f"images: (batch, height, width) differ: {shapes}; resize to one size")
        if 0 in first:
            raise UserError(f"images: (batch, height, width) is {first}; give at least one image and pixel")
        return first

    def _check_present(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None, batch: int
    ) -> dict[str, Tensor] | None:
        """Returns a mask for every modality, or None where everything is there or missing as a whole."""
        if present is None:
            return None
        for modality, mask in present.items():
            if modality not in self.sensors:
                raise UserError(f"present: {unknown_name(modality, self.sensors, 'modality of this detector')}")
            if mask.shape != (batch,) or mask.dtype != torch.bool:
                raise UserError(f"present: {modality} is {mask.dtype} {tuple(mask.shape)}; give torch.bool ({batch},)")
        host = next(iter(present.values())).device if present else torch.device("cpu")
        masks = {
            m: present.get(m, torch.ones(batch, dtype=torch.bool, device=host))
            if m in images
            else torch.zeros(batch, dtype=torch.bool, device=host)
            for m in self.sensors
        }
        alone = ~torch.stack(list(masks.values())).any(0)
        if bool(alone.any()):
            raise UserError(
                f"present: image {int(alone.nonzero()[0, 0])} of the batch has no sensor at all; leave it out"
            )
        return None if all(bool(masks[m].all()) for m in images) else masks


def _suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, score_threshold: float, iou_threshold: float, wanted: int
) -> Tensor:
    """Non-maximum suppression within each class of each image, for all images at once.

    `boxes` (B, N, 4), `scores` and `labels` (B, N), best first. Returns the flat indices of what is kept, image by
    image, best first. What is kept depends on better candidates alone, so a prefix that yields `wanted` boxes in every
    image settles it, and longer ones are tried only when it doesn't.
    """
    batch, count = scores.shape
    image = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count)
    group = image * (labels.max() + 1 if labels.numel() else 1) + labels
    apart = boxes.double() + (group * (boxes.max().ceil() + 1 if boxes.numel() else 1)).double()[..., None]
    above = scores > score_threshold
    prefix = min(count, 5 * wanted)
    while True:
        rows = (image * count + torch.arange(count, device=boxes.device))[:, :prefix][above[:, :prefix]]
        kept = rows[nms(apart.flatten(0, 1)[rows], scores.flatten().double()[rows], iou_threshold)]
        if prefix == count or int((kept // count).bincount(minlength=batch).min()) >= wanted:
            return kept.sort().values
        prefix = min(count, 4 * prefix)


def create_detector(
    size: str,
    modalities: Mapping[str, int],
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    sensors: Mapping[str, Sensor] | None = None,
    pyramid: str = "bifpn",
    modality_inputs: str = "first",
    fusion: str | None = None,
    flavour: str = "tf",
    backbone: str | Mapping[str, str] | None = None,
    share_backbone: bool = False,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> FusionDetector:
    """Builds a detector, with fresh weights unless `weights` or `pretrained` says otherwise.

    Args:
        size: "d0" to "d7", "d7x", or "d<number>" by the compound rule, such as "d-2".
        modalities: channels that the backbone of each modality reads, such as {"rgb": 3, "thermal": 1}.
        num_classes: how many classes; or give their names as `classes`.
        classes: the names of the classes.
        sensors: how raw pixels become those channels; by default 8-bit intensities.
        pyramid: a name of `graphs.PYRAMIDS`.
        modality_inputs: "first": only the first cell reads the modalities; "every": each cell does.
        fusion: a name of `fusion.FUSIONS`; by default the size's own for one modality, "fast" for several.
        flavour: "tf" pads and biases like the published weights, "symmetric" like plain PyTorch.
        backbone: a timm model, or one for each modality; by default the size's own.
        share_backbone: one backbone for all modalities, which then need the same number of channels.
        pretrained: start from timm's weights for the backbone.
        weights: a name of `weights.PUBLISHED` or a file of effdet's weights; what they set goes to the log.

    Raises:
        UserError: a name or number that doesn't fit.
    """
    if not modalities:
        raise UserError("modalities: is empty; name at least one, such as {'rgb': 3}")
    for name in modalities:
        if not name.isidentifier() or name == "shared" or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"modalities: {name!r} can't be a name; use letters, digits and _, and no word of PyTorch's or 'shared'"
            )
    chosen = backbone if isinstance(backbone, Mapping) else {}
    for what, name in [("backbone", m) for m in chosen] + [("sensors", m) for m in sensors or {}]:
        if name not in modalities:
            raise UserError(f"{what}: {unknown_name(name, modalities, 'modality of this detector')}")
    if flavour not in ("tf", "symmetric"):
        raise UserError(f"flavour: {unknown_name(flavour, ('tf', 'symmetric'), 'flavour')}")
    if modality_inputs not in ("first", "every"):
        raise UserError(f"modality_inputs: {unknown_name(modality_inputs, ('first', 'every'), 'choice')}")
    if pyramid not in graphs.PYRAMIDS:
        raise UserError(f"pyramid: {unknown_name(pyramid, graphs.PYRAMIDS, 'pyramid')}")
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(num_classes or 0))
    if not names or num_classes not in (None, len(names)):
        raise UserError(f"num_classes: {num_classes} with {len(names)} class names; give one of them, at least 1")
    scale = scaling.size(size)
    fusion = fusion or (scale.fusion if len(modalities) == 1 else "fast")
    sensors = {m: _measured((sensors or {}).get(m) or Sensor(channels), channels) for m, channels in modalities.items()}
    choice = backbone if isinstance(backbone, Mapping) else dict.fromkeys(modalities, backbone)
    drop_path = 0.2 if scale.backbone.startswith("b") and backbone is None else 0.0
    if share_backbone and (len(set(modalities.values())) > 1 or len(set(choice.values())) > 1):
        raise UserError(f"share_backbone: {dict(modalities)} differ in channels or backbone; don't share it")
    owners = {"shared": next(iter(modalities))} if share_backbone else {m: m for m in modalities}
    backbones = {
        owner: Backbone(
            choice.get(m) or default_name(scale, flavour), modalities[m], pretrained=pretrained, drop_path=drop_path
        )
        for owner, m in owners.items()
    }
    graph = graphs.build(
        graphs.PYRAMIDS[pyramid], scale.levels, tuple(modalities), scale.pyramid_depth, modality_inputs
    )
    spec = {
        "size": size,
        "modalities": dict(modalities),
        "classes": list(names),
        "sensors": {m: s.to_dict() for m, s in sensors.items()},
        "pyramid": pyramid,
        "modality_inputs": modality_inputs,
        "fusion": fusion,
        "flavour": flavour,
        "backbone": dict(backbone) if isinstance(backbone, Mapping) else backbone,
        "share_backbone": share_backbone,
    }
    detector = FusionDetector(scale, sensors, names, graph, backbones, fusion=fusion, flavour=flavour, spec=spec)
    if weights is not None:
        from mmfuse.model.weights import import_effdet, read_checkpoint  # they import this module

        logging.getLogger(__name__).warning("%s", import_effdet(detector, read_checkpoint(weights)).to_text())
    return detector


def _measured(sensor: Sensor, channels: int) -> Sensor:
    """Returns the sensor with statistics: its own, or those of 8-bit images (ImageNet's for three channels)."""
    if sensor.encoded_channels != channels:
        encoded = sensor.encoded_channels
        raise UserError(f"modalities: {channels} channels, but the sensor encodes to {encoded}; make them equal")
    if sensor.mean and sensor.std:
        return sensor
    if sensor.encoding == "intensity" and channels == 3:
        return replace(sensor, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mean, std = (127.5, 64.0) if sensor.encoding == "intensity" else (0.5, 0.5)
    return replace(sensor, mean=(mean,) * channels, std=(std,) * channels)
