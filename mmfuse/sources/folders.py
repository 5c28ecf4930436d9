"""Scenes of image files: one of each sensor, or folders of them, paired by name or by time."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mmfuse.data.annotations.timestamps import match
from mmfuse.errors import UserError
from mmfuse.images.decode import PICTURES, POINTS
from mmfuse.sample import Scene

SUFFIXES = frozenset((*PICTURES, *POINTS))


def scenes_of_folders(folders: Mapping[str, Path], tolerance: float | None = None) -> list[Scene]:
    """Returns the scenes of a folder for each modality, whose files are found at any depth.

    Files of one name but for the suffix are a scene; what lacks its partner is one without that sensor. With a
    `tolerance` names are times, numbers, and each frame of the first modality takes the nearest of every other that is
    at most that far off.

    Raises:
        UserError: a folder is missing or holds no image, two of its files have one name, none of its names is another
            sensor's, or a name is no time.
    """
    found = {m: _named(m, folder) for m, folder in folders.items()}
    if tolerance is not None:
        return _by_time(found, tolerance)
    names = Counter(name for files in found.values() for name in files)
    for m, files in found.items():
        if len(found) > 1 and all(names[name] == 1 for name in files):
            other = next(one for one in found if one != m)
            shown = f"{next(iter(files))!r} and {next(iter(found[other]))!r}"
            raise UserError(f"{m}: no file in {folders[m]} has the name of another sensor's ({shown}); pair by time")
    return [Scene({m: files[name] for m, files in found.items() if name in files}, name=name) for name in sorted(names)]


def _named(modality: str, folder: Path) -> dict[str, Path]:
    """Returns the image files below a folder by their path in it without the suffix, in order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in inner.parts):
            continue
        name = inner.with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{modality}: {found[name]} and {path} have one name; keep one of them in the folder")
        found[name] = path
    if not found:
        raise UserError(f"{modality}: {folder} holds no image ({', '.join(sorted(SUFFIXES))}); check the path")
    return found


def _by_time(found: Mapping[str, Mapping[str, Path]], tolerance: float) -> list[Scene]:
    times = {m: [_time(name, path) for name, path in files.items()] for m, files in found.items()}
    (reference, frames), *others = found.items()
    images = [{reference: path} for path in frames.values()]
    for m, files in others:
        paths = list(files.values())
        for own, index in zip(images, match(times[reference], times[m], tolerance), strict=True):
            if index is not None:
                own[m] = paths[index]
    return [Scene(own, name=name) for own, name in zip(images, frames, strict=True)]


def _time(name: str, path: Path) -> float:
    try:
        return float(name.rpartition("/")[2])
    except ValueError:
        raise UserError(f"{path}: its name is not a time; name files by numbers to pair them by time") from None
