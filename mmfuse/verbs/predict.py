"""Finds objects in scenes of any source, and writes what was found."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from tqdm import tqdm

from mmfuse.data.parallel import spare_cores
from mmfuse.errors import UserError, unknown_name
from mmfuse.evaluation.curves import THRESHOLD
from mmfuse.exporting.loading import load
from mmfuse.exporting.runs import is_exported
from mmfuse.images.lift import UNKNOWN, depth_of, lift
from mmfuse.images.scenes import corner_of
from mmfuse.model.detector import Finder
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import Selection
from mmfuse.report.outputs import Output, Prediction
from mmfuse.run import Run
from mmfuse.sample import Detections, Scene
from mmfuse.sources.loading import LastFrames, Loaded, groups, load_each
from mmfuse.sources.opening import scenes as open_scenes
from mmfuse.training.distributed import World

PART = 64
"""Scenes in a part of the output: what is lost at most when a run is stopped."""

Model = str | Path | Run | Finder


@overload
def predict(model: Model, source: Scene | Mapping[str, Any], **options: Any) -> Detections: ...
@overload
def predict(model: Model, source: str | Path | Iterable[Scene], **options: Any) -> Iterator[Prediction]: ...
def predict(  # type: ignore[misc]
    model: Model,
    source: Scene | Mapping[str, Any] | str | Path | Iterable[Scene],
    *,
    threshold: float | Mapping[str, float] = THRESHOLD,
    max_detections: int = 100,
    classes: Sequence[str] = (),
    doubt: Doubting | None = None,
    device: str | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    positions: bool = False,
    out: str | Path | None = None,
    progress: bool = False,
) -> Detections | Iterator[Prediction]:
    """Finds objects in one scene, whose detections it returns, or in many, whose predictions it yields one by one.

    - `model`: a run, its folder, a checkpoint, what `mmfuse export` wrote, or a detector, which can be kept for many
      calls.
    - `source`: one scene, a `Scene` or a mapping of modalities to images as for `Detector.detect`; or many: scenes,
      such as `mmfuse.scenes` opens, or a source that it can open by name.
    - `threshold`, `max_detections`, `classes`: what to tell; all classes where none is named. A threshold by class,
      such as `Run.thresholds` of the highest F1 on validation, leaves 0.3 to the others.
    - `doubt`: as for `Detector.detect`; None takes the recipe's of a run, else "drop".
    - `device`: where to run a model that isn't loaded yet; None takes CUDA where there is one.
    - `batch_size` scenes run at once, a camera's one by one; `workers` read files, None for as many as there are cores
      to spare.
    - `positions`: say where objects are, by the depth sensor and its calibration; see `mmfuse.lift`.
    - `out`: where to write what is found: JSON lines (.jsonl), COCO results (.json), a picture of one scene (.png), a
      folder of pictures, or a video (.mp4). It is there once all is; until then its parts lie beside it, and the same
      call goes on after them. Under torchrun each process takes its share of the parts, and the file is the same as
      one process writes.

    A scene that lacks a sensor, or an image that can't be read, is gone on with and told; see `Prediction`. Scenes are
    taken to follow one another: a sensor whose frame has the very same bits for longer than is usual of it is stuck,
    and isn't believed unless it clearly shows what another sensor shows; see `sources.loading.LastFrames`. What is
    written is judged in parts of 64 scenes, which know nothing of one another.

    Raises:
        UserError: the model or source can't be opened, an option isn't allowed, the only scene can't be read, images
            are in another unit than in training, or `out` can't be written.
    """
    for name, value in (("max_detections", max_detections), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}: {value} is not allowed; use 1 or more")
    world = World.from_environment(device)
    detector, doubting = open_model(model, device)
    limits = _limits(threshold, classes, detector.classes)
    if positions and not any(sensor.is_depth for sensor in detector.sensors.values()):
        raise UserError(
            f"positions: need depth, which none of {', '.join(detector.modalities)} measures; leave them out"
        )
    one = isinstance(source, Scene | Mapping)
    scenes: Iterable[Scene]
    if isinstance(source, Scene | Mapping):
        scenes = [source if isinstance(source, Scene) else Scene(source)]
    else:
        scenes = open_scenes(detector, source) if isinstance(source, str | Path) else source
    batch = 1 if getattr(scenes, "live", False) else batch_size
    ready = detector.ready(len(scenes) if isinstance(scenes, Sequence) else None, batch)
    finder = _Finder(ready, limits, max_detections, doubt or doubting, positions)
    output = None
    if out is not None:
        names = [scene.name for scene in scenes] if isinstance(scenes, Sequence) else [str(source)]
        options = (limits, max_detections, finder.doubt, positions)
        key = {"detector": detector.digest, "scenes": names, "options": options}
        several = not isinstance(scenes, Sequence) or len(scenes) != 1
        output = Output(Path(out), key, detector.sensors, getattr(scenes, "fps", 10.0), several=several)
    elif world.size > 1:
        raise UserError("out: several processes need a file to share their work in; give one, such as found.jsonl")
    if not one:
        return _each(finder, scenes, output, world, batch, spare_cores(workers, world.size), progress)
    (scene,) = scenes
    found = finder.one(scene)
    if output:
        output.write(0, [finder.told(scene, found)])
        output.finish(1)
    return found


class _Finder:
    """A detector with what it is asked for."""

    def __init__(
        self, detector: Finder, limits: tuple[float, ...], max_detections: int, doubt: Doubting, positions: bool
    ) -> None:
        self.detector = detector
        self.limits = torch.tensor(limits)
        self.selection = Selection(min(limits), max_detections=max_detections)
        self.doubt = doubt
        self.positions = positions

    def one(self, scene: Scene) -> Detections:
        s = self.selection
        (found,) = self.detector.detect(scene, threshold=s.threshold, max_detections=s.max_detections, doubt=self.doubt)
        return self._chosen(found)

    def each(self, loaded: Loaded, last: LastFrames) -> list[Prediction]:
        found: dict[int, Detections] = {}
        stuck = last.stuck(loaded)
        if loaded.views is not None:
            views = loaded.views
            rows = self.detector.find(views.images, views.present, views.contents, self.selection, self.doubt, stuck)
            self.detector.sight.check_units(views)
            found = dict(zip(loaded.rows, views.restore(rows), strict=True))
        told = []
        each = zip(loaded.scenes, loaded.lost, loaded.problems, strict=True)
        for row, (scene, lost, problems) in enumerate(each):
            if row in found:
                told.append(self.told(scene, self._chosen(found[row]), lost, problems))
            else:
                told.append(Prediction(scene, Detections.empty(), lost, problems, answered=False))
        return told

    def told(
        self, scene: Scene, found: Detections, lost: tuple[str, ...] = (), problems: tuple[str, ...] = ()
    ) -> Prediction:
        """Returns a scene's prediction, with positions where they are asked for and depth is there."""
        found = found.to("cpu")
        if not self.positions:
            return Prediction(scene, found, lost, problems)
        there = replace(scene, images={m: x for m, x in scene.images.items() if m not in (*lost, *found.dropped)})
        places = [UNKNOWN] * len(found)
        if measured := depth_of(there, self.detector.sensors):
            left, top = corner_of(self.detector.sensors)
            places = lift(found.shifted(-left, -top), *measured)
        return Prediction(scene, found, lost, problems, positions=tuple(places))

    def _chosen(self, found: Detections) -> Detections:
        """Leaves out what scores no higher than the limit of its class."""
        return found[found.scores > self.limits.to(found.scores)[found.labels]]


def _limits(threshold: float | Mapping[str, float], wanted: Sequence[str], classes: Sequence[str]) -> tuple[float, ...]:
    """Returns which score each class has to exceed; 1 where it isn't wanted.

    Raises:
        UserError: a class isn't known, or a threshold isn't a score.
    """
    by_class = threshold if isinstance(threshold, Mapping) else dict.fromkeys(classes, threshold)
    for place, names in (("classes", wanted), ("threshold", by_class)):
        for name in names:
            if name not in classes:
                raise UserError(f"{place}: {unknown_name(name, classes, 'class of this detector')}")
    for score in by_class.values():
        if not 0 <= score <= 1:
            raise UserError(f"threshold: {score} is not allowed; use a score from 0 to 1")
    return tuple(by_class.get(name, THRESHOLD) if name in wanted or not wanted else 1.0 for name in classes)


def _each(
    finder: _Finder,
    scenes: Iterable[Scene],
    output: Output | None,
    world: World,
    size: int,
    workers: int,
    progress: bool,
) -> Iterator[Prediction]:
    """Yields the predictions of this process's share of the parts that aren't written yet, and writes them."""
    total = len(scenes) if isinstance(scenes, Sequence) else getattr(scenes, "length", None)
    parts = 0

    def share() -> Iterator[tuple[int, list[Scene]]]:
        nonlocal parts
        for part, group in enumerate(groups(scenes, PART)):
            parts = part + 1
            if part % world.size == world.rank and not (output and output.has(part)):
                yield from ((part, batch) for batch in groups(group, size))

    work = list(share()) if isinstance(scenes, Sequence) else share()
    with world, tqdm(total=total, unit="scene", disable=not progress or not world.is_first) as bar:
        current: list[Prediction] = []
        last: int | None = None
        frames = LastFrames()
        for part, loaded in load_each(work, finder.detector.sight, workers):
            if output and last is not None and part != last:
                output.write(last, current)
                current = []
            if part != last and (output or world.size > 1):  # parts are written alike, whoever writes them
                frames = LastFrames()
            last = part
            for prediction in finder.each(loaded, frames):
                if output:
                    current.append(prediction)
                yield prediction
            bar.update(len(loaded.scenes))
        if output:
            if last is not None:
                output.write(last, current)
            world.wait()
            if world.is_first:
                output.finish(parts)
            world.wait()


def open_model(model: Model, device: str | None = None) -> tuple[Finder, Doubting]:
    """Returns a detector and what comes of doubt: as its recipe has it, where it is of a run; see `predict`."""
    if not isinstance(model, Finder) and not isinstance(model, Run) and is_exported(model):
        model = load(model, World.from_environment(device).device)
    if isinstance(model, Finder):
        return model, model.doubting
    place = World.from_environment(device).device
    run = model if isinstance(model, Run) else Run(Path(model))
    if (run.folder / "config.yaml").exists():
        return load(run.best, place), run.recipe.doubt
    return load(run.folder, place), "drop"
