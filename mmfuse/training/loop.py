"""Trains the detector of a recipe into a run folder."""

import csv
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmfuse.data.annotations.cards import Card, card_of
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.annotations.records import Record, objects_that_count
from mmfuse.data.cache import ImageCache
from mmfuse.data.checks.objects import objects, too_small
from mmfuse.data.checks.readable import require_readable
from mmfuse.data.loader import EvalLoader, TrainLoader, eval_loader, fill_cache, train_loader
from mmfuse.data.measuring import SMALLEST_STD, measure
from mmfuse.environment import environment
from mmfuse.errors import UserError
from mmfuse.evaluation.coco import Scores, coco_scores
from mmfuse.evaluation.curves import best_thresholds
from mmfuse.evaluation.inference import collect
from mmfuse.evaluation.significance import match
from mmfuse.files import sole_writer, write_whole
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.grafting import keep_open
from mmfuse.recipes import Recipe, load_recipe
from mmfuse.run import Run, build_detector, input_size, is_over
from mmfuse.sample import Batch, Detections
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import save_yaml
from mmfuse.training.advice import advice, data_advice
from mmfuse.training.branches import StepLoss
from mmfuse.training.display import Display, check_log
from mmfuse.training.distributed import World, note_begun, was_begun
from mmfuse.training.doubt_calibration import can_doubt, fit_doubt, is_calibrated
from mmfuse.training.faults import Strikes
from mmfuse.training.freezing import freeze, hold
from mmfuse.training.optim import build_optimizer, rate_at
from mmfuse.training.resuming import (
    Kept,
    changed_keys,
    require_best,
    require_epochs,
    require_sensors,
    require_unchanged,
    with_note,
)
from mmfuse.training.score_calibration import collect_calibrated
from mmfuse.training.start import read_start
from mmfuse.training.state import Begun, Row, State, save_state
from mmfuse.training.watch import Watch

if TYPE_CHECKING:
    from mmfuse.training.average import Average


def train(
    recipe: str | Path | Recipe,
    assignments: Iterable[str] = (),
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    accept_changed_data: bool = False,
) -> Run:
    """Trains the detector of a recipe and returns its run folder, `runs/NAME` unless `folder` says otherwise.

    The best epoch is chosen on the validation split, by AP; the test split isn't read. A recipe that `init` names is
    trained first, with the seed of this one, beside the run folder, unless its run is there. What a recipe with `init`
    starts from is scored as epoch 0, and with no epochs it is all there is. In the end the doubt of a detector of
    several sensors is fitted, see `doubt_calibration`. A `BoxEnsemble` is calibrated on the validation split each time
    that it is scored, before its AP is taken. Under torchrun all processes call this; the first one writes. With
    `resume` a run that was cut short goes on from what it saved last, with the samples that it would have seen, and
    one that is finished is returned as it is; so does a run that this torchrun began, where it restarts its processes.
    All is saved after each epoch, and after each `train.save_every` steps. A run ends after its last epoch, or with a
    `train.patience` after so many evaluations without a better AP.

    What isn't `resuming.FREE` may not change when a run goes on. Where `train.epochs` does, the learning rate is from
    there on that of the new number, as if it had been so all along. Data that isn't what it was is named and refused,
    or with `accept_changed_data` learnt on and written down: the best detector so far is then scored anew on a
    validation split that changed, and the APs on the one before go from the metrics into `environment.json`. Data means
    annotations and names of files, not pixels.

    A loss or a gradient that isn't finite stops the run in its own epoch, and what lies in the folder is still what was
    saved last: nothing is scored or saved before all losses until then are known to be finite.

    Args:
        recipe: a recipe or its file.
        assignments: changes to the recipe file, such as "train.epochs=20".
        folder: where to write.
        resume: go on with what lies in the folder.
        accept_changed_data: go on even if the splits or the classes changed.

    Raises:
        UserError: the recipe or the data isn't right, the folder holds another run or one that lost its files, another
            process trains there, or a loss or gradient isn't finite.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, assignments)
    check_log(recipe.train)
    run = Run(Path(folder) if folder is not None else Path("runs") / recipe.name)
    first = _trained_first(recipe, run)
    if first:
        recipe = replace(recipe, init=recipe.singles | {m: str(folder) for m, (_, folder) in first.items()})
    resume, finished = resume or was_begun(run.folder), False
    if not resume:
        _check_new(run)
    elif run.last.exists() or run.metrics:
        changed_keys(run, recipe)
        rows = run.metrics
        finished = is_over(rows, recipe.train)
        _check_whole(run, rows, finished)
    for single, beside in first.values():
        if not finished and not Run(beside).finished:
            train(single, folder=beside, resume=True, accept_changed_data=accept_changed_data)
    with (
        World.from_environment(recipe.train.device) as world,
        sole_writer(run.folder) if world.is_first else nullcontext(),
    ):
        if world.is_first and not resume:
            _check_new(run)  # another process may have been faster
            note_begun(run.folder)
        if finished:
            _look_again(recipe, run, world, accept_changed_data)
        else:
            training = prepare_training(recipe, run, world, accept_changed_data)
            training.run_epochs()
            if world.is_first:
                _report_left_out(training.loader, recipe.modalities)
                if line := advice(recipe, training.best, training.loader.images, len(training.loader)):
                    print(f"{run.folder}: {line}")
        if world.is_first:
            _doubt(recipe, run)
        world.wait()
    return run


def _check_new(run: Run) -> None:
    if (run.folder / "config.yaml").exists():
        raise UserError(f"{run.folder}: holds a run already; resume it, or choose another folder")


def _check_whole(run: Run, rows: list[dict[str, float]], finished: bool) -> None:
    """Refuses to go on with a run that lost what it learnt."""
    if any("val_ap" in row for row in rows):
        require_best(run)
    if not finished and not run.last.exists():
        fix = "put it back, or train in another folder, from this run with init"
        raise UserError(f"{run.last}: is gone, and with it the state after epoch {rows[-1]['epoch']:.0f}; {fix}")


def _look_again(recipe: Recipe, run: Run, world: World, accept_changed_data: bool) -> None:
    """Looks whether a finished run still is that of its data, and keeps the keys of the recipe that changed.

    With more epochs than are asked for it stays as it is.
    """
    card, splits = _read(recipe)
    spec = checkpoint.Spec.read(checkpoint.read(run.best, with_tensors=False)[1], str(run.best))
    require_sensors(card, spec.sensors)
    changes = Kept.of(card, splits).changes(run, spec.classes)
    if not accept_changed_data:
        require_unchanged(run, changes)
    done = int(run.metrics[-1]["epoch"])
    if done > recipe.train.epochs:
        if not run.finished:
            require_epochs(run, done, recipe)
        if world.is_first:
            asked = f"train.epochs={recipe.train.epochs} is less"
            print(f"{run.folder}: is finished with {done} epochs, and stays so; {asked}")
        return
    if world.is_first and changed_keys(run, recipe):
        save_yaml(run.folder / "config.yaml", recipe.to_dict())
    if world.is_first and done < recipe.train.epochs:
        print(f"{run.folder}: {_stopped(recipe, done)}; a larger train.patience, or 0, goes on")


def _stopped(recipe: Recipe, done: int) -> str:
    return f"stopped after epoch {done}, by {recipe.train.patience} evaluations without a better val AP"


def _read(recipe: Recipe) -> tuple[Card, dict[str, list[Record]]]:
    card = card_of(recipe)
    return card, {split: read_split(card, split) for split in ("train", "val")}


def _doubt(recipe: Recipe, run: Run) -> None:
    """Fits the doubt of a trained detector of several sensors, once; where it can't be, says why."""
    if can_doubt(recipe) and not is_calibrated(run):
        try:
            fit_doubt(run)
        except UserError as error:
            print(f"no sensor will be doubted: {error}")


def _trained_first(recipe: Recipe, run: Run) -> dict[str, tuple[Recipe, Path]]:
    """Returns the recipes that `init` names, by modality, with the seed of this one, and the folders of their runs."""
    first = {}
    for modality, start in recipe.singles.items():
        if Path(start).suffix == ".yaml":
            single = load_recipe(start, [f"train.seed={recipe.train.seed}"])
            folder = run.folder.with_name(single.name + run.folder.name.removeprefix(recipe.name))
            if folder == run.folder:
                fix = "give it another name"
                raise UserError(f"init: {start} has the name {single.name!r} of the recipe that starts from it; {fix}")
            first[modality] = single, folder
    return first


def prepare_training(recipe: Recipe, run: Run, world: World, accept_changed_data: bool = False) -> "Training":
    """Builds what a recipe trains, or goes on with what lies in the run folder, and writes what the run stands on.

    Raises:
        UserError: the recipe, the data or what lies in the folder isn't right.
    """
    from mmfuse.training.average import Average

    size = input_size(recipe)
    card, splits = _read(recipe)
    kept, state = Kept.of(card, splits), State.read(run.last)
    if state is not None:
        if state.best >= 0:
            require_best(run)
        require_epochs(run, state.epochs_begun, recipe)
        require_sensors(card, state.spec.sensors)
        keys, changes = changed_keys(run, recipe), kept.changes(run, state.spec.classes)
        if not accept_changed_data:
            require_unchanged(run, changes)
    seen = {split: objects_that_count(recipe, card, records, recipe.modalities) for split, records in splits.items()}
    _check_objects(recipe, card, seen, size, world)
    if world.is_first:
        used = {m: card.modalities[m] for m in recipe.modalities}
        fill_cache([*seen["train"], *seen["val"]], used, recipe.data)
        require_readable(seen["val"], used, ImageCache(recipe.data.cache).images, recipe.data.workers)
    world.wait()

    start = read_start(recipe.init) if state is None else None
    built_from = recipe
    if state is not None:
        known, built_from = (
            state.spec.sensors,
            replace(recipe, model=replace(recipe.model, pretrained=False, weights=None)),
        )
    else:
        known = {} if start is None else start.sensors(card.modalities)
    card = _measured(card, recipe, seen["train"], known)
    torch.manual_seed(recipe.train.seed)
    detector = build_detector(built_from, card.modalities, card.classes)
    if start is not None:
        start.initialise(detector)
    detector = detector.to(world.device).to(memory_format=torch.channels_last)
    held = freeze(detector, recipe.train.freeze)
    optimizer = build_optimizer(detector, recipe.train)
    average = Average(detector, recipe.train.ema_decay)
    if state is not None:
        state.restore(detector, average.module, optimizer)

    sensors, data, batch_size = {m: card.modalities[m] for m in recipe.modalities}, recipe.data, recipe.train.batch_size
    loader = train_loader(
        card,
        seen["train"],
        recipe.modalities,
        size,
        data,
        batch_size,
        recipe.train.seed,
        world.rank,
        world.size,
        epochs=recipe.train.epochs,
        strike=Strikes(recipe.train.faults) if recipe.train.faults and len(recipe.modalities) > 1 else None,
    )
    val_loader = eval_loader(seen["val"], sensors, size, batch_size, data.workers, ImageCache(data.cache).images)
    may_lack = recipe.train.modality_dropout > 0 or recipe.train.faults > 0 or _some_lacking(seen["train"], recipe)
    model = world.wrap(StepLoss(detector, recipe.train, world), some_unused=may_lack)
    training = Training(
        recipe,
        run,
        world,
        detector,
        model,
        optimizer,
        average,
        loader,
        val_loader,
        seen["val"],
        Watch(recipe.train.lr),
        held,
        alike=not may_lack,
    )
    if world.is_first:
        done = int(state.rows[-1]["epoch"]) if state is not None and state.rows else 0
        training.display = Display(run.folder, sensors, card.classes, seen["val"], recipe.train.log, done)
    made_on = environment(world.device, world.size)
    if state is None:
        if world.is_first:
            kept.write(run, recipe, asdict(made_on))
        return training
    training.rows, training.best, training.begun = state.rows, state.best, state.begun.to(world.device)
    if world.is_first:
        note: dict[str, Any] = {"after": {"epoch": training.epochs_done, "steps": state.begun.steps}}
        note |= {"keys": keys, "data": changes}
        if "val" in changes and state.best >= 0:
            note["val_ap_before"] = training.score_best_anew()
        content, told = with_note(run, made_on, note)
        if told:
            print(f"{run.folder}: goes on with {', '.join(told)}")
        kept.write(run, recipe, content)
        training.save_metrics()  # they may be older than the state
    return training


@dataclass
class Training:
    """The parts of a training, and how far it has come.

    `model` is the loss of `detector`, shared between the processes; `average` is what is scored and kept. `held` stays
    as it is, `display` is the first process's. `alike` says whether all batches have the same shapes: then cuDNN may
    look for its fastest ways, which it does anew for each shape. `rows` have what is known of each epoch that is done,
    `begun` of the one that isn't, `best` is the highest AP on the validation split so far, `waiting` the share of the
    time of the last epoch's steps in which this process waited for data.
    """

    recipe: Recipe
    run: Run
    world: World
    detector: Detector
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: "Average"
    loader: TrainLoader
    val_loader: EvalLoader
    val_records: list[Record]
    watch: Watch
    held: list[nn.Module]
    alike: bool = False
    rows: list[Row] = field(default_factory=list)
    best: float = -1.0
    display: Display | None = None
    begun: Begun = field(default_factory=Begun)
    waiting: float = 0.0

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained; looking for it takes longer than one would think."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def epochs_done(self) -> int:
        """How many epochs were trained."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    def run_epochs(self) -> None:
        """Trains all epochs that are left."""
        epochs, steps = self.recipe.train.epochs, len(self.loader)
        with tqdm(
            total=epochs * steps,
            initial=self.epochs_done * steps + self.begun.steps,
            desc=f"training {self.recipe.name}",
            unit="step",
            disable=not self.world.is_first,
        ) as bar:
            if self.recipe.init and not self.rows:  # so that the best is no worse than what it started from
                self.run_epoch(0, bar)
            while not self.world.first_says(is_over(self.rows, self.recipe.train)):
                if self.epochs_done < epochs:
                    self.run_epoch(self.epochs_done + 1, bar)
                    continue
                if self.world.is_first:  # fewer epochs than were asked for at first, or another validation split
                    self.rows[-1] |= self._validate(epochs)
                    self._save()
                self.world.wait()
        if self.world.is_first and self.epochs_done < epochs:
            print(f"{self.run.folder}: {_stopped(self.recipe, self.epochs_done)}")

    def run_epoch(self, epoch: int, bar: "tqdm[Any]") -> None:
        """Trains an epoch, scores what came of it if it is time to, and saves.

        Epochs count from 1; epoch 0 is what a recipe with `init` starts from, and has no steps.
        """
        started, recipe = time.monotonic() - self.begun.seconds, self.recipe.train
        row: Row = {"epoch": epoch}
        if epoch > 0:
            with cudnn_looking(self.alike and not torch.backends.cudnn.deterministic):
                losses = self._train_epoch(epoch - 1, bar)
            row |= {"lr": self._rates(epoch * len(self.loader) - 1)[0], **losses, "waiting": round(self.waiting, 3)}
        if self.world.is_first:
            if epoch % recipe.evaluate_every == 0 or epoch == recipe.epochs:
                row |= self._validate(epoch)
            row["seconds"] = round(time.monotonic() - started, 2)
        self.rows.append(row)
        self.begun = Begun()
        if self.world.is_first:
            self._save()
        if self.display is not None:
            self.display.epoch(self.rows)
            alone = self.world.device.type != "cpu"  # else data and steps share the cores
            if epoch == 2 and alone and (line := data_advice(self.waiting, self.loader.workers)):
                tqdm.write(f"{self.run.folder}: {line}")
        self.world.wait()

    def _train_epoch(self, epoch: int, bar: "tqdm[Any]") -> dict[str, float]:
        """Takes the steps of an epoch, counted from 0, that are left, and returns the mean of each loss.

        The means are those of all its steps and of all processes.
        """
        self.model.train()
        hold(self.held)
        begun, every = self.begun, self.recipe.train.save_every
        entered = time.monotonic()
        started, waited = entered - begun.seconds, 0.0
        batches = self.loader.epoch(epoch, begun.steps)
        for step in range(epoch * len(self.loader) + begun.steps, (epoch + 1) * len(self.loader)):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            torch.manual_seed(self.recipe.train.seed * 1_000_003 + step)
            losses = self._step(step, batch)
            if step == 0 and self.display is not None:  # a device works meanwhile
                self.display.first_batch(batch)
            begun.sums = {k: begun.sums.get(k, 0) + v.detach() for k, v in losses.items()}
            begun.steps += 1
            bar.set_postfix(self._told(), refresh=False)
            bar.update()
            if every and (step + 1) % every == 0:
                self.watch.finish()
                shared = self.world.mean(begun.sums)  # what each process goes on with, now and when it is resumed
                begun.sums = {k: torch.tensor(v, device=self.world.device) for k, v in shared.items()}
                begun.seconds = time.monotonic() - started
                if self.world.is_first:
                    self._save()
        self.watch.finish()
        self.waiting = waited / max(time.monotonic() - entered, 1e-9)
        means = sorted(self.world.mean(begun.sums).items(), reverse=True)
        return {("loss" if k == "total" else f"{k}_loss"): v / begun.steps for k, v in means}

    def _rates(self, step: int) -> list[float]:
        """Returns the learning rate of each group of parameters at a step."""
        rate = rate_at(step, self.recipe.train, len(self.loader))
        return [group["scale"] * rate for group in self.optimizer.param_groups]

    def _told(self) -> dict[str, str]:
        """Returns what the progress bar says beside the time that is left: the loss of a step, the last and best AP."""
        scored = [row["val_ap"] for row in self.rows if "val_ap" in row]
        figures = {"loss": self.watch.loss} | ({"AP": scored[-1], "best": self.best} if scored else {})
        return {key: f"{value:.3f}" for key, value in figures.items()}

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Trains on a batch; asks the host for nothing that the device has to be done for."""
        for group, rate in zip(self.optimizer.param_groups, self._rates(step), strict=True):
            group["lr"] = rate
        device = self.world.device
        moved = batch.to(device)
        images = {
            m: x.contiguous(memory_format=torch.channels_last) for m, x in self.detector.normalise(moved.images).items()
        }
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses: dict[str, Tensor] = self.model(images, moved.present, moved.targets, moved.own)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            height, width = next(iter(images.values())).shape[2:]
            raise UserError(
                f"data.input_size: of one image of {height} x {width} the coarsest map has one place, of which a batch "
                "norm learns nothing; use a larger size, or a larger train.batch_size"
            ) from None
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.clip_norm)
        self.watch.add(step, batch.image_ids, losses["total"], norm)
        self.optimizer.step()
        if self.recipe.init:
            keep_open(self.detector)
        self.average.update(self.detector, step)
        return losses

    def _validate(self, done: int) -> dict[str, float]:
        """Scores the detector after `done` epochs, and keeps it if it is the best.

        An ensemble is calibrated anew each time. What the average makes of its calibration between two epochs is never
        used.
        """
        detector, batches = self.average.module, self.val_loader
        if isinstance(detector, BoxEnsemble):
            found = collect_calibrated(detector, batches, self.val_records, progress="validating")
        else:
            found = collect(detector, batches, progress="validating")
        if self.display is not None:
            self.display.found(found)
        scores = coco_scores(self.val_records, found, detector.classes)
        if scores.ap > self.best:
            self._keep(detector, done, found, scores)
        return {"val_ap": scores.ap, "val_ap50": scores.ap50 or 0.0}

    def _keep(self, detector: Detector, done: int, found: dict[int, Detections], scores: Scores) -> None:
        """Writes a detector as the best, with what it found after `done` epochs."""
        classes = detector.classes
        thresholds = best_thresholds(match(self.val_records, found, classes), classes)
        notes = {"name": self.recipe.name, "epoch": done, "val": asdict(scores), "thresholds": thresholds}
        checkpoint.save_detector(self.run.best, detector, notes)
        self.best = scores.ap

    def score_best_anew(self) -> dict[str, float]:
        """Scores the best detector on a validation split that changed; returns the APs on the one before, by epoch."""
        detector = checkpoint.load(self.run.best, self.world.device)
        epoch = checkpoint.read(self.run.best, with_tensors=False)[1]["notes"]["epoch"]
        found = collect(detector, self.val_loader, doubt="off", progress="validating the best anew")
        scores = coco_scores(self.val_records, found, detector.classes)
        before = {}
        for row in self.rows:
            if "val_ap" in row:
                before[str(row["epoch"])] = row.pop("val_ap")
                del row["val_ap50"]
            if row["epoch"] == epoch:
                row |= {"val_ap": scores.ap, "val_ap50": scores.ap50 or 0.0}
        self._keep(detector, epoch, found, scores)
        self._save()
        return before

    def _save(self) -> None:
        step = self.epochs_done * len(self.loader) + self.begun.steps
        parts = self.detector, self.average.module, self.optimizer
        save_state(self.run.last, *parts, self.rows, self.best, self.begun, step)
        self.save_metrics()

    def save_metrics(self) -> None:
        """Writes `metrics.csv`."""
        losses = ["loss", "class_loss", "box_loss", "branch_loss", "distillation_loss"]
        fields = ["epoch", "lr", *losses, "val_ap", "val_ap50", "waiting", "seconds"]
        text = io.StringIO()
        writer = csv.DictWriter(text, fields)
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.run.folder / "metrics.csv", text.getvalue().encode())


@contextmanager
def cudnn_looking(on: bool) -> Iterator[None]:
    """Lets cuDNN try which of its ways is fastest for a shape that it hasn't seen."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _report_left_out(loader: TrainLoader, modalities: Sequence[str]) -> None:
    if loader.absent:
        print(f"left out: {loader.absent} training images have none of {', '.join(modalities)}")
    if loader.skipped:
        print(f"skipped: {len(loader.skipped)} training images can't be used")
        for image_id, reason in sorted(loader.skipped.items()):
            print(f"  image {image_id}: {reason}")


def _check_objects(
    recipe: Recipe, card: Card, seen: dict[str, list[Record]], size: tuple[int, int], world: World
) -> None:
    """Refuses splits without an object to learn or to find, and tells how many are too small for the input size."""
    for split, records in seen.items():
        if not objects(records):
            fix = "add some, or use another split"
            raise UserError(f"{card.path}: {split} holds no object of {', '.join(card.classes)}; {fix}")
    count, shown = objects(seen["train"]), f"data.input_size {list(size)}"
    if too_small(seen["train"], size, recipe.data.scale_jitter[1]) == count:
        fix = "use a larger one, or cut the images into parts"
        raise UserError(f"{shown}: all {count} objects of train are too small for it to be learnt; {fix}")
    if world.is_first and (lost := too_small(seen["train"], size)):
        print(
            f"too small: {lost} of {count} objects of train at {shown}; they are learnt only where enlarged, if at all"
        )


def _some_lacking(records: Sequence[Record], recipe: Recipe) -> bool:
    """Whether an image lacks a modality."""
    return any(m not in record.files for record in records for m in recipe.modalities)


def _measured(card: Card, recipe: Recipe, records: list[Record], known: dict[str, Sensor]) -> Card:
    unknown = {m: card.modalities[m] for m in recipe.modalities if m not in known}
    sensors = measure(records, unknown, recipe.data) if unknown else {}
    for m, sensor in sensors.items():
        if not sensor.is_depth and max(sensor.std, default=1.0) <= SMALLEST_STD:
            raise UserError(f"{m}: all pixels of the training images have one value; mend its files or leave it out")
    return replace(card, modalities={**card.modalities, **known, **sensors})
