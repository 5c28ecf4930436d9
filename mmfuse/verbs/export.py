"""Writes a detector as a file that other programs run, once it is shown to find the same."""

import copy
import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfuse.data.annotations.cards import card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import objects_that_count, spread
from mmfuse.data.loader import eval_loader
from mmfuse.errors import UserError, require, unknown_name
from mmfuse.evaluation.coco import coco_scores
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.score import check_classes
from mmfuse.exporting.graph import traced
from mmfuse.exporting.header import CONTENT, OUTPUTS, PRESENT, Header, Precision, outside, pixel_type
from mmfuse.exporting.loading import ONNX, PT2, ExportedDetector, onnx_session
from mmfuse.exporting.onnx_files import to_onnx, with_header
from mmfuse.exporting.parity import TOLERANCES, Tolerance, difference, masks_of, told
from mmfuse.exporting.quantising import quantised
from mmfuse.exporting.standard import StandardSelection
from mmfuse.exporting.torch_files import check_compiler, compiled, opened, to_pt2
from mmfuse.files import named_like, write_whole
from mmfuse.images.scenes import mounted, prepare_scene
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

Arrays = dict[str, np.ndarray]

_COMPARED = 3
"""Scenes on which a file is compared with the detector."""

_CALIBRATED = 64
"""Scenes whose maps tell what 8 bits have to hold, at most."""


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
        shown = f"finds the same in {self.compared} {kind}"
        if header.val_ap:
            shown = f"AP on validation {header.val_ap[header.precision]:.3f}, in fp32 {header.val_ap['fp32']:.3f}"
        return (
            f"{self.path}: {header.name}, {header.precision}, {header.size[0]}x{header.size[1]}, "
            f"{Path(self.path).stat().st_size / 1e6:.1f} MB; {shown}"
        )


def export(
    model: str | Path | Run | Detector,
    out: str | Path,
    *,
    precision: Precision = "fp32",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    threshold: float = 0.0,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    doubt: Doubting | None = None,
    standard_nms: bool = False,
    aot: bool = False,
) -> Exported:
    """Writes a detector to `out`, an ONNX file (.onnx) or one for PyTorch (.pt2), and compares what that finds with
    what the detector finds.

    An ONNX file takes images as the sensors give them, by name, (B, C, H, W) of any height and width, and for each
    whether it is there, `present_NAME` (B,) bool. It gives `boxes` (B, D, 4) xyxy in pixels of these images, `scores`
    and `labels` (B, D), best first, with score 0 and label -1 where there is no more; and `doubt`, `dropped` and
    `disagreeing` (B, M), see `Detections`. What a sensor needs before is in the file's metadata; see
    `mmfuse.exporting.header.Header`. A .pt2 gives the same, but takes images that are scaled to its size and padded
    already, as `detector.sight.views` makes them: `images`, `present` and `contents`.

    - `model`: a run, its folder, a checkpoint or a detector.
    - `precision`: "fp16" has weights and network in half precision. "int8" (.onnx) has most convolutions in 8 bits, for
      which images of the run's validation split are looked at; the whole split is scored, to tell what that costs.
    - `size`: height and width at which it sees, the detector's if None.
    - `batch`: the number of images, 0 for any.
    - `threshold` to `max_detections`: what is found, as for `Detector.detect`. `doubt`: the run's if None.
    - `standard_nms`: suppress by the operator NonMaxSuppression of ONNX, in single precision, in place of steps in
      double; both find the same.
    - `aot`: compile the .pt2 for the processor of this machine, by AOTInductor.

    It is tried on scenes of the run's validation split, or drawn ones where that isn't here, with each sensor missing
    in turn, too; a file in int8 is so before it is made int8.

    Raises:
        UserError: there is such a file, the run has no best detector, an option isn't allowed, the file finds something
            else, or it can't be written.
    """
    out = named_like(out, ONNX, PT2)
    if out.exists():
        raise UserError(f"out: {out} exists already; remove it, or give another name")
    if precision not in get_args(Precision):
        raise UserError(f"precision: {unknown_name(precision, get_args(Precision), 'precision')}")
    for option, given, suffix in (
        ("precision: int8", precision == "int8", ONNX),
        ("standard_nms", standard_nms, ONNX),
        ("aot", aot, PT2),
    ):
        if given and out.suffix != suffix:
            raise UserError(f"{option}: is for {suffix} files, out is {out}; write one, or leave it out")
    if aot:
        check_compiler()
    require(batch >= 0, "batch", batch, "use 1 or more, or 0 for any")
    require(0 <= threshold <= 1, "threshold", threshold, "use a score from 0 to 1")
    require(0 < iou_threshold <= 1, "iou_threshold", iou_threshold, "use an overlap from 0 to 1")
    require(max_detections >= 1, "max_detections", max_detections, "use 1 or more")
    detector, run, digest = _opened(model)
    if size is not None:
        _check_size(size, detector.stride)
        detector.sight = detector.sight.at(size)
    for m in detector.modalities:
        if m in (CONTENT, *OUTPUTS) or m.startswith(PRESENT):
            raise UserError(f"export: the sensor {m!r} has the name of another input or output; rename it in the card")
    scenes = _validation(detector, run)
    if precision == "int8" and not scenes:
        fix = "export a run whose card has some, or use fp16"
        raise UserError(f"precision: int8 needs validation images with all sensors, and none is here; {fix}")
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
        precision="fp16" if precision == "fp16" else "fp32",
        recipe=run.recipe if run else None,
        thresholds=run.thresholds if run else {},
    )
    selection = StandardSelection(**asdict(header.selection)) if standard_nms else header.selection
    folded = detector.folded().half() if precision == "fp16" else detector.folded()
    program = traced(folded, header.size, batch, selection, header.doubt)
    tried = spread(scenes, _COMPARED) or [_drawn(detector, seed) for seed in range(_COMPARED)]
    if out.suffix == PT2:
        header = replace(header, inputs={m: _fitted(sensor, header.size) for m, sensor in detector.sensors.items()})
        content = compiled(program, header) if aot else to_pt2(program, header)
        _compare(detector, opened(content, aot), header, tried, str(out), raw=False)
    else:
        content = with_header(to_onnx(program, header), header)
        _compare(detector, partial(onnx_session(content, str(out)).run, OUTPUTS), header, tried, str(out), raw=True)
    if precision == "int8":
        assert run is not None
        content, header = _in_int8(detector, content, header, scenes, run)
    write_whole(out, content)
    return Exported(str(out), header, len(tried), drawn=not scenes)


def _in_int8(
    detector: Detector, content: bytes, header: Header, scenes: Sequence[Scene], run: Run
) -> tuple[bytes, Header]:
    """Returns the content of an ONNX file in int8, made of one in fp32, and its header, with what that costs."""
    there = {PRESENT + m: np.ones(header.batch or 1, dtype=bool) for m in detector.modalities}
    feeds = (_repeated(_given(detector, scene), header.batch) | there for scene in spread(scenes, _CALIBRATED))
    model = quantised(content, feeds)
    header = replace(header, precision="int8")
    val_ap = {"fp32": _val_ap(content, run, "fp32"), "int8": _val_ap(with_header(model, header), run, "int8")}
    header = replace(header, val_ap=val_ap)
    return with_header(model, header), header


def _val_ap(content: bytes, run: Run, precision: str) -> float:
    """Returns the AP of a file on the run's validation split, of what it was made to find."""
    recipe, card = run.recipe, card_of(run.recipe)
    check_classes(card, run.classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"detector{ONNX}"
        path.write_bytes(content)
        detector = ExportedDetector(path)
    records = objects_that_count(recipe, card, read_split(card, "val"), recipe.modalities)
    loader = eval_loader(records, detector.sensors, detector.input_size, recipe.train.batch_size, recipe.data.workers)
    selection, doubt = detector.header.selection, detector.header.doubt
    found = collect(detector, loader, selection=selection, doubt=doubt, progress=f"scoring {precision}")
    return coco_scores(records, found, detector.classes).ap


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
    whole = [scene for scene in every if all(m in scene.images for m in detector.modalities)]
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


def _compare(
    detector: Detector,
    run: Callable[[Arrays], Sequence[np.ndarray]],
    header: Header,
    scenes: Sequence[Scene],
    place: str,
    *,
    raw: bool,
) -> None:
    """Runs a file on scenes, with all sensors and without each, beside the detector.

    It is given images that are fitted to its size, and, if it takes these, `raw` ones.

    Raises:
        UserError: it finds something else.
    """
    exact, resized = TOLERANCES[header.precision]
    for number, scene in enumerate(scenes):
        for mask in masks_of(detector.modalities):
            views = detector.sight.views([scene], mask)
            (expected,) = detector.look(views.images, views.present, views.contents, header.selection, header.doubt)
            fitted = {
                m: _numpy(views.images[m], sensor)
                if m in views.images
                else np.zeros((1, sensor.prepared_channels, *header.size), pixel_type(sensor))
                for m, sensor in detector.sensors.items()
            }
            content = {CONTENT: views.contents[0].float().numpy()}
            ways: list[tuple[Arrays, Arrays, Detections, Tolerance]] = [(fitted, content, expected, exact)]
            if raw:
                ways.append((_given(detector, scene), {}, expected.rescale(float(views.scales[0])), resized))
            for given, extra, wanted, tolerance in ways:
                feed = given | {PRESENT + m: one.numpy() for m, one in mask.items()}
                feed = _repeated(feed, header.batch) | extra
                boxes, scores, labels, *judged = (torch.from_numpy(x[-1]) for x in run(feed))
                found = Detections(boxes[labels >= 0], scores[labels >= 0], labels[labels >= 0])
                most, overlap = header.selection.max_detections, header.selection.iou_threshold
                problem = difference(wanted, found, tolerance, overlap, most)
                if problem := problem or _judged(expected, judged, detector.modalities):
                    fix = "it isn't written; report this with the recipe"
                    raise UserError(f"{place}: scene {number}{told(mask)}: the file {problem}: {fix}")


def _numpy(images: Tensor, sensor: Sensor) -> np.ndarray:
    return images.contiguous().numpy().astype(pixel_type(sensor))


def _repeated(feed: Arrays, batch: int) -> Arrays:
    """Returns inputs of one image as those of a batch."""
    return {name: np.repeat(x, batch or 1, 0) for name, x in feed.items()}


def _fitted(sensor: Sensor, size: tuple[int, int]) -> str:
    """Says what a file is given that doesn't fit images to its size itself."""
    fill = ", ".join(f"{value:g}" for value in sensor.fill)
    rule = f"scale it to fit into {size[0]}x{size[1]} ({sensor.interpolation}), and pad it right and below by {fill}"
    return f"{outside(sensor)}; then {rule}" if outside(sensor) else rule


def _given(detector: Detector, scene: Scene) -> Arrays:
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
