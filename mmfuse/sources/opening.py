"""Opens whatever holds scenes: `scenes`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmfuse.data.annotations.cards import load_card
from mmfuse.errors import UserError, unknown_name
from mmfuse.model.detector import Finder
from mmfuse.sample import Scene
from mmfuse.sources.folders import SUFFIXES as IMAGES
from mmfuse.sources.folders import scenes_of_folders
from mmfuse.sources.recordings import BagScenes
from mmfuse.sources.splits import scenes_of_coco, scenes_of_split
from mmfuse.sources.videos import CAMERA, VideoScenes
from mmfuse.sources.videos import SUFFIXES as VIDEOS

_TOLERANCE = 0.05
_BAGS = (".bag", ".mcap", ".db3")


def scenes(
    detector: Finder,
    source: str | Path | Mapping[str, str | Path],
    *,
    split: str = "test",
    root: str | None = None,
    topics: Mapping[str, str] | None = None,
    tolerance: float | None = None,
) -> Iterable[Scene]:
    """Returns the scenes of a source, for a detector's sensors; of files and splits they are a list.

    - a mapping of modalities to files; to folders, whose files are paired by name, or by time with a `tolerance`; or to
      videos or cameras ("camera:0"), paired by time;
    - a card (.yaml), of which the `split` is read, of a dataset at `root` if given;
    - a COCO file (.json), whose images lie beside it;
    - a folder with one for each modality in it; for a detector of one sensor, its folder, file, video or camera;
    - a bag of ROS 1 or 2, with `topics` by modality.

    `tolerance` is in seconds, 0.05 for videos and bags, or in the unit of the names of files.

    Raises:
        UserError: it can't be opened, names a modality that isn't the detector's, or holds nothing.
    """
    names = detector.modalities
    for word in (topics or {}) if topics else (source if isinstance(source, Mapping) else ()):
        if word not in names:
            raise UserError(unknown_name(word, names, "modality of this detector"))
    if isinstance(source, Mapping):
        return _of_each(detector, {m: str(part) for m, part in source.items()}, tolerance)
    text, path = str(source), Path(source)
    suffix = path.suffix.lower()
    is_bag = suffix in _BAGS or (path / "metadata.yaml").exists()
    if topics and not is_bag:
        raise UserError(f"{source}: is no bag, so {', '.join(topics)} can't be given beside it; leave out one of both")
    if suffix in (".yaml", ".yml"):
        return scenes_of_split(load_card(path, root), split)
    if suffix == ".json":
        return scenes_of_coco(path, names)
    if is_bag:
        if not topics:
            raise UserError(
                f"{source}: name the topic of each sensor, of {', '.join(names)}, such as --{names[0]} /image"
            )
        return BagScenes(path, topics, _TOLERANCE if tolerance is None else tolerance)
    inner = {m: str(path / m) for m in names if (path / m).is_dir()}
    if inner:
        return _of_each(detector, inner, tolerance)
    if len(names) == 1:
        return _of_each(detector, {names[0]: text}, tolerance)
    if not path.exists():
        raise UserError(f"{source}: does not exist; check the path")
    fix = " and ".join(f"--{m} …" for m in names)
    raise UserError(f"{source}: isn't a card, a COCO file, a bag or a folder of {', '.join(names)}; give {fix}")


def _of_each(detector: Finder, parts: Mapping[str, str], tolerance: float | None) -> Iterable[Scene]:
    if not parts:
        raise UserError(f"no image given; give at least one of {', '.join(detector.modalities)}")
    kinds = {m: _kind(m, part) for m, part in parts.items()}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{m} is a {kind}" for m, kind in kinds.items())
        raise UserError(f"{shown}; give all sensors as files, as folders or as videos")
    kind = next(iter(kinds.values()))
    if kind == "folder":
        return scenes_of_folders({m: Path(part) for m, part in parts.items()}, tolerance)
    if kind == "video":
        channels = {m: detector.sensors[m].channels for m in parts}
        return VideoScenes(parts, channels, _TOLERANCE if tolerance is None else tolerance)
    return [Scene(parts, name=Path(next(iter(parts.values()))).stem)]


def _kind(modality: str, part: str) -> str:
    path = Path(part)
    if path.is_dir():
        return "folder"
    if part.startswith(CAMERA) or path.suffix.lower() in VIDEOS:
        return "video"
    if not path.exists():
        raise UserError(f"{modality}: {part} does not exist; check the path")
    if path.suffix.lower() not in IMAGES:
        raise UserError(f"{modality}: {part} is no image, video or folder that is known here; check the path")
    return "file"
