"""What was found in scenes as JSON lines, COCO results, pictures or a video, written in parts that add up to it.

Each part is a file of its own, whole or not at all. So a run that was stopped goes on where it was, several processes
share the scenes, and the result is the same file as one process writes at one go.
"""

import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.errors import UserError
from mmfuse.files import read_regular, write_whole
from mmfuse.images.lift import Position
from mmfuse.images.scenes import corner_of, read_scene
from mmfuse.sample import Detections, Scene
from mmfuse.sensor import Sensor

LINES, COCO = ".jsonl", ".json"
_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|webp|bmp)$", re.IGNORECASE)
PICTURE, VIDEOS = ".png", (".mp4", ".mkv", ".avi")


@dataclass(frozen=True)
class Prediction:
    """What was found in a scene; `lost` names sensors that it lacks or whose image can't be read, `problems` says why.

    Where no sensor is left, or the images don't fit together, it isn't `answered`. `positions` has that of each object,
    if they were asked for.
    """

    scene: Scene
    found: Detections
    lost: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    answered: bool = True
    positions: tuple[Position, ...] | None = None

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Plain values of each object, with its position if that was asked for."""
        told = self.found.to_dicts()
        if self.positions is None:
            return told
        return [one | position.to_dict() for one, position in zip(told, self.positions, strict=True)]

    def to_text(self) -> str:
        """Returns a line for each object: the scene, the class, the score and the box."""
        lines = []
        for number, one in enumerate(self.found.to_dicts()):
            place = ", ".join(f"{v:.1f}" for v in one["box"])
            far = "" if self.positions is None else f", {self.positions[number]}"
            lines.append(f"{self.scene.name}: {one['class']} {one['score']:.2f} at {place}{far}")
        return "\n".join(lines or [f"{self.scene.name}: nothing found"])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        doubt = {m: round(v, 2) if math.isfinite(v) else None for m, v in self.found.doubt.items()}
        found = self.found
        lists = {"dropped": found.dropped, "disagreeing": found.disagreeing}
        lists |= {"lost": self.lost, "problems": self.problems}
        told = {"doubt": doubt} | {key: list(values) for key, values in lists.items()}
        head = {"name": self.scene.name, "image_id": self.scene.image_id}
        return {key: value for key, value in head.items() if value not in ("", None)} | {
            "objects": self.objects,
            **{key: value for key, value in told.items() if value},
        }


class Output:
    """What is written to `out`, in parts that lie in a folder beside it until all are there.

    A .jsonl holds `Prediction.to_dict` of each scene on a line, a .json COCO results, a video (.mp4, .mkv, .avi) the
    pictures of all scenes at `fps`; one picture (.png) is of one scene, not of `several`; a folder gets a picture of
    each and their lines. `key` tells what is written: parts of another detector, of other scenes or options aren't gone
    on with.

    Raises:
        UserError: it can't be written, its suffix isn't known, or there are parts of something else.
    """

    def __init__(
        self, out: Path, key: Mapping[str, Any], sensors: Mapping[str, Sensor], fps: float, *, several: bool
    ) -> None:
        self.out = out
        self.sensors = sensors
        self.fps = fps
        self.suffix = out.suffix.lower()
        if self.suffix not in ("", LINES, COCO, PICTURE, *VIDEOS):
            known = ", ".join((LINES, COCO, PICTURE, *VIDEOS))
            raise UserError(f"{out}: can't be written: its suffix is unknown; use one of {known}, or none for a folder")
        if self.suffix == PICTURE and several:
            raise UserError(
                f"{out}: is one picture, but there are several scenes; give a folder, a name without suffix"
            )
        if self.suffix in VIDEOS:
            require_av(out)
        if self.suffix == "" and out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; give a folder for pictures")
        self.parts = out.with_name(f"{out.name}.parts")
        content = json.dumps(dict(key) | {"kind": self.suffix}, sort_keys=True, default=str)
        self.digest = hashlib.sha256(content.encode()).hexdigest()
        mark = self.parts / "key"
        if not mark.exists():
            write_whole(mark, self.digest.encode())
        elif read_regular(mark).decode(errors="replace") != self.digest:
            other = "another prediction (detector, scenes or options)"
            raise UserError(f"{self.parts}: holds parts of {other}; remove it to start anew")

    def has(self, part: int) -> bool:
        """Whether a part was written already."""
        return self._path(part).exists()

    def write(self, part: int, predictions: Sequence[Prediction]) -> None:
        """Writes a part."""
        if self.suffix == COCO:
            rows = [row for one in predictions for row in one.found.to_coco(_image_id(one.scene, self.out))]
        else:
            rows = [one.to_dict() for one in predictions]
        if self.suffix in ("", PICTURE, *VIDEOS):
            for number, one in enumerate(predictions):
                if picture := drawn(one, self.sensors):
                    write_whole(self._picture(part, number, one), picture)
        write_whole(self._path(part), "".join(json.dumps(row) + "\n" for row in rows).encode())

    def finish(self, parts: int) -> None:
        """Makes what is wanted of its `parts`, which must all be there, and removes them."""
        contents = [read_regular(self._path(part)) for part in range(parts)]
        if self.suffix == COCO:
            rows = [line for content in contents for line in content.decode().splitlines()]
            write_whole(self.out, ("[" + ",\n".join(rows) + "]\n").encode())
        elif self.suffix in VIDEOS:
            encode(self.out, sorted(self.parts.glob("*.png")), self.fps)
        elif self.suffix in ("", LINES):
            write_whole(self.out / "detections.jsonl" if self.suffix == "" else self.out, b"".join(contents))
        shutil.rmtree(self.parts, ignore_errors=True)

    def _path(self, part: int) -> Path:
        return self.parts / f"{part:07d}"

    def _picture(self, part: int, number: int, one: Prediction) -> Path:
        if self.suffix == PICTURE:
            return self.out
        if self.suffix in VIDEOS:
            return self.parts / f"{part:07d}-{number:03d}.png"
        names = [re.sub(r"[^\w.-]+", "_", name) for name in one.scene.name.split("/") if name.strip(".")]
        *folders, name = names or [f"{part:07d}-{number:03d}"]
        return self.out.joinpath(*folders, f"{_IMAGE_SUFFIX.sub('', name)}.png")


def drawn(one: Prediction, sensors: Mapping[str, Sensor]) -> bytes | None:
    """Returns a picture of a prediction as a PNG file, None where no image can be shown."""
    images = {m: x for m, x in one.scene.images.items() if m not in one.lost}
    if not one.answered or not images:
        return None
    prepared = read_scene(replace(one.scene, images=images), sensors)
    left, top = corner_of(sensors)
    within = one.found.shifted(-left, -top)
    buffer = io.BytesIO()
    captions = None
    if one.positions is not None:
        captions = [
            f"{name} {score:.2f}, {position}"
            for name, score, position in zip(within.names, within.scores.tolist(), one.positions, strict=True)
        ]
    within.draw(prepared, sensors, captions).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def require_av(out: Path) -> None:
    """Raises a UserError where videos can't be written."""
    if not find_spec("av"):
        raise UserError(f"{out}: videos need PyAV; run pip install 'mmfuse[video]'")


def encode(out: Path, pictures: Sequence[Path], fps: float) -> None:
    """Writes pictures of one size as a video, whole or not at all.

    Raises:
        UserError: there is none, or it can't be written.
    """
    import av
    from PIL import Image

    if not pictures:
        raise UserError(f"{out}: there is no picture to make a video of")
    partial = pictures[0].with_name(f"video{out.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream: Any = container.add_stream(
                "libx264" if "libx264" in av.codecs_available else "mpeg4", Fraction(fps)
            )
            for picture in pictures:
                with Image.open(picture) as image:
                    pixels = np.asarray(image)
                    if picture == pictures[0]:  # both sides must be even
                        stream.width, stream.height = image.width // 2 * 2, image.height // 2 * 2
                        stream.pix_fmt = "yuv420p"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                container.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
            container.mux(stream.encode())
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{out}: can't be written as a video ({error}); check the path and the suffix") from None


def _image_id(scene: Scene, out: Path) -> int:
    if scene.image_id is None:
        raise UserError(f"{out}: COCO results need the id of each image, which {scene.name!r} lacks; use {LINES}")
    return scene.image_id
