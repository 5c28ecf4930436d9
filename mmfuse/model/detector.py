"""The detector: backbones, cross-modal pyramid and heads, with the verbs forward, loss, detect and folded."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.agreement import Agreement, Witness
from mmfuse.model.doubt import (
    LEAVING_OUT,
    Doubt,
    Doubting,
    Judgement,
    blank,
    broken_sensors,
    check_doubting,
    second_look,
)
from mmfuse.model.heads import Head, Heads, anchors, grids
from mmfuse.model.hub import OnHub
from mmfuse.model.layers import Exact, Foldable
from mmfuse.model.losses import detection_loss
from mmfuse.model.postprocess import DEFAULT, Extent, Selection, decode, decode_padded
from mmfuse.model.presence import Presence
from mmfuse.model.pyramid import Pyramid
from mmfuse.sample import Detections, Scene, Sight, Targets, to_device
from mmfuse.sensor import Sensor

if TYPE_CHECKING:
    from mmfuse.model.fast import Backend, FastDetector

STACKED, SHARED = "stacked", "shared"
"""Names of a backbone that reads all modalities: their channels at once, or one modality after the other."""

CLASS_PRIOR = -4.59511985013459
"""-log 99: every class starts at a probability of 0.01."""

WORTH_A_GRAPH = 2000
"""Images from which on the seconds that capturing a CUDA graph takes are saved again."""


@dataclass(frozen=True)
class Outputs:
    """What the network says: `class_logits` (B, A, K) and `box_codes` (B, A, 4) for an input of `size` (H, W).

    `judgement` is what is thought of the detector's sensors, in its order, None if nobody looked.
    """

    class_logits: Tensor
    box_codes: Tensor
    size: tuple[int, int]
    judgement: Judgement | None = None


register_dataclass(Outputs)


class Finder(ABC):
    """What finds objects in scenes: sensors, classes, a sight, and `detect`; a network or what it was exported to."""

    sensors: dict[str, Sensor]
    classes: tuple[str, ...]
    sight: Sight

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width at which it sees: `detect` scales images to fit."""
        return self.sight.size

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the detector can read."""
        return tuple(self.sensors)

    @property
    def doubting(self) -> Doubting:
        """What comes of doubt where nobody asks for something else."""
        return "drop"

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where what it finds lies."""

    @property
    @abstractmethod
    def parameter_count(self) -> int:
        """The number of its parameters."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """What tells it from any other: a hash of all that it is made of."""

    def ready(self, images: int | None, batch: int) -> "Finder":
        """Returns what finds the same soonest in `images`, None for no end of them, of which `batch` come at once."""
        return self

    def detect(
        self,
        scenes: Scene | Mapping[str, Any] | Sequence[Scene | Mapping[str, Any]],
        present: Mapping[str, Tensor] | None = None,
        *,
        resize: bool = True,
        threshold: float = 0.0,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        candidates: int = 5000,
        soft: bool = False,
        doubt: Doubting = "drop",
    ) -> list[Detections]:
        """Finds objects in images as sensors or files give them; boxes are in pixels of what was given.

        A scene maps modalities to images, of one size unless its sensors are registered: files, arrays (H, W) or
        (H, W, C), PIL images or tensors (C, H, W), of 8 or 16 bit or float in the sensor's own unit; or it is a
        `Scene`, with calibrations. Give one, a list of scenes that may differ in size and sensors, or a mapping of
        tensors (B, C, H, W). `present` maps a modality to (B,) bool, False where a scene has no such sensor.

        The detector sees them as in training: scaled to fit into `input_size`, padded by the sensor's fill; without
        `resize` at their own scale. Runs in inference mode. See `Selection` for `threshold` to `soft`.

        A sensor that isn't believed counts as missing in its scene, which the result tells, and also whether sensors
        show different scenes, of which each then counts for its share (see `doubt.second_look`); see `Doubting` for
        `doubt`, and `predict` for scenes that follow one another. One whose values aren't finite never is, unless
        `doubt` is "off"; NaN is a gap only where a sensor had gaps in training, or is registered.

        Raises:
            UserError: an unknown modality, an image that its sensor can't have given (channels, type, unit), a scene
                without any sensor, or without any whose values are finite.
        """
        check_doubting(doubt)
        views = self.sight.views(scenes, present, resize=resize)
        selection = Selection(threshold, iou_threshold, max_detections, candidates, soft)
        found = self.find(views.images, views.present, views.contents, selection, doubt)
        self.sight.check_units(views)
        return views.restore(found)

    def find(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Does what `detect` does once images are prepared, fitted and stacked: (B, C, H, W), of any type.

        `present` and `stuck` are as for `Detector.forward`; `contents` (B, 2) is the height and width of what isn't
        padding, to which boxes are clipped, all if None. Where sensors show different scenes, and nothing says which is
        right, there is a second look: see `doubt.second_look`.
        """
        found = self.look(images, present, contents, selection, doubt, stuck)
        return second_look(self.again.look, found, images, contents, selection, doubt)

    @abstractmethod
    def look(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Does what `find` does, once."""

    @property
    def again(self) -> "Finder":
        """What looks a second time, at few images and seldom."""
        return self


class Detector(Exact, OnHub, Finder):
    """What every network has: its sensors, classes and sight, the checks of what it is given, and `look`.

    Images of modality m are (B, C_m, H, W), of one height and width in all modalities, multiples of
    `stride`. `present` maps a modality to (B,) bool, False where that image has no such sensor; a
    modality without an entry in `images` is absent from the whole batch, and its backbone doesn't run.
    """

    def __init__(
        self,
        sensors: Mapping[str, Sensor],
        classes: Sequence[str],
        levels: Sequence[int],
        anchor_scale: float,
        sight: Sight,
        spec: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.sensors = dict(sensors)
        self.classes = tuple(classes)
        self.levels = tuple(levels)
        self.anchor_scale = anchor_scale
        self.sight = sight
        self.spec = dict(spec)
        for modality, sensor in self.sensors.items():
            shape = (1, -1, 1, 1)
            self.register_buffer(f"mean_{modality}", torch.tensor(sensor.mean).view(shape))
            self.register_buffer(f"std_{modality}", torch.tensor(sensor.std).view(shape))
        self.agreement: Agreement | None = None
        self.frozen = False
        self._anchors: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def stride(self) -> int:
        """Pixels between two cells of the coarsest level; heights and widths of the input are its multiples."""
        return 2 ** self.levels[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the network computes: that of its weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def parameter_count(self) -> int:
        """The number of its parameters."""
        return sum(p.numel() for p in self.parameters())

    @property
    def digest(self) -> str:
        """A hash of all that it is made of; see `Finder.digest`."""
        made = hashlib.sha256(repr(self.spec).encode())
        for name, value in self.state_dict().items():
            made.update(name.encode() + value.float().cpu().numpy().tobytes())
        return made.hexdigest()

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        *,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Runs the network on encoded, normalised images (see `normalise`) and returns what `loss` and `decode` take.

        It runs in the type of its weights, to which images are cast, so a detector can be cast to bfloat16 or half; how
        pixels are encoded, and what judges sensors, stay in float32.

        In eval mode, and where the detector was calibrated for it (`mmfuse.calibrate`), each sensor of each image is
        judged by its features and by what the others show, and `doubt` says what comes of it: see `doubt.Doubting`. On
        a CPU the rest of the network doesn't run for what was dropped; elsewhere, and compiled, its weights are zero
        and the host doesn't wait. `stuck` maps a modality to (B,) bool, True where its frame has been the very same
        for longer than is usual of it: unless it clearly shows what another believed one shows, it is an old one.

        Raises:
            UserError: an unknown modality, a shape that doesn't fit, an image without any sensor.
        """
        size, presence = self.checked(images, present or {})
        doubt = "off" if self.training else doubt
        return self._run_judged(images, size, presence, doubt, stuck or {})

    def _run_judged(
        self,
        images: Mapping[str, Tensor],
        size: tuple[int, int],
        presence: Presence,
        doubt: Doubting,
        stuck: Mapping[str, Tensor],
    ) -> Any:
        """Sets the sensors beside one another, unless nobody looks, and runs the network in its own type."""
        witness = None
        if self.agreement is not None and doubt != "off":
            witness = self.agreement.witness(images, stuck)
        return self.run({m: x.to(self.dtype) for m, x in images.items()}, size, presence, doubt, witness)

    @abstractmethod
    def run(
        self,
        images: Mapping[str, Tensor],
        size: tuple[int, int],
        presence: Presence,
        doubt: Doubting,
        witness: Witness | None = None,
    ) -> Any:
        """Does what `forward` does with what `checked` returns, and what is known of the images besides."""

    @abstractmethod
    def maps(self, images: Mapping[str, Tensor]) -> dict[str, Sequence[Tensor]]:
        """Returns what the backbone of each sensor says of encoded, normalised images, which all are there.

        Maps (B, C, h, w) at strides 8, 16 and 32, by modality.
        """

    @property
    @abstractmethod
    def doubts(self) -> Mapping[str, Doubt]:
        """What judges each sensor, by modality; empty before `begin_doubt`."""

    @abstractmethod
    def begin_doubt(self) -> None:
        """Gives every sensor a fresh `Doubt`, and several a fresh `Agreement`, to be fitted.

        Raises:
            UserError: one backbone reads all sensors.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Returns the scalars "class", "box" and "total" for the objects of the batch; see `losses.detection_loss`."""

    @abstractmethod
    def decode(self, outputs: Any, contents: Tensor | None = None, selection: Selection = DEFAULT) -> list[Detections]:
        """Turns outputs into detections clipped to `contents` (B, 2), heights and widths, the whole input if None."""

    @abstractmethod
    def decode_padded(
        self, outputs: Any, contents: Tensor | None = None, selection: Selection = DEFAULT
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Does what `decode` does in shapes that don't depend on what is found; see `postprocess.decode_padded`."""

    @abstractmethod
    def fusion_shares(self) -> dict[str, dict[int, float]]:
        """Returns each modality's share of what the heads read, modality by level; a level adds up to 1.

        Weights are multiplied along the graph, see `pyramid.propagated`; `mmfuse.shares` tests what they explain.

        Raises:
            UserError: no weights merge the modalities of this detector.
        """

    def normalise(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns raw images (B, C, H, W) of any type into the float32 input of `forward`."""
        return {
            m: (self.sensors[m].encode(x) - self.get_buffer(f"mean_{m}")) / self.get_buffer(f"std_{m}")
            for m, x in images.items()
        }

    def look(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Runs the network and turns its outputs into detections; see `Finder.find`."""
        check_doubting(doubt)
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.inference_mode():
                device = next(self.parameters()).device
                encoded = self.normalise({m: to_device(x, device) for m, x in images.items()})
                broken = None if doubt == "off" else broken_sensors(images, encoded, present)
                if broken is not None and doubt in LEAVING_OUT:
                    present = {m: ~gone & present.get(m, ~gone) for m, gone in broken.items()}
                outputs = self(encoded, present, doubt=doubt, stuck=stuck)
                found = [replace(one, classes=self.classes) for one in self.decode(outputs, contents, selection)]
                judgement = outputs.judgement
                if broken is not None:
                    judgement = Judgement.with_broken(judgement, broken, self.modalities, doubt)
                return found if judgement is None else judgement.tell(found, self.modalities)
        finally:
            for module in training:
                module.training = True

    def find_padded(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Does what `look` does, of a detector in eval mode, in shapes and steps that depend on no value: for graphs.

        A sensor is in those of `images` (B, C, H, W) where its mask in `present` (B,) bool says so, on the device, or
        in all if it has none, whatever the image of one that isn't there holds. All run. Returns what `decode_padded`
        does and what is thought of the sensors: doubts, NaN where one wasn't judged, and which are dropped and which
        disagree, (B, M) each. An image without any sensor has no detection.
        """
        encoded = self.normalise(images)
        size, presence = self.checked(encoded, {})
        floats = [m for m in images if images[m].is_floating_point() and doubt != "off"]
        broken = {m: ~encoded[m].flatten(1).sum(1).isfinite() for m in floats}
        masks = dict(present)
        if doubt in LEAVING_OUT:
            masks |= {m: ~gone & masks[m] if m in masks else ~gone for m, gone in broken.items()}
        presence = presence.doubted({m: ~mask for m, mask in masks.items()})
        outputs = self._run_judged(encoded, size, presence, doubt, stuck or {})
        boxes, scores, labels = self.decode_padded(outputs, contents, selection)
        none = labels.new_zeros(labels.shape[0], dtype=torch.bool)
        seen = torch.stack([masks.get(m, ~none) for m in images], 1).any(1, keepdim=True)
        gone = torch.stack([broken[m] & present.get(m, ~none) if m in broken else none for m in self.modalities], 1)
        judged: Judgement | None = outputs.judgement
        if judged is None:
            nobody = torch.zeros_like(gone)
            judged = Judgement(torch.full_like(gone, torch.nan, dtype=torch.float32), nobody, nobody)
        return (
            torch.where(seen[..., None], boxes, 0.0),
            torch.where(seen, scores, 0.0),
            torch.where(seen, labels, -1),
            judged.doubts.masked_fill(gone, torch.inf),
            judged.dropped | gone if doubt in LEAVING_OUT else judged.dropped,
            judged.disagreeing,
        )

    def fast(
        self,
        size: tuple[int, int] | None = None,
        batch: int = 1,
        sensors: Collection[str] | None = None,
        *,
        dtype: torch.dtype | Literal["auto"] = "auto",
        backend: "Backend" = "auto",
    ) -> "FastDetector":
        """Returns a snapshot for inference with the same `detect`; see `fast.FastDetector`."""
        from mmfuse.model.fast import FastDetector

        return FastDetector(self, size, batch, sensors, dtype, backend)

    def ready(self, images: int | None, batch: int) -> Finder:
        """Returns a snapshot that computes in float32; a graph only for so many images that it pays."""
        pays = images is None or images >= WORTH_A_GRAPH
        return self.fast(batch=batch, dtype=torch.float32, backend="auto" if pays else "eager")

    def folded(self) -> Self:
        """Returns a copy for inference, as it is now: batch norms are folded into convolutions, the weights of merges
        and the norms of heads are constants. Its outputs are the same but for rounding.

        It can be moved to another device or type, but not trained or saved; keep the detector for that.
        """
        made = copy.deepcopy(self).eval().requires_grad_(False)
        for part in list(made.modules()):
            if isinstance(part, Foldable):
                part.fold()
            elif isinstance(part, Detector):
                part.freeze()
        return made

    def freeze(self) -> None:
        """Makes it a detector for inference alone, whose weights don't change any more."""
        self.frozen = True

    def train(self, mode: bool = True) -> Self:
        """Sets training or eval mode.

        Raises:
            UserError: the detector is folded.
        """
        if mode and self.frozen:
            raise UserError("folded: a folded detector can't be trained; train the one that it was made from")
        return super().train(mode)

    def anchors(self, size: tuple[int, int]) -> Tensor:
        """Returns the anchors (A, 4) xyxy for an input of `size` (H, W); they are computed once a size."""
        device = next(self.parameters()).device
        key = (*size, device)
        if key not in self._anchors:
            with torch.inference_mode(False):  # so that training may use what detecting made
                self._anchors[key] = anchors(*size, self.levels, self.anchor_scale, device)
        return self._anchors[key]

    def checked(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> tuple[tuple[int, int], Presence]:
        """Returns the size (H, W) of encoded images, and which of them have which sensors; see `forward`.

        A modality that `present` doesn't name is in all images if it is in `images`.
        """
        _, height, width = self._check(images)
        if height % self.stride or width % self.stride:
            raise UserError(
                f"images: {height}x{width} is not a multiple of {self.stride} in height and width; pad them"
            )
        return (height, width), Presence.given(self.modalities, images, present)

    def _check(self, images: Mapping[str, Tensor]) -> tuple[int, int, int]:
        channels = {m: sensor.encoded_channels for m, sensor in self.sensors.items()}
        if not images:
            raise UserError(f"images: is empty; give at least one of {', '.join(channels)}")
        for modality, x in images.items():
            if modality not in channels:
                raise UserError(f"images: {unknown_name(modality, channels, 'modality of this detector')}")
            if x.ndim != 4 or x.shape[1] != channels[modality]:
                wanted = f"(B, {channels[modality]}, H, W)"
                raise UserError(f"images: {modality} has shape {tuple(x.shape)}; give {wanted}")
        shapes = {m: (x.shape[0], *x.shape[2:]) for m, x in images.items()}
        first = next(iter(shapes.values()))
        if any(shape != first for shape in shapes.values()):
            raise UserError(f"images: (batch, height, width) differ: {shapes}; resize to one size")
        if 0 in first:
            raise UserError(f"images: (batch, height, width) is {first}; give at least one image and pixel")
        return first


class FusionDetector(Detector):
    """Backbones, one pyramid that merges them, and heads. Build it with `create_detector`.

    `backbones` turn images into maps, finest first: one for each modality, one for all (`SHARED`), or one that reads
    the channels of all of them (`STACKED`), where an absent sensor is an image of its mean. `alignment` changes what
    the pyramid reads, see `alignment.Alignment`.
    """

    def __init__(
        self,
        sensors: Mapping[str, Sensor],
        classes: Sequence[str],
        levels: Sequence[int],
        anchor_scale: float,
        *,
        backbones: Mapping[str, nn.Module],
        alignment: nn.Module | None,
        pyramid: Pyramid,
        class_head: Head,
        box_head: Head,
        sight: Sight,
        spec: Mapping[str, Any],
    ) -> None:
        super().__init__(sensors, classes, levels, anchor_scale, sight, spec)
        self.backbones = nn.ModuleDict(backbones)
        self.judges = nn.ModuleDict()
        self.stacked = STACKED in backbones
        self.alignment = alignment
        self.pyramid = pyramid
        self.class_head = class_head
        self.box_head = box_head
        self.heads = Heads(class_head, box_head)

    def freeze(self) -> None:
        """Makes it a detector for inference alone, whose weights don't change any more."""
        super().freeze()
        self.pyramid.freeze()
        self.heads.frozen = True

    def _backbone(self, modality: str) -> nn.Module:
        return self.backbones[modality if modality in self.backbones else SHARED]

    def run(
        self,
        images: Mapping[str, Tensor],
        size: tuple[int, int],
        presence: Presence,
        doubt: Doubting,
        witness: Witness | None = None,
    ) -> Outputs:
        """Runs backbones, pyramid and heads on what `checked` let pass."""
        features = self.features(images, presence)
        if doubt == "off" or not self.doubts:
            return self.merge(features, size, presence)
        judgement = self._judge(images, features, presence, doubt, witness)
        return replace(self.merge(features, size, self._believed(judgement, presence)), judgement=judgement)

    def maps(self, images: Mapping[str, Tensor]) -> dict[str, Sequence[Tensor]]:
        """Returns what the backbones say of images; see `Detector.maps`."""
        return self.features(images, self.checked(images, {})[1])

    @property
    def doubts(self) -> Mapping[str, Doubt]:
        """What judges each sensor, by modality."""
        return {m: part for m, part in self.judges.items() if isinstance(part, Doubt)}

    def begin_doubt(self) -> None:
        """Gives every sensor a fresh `Doubt`; see `Detector.begin_doubt`."""
        if self.stacked:
            raise UserError("placement: channels has one backbone for all sensors, which can't judge one; use first")
        device = next(self.parameters()).device
        self.judges = nn.ModuleDict({m: Doubt(self.pyramid.channels[m][0]).to(device) for m in self.modalities})
        self.agreement = Agreement(self.modalities).to(device) if len(self.modalities) > 1 else None

    def _judge(
        self,
        images: Mapping[str, Tensor],
        features: Mapping[str, Sequence[Tensor]],
        presence: Presence,
        doubt: Doubting,
        witness: Witness | None,
    ) -> Judgement:
        device = next(iter(features.values()))[0].device
        there = torch.stack([presence.rows[m].on(device).expand(presence.batch) for m in self.modalities], 1)
        unknown = torch.full((presence.batch,), torch.nan, device=device)
        doubts = [
            self.doubts[m](features[m][0]).masked_fill(blank(images[m]), torch.inf) if m in features else unknown
            for m in self.modalities
        ]
        return Judgement.of(torch.stack(doubts, 1).masked_fill(~there, torch.nan), there, doubt, witness)

    def _believed(self, judgement: Judgement, presence: Presence) -> Presence:
        """Returns the presence less what was dropped: on a CPU the host reads it, elsewhere it isn't waited for."""
        off = dict(zip(self.modalities, judgement.dropped.unbind(1), strict=True))
        if not judgement.dropped.is_cpu or torch.compiler.is_compiling():
            presence = presence.doubted(off)
        elif bool(judgement.dropped.any()):
            presence = presence.without(off)
        if judgement.belief is None:
            return presence
        return presence.weighed(dict(zip(self.modalities, judgement.belief.unbind(1), strict=True)))

    def features(self, images: Mapping[str, Tensor], presence: Presence) -> dict[str, Sequence[Tensor]]:
        """Runs the backbones on those of `images` that are there; returns maps, finest first, by modality."""
        if self.stacked:
            return {STACKED: self._backbone(STACKED)(self._stack(images, presence))}
        rows = {m: presence.rows[m] for m in images}
        return {m: own.run(self._backbone(m), images[m]) for m, own in rows.items() if not own.nothing}

    def merge(self, features: Mapping[str, Sequence[Tensor]], size: tuple[int, int], presence: Presence) -> Outputs:
        """Runs pyramid and heads on `features` of an input of `size` (H, W); `presence` may leave out some of them."""
        if self.alignment is not None:
            features = self.alignment(features, presence)
        if self.stacked:
            presence = Presence.whole([STACKED], features[STACKED][0].shape[0])
        class_logits, box_codes = self.heads(self.pyramid(features, presence))
        return Outputs(class_logits, box_codes, size)

    def _stack(self, images: Mapping[str, Tensor], presence: Presence) -> Tensor:
        """Returns the encoded images of all modalities as channels of one (B, C, H, W), 0 where absent."""
        like = next(iter(images.values()))
        channels = []
        for modality, sensor in self.sensors.items():
            if (rows := presence.rows[modality]).nothing:
                channels.append(like.new_zeros(like.shape[0], sensor.encoded_channels, *like.shape[2:]))
            else:
                channels.append(rows.keep(images[modality]))
        return torch.cat(channels, 1)

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Returns the scalars "class", "box" and "total" for the objects of the batch; see `losses.detection_loss`."""
        places = grids(*outputs.size, self.levels)
        return detection_loss(outputs.class_logits, outputs.box_codes, self.anchors(outputs.size), targets, places)

    def decode(
        self, outputs: Outputs, contents: Tensor | None = None, selection: Selection = DEFAULT
    ) -> list[Detections]:
        """Turns outputs into detections clipped to `contents`; see `Detector.decode` and `postprocess.decode`."""
        grid = self.anchors(outputs.size)
        return decode(outputs.class_logits, outputs.box_codes, grid, self._extent(outputs, contents), selection)

    def decode_padded(
        self, outputs: Outputs, contents: Tensor | None = None, selection: Selection = DEFAULT
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Does what `decode` does in shapes that don't depend on what is found; see `postprocess.decode_padded`.

        So `decode_padded(forward(normalise(images)))` compiles to one graph, once the detector has seen the size.
        """
        grid = self.anchors(outputs.size)
        return decode_padded(outputs.class_logits, outputs.box_codes, grid, self._extent(outputs, contents), selection)

    @staticmethod
    def _extent(outputs: Outputs, contents: Tensor | None) -> Extent:
        if contents is None:
            return outputs.size
        height, width = to_device(contents, outputs.class_logits.device)[..., None, None].unbind(1)
        return height, width

    def fusion_shares(self) -> dict[str, dict[int, float]]:
        """Returns each modality's share of the fused features; see `Detector.fusion_shares`."""
        if self.stacked:
            raise UserError("placement: channels merges modalities without weights, so there are no shares; use first")
        return self.pyramid.modality_shares()
