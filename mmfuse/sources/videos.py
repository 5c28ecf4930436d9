"""Scenes of videos, one for each sensor, and of cameras; decoded by PyAV."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.errors import UserError
from mmfuse.files import open_regular
from mmfuse.sample import Scene
from mmfuse.sources.streams import paired

SUFFIXES = frozenset((".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"))
CAMERA = "camera:"


class VideoScenes:
    """The scenes of videos or cameras, by modality: each frame of the first with the nearest of the others.

    Times are from the first frame on, of cameras those of the system; a video that ends early, or has no frame within
    `tolerance` seconds, lacks in a scene. `channels` says how many each sensor has: 1 is read as grey, of 16 bits where
    the video has more than 8, else as RGB. `broken` counts the frames of each that can't be decoded, which are passed
    over. Iterating begins anew.
    """

    def __init__(self, videos: Mapping[str, str | Path], channels: Mapping[str, int], tolerance: float) -> None:
        self.videos = {m: str(video) for m, video in videos.items()}
        self.channels = channels
        self.tolerance = tolerance
        self.broken = dict.fromkeys(self.videos, 0)
        self.live = any(video.startswith(CAMERA) for video in self.videos.values())
        self.fps = 25.0
        self.length: int | None = None
        for m, video in self.videos.items():  # so that a wrong path or a missing library is told at once
            with _opened(m, video) as container:
                stream = container.streams.video[0]
                if m == next(iter(self.videos)):
                    self.fps = float(stream.average_rate or 25)
                    self.length = stream.frames or None

    def __iter__(self) -> Iterator[Scene]:
        self.broken = dict.fromkeys(self.videos, 0)
        name = Path(next(iter(self.videos.values()))).stem
        streams = {m: self._frames(m) for m in self.videos}
        for number, (_, images) in enumerate(paired(streams, self.tolerance)):
            yield Scene(images, name=f"{name}-{number:06d}", image_id=number + 1)

    def _frames(self, modality: str) -> Iterator[tuple[float, np.ndarray]]:
        import av

        with _opened(modality, self.videos[modality]) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start = None
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    self.broken[modality] += 1
                    continue
                for frame in frames:
                    if frame.time is None or frame.is_corrupt:
                        self.broken[modality] += 1
                        continue
                    if start is None:
                        start = 0.0 if self.live else frame.time
                    yield frame.time - start, self._pixels(frame, self.channels[modality])

    @staticmethod
    def _pixels(frame: Any, channels: int) -> np.ndarray:
        """Returns a frame as (H, W) of 8 or 16 bits or (H, W, 3)."""
        if channels == 3:
            return np.asarray(frame.to_ndarray(format="rgb24"))
        deep = max(part.bits for part in frame.format.components) > 8
        return np.asarray(frame.to_ndarray(format="gray16le" if deep else "gray"))


def _opened(modality: str, video: str) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(f"{modality}: {video}: videos need PyAV; run pip install 'mmfuse[video]'") from None
    try:
        if video.startswith(CAMERA):
            device = video.removeprefix(CAMERA)
            container = av.open(f"/dev/video{device}" if device.isdigit() else device, format="v4l2")
        else:
            open_regular(video).close()
            container = av.open(video)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{modality}: {video}: can't be opened as a video ({reason}); check the path") from None
    if not container.streams.video:
        container.close()
        raise UserError(f"{modality}: {video}: holds no video; give a file that does")
    return container
