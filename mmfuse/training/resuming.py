"""What may change where a run goes on, what may not, and what is written down of what it stands on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmfuse.data.annotations.cards import Card
from mmfuse.data.annotations.changes import differences, traces
from mmfuse.data.annotations.records import Record, split_digest
from mmfuse.environment import Environment
from mmfuse.errors import UserError
from mmfuse.files import read_regular, write_whole
from mmfuse.recipes import Recipe
from mmfuse.run import Run
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import save_yaml

FREE = {
    "name", "card", "doubt", "data.root", "data.workers", "data.cache", "data.on_bad_sample", "train.device",
    "train.epochs", "train.evaluate_every", "train.save_every", "train.patience", "train.log", "train.compile",
}  # fmt: skip
"""Keys that may change: they say where things are, how they are done or how long, not what is learnt of the data."""

_STARTS = ("init", "model.weights", "model.pretrained")
_MEASURED = {"dtype", "mean", "std", "seen", "gaps"}
_FIX = "put it back, choose another folder, or go on with it: mmfuse train --resume --accept-changed-data"


def changed_keys(run: Run, recipe: Recipe) -> dict[str, list[Any]]:
    """Returns the keys in which a recipe isn't the run's, each with both values.

    Those are `FREE`, or name what it started from, which is read no more and may lie in another folder.

    Raises:
        UserError: another key changed.
    """
    before, after = _flat(run.recipe.to_dict()), _flat(recipe.to_dict())
    pairs = {key: [before.get(key), after.get(key)] for key in before | after}
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if fixed := [key for key, pair in changed.items() if key not in FREE and not _moved(key, *pair)]:
        values = " and ".join(f"{key}={changed[key][0]!r}, not {changed[key][1]!r}" for key in fixed)
        raise UserError(f"{run.folder}: was trained with {values}; go on with that, or choose another folder")
    return changed


def require_best(run: Run) -> None:
    """Raises a UserError where the best detector of a run that was scored is gone."""
    if not run.best.exists():
        fix = "put it back, or train in another folder"
        raise UserError(f"{run.best}: is gone, and with it the best epoch so far; {fix}")


def require_epochs(run: Run, begun: int, recipe: Recipe) -> None:
    """Raises a UserError where a run has begun more epochs than a recipe asks for."""
    if begun > recipe.train.epochs:
        fix = f"use at least {begun}, or train in another folder"
        raise UserError(f"train.epochs: {recipe.train.epochs} is less than the {begun} of {run.folder}; {fix}")


def require_sensors(card: Card, sensors: Mapping[str, Sensor]) -> None:
    """Raises a UserError where a card says otherwise than the `sensors` that a run was trained with."""
    for m, theirs in sensors.items():
        own = card.modalities[m]
        for name in (f.name for f in fields(Sensor)):
            here, there = getattr(own, name), getattr(theirs, name)
            if here != there and name not in _MEASURED and not (name == "range" and not here):
                fix = "make them equal, or start another run from this one with init"
                raise UserError(f"{card.path}: {m}: {name} is {here!r}, the run was trained with {there!r}; {fix}")


@dataclass(frozen=True)
class Kept:
    """What a run folder keeps of its data: the classes, and by split its digest and the traces of its images."""

    classes: tuple[str, ...]
    digests: dict[str, str]
    images: dict[str, dict[str, str]]

    @staticmethod
    def of(card: Card, splits: Mapping[str, Sequence[Record]]) -> "Kept":
        """Returns it of splits as they are now."""
        return Kept(
            card.classes,
            {split: split_digest(records) for split, records in splits.items()},
            {split: traces(records, card.root) for split, records in splits.items()},
        )

    def changes(self, run: Run, classes: Sequence[str]) -> dict[str, str]:
        """Returns in words what isn't as it was in the run, whose detector has `classes`: by split, and "classes".

        Raises:
            UserError: the number of classes changed, or the run's files can't be read.
        """
        found = {}
        if list(classes) != list(self.classes):
            found["classes"] = f"{', '.join(self.classes)}, not {', '.join(classes)}"
            if len(classes) != len(self.classes):
                fix = "train in another folder, from this run with init"
                raise UserError(f"{run.folder}: the classes are {found['classes']}; {fix}")
        digests = _object(_read(run.folder / "environment.json").get("splits"))
        kept = _read(run.folder / "data.json")
        for split, digest in self.digests.items():
            before = _object(kept.get(split))
            if digests.get(split) != digest:
                known = before.get("digest") == digests.get(split) and digests.get(split) is not None
                words = differences(_object(before.get("images")), self.images[split]) if known else []
                found[split] = ", ".join(words) or "isn't what it was, of which too little was kept to say more"
        return found

    def write(self, run: Run, recipe: Recipe, environment: Mapping[str, Any]) -> None:
        """Writes the files of a run folder that say what the run stands on, the recipe last.

        Raises:
            UserError: one can't be written.
        """
        stands_on = json.dumps({**environment, "splits": self.digests}, indent=2)
        write_whole(run.folder / "environment.json", stands_on.encode())
        images = {s: {"digest": digest, "images": self.images[s]} for s, digest in self.digests.items()}
        write_whole(run.folder / "data.json", json.dumps(images).encode())
        save_yaml(run.folder / "config.yaml", recipe.to_dict())


def require_unchanged(run: Run, changes: Mapping[str, str]) -> None:
    """Raises a UserError that names the `changes` of a run's data, if there are any."""
    if changes:
        words = "; ".join(f"{what}: {how}" for what, how in changes.items())
        raise UserError(f"{run.folder}: its data changed: {words}; {_FIX}")


def with_note(run: Run, environment: Environment, note: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the content of a run's environment file with a note that it went on, and in words what is to be told.

    There is no new note where nothing changed: neither what the `note` says nor the `environment`, but for its date.

    Raises:
        UserError: the file can't be read.
    """
    begun, now = _read(run.folder / "environment.json"), asdict(environment)
    last = [begun, *(_object(entry) for entry in begun.get("resumed") or [])][-1]
    versions = _object(last.get("versions"))
    told = [f"{name} {v} (was {versions.get(name)})" for name, v in now["versions"].items() if versions.get(name) != v]
    changed = {key for key, value in now.items() if key != "date" and last.get(key) != value}
    if epochs := note["keys"].get("train.epochs"):
        told.append(f"train.epochs {epochs[1]} (was {epochs[0]})")
    if note["data"]:
        note = {**note, "splits_before": begun.get("splits")}
        told.append(f"changed data ({', '.join(note['data'])})")
    if changed or note["keys"] or note["data"]:
        begun["resumed"] = [*(begun.get("resumed") or []), {**note, **now}]
    return begun, told


def _read(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file of a run folder; an empty one where there is no file."""
    try:
        values = json.loads(read_regular(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("resumed", []), list):
        raise UserError(f"{path}: isn't what a training wrote; put it back, or remove it")
    return values


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _moved(key: str, before: object, after: object) -> bool:
    starts = any(key == start or key.startswith(f"{start}.") for start in _STARTS)
    return starts and isinstance(before, str) and isinstance(after, str) and Path(before).name == Path(after).name


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
