"""Draws what each fault costs, from the table of results.md: .venv/bin/python docs/make_lies.py."""

import re
from pathlib import Path

from mmfuse.report.figures import new_figure, write

PAGE = Path(__file__).parent / "results.md"
PICTURE = Path(__file__).parent / "pictures" / "lies.png"

VALUE = r"([-+]\d\.\d+)"
ROW = re.compile(rf"\| (\w+) \| (\w+) \| (\d) \| [\d.]+ \| [\d.]+ \| {VALUE} \| {VALUE} to {VALUE} \|")


def rows() -> list[tuple[str, str, int, float, float, float]]:
    """Returns fault, sensor, severity, and mean, least and greatest difference of AP, in points, of every line."""
    found = []
    for fault, sensor, severity, *values in ROW.findall(PAGE.read_text()):
        mean, least, greatest = (100 * float(value) for value in values)
        found.append((fault, sensor, int(severity), mean, least, greatest))
    return found


def main() -> None:
    """Writes the picture."""
    lines = rows()
    names = list(dict.fromkeys((fault, sensor) for fault, sensor, *_ in lines))
    figure = new_figure(9, 0.24 * len(names) + 1)
    axes = figure.subplots()
    for severity, colour, offset in ((3, "tab:blue", -0.15), (5, "tab:orange", 0.15)):
        some = [line for line in lines if line[2] == severity]
        places = [names.index(line[:2]) + offset for line in some]
        axes.hlines(places, [line[4] for line in some], [line[5] for line in some], colors=colour, linewidth=2)
        axes.plot([line[3] for line in some], places, "o", color=colour, markersize=4, label=f"severity {severity}")
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(-1, color="grey", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), [f"{fault}, {sensor}" for fault, sensor in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("points of AP beyond those without the sensor: mean and range of six detectors")
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    write(figure, PICTURE)


if __name__ == "__main__":
    main()
