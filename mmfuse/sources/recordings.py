"""Scenes of recorded ROS bags: image topics, one for each sensor, paired by approximate time; read by rosbags."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfuse.errors import UserError, unknown_name
from mmfuse.sample import Scene
from mmfuse.sources.streams import paired

_KINDS = {
    "mono8": ("u1", 1), "8UC1": ("u1", 1), "rgb8": ("u1", 3), "bgr8": ("u1", 3), "8UC3": ("u1", 3),
    "rgba8": ("u1", 4), "bgra8": ("u1", 4), "mono16": ("u2", 1), "16UC1": ("u2", 1), "32FC1": ("f4", 1),
}  # fmt: skip
_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class BagScenes:
    """The scenes of a bag (ROS 1 .bag, ROS 2 folder, .db3 or .mcap in one): a topic for each modality.

    Each message of the first topic is set beside the nearest of the others that is at most `tolerance` seconds off, by
    the stamps in their headers (by the time of recording where these are zero). `broken` counts messages that can't be
    read, which are passed over. Iterating begins anew.
    """

    def __init__(self, bag: Path, topics: Mapping[str, str], tolerance: float) -> None:
        self.bag = bag
        self.topics = dict(topics)
        self.tolerance = tolerance
        self.broken = dict.fromkeys(self.topics, 0)
        self.fps = 10.0
        with self._reader() as reader:
            kinds = {c.topic: c.msgtype for c in reader.connections if c.msgtype in (_IMAGE, _COMPRESSED)}
            for m, topic in self.topics.items():
                if topic not in kinds:
                    raise UserError(f"{bag}: {m}: {unknown_name(topic, kinds, 'topic of images')}")
            first = next(iter(self.topics.values()))
            self.length: int | None = sum(c.msgcount for c in reader.connections if c.topic == first)

    def __iter__(self) -> Iterator[Scene]:
        self.broken = dict.fromkeys(self.topics, 0)
        with self._reader() as reader:
            streams = {m: self._images(reader, m) for m in self.topics}
            for number, (time, images) in enumerate(paired(streams, self.tolerance)):
                yield Scene(images, name=f"{time:.6f}", image_id=number + 1)

    def _reader(self) -> Any:
        try:
            from rosbags.highlevel import AnyReader, AnyReaderError
            from rosbags.typesys import Stores, get_typestore
        except ImportError:
            raise UserError(f"{self.bag}: bags need rosbags; run pip install 'mmfuse[ros]'") from None
        try:
            reader = AnyReader([self.bag], default_typestore=get_typestore(Stores.LATEST))
            reader.open()
        except (AnyReaderError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{self.bag}: can't be opened as a bag ({reason}); check the path") from None
        return _Closing(reader)

    def _images(self, reader: Any, modality: str) -> Iterator[tuple[float, np.ndarray]]:
        own = [c for c in reader.connections if c.topic == self.topics[modality]]
        for connection, recorded, content in reader.messages(connections=own):
            try:
                message = reader.deserialize(content, connection.msgtype)
                stamp = message.header.stamp
                pixels = _compressed(message) if connection.msgtype == _COMPRESSED else _plain(message)
            except Exception:  # whatever a damaged message makes rosbags or Pillow raise
                self.broken[modality] += 1
                continue
            yield (stamp.sec + stamp.nanosec / 1e9 if stamp.sec or stamp.nanosec else recorded / 1e9), pixels


class _Closing:
    """Closes a reader at the end of a with block; rosbags' own block would open it once more."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __enter__(self) -> Any:
        return self.reader

    def __exit__(self, *_: object) -> None:
        self.reader.close()


def _plain(message: Any) -> np.ndarray:
    kind, channels = _KINDS[message.encoding]
    order = ">" if message.is_bigendian else "<"
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    width = message.width * channels * int(kind[1])
    pixels = rows[:, :width].copy().view(order + kind).reshape(message.height, message.width, channels)
    if message.encoding.startswith("bgr"):
        pixels = pixels[..., 2::-1]
    return pixels[..., :3] if channels > 1 else pixels[..., 0]


def _compressed(message: Any) -> np.ndarray:
    with Image.open(io.BytesIO(message.data.tobytes())) as image:
        return np.array(image)
