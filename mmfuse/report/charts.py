"""Charts of comparisons, training, thresholds, confusion, fusion shares and robustness."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse.evaluation.curves import STEPS, ClassCurve, Confusion
from mmfuse.evaluation.results import Comparison, Robustness, Shares
from mmfuse.report.figures import legend, new_figure, patch, plain_axes, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#8c8c8c")
SERIES_MARKERS = "os^Dv"


def comparison_bars(comparison: Comparison, path: Path) -> None:
    """Writes AP of each model, on all images and per condition, and its difference to another model: a row a model.

    Bars are means over seeds, dots the seeds, and the lines of the differences their 95 % intervals.
    """
    models = comparison.models
    groups = ["all images", *comparison.conditions]
    compared = any(model.difference for model in models)
    columns = len(groups) + compared
    width = 1.6 + 2.6 * columns + compared
    title = [f"{comparison.card}, {comparison.split} split"]
    title += [line for v in comparison.verdicts for line in textwrap.wrap(v.text, int(11 * width))]
    figure = new_figure(width, 0.42 * len(models) + 1.25 + 0.25 * len(title))
    widths = [1.0] * len(groups) + [1.6] * compared
    axes = figure.subplots(1, columns, sharey=True, squeeze=False, width_ratios=widths)[0]
    colours = [SERIES_COLOURS[len(model.modalities) > 1] for model in models]
    for group, ax in zip(groups, axes, strict=False):
        for y, model in enumerate(models):
            of_group = [s.per_condition.get(group, {}).get("ap") for s in model.scores]
            known = [v for v in (model.ap if group == "all images" else of_group) if v is not None]
            if known:
                ax.barh(y, np.mean(known), 0.72, color=colours[y])
                ax.plot(known, [y] * len(known), "o", color="black", alpha=0.6, markersize=3)
                offset = {"textcoords": "offset points", "va": "center", "fontsize": 8}
                ax.annotate(f"{np.mean(known):.3f}", (max(known), y), (5, 0), **offset)
        ax.set_xlabel(f"AP, {group}")
        plain_axes(ax, "x")
    widest = max(ax.get_xlim()[1] for ax in axes[: len(groups)])
    for ax in axes[: len(groups)]:
        ax.set_xlim(0, 1.25 * widest)
    if compared:
        for y, model in enumerate(models):
            if (d := model.difference) is None:
                continue
            axes[-1].plot([d.low, d.high], [y, y], color=colours[y], linewidth=3)
            axes[-1].plot(d.mean, y, "o", color=colours[y], markersize=7)
            to = "" if d.to == comparison.reference else f" to {d.to}"
            offset = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes[-1].annotate(f"{d.mean:+.3f}{to}", (d.mean, y), (0, 6), **offset)
        axes[-1].axvline(0, color="black", linewidth=1)
        axes[-1].margins(x=0.15)
        axes[-1].set_xlabel(f"Δ AP to {comparison.reference}, 95 % interval")
        plain_axes(axes[-1], "x")
    axes[0].set_yticks(range(len(models)), [model.name for model in models])
    axes[0].set_ylim(len(models) - 0.4, -0.6)
    for ax in axes:
        ax.locator_params(axis="x", nbins=4)
    figure.suptitle("\n".join(title), fontsize=10)
    write(figure, path)


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Writes loss and validation AP over epochs for each run, given its metric rows (`epoch`, `loss`, `val_ap`).

    Values may be text, as a CSV reader returns them; an empty or missing one is left out. A ring marks the best AP.
    """
    figure = new_figure(10, 4.2)
    axes = figure.subplots(1, 2)
    for i, (name, rows) in enumerate(runs.items()):
        for ax, key in zip(axes, ("loss", "val_ap"), strict=True):
            points = [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            ax.plot(epochs, values, "-o", color=_series_colour(i), label=name, linewidth=1.8, markersize=3)
            if key == "val_ap":
                best = int(np.argmax(values))
                ax.plot(epochs[best], values[best], "o", color=_series_colour(i), fillstyle="none", markersize=10)
    for ax, label in zip(axes, ("training loss", "validation AP"), strict=True):
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(bottom=0)
        plain_axes(ax, "y")
    legend(figure, [patch(_series_colour(i), name) for i, name in enumerate(runs)])
    figure.suptitle("Training", fontsize=12)
    write(figure, path)


def training_progress(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes each part of the loss, AP on validation and the learning rate over the epochs of one training.

    `rows` are those of `metrics.csv`; what an epoch lacks is left out. A ring marks the best AP.
    """
    figure = new_figure(12, 3.6)
    panels = {
        "training loss": ["loss", *sorted({key for row in rows for key in row if key.endswith("_loss")})],
        "validation": ["val_ap", "val_ap50"],
        "learning rate": ["lr"],
    }
    for ax, (title, keys) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for i, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            label = {"loss": "all", "val_ap": "AP", "val_ap50": "AP50"}.get(key, key.removesuffix("_loss"))
            ax.plot(epochs, values, "-o", color=_series_colour(i), label=label, linewidth=1.6, markersize=3)
            if key == "val_ap":
                best = int(np.argmax(values))
                ax.plot(epochs[best], values[best], "o", color=_series_colour(i), fillstyle="none", markersize=10)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
        ax.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        plain_axes(ax, "y")
        if len(ax.get_legend_handles_labels()[0]) > 1:
            ax.legend(frameon=False, fontsize=8)
    write(figure, path, 100)


def threshold_curves(
    lines: Mapping[str, ClassCurve],
    path: Path,
    title: str,
    *,
    strong: str | None = None,
    chosen: Mapping[str, float] | None = None,
) -> None:
    """Writes precision over recall and F1 over threshold at IoU 0.5, a line for each name, that of `strong` black.

    A dot marks the threshold of those in `chosen`. Where there are more lines than colours, all others are grey.
    """
    figure = new_figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    others = [name for name in lines if name != strong]
    coloured = len(others) <= len(SERIES_COLOURS)
    shown = []
    for name, curve in lines.items():
        colour = "black" if name == strong else _series_colour(others.index(name)) if coloured else "#bbbbbb"
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": 2.4 if name == strong else 1.5,
            "zorder": 2 + (name == strong),
        }
        left.plot(STEPS, curve.precision50, **style)
        right.plot(STEPS, curve.f1, **style)
        if chosen and name in chosen:
            right.plot(chosen[name], np.interp(chosen[name], STEPS, curve.f1), "o", color=colour, markersize=6)
        if coloured or name == strong:
            shown.append(patch(colour, f"{name}, AP50 {np.mean(curve.precision50):.3f}"))
    for ax, x, y in ((left, "recall", "precision"), (right, "threshold", "F1")):
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        plain_axes(ax, "both")
    if shown:
        legend(figure, shown)
    figure.suptitle(title, fontsize=11)
    write(figure, path)


def confusion_matrices(confusions: Mapping[str, Confusion], path: Path, title: str) -> None:
    """Writes what was taken for what: a matrix for each name, with counts, shaded by the share of a row's objects."""
    size = max(len(of.classes) for of in confusions.values()) + 1
    columns = min(len(confusions), 3)
    rows = -(-len(confusions) // columns)
    side = min(max(2.6, 0.55 * size + 1.2), 11.0)
    figure = new_figure(max(columns * side, 4.5), rows * side + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, of) in zip(grid, confusions.items(), strict=False):
        counts = np.array(of.counts)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        shares[-1] = 0  # what is found on background is no share of any objects
        ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        names = [*of.classes, "background"]
        if size <= 21:
            for (row, column), count in np.ndenumerate(counts):
                text = "" if row == column == size - 1 else str(count)
                colour = "white" if shares[row, column] > 0.55 else "#222222"
                ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        small = {"fontsize": 8 if size <= 21 else max(2, 170 / size)}
        ax.set_xticks(range(len(names)), names, rotation=90 if size > 4 else 0, **small)
        ax.set_yticks(range(len(names)), names, **small)
        ax.axhline(size - 1.5, color="#888888", linewidth=1)
        ax.axvline(size - 1.5, color="#888888", linewidth=1)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("found as")
        ax.set_ylabel("is")
        ax.set_title(name, fontsize=10)
    for ax in grid[len(confusions) :]:
        ax.set_axis_off()
    figure.suptitle(title, fontsize=11)
    write(figure, path)


def share_heatmap(shares: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Writes the share in [0, 1] that each modality has in the fusion at each pyramid level."""
    modalities = list(shares)
    levels = sorted({level for by_level in shares.values() for level in by_level})
    values = np.array([[shares[m].get(level, np.nan) for level in levels] for m in modalities])
    figure = new_figure(max(5.0, 1.1 * len(levels) + 2.6), 0.75 * len(modalities) + 1.7)
    ax = figure.subplots()
    image = _draw_shares(ax, values, modalities, _level_names(levels))
    figure.colorbar(image, ax=ax, label="share", ticks=[0, 0.5, 1], format="{x:.0%}").outline.set_visible(False)
    ax.set_title("Share of each modality in the fusion, by pyramid level", fontsize=11)
    write(figure, path)


def share_panels(shares: Shares, path: Path) -> None:
    """Writes the share of each modality at each level beside the AP that is lost without it.

    `shares` is what `mmfuse.shares` returns. The whole split and each condition have a panel of shares if images have
    weights of their own; else there is one for all of them.
    """
    modalities, levels = shares.modalities, _level_names(shares.levels)
    groups = {"all images": shares.whole, **shares.per_condition}
    rows = [[name] for name in groups] if shares.by_image else [list(groups)]
    bars = len(rows[0])
    figure = new_figure(0.75 * len(levels) + 2.6 + 2.0 * bars, len(rows) * (0.5 * len(modalities) + 0.75) + 0.6)
    widths = [0.75 * (len(levels) + 1)] + [1.8] * bars
    grid = figure.subplots(len(rows), 1 + bars, sharey=True, squeeze=False, width_ratios=widths)
    known = [0.0, *(v for one in groups.values() for v in one.delta_ap.values() if v is not None)]
    room = 0.45 * max(max(known) - min(known), 0.01)
    for axes, names in zip(grid, rows, strict=True):
        first = groups[names[0]]
        values = np.full((len(modalities), len(levels) + 1), np.nan)
        if first.shares and first.mean_share:
            values[:] = [[*first.shares[m], first.mean_share[m]] for m in modalities]
        _draw_shares(axes[0], values, modalities, [*levels, "mean"])
        axes[0].axvline(len(levels) - 0.5, color="white", linewidth=8)
        title = f"share, {names[0]} ({first.images} images)" if shares.by_image else "share, every image alike"
        axes[0].set_title(title, fontsize=10)
        for ax, name in zip(axes[1:], names, strict=True):
            _draw_deltas(ax, [groups[name].delta_ap[m] for m in modalities])
            ax.set_xlim(min(known) - room * (min(known) < 0), max(known) + room)
            ax.set_title(f"Δ AP, {name}", fontsize=10)
    found = shares.correlation
    figures = "–" if found.spearman is None else f"{found.spearman:+.2f}"
    figure.suptitle(
        f"{shares.name}, {shares.split} split: share of each modality, and AP lost without it\n"
        f"rank correlation {figures} ({found.why or str(found.pairs) + ' pairs'})",
        fontsize=11,
    )
    write(figure, path)


def _level_names(levels: Sequence[int]) -> list[str]:
    return [f"P{level}\n1/{2**level}" for level in levels]


def _draw_shares(ax: "Axes", values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Any:
    """Draws shares in [0, 1], NaN where there is none, as a table of coloured cells."""
    image = ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.0%}" if np.isfinite(value) else "–"
        ax.text(column, row, text, ha="center", va="center", color="white" if value > 0.55 else "#222222")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return image


def _draw_deltas(ax: "Axes", deltas: Sequence[float | None]) -> None:
    for y, delta in enumerate(deltas):
        length, text = (0.0, "–") if delta is None else (delta, f"{delta:+.3f}")
        side = -1 if length < 0 else 1
        ax.barh(y, length, 0.6, color=SERIES_COLOURS[length < 0])
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "left" if side > 0 else "right"}
        ax.annotate(text, (length, y), (4 * side, 0), fontsize=8, **place)
    ax.axvline(0, color="black", linewidth=1)
    ax.locator_params(axis="x", nbins=3)
    ax.tick_params(axis="y", which="both", length=0)
    plain_axes(ax, "x")
    ax.spines["left"].set_visible(False)


def robustness_curves(robustness: Robustness, path: Path) -> None:
    """Writes AP against severity: a panel for each corruption, a line for each modality that suffers it.

    `robustness` is what `mmfuse.robustness` returns. The dashed line is the clean AP.
    """
    curves = robustness.curves
    names = list(dict.fromkeys(curve.corruption for curve in curves))
    modalities = list(dict.fromkeys(curve.modality for curve in curves))
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    figure = new_figure(max(5.0, 2.4 * columns), 2.1 * rows + 1.1)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lines: dict[str, Any] = {}
    for ax, name in zip(axes, names, strict=False):
        lines["clean"] = ax.axhline(robustness.clean.ap, color="#777777", linestyle="--", linewidth=1)
        for curve in (c for c in curves if c.corruption == name):
            i = modalities.index(curve.modality)
            marker = SERIES_MARKERS[i % len(SERIES_MARKERS)]
            places = [s for s, ap in enumerate(curve.ap) if ap is not None]
            values = [ap for ap in curve.ap if ap is not None]
            (line,) = ax.plot(places, values, color=_series_colour(i), marker=marker, markersize=4, clip_on=False)
            lines[f"{curve.modality} corrupted"] = line
        ax.set_title(name.replace("_", " "), fontsize=10)
        ax.tick_params(labelbottom=True)
        plain_axes(ax, "y")
    axes[0].set_xticks(range(len(curves[0].ap)))
    axes[0].set_ylim(bottom=0)
    for ax in axes[max(0, len(names) - columns) : len(names)]:
        ax.set_xlabel("severity")
    for ax in axes[::columns]:
        ax.set_ylabel("AP")
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for label, line in lines.items():
        line.set_label(label)
    legend(figure, list(lines.values()))
    split = f"{robustness.split} split, {robustness.images} images"
    figure.suptitle(f"{robustness.name}: AP as one modality is corrupted, {split}", fontsize=12)
    write(figure, path)


def _series_colour(i: int) -> str:
    return SERIES_COLOURS[i % len(SERIES_COLOURS)]
