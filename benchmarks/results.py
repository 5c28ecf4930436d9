"""What a benchmark found: written as JSON as it comes, and read as a table of docs/performance.md."""

import json
import os
import platform
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmfuse
from benchmarks.side_by_side import Ratio
from mmfuse.errors import UserError
from mmfuse.files import write_whole
from mmfuse.report.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Bar:
    """The largest ratio that `must` be reached, and the one that is the `aim`."""

    must: float
    aim: float | None = None


NO_BARS: Mapping[str, Bar] = {}


@dataclass(frozen=True)
class Row:
    """A number of one side: its `value` in `unit`, and the `ratio` to the side that it is compared with.

    `measure` says what is measured, such as "time"; `low` to `high` is the 95 % interval of the ratio, None where
    nothing is left to chance.
    """

    measure: str
    name: str
    value: float | None = None
    unit: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bar: Bar | None = None
    layout: str | None = None


def time_rows(
    ratios: Iterable[Ratio],
    bars: Mapping[str, Bar] = NO_BARS,
    *,
    measure: str = "time",
    layouts: Mapping[str, str] | None = None,
) -> list[Row]:
    """Returns a row for each side that was timed; `bars` and `layouts` are by side."""
    return [
        Row(
            measure, r.name, r.milliseconds, "ms", r.median, r.low, r.high, bars.get(r.name),
            (layouts or {}).get(r.name),
        )
        for r in ratios
    ]  # fmt: skip


def count_rows(measure: str, unit: str, counts: Mapping[str, float], bars: Mapping[str, Bar] = NO_BARS) -> list[Row]:
    """Returns a row for each side of `counts`, with its ratio to the first."""
    first = next(iter(counts.values()))
    return [Row(measure, name, value, unit, value / first, bar=bars.get(name)) for name, value in counts.items()]


def save(benchmark: str, options: Mapping[str, Any], found: Iterable[Row | str], folder: Path = RESULTS) -> Path:
    """Writes what a benchmark finds, with how to get it again, and where and when it was made; returns the file.

    The file is `folder`/`benchmark`.json, with the name of the GPU where there is one. It is written after each row, so
    what is there isn't lost when a later one fails; a row of the same measure and name takes the place of an earlier
    one. Texts among the rows are notes on what is left out.
    """
    where, rows, notes = hardware(), dict[tuple[str, str], Row](), list[str]()
    device = re.sub(r"[^a-z0-9]+", "_", f" {where['device']}".lower()) if where["device"] else ""
    path = folder / f"{benchmark}{device.rstrip('_')}.json"
    result = {
        "benchmark": benchmark,
        "command": " ".join([f"python -m benchmarks {benchmark}", *_arguments(options)]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": where,
        "versions": versions(),
        "rounds": options.get("rounds"),
    }
    for one in found:
        if isinstance(one, str):
            notes.append(one)
        else:
            rows[one.measure, one.name] = one
        result["rows"], result["notes"] = [asdict(row) for row in rows.values()], notes
        write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
    return path


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Returns the words of a command; switches that are off, and texts that are empty, are left out."""
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value not in (False, "")}
    return [name if value is True else shlex.join([name, str(value)]) for name, value in given.items()]


def versions() -> dict[str, str]:
    """Returns the versions of Python, of mmfuse, installed or not, and of the libraries that are there."""
    found = {"python": platform.python_version(), "mmfuse": mmfuse.__version__}
    for name in ("effdet", "timm", "torch", "torchvision"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, Any]:
    """Returns the processor, its cores, the threads in use, the accelerator, and the load of the last minute."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return {
        "cpu": found[1].strip() if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns a result as a Markdown table and a line on how it was made; columns that nothing fills are left out."""
    columns: dict[str, list[str | None]] = {"measure": [], "side": [], "layout": []}
    columns |= {name: [] for name in ("value", "ratio", "95 % interval", "must", "aim", "reached")}
    for row in result["rows"]:
        bar = row["bar"] or {"must": None, "aim": None}
        interval = None if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
        cells = [row["measure"], row["name"], row["layout"], _quantity(row["value"], row["unit"])]
        cells += [_three(row["ratio"]), interval, _three(bar["must"]), _three(bar["aim"]), _verdict(row["ratio"], bar)]
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    filled = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    texts = sum(name in filled for name in ("measure", "side", "layout"))
    lines = markdown_table(list(filled), list(zip(*filled.values(), strict=True)), numbers_from=texts)
    return f"{lines}\n{_made(result)}\n"


def ways_table(result: Mapping[str, Any]) -> str:
    """Returns a result as Markdown tables, a row for each way and a column for each measure, and how it was made.

    Where measures begin with a size, as in "d0, 1 modality, batch 1: latency", each size has a table of what was timed.
    """
    tables: dict[str, list[Any]] = {}
    for row in result["rows"]:
        size, comma, measure = row["measure"].partition(", ")
        if not comma:
            tables.setdefault("", []).append(row)
        elif row["ratio"] is not None:
            tables.setdefault(size, []).append(row | {"measure": measure})
    parts = []
    for size, rows in tables.items():
        measures, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("measure", "name"))
        cells = {(row["name"], row["measure"]): _ratio_first(row) for row in rows}
        lines = [[name, *(cells.get((name, measure)) for measure in measures)] for name in names]
        if size or len(tables) == 1:
            parts.append(markdown_table([size or "way", *measures], lines))
    return "\n".join([*parts, _made(result)]) + "\n"


def _ratio_first(row: Mapping[str, Any]) -> str:
    quantity = _quantity(row["value"], row["unit"]) or ""
    return quantity if row["ratio"] is None else f"{row['ratio']:.3f}: {quantity}"


def _quantity(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:#.3g} {unit}"


def _three(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _verdict(ratio: float | None, bar: Mapping[str, float | None]) -> str | None:
    must, aim = bar["must"], bar["aim"]
    if ratio is None or must is None:
        return None
    if ratio > must:
        return "missed"
    return "met" if aim is None or ratio > aim else "aim"


def _made(result: Mapping[str, Any]) -> str:
    where = result["hardware"]
    parts = [f"`{result['command']}`"]
    parts.append(f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, load {where['load']:.1f}")
    parts += [where["device"]] if where["device"] else []
    parts.append(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    return "; ".join([*parts, result["date"]]) + "."


def rewrite(page: Path = PAGE, folder: Path = RESULTS) -> list[str]:
    """Puts the tables of `folder` between the marks of a page, `<!-- table: NAME -->` and `<!-- end -->`.

    `<!-- ways: NAME -->` asks for `ways_table`. Nothing else of the page changes. Returns the names of the tables.

    Raises:
        UserError: a table has no result, or no end.
    """
    text = page.read_text()
    marks = r"(<!-- (table|ways): (\S+) -->\n)((?:(?!<!-- (?:table|ways): ).)*?)(<!-- end -->)"
    names = re.findall(r"<!-- (?:table|ways): (\S+) -->", text)
    if len(re.findall(marks, text, re.DOTALL)) != len(names):
        raise UserError(f"{page}: {len(names)} tables begin, but not each ends; add <!-- end --> below each")

    def fresh(match: re.Match[str]) -> str:
        path = folder / f"{match[3]}.json"
        if not path.exists():
            raise UserError(f"{page}: table {match[3]} needs {path}; run python -m benchmarks {match[3]} first")
        text = (table if match[2] == "table" else ways_table)(json.loads(path.read_text()))
        return f"{match[1]}\n{text}\n{match[5]}"

    write_whole(page, re.sub(marks, fresh, text, flags=re.DOTALL).encode())
    return names
