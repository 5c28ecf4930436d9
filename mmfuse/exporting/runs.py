"""An exported detector in the place of the run that it was made from: to be scored and compared on its data."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mmfuse.errors import UserError
from mmfuse.exporting.header import Header
from mmfuse.exporting.loading import ONNX, PT2, header_of
from mmfuse.model import checkpoint
from mmfuse.recipes import Recipe
from mmfuse.run import Run


@dataclass(frozen=True)
class ExportedRun(Run):
    """A file that `mmfuse export` wrote of a run, as a run of its own; results of it go into `folder`.

    Its recipe is that of the run, by a name with the file's in it.
    """

    file: Path = Path()

    @cached_property
    def header(self) -> Header:
        """What the file says of itself, for which it has to be opened; see `header_of`."""
        return header_of(self.file)

    @property
    def given(self) -> str:
        """What names it on the command line: the file."""
        return str(self.file)

    @property
    def best(self) -> Path:
        """The file."""
        return self.file

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run that it was made from.

        Raises:
            UserError: it was made from a detector without a run.
        """
        recipe = self.header.recipe
        if recipe is None:
            raise UserError(f"{self.file}: was made from a detector without a run, so it has no recipe; export a run")
        return replace(recipe, name=f"{recipe.name}-{self.file.stem}").moved(self.card, self.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.header.classes

    @property
    def thresholds(self) -> dict[str, float]:
        """The scores, by class, that were best for the detector that it was made from."""
        return self.header.thresholds


def is_exported(path: str | Path) -> bool:
    """Whether a path names a file as `mmfuse export` writes them."""
    return Path(path).suffix in (ONNX, PT2)


def open_run(path: str | Path, card: str | Path | None = None, root: str | Path | None = None) -> Run:
    """Returns the run of a folder, or an exported file as one; see `Run` for `card` and `root`."""
    path = Path(path)
    return ExportedRun(path.with_suffix(""), card, root, path) if is_exported(path) else Run(path, card, root)


def thresholds_of(path: str | Path) -> dict[str, float]:
    """Returns the scores, by class, that training chose for a run, a checkpoint or what was exported of one."""
    return header_of(Path(path)).thresholds if is_exported(path) else checkpoint.thresholds(path)
