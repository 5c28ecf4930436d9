"""Pictures of sensors' images with boxes: of one image, and of many with what each model found in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmfuse.report.figures import legend, new_figure, patch, write
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_COLOURS = ("#ff5a5f", "#3ddc97", "#4cc9f0", "#ffd166", "#c77dff", "#ff9f1c", "#f9a8d4", "#b8f35a")
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


def displayable(image: Tensor, sensor: Sensor) -> np.ndarray:
    """Turns a prepared image (C, H, W) into RGB (H, W, 3) uint8 for the eye.

    8-bit pixels stay as they are. Depth is coloured near (bright) to far (dark) with holes black; normals, HHA and
    colours are shown as they are. Other types are stretched from the 1st to the 99th percentile, one channel in heat
    colours.
    """
    if sensor.is_depth:
        if len(image) == 1:
            metres, valid = (x.numpy()[0] for x in sensor.metres(image))
            coloured = _coloured(_stretched(1 / metres.clip(sensor.near, sensor.far), valid > 0), "viridis")
        else:
            pixels, valid = image[:3].permute(1, 2, 0), image[3].numpy()
            coloured = ((pixels + 1) * 127.5 if sensor.encoding == "normals" else pixels).numpy()
        return np.where(valid[..., None] > 0, coloured, 0).astype(np.uint8)
    channels = image[:3] if len(image) >= 3 else image[:1]
    if image.dtype == torch.uint8:
        return channels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    values = channels.to(torch.float32).numpy()
    stretched = _stretched(values, np.isfinite(values))
    if len(channels) == 1:
        return _coloured(stretched[0], "inferno")
    return (stretched.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def overlay(
    images: Mapping[str, Tensor],
    sensors: Mapping[str, Sensor],
    detections: Detections,
    classes: Sequence[str],
    path: Path,
    truth: Truth | None = None,
    threshold: float = 0.3,
) -> None:
    """Writes the raw images (C, H, W) of all sensors side by side, each with the detections and the ground truth.

    Boxes are in pixels of the images; detections below `threshold` aren't drawn.
    """
    height, width = next(iter(images.values())).shape[-2:]
    panel = 4.0 * (width / height) ** 0.5
    figure = new_figure(panel * len(images) + 0.2, panel * height / width + 0.9)
    axes = figure.subplots(1, len(images), squeeze=False)[0]
    for ax, (modality, image) in zip(axes, images.items(), strict=True):
        _show(ax, displayable(image, sensors[modality]))
        ax.set_title(_titled(modality, detections), fontsize=10)
        if truth is not None:
            _draw_truth(ax, truth)
        _draw_detections(ax, detections, classes, threshold, captions=True)
    _class_legend(figure, classes, threshold, with_truth=truth is not None, coloured_truth=False)
    write(figure, path)


def gallery(
    rows: Sequence[GalleryRow],
    sensors: Mapping[str, Sensor],
    shown_on: Mapping[str, str],
    classes: Sequence[str],
    path: Path,
    threshold: float = 0.3,
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
            _draw_truth(ax, row.truth, coloured=True)
        for ax, model in zip(axes[len(modalities) :], shown_on, strict=True):
            found = row.detections[model]
            _draw_detections(ax, found, classes, threshold, captions=False)
            if found.dropped:
                _note(ax, f"{', '.join(found.dropped)} left out, doubted")
        axes[0].set_ylabel(row.title, fontsize=9)
    found_by = [f"found by {model}" for model in shown_on]
    for ax, name in zip(grid[0], [*(f"{m}: ground truth" for m in modalities), *found_by], strict=True):
        ax.set_title(name, fontsize=10)
    _class_legend(figure, classes, threshold, with_truth=True, coloured_truth=True)
    write(figure, path)


def _stretched(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Maps the 1st to 99th percentile of the valid values to [0, 1]; where invalid the result is 0."""
    if not valid.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[valid], (1, 99))
    return np.clip((np.where(valid, values, low) - low) / max(high - low, 1e-6), 0, 1)


def _coloured(values: np.ndarray, colours: str) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[colours](values, bytes=True)[..., :3]


def _show(ax: "Axes", pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _draw_detections(
    ax: "Axes", detections: Detections, classes: Sequence[str], threshold: float, captions: bool
) -> None:
    kept = detections.to("cpu")
    kept = kept[kept.scores >= threshold]
    top = ax.get_ylim()[0] * 0.06
    for box, score, label in reversed(list(kept)):
        colour = CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]
        x, y = _rectangle(ax, box.tolist(), colour, "-")
        if captions:
            above = y > top
            ax.annotate(
                f"{classes[int(label)]} {float(score):.2f}",
                (max(x, 0), max(y, 0)),
                (0.5, 2 if above else -2),
                textcoords="offset points",
                va="bottom" if above else "top",
                fontsize=7,
                color="black",
                bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
                clip_on=True,
            )


def _titled(modality: str, detections: Detections) -> str:
    """Returns the title of a sensor's image, with its doubt where it was judged."""
    if modality not in detections.doubt:
        return modality
    told = f"{modality}: doubt {detections.doubt[modality]:.2f}"
    return f"{told}, left out" if modality in detections.dropped else told


def _note(ax: "Axes", text: str) -> None:
    ax.annotate(
        text,
        (0.02, 0.03),
        xycoords="axes fraction",
        fontsize=7,
        color="white",
        bbox={"boxstyle": "square,pad=0.2", "facecolor": "black", "alpha": 0.7, "edgecolor": "none"},
    )


def _draw_truth(ax: "Axes", truth: Truth, coloured: bool = False) -> None:
    for box, label in zip(truth[0].tolist(), truth[1].tolist(), strict=True):
        _rectangle(ax, box, CLASS_COLOURS[label % len(CLASS_COLOURS)] if coloured else "white", "--")


def _rectangle(ax: "Axes", box: Sequence[float], colour: str, style: str) -> tuple[float, float]:
    """Draws a box with a dark rim, so that it shows on bright and dark pixels; returns its top left corner."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    x1, y1, x2, y2 = box
    rectangle = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5, linestyle=style)
    rectangle.set_path_effects([Stroke(linewidth=2.8, foreground="black", alpha=0.55), Normal()])
    ax.add_patch(rectangle)
    return x1, y1


def _class_legend(
    figure: "Figure", classes: Sequence[str], threshold: float, with_truth: bool, coloured_truth: bool
) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [patch(CLASS_COLOURS[i % len(CLASS_COLOURS)], name) for i, name in enumerate(classes)]
    handles.append(Line2D([], [], color="#555555", label=f"detection, score ≥ {threshold:g}"))
    if with_truth:
        white = "ground truth" if coloured_truth else "ground truth (white)"
        handles.append(Line2D([], [], color="#555555", linestyle="--", label=white))
    legend(figure, handles)
