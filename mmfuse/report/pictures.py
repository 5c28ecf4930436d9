"""A picture of many images of all sensors, with the objects in them and what each model found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mmfuse.drawing import CLASS_COLOURS, displayable
from mmfuse.evaluation.curves import THRESHOLD
from mmfuse.report.figures import legend, new_figure, patch, write
from mmfuse.report.gallery import notes_on
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Truth = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GalleryRow:
    """One image of a gallery: its raw `images` (C, H, W) by modality, objects, and what each model found in it.

    `truth` is boxes (N, 4) xyxy in pixels of the images and labels (N,); `detections` is by model name.
    """

    title: str
    images: Mapping[str, Tensor]
    truth: Truth
    detections: Mapping[str, Detections]


def gallery(
    rows: Sequence[GalleryRow],
    sensors: Mapping[str, Sensor],
    shown_on: Mapping[str, str],
    classes: Sequence[str],
    path: Path,
    threshold: float = THRESHOLD,
) -> None:
    """Writes a grid with a row for each image: every sensor with the ground truth, then what each model found.

    `shown_on` maps each model, in the order of the columns, to the modality that its detections are drawn on. A
    modality that an image lacks leaves its place empty.
    """
    modalities = list(dict.fromkeys(m for row in rows for m in row.images))
    height, width = next(iter(rows[0].images.values())).shape[-2:]
    columns = len(modalities) + len(shown_on)
    panel = min(3.2, 20 / columns)
    figure = new_figure(panel * columns + 0.3, len(rows) * (panel * height / width + 0.06) + 1.0)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for ax, modality in zip(axes, [*modalities, *shown_on.values()], strict=True):
            if modality in row.images:
                _show(ax, displayable(row.images[modality], sensors[modality]))
            else:
                ax.set_axis_off()
        for ax in axes[: len(modalities)]:
            _draw_truth(ax, row.truth)
        for ax, model in zip(axes[len(modalities) :], shown_on, strict=True):
            found = row.detections[model]
            _draw_detections(ax, found, threshold)
            if notes := notes_on(found):
                _note(ax, "\n".join(notes))
        axes[0].set_ylabel(row.title, fontsize=9)
    found_by = [f"found by {model}" for model in shown_on]
    for ax, name in zip(grid[0], [*(f"{m}: ground truth" for m in modalities), *found_by], strict=True):
        ax.set_title(name, fontsize=10)
    _class_legend(figure, classes, threshold)
    write(figure, path)


def _show(ax: "Axes", pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _draw_detections(ax: "Axes", detections: Detections, threshold: float) -> None:
    kept = detections.to("cpu")
    kept = kept[kept.scores >= threshold]
    for box, _, label in reversed(list(kept)):
        _rectangle(ax, box.tolist(), CLASS_COLOURS[int(label) % len(CLASS_COLOURS)], "-")


def _note(ax: "Axes", text: str) -> None:
    ax.annotate(
        text,
        (0.02, 0.03),
        xycoords="axes fraction",
        fontsize=7,
        color="white",
        bbox={"boxstyle": "square,pad=0.2", "facecolor": "black", "alpha": 0.7, "edgecolor": "none"},
    )


def _draw_truth(ax: "Axes", truth: Truth) -> None:
    for box, label in zip(truth[0].tolist(), truth[1].tolist(), strict=True):
        _rectangle(ax, box, CLASS_COLOURS[label % len(CLASS_COLOURS)], "--")


def _rectangle(ax: "Axes", box: Sequence[float], colour: str, style: str) -> None:
    """Draws a box with a dark rim, so that it shows on bright and dark pixels."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    x1, y1, x2, y2 = box
    rectangle = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5, linestyle=style)
    rectangle.set_path_effects([Stroke(linewidth=2.8, foreground="black", alpha=0.55), Normal()])
    ax.add_patch(rectangle)


def _class_legend(figure: "Figure", classes: Sequence[str], threshold: float) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [patch(CLASS_COLOURS[i % len(CLASS_COLOURS)], name) for i, name in enumerate(classes)]
    handles.append(Line2D([], [], color="#555555", label=f"detection, score ≥ {threshold:g}"))
    handles.append(Line2D([], [], color="#555555", linestyle="--", label="ground truth"))
    legend(figure, handles)
