"""A run folder and what lies in it, and how its recipe becomes an input size and a detector."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfuse import scaling
from mmfuse.errors import UserError
from mmfuse.files import read_regular
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector
from mmfuse.recipes import Recipe, TrainRecipe
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import build, read_yaml


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and what lies in it.

    Where its data moved, `card` takes the place of the recipe's card, with the root that it names itself, and `root` of
    the folder that the data lies in; what lies in the run folder stays as it is.
    """

    folder: Path
    card: str | Path | None = None
    root: str | Path | None = None

    @property
    def given(self) -> str:
        """What names it on the command line: its folder."""
        return str(self.folder)

    @property
    def best(self) -> Path:
        """The detector that was best on the validation split."""
        return self.folder / "best.safetensors"

    @property
    def digest(self) -> str:
        """The SHA-256 of the file of the best detector, by which results of it are known."""
        return hashlib.sha256(read_regular(self.best)).hexdigest()

    @property
    def last(self) -> Path:
        """The training state that was saved last, to resume from."""
        return self.folder / "last.safetensors"

    @property
    def recipe(self) -> Recipe:
        """The recipe, with every default written out, of data where it lies now.

        Raises:
            UserError: the folder holds no run.
        """
        path = self.folder / "config.yaml"
        if not path.exists():
            raise UserError(f"{self.folder}: is not a run folder (no config.yaml); train first, or check the path")
        recipe = build(Recipe, read_yaml(path), str(path))
        return recipe.moved(self.card, self.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        header = checkpoint.read(self.best, with_tensors=False)[1]
        return checkpoint.Spec.read(header, str(self.best)).classes

    @property
    def thresholds(self) -> dict[str, float]:
        """The score by class at which F1 was highest on the validation split; a class that wasn't found has none."""
        return checkpoint.thresholds(self.best)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A row for each epoch; a number that wasn't measured in an epoch is left out.

        Epoch 0 is what a recipe with `init` starts from.

        Raises:
            UserError: the file doesn't hold such rows.
        """
        path = self.folder / "metrics.csv"
        if not path.exists():
            return []
        try:
            rows = csv.DictReader(io.StringIO(read_regular(path).decode()), strict=True)
            found = [{key: float(value) for key, value in row.items() if value} for row in rows]
            if any("epoch" not in row for row in found):
                raise ValueError("a row without its epoch")
            return found
        except (ValueError, TypeError, OSError, csv.Error) as error:
            raise UserError(f"{path}: isn't a run's metrics ({error}); restore it, or train anew") from None

    @property
    def finished(self) -> bool:
        """Whether all epochs of the recipe are done, or its `patience` ended them."""
        return self.best.exists() and is_over(self.metrics, self.recipe.train)


def is_over(rows: Sequence[Mapping[str, Any]], recipe: TrainRecipe) -> bool:
    """Returns whether a training with `rows` of metrics is at its end: all epochs are done, the last one is scored.

    Or it had as many evaluations as its `patience` since the best one.
    """
    if not rows:
        return False
    scores = [row["val_ap"] for row in rows if "val_ap" in row]
    waited = len(scores) - 1 - scores.index(max(scores)) if scores else 0
    return (rows[-1]["epoch"] >= recipe.epochs and "val_ap" in rows[-1]) or 0 < recipe.patience <= waited


def input_size(recipe: Recipe) -> tuple[int, int]:
    """Returns the input size (H, W) of a recipe.

    Raises:
        UserError: it isn't a multiple of the coarsest stride.
    """
    size = scaling.size(recipe.model.size)
    try:
        return size.input_size(recipe.data.input_size)
    except UserError as error:
        raise UserError(f"data.{error}") from None


def build_detector(recipe: Recipe, sensors: Mapping[str, Sensor], classes: Sequence[str]) -> Detector:
    """Builds the detector of a recipe, given a card's sensors, which are measured, and its classes."""
    own = {m: sensors[m] for m in recipe.modalities}
    model = dataclasses.asdict(recipe.model)
    channels = {m: sensor.encoded_channels for m, sensor in own.items()}
    size = input_size(recipe)
    return create_detector(model.pop("size"), channels, classes=classes, sensors=own, input_size=size, **model)
