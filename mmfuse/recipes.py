"""Recipes: what one experiment is, one YAML file each."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmfuse.architecture import Architecture
from mmfuse.errors import UserError, require, unknown_name
from mmfuse.files import HUB, require_name, resolved
from mmfuse.shipped import find
from mmfuse.strict_yaml import build, override, plain, read_yaml


@dataclass(frozen=True)
class ModelRecipe(Architecture):
    """The detector: what it is made of, and what it starts from.

    `pretrained` takes ImageNet's weights for the backbones: timm's by download or package, or those of a file.
    `weights` is the name of a published checkpoint or, with a suffix, a file.
    """

    pretrained: bool | str = False
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = isinstance(self.pretrained, bool) or bool(Path(self.pretrained).suffix)
        require(known, "pretrained", self.pretrained, "write true, false or a file")


@dataclass(frozen=True)
class DataRecipe:
    """What the detector is shown. `root` overrides the card's; `input_size` is height and width, None the size's own.

    `scale_jitter` is the range of the random scale, `color_jitter` the strength on RGB, 0 for none; `workers` is the
    number of loader processes, None for as many as there are cores to spare. `cache` is a folder that keeps images
    decoded and prepared; None keeps those alone that take long to prepare (see `data.cache`). A training image that
    can't be read stops the run, or with `on_bad_sample` "skip" another takes its place and it is reported.

    `shift` (pixels at 640 pixels' width) and `rotation` (degrees) map modalities to how far at most each is moved at
    random against the labels and the other sensors of its image; a recipe of one modality moves nothing. Name those
    that may be off in the field. `boxes` "own" takes, where a detector sees one modality alone, the objects that were
    labelled on its own images, if the data has them, in place of the reference's.
    """

    root: str | None = None
    input_size: tuple[int, int] | None = None
    hflip: float = 0.5
    scale_jitter: tuple[float, float] = (0.5, 1.5)
    color_jitter: float = 0.2
    shift: dict[str, float] = field(default_factory=dict)
    rotation: dict[str, float] = field(default_factory=dict)
    boxes: Literal["reference", "own"] = "reference"
    workers: int | None = None
    cache: str | None = None
    on_bad_sample: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        size, (smallest, largest) = self.input_size, self.scale_jitter
        require(size is None or min(size) >= 1, "input_size", size, "use [height, width]")
        require(0 <= self.hflip <= 1, "hflip", self.hflip, "use a probability")
        fix = "use [smallest, largest], both positive"
        require(0 < smallest <= largest, "scale_jitter", self.scale_jitter, fix)
        require(0 <= self.color_jitter < 1, "color_jitter", self.color_jitter, "use 0 up to below 1")
        for modality, pixels in self.shift.items():
            require(0 <= pixels <= 640, f"shift.{modality}", pixels, "use 0 to 640 pixels")
        for modality, degrees in self.rotation.items():
            require(0 <= degrees <= 180, f"rotation.{modality}", degrees, "use 0 to 180")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "use at least 0")
        require(self.cache != "", "cache", self.cache, "use a folder, or null for none")


@dataclass(frozen=True)
class TrainRecipe:
    """How the detector is trained.

    `epochs` 0 trains nothing: the result is what `init` starts from. `lr` is for a batch of 64 and scales linearly with
    `batch_size`, which is the batch over all processes. `evaluate_every` counts epochs; the last epoch is always
    evaluated. What a run goes on from is saved after each epoch, and where these are long after each `save_every` steps
    too, 0 for epochs alone. `patience` ends a run after so many evaluations without a better AP on validation, 0
    never. `freeze` names parts that stay as they start (see `training.freezing`); the learning rate of backbones is
    `backbone_rate` times that of all else. `log` is what the figures of each epoch go to besides `metrics.csv`.
    `compile` lets torch.compile make the network's kernels, which takes minutes before it saves any (see
    `training.branches`).

    Four keys keep a detector strong on each sensor alone, 0 for off and without effect where there is one modality.
    `branch_losses` weighs the loss of each sensor alone, None for 1 where several meet in a pyramid; `faults` is the
    share of images in which a fault strikes one sensor, never the last, and of those in which objects are hidden from
    one (see `training.faults`); `modality_dropout` is the probability that a sensor is taken from an image, whose last
    one always stays; `distillation` weighs how far the outputs of each sensor alone are from those of all (see
    `training.branches`).
    """

    epochs: int = 30
    batch_size: int = 16
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 0.002
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    ema_decay: float = 0.9998
    clip_norm: float = 10.0
    freeze: tuple[str, ...] = ()
    backbone_rate: float = 1.0
    evaluate_every: int = 1
    log: Literal["none", "tensorboard"] = "none"
    save_every: int = 0
    patience: int = 0
    branch_losses: float | None = None
    faults: float = 0.0
    modality_dropout: float = 0.0
    distillation: float = 0.0
    seed: int = 0
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "epochs", self.epochs, "use at least 1, or 0 with init")
        for name in ("batch_size", "evaluate_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "use at least 1")
        for name in ("lr", "clip_norm", "backbone_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "use a positive number")
        for name in ("weight_decay", "warmup_epochs", "distillation", "save_every", "patience", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "use at least 0")
        require(self.branch_weight >= 0, "branch_losses", self.branch_losses, "use at least 0, or null for 1")
        require(0 <= self.faults <= 1, "faults", self.faults, "use a share from 0 to 1")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "use 0 (off) up to below 1")
        require(0 <= self.modality_dropout <= 1, "modality_dropout", self.modality_dropout, "use a probability")

    @property
    def branch_weight(self) -> float:
        """The weight of the loss of each sensor alone, where several meet in a pyramid."""
        return 1.0 if self.branch_losses is None else self.branch_losses


@dataclass(frozen=True)
class Recipe:
    """One experiment: a dataset card, the modalities to use of it, the detector, the data path and the training.

    `init` is what it starts from: one run (a folder, checkpoint or hub:user/name) of any sensors and classes, of which
    what fits is taken; or, by modality, runs of that modality alone, or recipes of such, which are trained first.
    `doubt` says what comes of sensors that aren't believed, see `model.doubt`; with "off" it isn't fitted.
    """

    name: str
    card: str
    modalities: tuple[str, ...]
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    init: dict[str, str] | str = field(default_factory=dict)
    doubt: Literal["drop", "weigh", "report", "off"] = "drop"

    def __post_init__(self) -> None:
        modalities, model, train = self.modalities, self.model, self.train
        require_name(self.name, "name")
        require(modalities, "modalities", modalities, "name at least one")
        require(len(set(modalities)) == len(modalities), "modalities", modalities, "name each once")
        for modality in self.singles:
            if modality not in modalities:
                raise UserError(f"init: {unknown_name(modality, modalities, 'modality of this recipe')}")
        require(self.init or train.epochs >= 1, "train.epochs", train.epochs, "use at least 1, or 0 with init")
        require(not (self.init and model.weights), "model.weights", model.weights, "leave it or init out")
        model.check(modalities, "model.")
        if model.apart and len(modalities) > 1:
            for name in ("branch_losses", "distillation"):
                weight, fix = getattr(train, name), f"use 0 for placement {model.placement}"
                require(not weight, f"train.{name}", weight, fix)

    @property
    def singles(self) -> dict[str, str]:
        """The runs or recipes of one modality each that it starts from."""
        return {} if isinstance(self.init, str) else self.init

    def moved(self, card: str | Path | None = None, root: str | Path | None = None) -> "Recipe":
        """Returns the recipe for data that moved: a `card`, with the root that it names itself, or another `root`."""
        recipe = self
        if card is not None:
            data = dataclasses.replace(self.data, root=None)
            recipe = dataclasses.replace(self, card=str(resolved(Path(card))), data=data)
        if root is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(root)))
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON or YAML; `build(Recipe, values, where)` reads them back."""
        return plain(dataclasses.asdict(self))


def load_recipe(path: str | Path, assignments: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, or one that comes along by its name, and makes `key=value` changes to it.

    `name` defaults to the file's name. A relative `card`, run of `init` or file of `model.weights` is looked up from
    the recipe's folder, and from the current folder where an assignment gives it.

    Raises:
        UserError: the file or a value isn't right.
    """
    path = Path(path)
    if not path.suffix and not path.exists():
        path = find("recipe", path.as_posix())
    values = _looked_up({"name": path.stem, **read_yaml(path)}, path.parent)
    values = _looked_up(override(values, assignments), Path())
    return build(Recipe, values, str(path))


def _looked_up(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a recipe's values with the files in it made absolute; relative ones lie in `folder`."""
    card, model, init = values.get("card"), values.get("model"), values.get("init")
    if isinstance(card, str):
        values = {**values, "card": str(resolved(folder / card))}
    if isinstance(model, dict):
        files = {k: v for k in ("weights", "pretrained") if isinstance(v := model.get(k), str) and Path(v).suffix}
        found = {key: _within(folder, file) for key, file in files.items()}
        values = {**values, "model": {**model, **found}}
    if isinstance(init, dict):
        runs = {m: _within(folder, run) if isinstance(run, str) else run for m, run in init.items()}
        values = {**values, "init": runs}
    if isinstance(init, str):
        values = {**values, "init": _within(folder, init)}
    return values


def _within(folder: Path, name: str) -> str:
    """Returns a path made absolute, and what lies on the Hub by its name."""
    return name if name.startswith(HUB) else str(resolved(folder / name))
