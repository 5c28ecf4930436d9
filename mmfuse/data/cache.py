"""Prepared images kept on disk: costly encodings are worked out once, and files are decoded once."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mmfuse.data.annotations.records import Record
from mmfuse.data.samples import read_record
from mmfuse.errors import UserError
from mmfuse.files import open_regular, write_whole
from mmfuse.sensor import Sensor

_IMAGE, _SUM = "image", "sum"
_KINDS = {"U8": np.uint8, "U16": np.uint16, "F32": np.float32}
_NOT_PREPARED_WITH = ("mean", "std", "range", "dtype", "seen", "gaps")
_PREPARING = (
    "images/decode.py",
    "images/scenes.py",
    "images/encodings.py",
    "images/registration.py",
    "images/resizing.py",
    "images/geometry.py",
    "sensor.py",
)


class CacheError(UserError):
    """The cache can't be written, which is no fault of an image."""


class ImageCache:
    """Prepared images on disk, each found by all that it is made of: file contents, sensor, calibration, our code.

    `folder` keeps the images of all sensors, uncompressed; without one, those of costly sensors alone are kept, in
    `$XDG_CACHE_HOME/mmfuse` (~/.cache/mmfuse). Several processes may use one folder at once. An entry that is
    damaged when a process first reads it is made anew; all may be deleted at any time, and nothing ever is by itself.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(folder) if folder is not None else Path(home) / "mmfuse"
        self._keeps_all = folder is not None
        self._digests: dict[tuple[str, int, int], str] = {}
        self._sound: set[Path] = set()

    def images(self, record: Record, sensors: Mapping[str, Sensor]) -> dict[str, Tensor]:
        """Returns the prepared images of those `sensors` that a record has a file of, from the disk where it has them.

        Raises:
            UserError: a file can't be read, or the sensors can't be registered.
            CacheError: the folder can't be written.
        """
        there = {m: sensor for m, sensor in sensors.items() if m in record.files}
        straight = {m: sensor for m, sensor in there.items() if not (self._keeps_all or is_costly(sensor))}
        found = read_record(record, straight) if straight else {}
        for m in there:
            if m not in straight:
                found[m] = self._kept(record, there, m)
        return {m: found[m] for m in there}

    def fill(self, record: Record, sensors: Mapping[str, Sensor], modalities: Sequence[str]) -> None:
        """Sees to it that the images of some of a record's `sensors` are kept.

        Raises:
            UserError: as `images` does.
        """
        there = {m: sensor for m, sensor in sensors.items() if m in record.files}
        for m in modalities:
            if m in there:
                self._kept(record, there, m)

    def _kept(self, record: Record, sensors: Mapping[str, Sensor], modality: str) -> Tensor:
        sensor = sensors[modality]
        needed = {modality: sensor}
        if sensor.register == "rig" and not sensor.is_depth:  # seen through the depth of another
            needed = {m: s for m, s in sensors.items() if m == modality or s.is_depth}
        path = self._path(record, needed, modality)
        stored = _load(path, verify=path not in self._sound)
        if stored is None:
            stored = read_record(record, needed)[modality].permute(1, 2, 0).contiguous()
            _save(path, stored)
        self._sound.add(path)
        return stored.permute(2, 0, 1)

    def _path(self, record: Record, sensors: Mapping[str, Sensor], modality: str) -> Path:
        parts = [
            [m == modality, self._digest(record.files[m]), _parameters(s), repr(record.calibration.get(m))]
            for m, s in sensors.items()
        ]
        content = json.dumps([code_digest(), record.width, record.height, repr(record.onto), parts]).encode()
        key = hashlib.sha256(content).hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def _digest(self, path: Path) -> str:
        try:
            state = path.stat()
            key = (str(path), state.st_mtime_ns, state.st_size)
            if key not in self._digests:
                with open_regular(path) as file:
                    self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror}; give a whole image file") from None
        return self._digests[key]


def is_costly(sensor: Sensor) -> bool:
    """Returns whether preparing an image of the sensor takes so long that it is always kept."""
    return sensor.encoding in ("normals", "hha") or sensor.register == "rig"


@cache
def _parameters(sensor: Sensor) -> str:
    values = {key: value for key, value in asdict(sensor).items() if key not in _NOT_PREPARED_WITH}
    return json.dumps(values, sort_keys=True)


@cache
def code_digest() -> str:
    """Returns a digest of the code that images are prepared with."""
    digest = hashlib.sha256()
    for name in _PREPARING:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()


def _checksum(stored: Tensor) -> str:
    """Returns what differs where the content is cut, zeroed or flipped; a CRC would take ten times as long."""
    content = stored.flatten().view(torch.uint8)
    words = len(content) // 8 * 8
    total = int(content[:words].view(torch.int64).sum()) + int(content[words:].sum())
    return f"{stored.dtype} {list(stored.shape)} {total}"


def _load(path: Path, verify: bool) -> Tensor | None:
    """Returns the image (H, W, C) that lies there; None where there is none, or a damaged one.

    It is read at one go, in less time than safetensors takes to map the file and fault its pages in.
    """
    try:
        with open_regular(path) as file:
            content = np.fromfile(file, np.uint8)
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        head = json.loads(content[8:start].tobytes())
        kind, shape = _KINDS[head[_IMAGE]["dtype"]], head[_IMAGE]["shape"]
        stored = torch.from_numpy(content[start:].view(kind).reshape(shape))
        sound = stored.ndim == 3 and (not verify or head["__metadata__"][_SUM] == _checksum(stored))
        return stored if sound else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _save(path: Path, stored: Tensor) -> None:
    content = save({_IMAGE: stored}, {_SUM: _checksum(stored)})
    try:
        write_whole(path, content, fix="make room there, or give another folder as data.cache")
    except UserError as error:
        raise CacheError(str(error)) from None
