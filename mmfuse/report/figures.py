"""What pictures and charts have in common: a figure without a window, its legend and its PNG file.

matplotlib is imported when a picture is drawn, and only its figure objects are used: no global state.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmfuse.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """Returns an empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def write(figure: "Figure", path: Path, dots_per_inch: int = 130) -> None:
    """Writes a figure as a PNG file, whole or not at all. Its text is shown as it is: names are no formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white")
    write_whole(path, buffer.getvalue())


def legend(figure: "Figure", handles: Sequence[Any]) -> None:
    """Explains `handles`, which have labels, below the figure."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9)


def patch(colour: str, label: str) -> Any:
    """Returns a patch of colour for a legend."""
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def plain_axes(ax: "Axes", grid: str) -> None:
    """Leaves the axes at the left and below, and lines across `grid`: "x" or "y"."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#dddddd", linewidth=0.7)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
