"""Writes a detector as a file that other programs run, once it is shown to find the same."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.data.annotations.cards import card_of
from mmfuse.errors import UserError, require
from mmfuse.exporting.graph import traced
from mmfuse.exporting.header import CONTENT, OUTPUTS, PRESENT, Header, outside, pixel_type
from mmfuse.exporting.loading import ONNX, onnx_session
from mmfuse.exporting.onnx_files import to_onnx
from mmfuse.exporting.parity import RESIZED, TOLERANCE, difference, masks_of, told
from mmfuse.exporting.standard import StandardSelection
from mmfuse.files import named_like, write_whole
from mmfuse.images.scenes import mounted, prepare_scene
from mmfuse.images.sight import Sight
from mmfuse.model.checkpoint import load, located
from mmfuse.model.detector import Detector
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import Selection
from mmfuse.run import Run
from mmfuse.sample import Detections, Scene
from mmfuse.sensor import Sensor
from mmfuse.sources.splits import scenes_of_split
from mmfuse.verbs.compare import gmacs
from mmfuse.version import VERSION

_COMPARED = 3
"""Scenes on which a file is compared with the detector."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, what it says of itself, and on how many scenes it was compared with the detector: those
    of the validation split, or `drawn` ones.
    """

    path: str
    header: Header
    compared: int
    drawn: bool

    def to_text(self) -> str:
        """Says it in a line."""
        header, kind = self.header, "drawn scenes" if self.drawn else "scenes"
        return (
            f"{self.path}: {header.name}, {header.size[0]}x{header.size[1]}, "
            f"{Path(self.path).stat().st_size / 1e6:.1f} MB; finds the same in {self.compared} {kind}"
        )


def export(
    model: str | Path | Run | Detector,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    threshold: float = 0.0,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    doubt: Doubting | None = None,
    standard_nms: bool = False,
) -> Exported:
    """Writes a detector to `out`, an ONNX file (.onnx), and compares what that finds with what the detector finds.

    The file takes images as the sensors give them, by name, (B, C, H, W) of any height and width, and for each whether
    it is there, `present_NAME` (B,) bool. It gives `boxes` (B, D, 4) xyxy in pixels of these images, `scores` and
    `labels` (B, D), best first, with score 0 and label -1 where there is no more; and `doubt`, `dropped` and
    `disagreeing` (B, M), see `Detections`. What a sensor needs before is in the file's metadata; see
    `mmfuse.exporting.header.Header`.

    - `model`: a run, its folder, a checkpoint or a detector.
    - `size`: height and width at which it sees, the detector's if None.
    - `batch`: the number of images, 0 for any.
    - `threshold` to `max_detections`: what is found, as for `Detector.detect`. `doubt`: the run's if None.
    - `standard_nms`: suppress by the operator NonMaxSuppression of ONNX, in single precision, in place of steps in
      double; both find the same.

    It is tried on scenes of the run's validation split, or drawn ones where that isn't here, with each sensor missing
    in turn, too.

    Raises:
        UserError: there is such a file, the run has no best detector, an option isn't allowed, the file finds something
            else, or it can't be written.
    """
    out = named_like(out, ONNX)
    if out.exists():
        raise UserError(f"out: {out} exists already; remove it, or give another name")
    require(batch >= 0, "batch", batch, "use 1 or more, or 0 for any")
    require(0 <= threshold <= 1, "threshold", threshold, "use a score from 0 to 1")
    require(0 < iou_threshold <= 1, "iou_threshold", iou_threshold, "use an overlap from 0 to 1")
    require(max_detections >= 1, "max_detections", max_detections, "use 1 or more")
    detector, run, digest = _opened(model)
    if size is not None:
        _check_size(size, detector.stride)
        detector.sight = Sight(detector.sensors, size, detector.stride)
    for m in detector.modalities:
        if m in (CONTENT, *OUTPUTS) or m.startswith(PRESENT):
            raise UserError(f"export: the sensor {m!r} has the name of another input or output; rename it in the card")
    scenes = _validation(detector, run)
    header = Header(
        version=VERSION,
        name=run.recipe.name if run else "detector",
        classes=detector.classes,
        sensors=detector.sensors,
        size=detector.input_size,
        stride=detector.stride,
        batch=batch,
        selection=Selection(threshold, iou_threshold, max_detections),
        doubt=doubt or (run.recipe.doubt if run else "drop"),
        digest=digest,
        parameters=detector.parameter_count,
        gmacs=gmacs(detector),
        inputs={m: outside(sensor) or "raw" for m, sensor in detector.sensors.items()},
        recipe=run.recipe if run else None,
        thresholds=run.thresholds if run else {},
    )
    selection = StandardSelection(**asdict(header.selection)) if standard_nms else header.selection
    program = traced(detector.folded(), header.size, batch, selection, header.doubt)
    content = to_onnx(program, header).SerializeToString()
    tried = scenes or [_drawn(detector, seed) for seed in range(_COMPARED)]
    _compare(detector, content, header, tried, str(out))
    write_whole(out, content)
    return Exported(str(out), header, len(tried), drawn=not scenes)


def _opened(model: str | Path | Run | Detector) -> tuple[Detector, Run | None, str]:
    """Returns a detector of its own, its run if it has one, and what tells its weights from others."""
    if isinstance(model, Detector):
        if model.frozen:
            raise UserError("export: a folded detector can't be exported; give the one that it was made from")
        return copy.deepcopy(model).cpu().eval(), None, model.digest
    run = model if isinstance(model, Run) else Run(Path(model))
    if (run.folder / "config.yaml").exists():
        detector = load(run.best)
        return detector, run, run.digest
    path = located(model.folder if isinstance(model, Run) else model)
    return load(path), None, hashlib.sha256(path.read_bytes()).hexdigest()


def _check_size(size: tuple[int, int], stride: int) -> None:
    require(min(size) > 0 and not size[0] % stride and not size[1] % stride, "size", size, f"use multiples of {stride}")


def _validation(detector: Detector, run: Run | None) -> list[Scene]:
    """Returns scenes of the validation split in which all sensors are there, none where its files aren't here."""
    if run is None:
        return []
    try:
        every = scenes_of_split(card_of(run.recipe), "val")
    except UserError:
        return []
    whole = [scene for scene in every if all(m in scene.images for m in detector.modalities)][:_COMPARED]
    return [replace(scene, images={m: scene.images[m] for m in detector.modalities}) for scene in whole]


def _drawn(detector: Detector, seed: int) -> Scene:
    """Returns a scene of blocks and noise, which is smaller or larger than the network's input."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (side * (2 + seed) // 3 + 5 * seed for side in detector.input_size)
    images = {}
    for m, sensor in detector.sensors.items():
        low, high = sensor.seen or (0.0, 255.0 if pixel_type(sensor) == "uint8" else 5000.0)
        left, top, right, bottom = sensor.border
        size = (height + top + bottom, width + left + right)
        blocks = torch.rand(1, sensor.channels, 9, 11, generator=generator)
        pixels = F.interpolate(blocks, size, mode="nearest")[0] + 0.1 * torch.rand(size, generator=generator)
        images[m] = (low + (high - low) * pixels / 1.1).to(getattr(torch, pixel_type(sensor)))
    return Scene(images)


def _compare(detector: Detector, content: bytes, header: Header, scenes: Sequence[Scene], place: str) -> None:
    """Runs a file on scenes, with all sensors and without each, beside the detector.

    Raises:
        UserError: it finds something else.
    """
    session = onnx_session(content, place)
    for number, scene in enumerate(scenes):
        raw = _given(detector, scene)
        for mask in masks_of(detector.modalities):
            views = detector.sight.views([scene], mask)
            (expected,) = detector.find(views.images, views.present, views.contents, header.selection, header.doubt)
            fitted = {
                m: _numpy(views.images[m], sensor)
                if m in views.images
                else np.zeros((1, sensor.prepared_channels, *header.size), pixel_type(sensor))
                for m, sensor in detector.sensors.items()
            }
            for given, extra, wanted, tolerance in (
                (fitted, {CONTENT: views.contents[0].float().numpy()}, expected, TOLERANCE),
                (raw, {}, expected.rescale(float(views.scales[0])), RESIZED),
            ):
                feed = given | {PRESENT + m: one.numpy() for m, one in mask.items()}
                feed = {name: np.repeat(x, header.batch or 1, 0) for name, x in feed.items()} | extra
                boxes, scores, labels, *judged = (torch.from_numpy(x[-1]) for x in session.run(OUTPUTS, feed))
                found = Detections(boxes[labels >= 0], scores[labels >= 0], labels[labels >= 0])
                most, overlap = header.selection.max_detections, header.selection.iou_threshold
                problem = difference(wanted, found, tolerance, overlap, most)
                if problem := problem or _judged(expected, judged, detector.modalities):
                    fix = "it isn't written; report this with the recipe"
                    raise UserError(f"{place}: scene {number}{told(mask)}: the file {problem}: {fix}")


def _numpy(images: Tensor, sensor: Sensor) -> np.ndarray:
    return images.contiguous().numpy().astype(pixel_type(sensor))


def _given(detector: Detector, scene: Scene) -> dict[str, np.ndarray]:
    """Returns what a file is given of a scene, (1, C, H, W) of each sensor."""
    raw = {m: detector.sight.read(m, image) for m, image in scene.images.items()}
    prepared = prepare_scene(raw, mounted(scene, detector.sensors), scene.size)
    return {
        m: _numpy((prepared if outside(sensor) else raw)[m][None], sensor) for m, sensor in detector.sensors.items()
    }


def _judged(expected: Detections, judged: Sequence[Tensor], modalities: Sequence[str]) -> str | None:
    """Says how doubts, dropped and disagreeing sensors (M,) aren't those that are expected."""
    for m, doubt, dropped, disagreeing in zip(modalities, *(one.tolist() for one in judged), strict=True):
        wanted = expected.doubt.get(m, math.nan)
        if not (math.isnan(doubt) and math.isnan(wanted)) and not math.isclose(
            doubt, wanted, rel_tol=0.02, abs_tol=0.02
        ):
            return f"doubts {m} by {doubt:.3f}, not {wanted:.3f}"
        if dropped != (m in expected.dropped) or disagreeing != (m in expected.disagreeing):
            return f"thinks otherwise of {m}"
    return None
