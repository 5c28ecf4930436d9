"""The results of a detector that lie in its run folder, and the page of them."""

import json
from pathlib import Path
from typing import TypeVar

from mmfuse.errors import UserError
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
    robustness = stored(folder, "robustness", Robustness, detector, lenient=True)
    shares = stored(folder, "shares", Shares, detector, lenient=True)
    write_whole(folder / "report.html", run_page(robustness, shares).encode())


def stored(folder: Path, name: str, kind: type[Result], detector: str, *, lenient: bool = False) -> list[Result]:
    """Returns the results `name`-SPLIT.json in a folder that are of the detector with that SHA-256.

    To be `lenient` is to leave out what isn't such a result, as of another version.

    Raises:
        UserError: a file isn't such a result.
    """
    found = []
    for path in sorted(folder.glob(f"{name}-*.json")):
        try:
            found.append(build(kind, json.loads(read_regular(path)), str(path)))
        except (ValueError, OSError, RecursionError):
            if not lenient:
                raise UserError(f"{path}: holds no {name} that can be read; remove it, or measure it anew") from None
    return [result for result in found if result.detector == detector]
