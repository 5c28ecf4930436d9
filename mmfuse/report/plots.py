"""Charts of a page as geometry: lines in a frame with ticks, and intervals on a common scale, drawn by its template."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 8, 34

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Takes values from `low` to `high` to places from `start` to `end`."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def __call__(self, value: float) -> float:
        """Returns the place of a value, to a hundredth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """A few round values between both ends."""
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step *= next(part for part in (0.2, 0.25, 0.5, 1, 2) if (self.high - self.low) / (part * step) <= 5.01)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def around_zero(intervals: Iterable[tuple[float, float]]) -> Scale:
    """Returns the scale in percent that holds all intervals, zero and a margin."""
    ends = [0.0, *(end for interval in intervals for end in interval)]
    margin = 0.08 * (max(ends) - min(ends)) or 0.01
    return Scale(min(ends) - margin, max(ends) + margin)


@dataclass(frozen=True)
class Line:
    """A line of a chart: its `name`, the number of its colour, and its points; dashed where it is a reference."""

    name: str
    colour: int
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines in a frame; `x` and `y` are what the axes show."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    marked: bool = False

    @property
    def x_scale(self) -> Scale:
        """The scale across."""
        return Scale(*self.x_range, LEFT, WIDTH - RIGHT)

    @property
    def y_scale(self) -> Scale:
        """The scale upwards."""
        return Scale(*self.y_range, HEIGHT - BOTTOM, TOP)

    def path(self, line: Line) -> str:
        """Returns the points of a line as the path of an SVG."""
        x, y = self.x_scale, self.y_scale
        return "M" + "L".join(f"{x(a):g},{y(b):g}" for a, b in line.points)

    @property
    def words(self) -> str:
        """What the chart shows, for who can't see it."""
        ends = [f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in self.lines]
        return f"{self.title}: {self.y} over {self.x}; {', '.join(ends)}"


def chart(
    title: str, x: str, y: str, lines: Sequence[Line], *, top: float | None = None, marked: bool = False
) -> Chart:
    """Returns a chart that holds all points, from zero up to `top` if given, without lines that have none."""
    drawn = [line for line in lines if line.points]
    across = [a for line in drawn for a, _ in line.points]
    up = [b for line in drawn for _, b in line.points]
    low, high = min(across, default=0.0), max(across, default=1.0)
    highest = max(up, default=1.0) if top is None else top
    return Chart(title, x, y, drawn, (low, high if high > low else low + 1), (0.0, highest or 1.0), marked)
