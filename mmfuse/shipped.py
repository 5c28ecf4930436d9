"""Recipes and dataset cards that come along: in the package where it is installed, beside it in a checkout."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mmfuse.errors import UserError, unknown_name
from mmfuse.files import read_regular, write_whole

Kind = Literal["recipe", "card"]
_FOLDERS = {"recipe": "configs", "card": "datasets"}


def shipped(kind: Kind) -> dict[str, Path]:
    """Returns the files of all recipes or cards that come along, by their names, such as "roadscene/rgb_thermal"."""
    folder = _folder(kind)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find(kind: Kind, name: str) -> Path:
    """Returns the file of a recipe or card that comes along.

    Raises:
        UserError: there is none of that name.
    """
    known = shipped(kind)
    if name not in known:
        raise UserError(unknown_name(name, known, f"{kind} that comes along"))
    return known[name]


def copy(kind: Kind, name: str, out: Path) -> list[Path]:
    """Copies a recipe, with its card and the recipes that it starts from, or a card, and returns the files.

    They go to `out`/configs and `out`/datasets.

    Raises:
        UserError: there is none of that name, one of the files is there already, or can't be written.
    """
    from mmfuse.strict_yaml import read_yaml

    path = find(kind, name)
    sources: list[tuple[Kind, Path]] = [(kind, path)]
    if kind == "recipe":
        recipe = read_yaml(path)
        if isinstance(card := recipe.get("card"), str):
            sources.append(("card", find("card", Path(card).stem)))
        if isinstance(init := recipe.get("init"), dict):
            sources += [("recipe", path.parent / start) for start in init.values() if start.endswith(".yaml")]
    targets = [out / _FOLDERS[k] / p.relative_to(_folder(k)) for k, p in sources]
    _refuse_existing(targets)
    for (_, source), target in zip(sources, targets, strict=True):
        write_whole(target, read_regular(source))
    return targets


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: is there already; give another folder, or remove it")


def _folder(kind: str) -> Path:
    here = Path(__file__).parent
    return next(place for place in (here / _FOLDERS[kind], here.parent / _FOLDERS[kind]) if place.is_dir())
