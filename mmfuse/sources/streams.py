"""Pairs the frames of several sensors' streams by time."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


def paired(
    streams: Mapping[str, Iterator[tuple[float, Frame]]], tolerance: float
) -> Iterator[tuple[float, dict[str, Frame]]]:
    """Yields each frame of the first stream with the nearest of every other that is at most `tolerance` off.

    Frames come with their times, in order, all in one unit. A slower stream's frame serves all that it is nearest to;
    one that ended lacks from then on. At most two frames of a stream are held.
    """
    (reference, frames), *others = streams.items()
    windows = {m: _Window(stream) for m, stream in others}
    for time, frame in frames:
        near = {m: window.nearest(time, tolerance) for m, window in windows.items()}
        scene = {reference: frame}
        scene.update((m, found) for m, found in near.items() if found is not None)
        yield time, scene


class _Window(Generic[Frame]):
    """The last frame of a stream that isn't later than the time that was asked for, and the one after it."""

    def __init__(self, stream: Iterator[tuple[float, Frame]]) -> None:
        self.stream = stream
        self.before: tuple[float, Frame] | None = None
        self.after: tuple[float, Frame] | None = next(stream, None)

    def nearest(self, time: float, tolerance: float) -> Frame | None:
        while self.after is not None and self.after[0] <= time:
            self.before, self.after = self.after, next(self.stream, None)
        there = [one for one in (self.before, self.after) if one is not None and abs(one[0] - time) <= tolerance]
        return min(there, key=lambda one: abs(one[0] - time))[1] if there else None
