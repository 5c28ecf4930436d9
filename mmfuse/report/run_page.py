"""The page of a run folder: all results of its best detector that lie there."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mmfuse.evaluation.results import Robustness, Shares
from mmfuse.files import read_regular, write_whole
from mmfuse.report.page import run_page
from mmfuse.strict_yaml import build

Result = TypeVar("Result", Robustness, Shares)


def write_run_page(folder: Path, detector: str) -> None:
    """Writes `report.html` of what `robustness` and `shares` found of the detector with that SHA-256, on all splits.

    Raises:
        UserError: the file can't be written.
    """
    robustness = _stored(folder, "robustness", Robustness, detector)
    shares = _stored(folder, "shares", Shares, detector)
    write_whole(folder / "report.html", run_page(robustness, shares).encode())


def _stored(folder: Path, name: str, kind: type[Result], detector: str) -> list[Result]:
    """Returns the results in a folder that are of a detector; what isn't one, as of another version, is left out."""
    found = []
    for path in sorted(folder.glob(f"{name}-*.json")):
        with suppress(ValueError, OSError, RecursionError):
            found.append(build(kind, json.loads(read_regular(path)), str(path)))
    return [result for result in found if result.detector == detector]
