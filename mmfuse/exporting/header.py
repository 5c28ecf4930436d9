"""What an exported file says of itself: the sensors it reads, what it finds, and what it was made from."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from mmfuse import strict_yaml
from mmfuse.errors import UserError
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import Selection
from mmfuse.recipes import Recipe
from mmfuse.sensor import WHOLE_IMAGE, Sensor

Precision = Literal["fp32", "fp16", "int8"]
"""The type of the network's weights, and that of what it computes, the most of it where it is int8."""

FORMAT = "mmfuse-export-1"
KEY = "mmfuse"
CONTENT, PRESENT = "content", "present_"
"""The name of an input that may be left out, see `letterboxing`, and what that of a sensor's mask begins with."""
JUDGED = ("doubt", "dropped", "disagreeing")
OUTPUTS = ("boxes", "scores", "labels", *JUDGED)
"""The names of the outputs, and of those that tell what is thought of the sensors."""


def outside(sensor: Sensor) -> str:
    """Returns why a sensor's images must be prepared before the file gets them; empty where it takes them as read."""
    if sensor.encoding in WHOLE_IMAGE:
        return f"encoding {sensor.encoding} needs the whole image: give what mmfuse.images.encodings.prepare makes"
    if sensor.register in ("homography", "rig"):
        return f"register {sensor.register} needs the rig: give the image in the frame of the reference"
    if sensor.counts != "plain":
        return f"counts {sensor.counts}: undo what the files do to 16-bit numbers"
    if any(sensor.border):
        return f"border {list(sensor.border)}: cut it off"
    return ""


def pixel_type(sensor: Sensor) -> str:
    """Returns the type of the pixels that a file takes of a sensor: uint8, uint16 or float32."""
    if sensor.encoding in ("hha", "depth_colours"):
        return "uint8"
    if sensor.encoding in WHOLE_IMAGE or sensor.register == "rig":
        return "float32"
    if sensor.register == "homography" and not sensor.is_depth:
        return "float32"
    return sensor.dtype or ("uint16" if sensor.is_depth else "uint8")


@dataclass(frozen=True)
class Header:
    """What lies in an exported file as JSON.

    `size` is the height and width at which the detector sees, `batch` the number of images, 0 for any. `inputs` says of
    each sensor what is to be given: "raw", or why it must be prepared before. `digest` is the SHA-256 of the
    checkpoint; `parameters` counts those of the detector and `gmacs` the billions of multiply-adds for an image.
    `recipe` is that of its run, `thresholds` the scores by class that were best on validation, `val_ap` the AP there of
    this file and of the one in fp32 that it was made from, by precision; empty where nobody measured.
    """

    version: str
    name: str
    classes: tuple[str, ...]
    sensors: dict[str, Sensor]
    size: tuple[int, int]
    stride: int
    batch: int
    selection: Selection
    doubt: Doubting
    digest: str
    parameters: int
    gmacs: float
    inputs: dict[str, str]
    precision: Precision = "fp32"
    recipe: Recipe | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    val_ap: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns it as it lies in the file."""
        recipe = {} if self.recipe is None else {"recipe": self.recipe.to_dict()}
        return json.dumps({"format": FORMAT, **asdict(self), **recipe})

    @staticmethod
    def read(text: str, place: str) -> "Header":
        """Reads what a file says of itself.

        Raises:
            UserError: it isn't one that this version of mmfuse wrote.
        """
        try:
            told = json.loads(text or "null")
        except (ValueError, RecursionError):
            told = None
        form = str(told.pop("format", "")) if isinstance(told, dict) else ""
        if not form.startswith("mmfuse-export-"):
            raise UserError(f"{place}: wasn't written by mmfuse export; export a run to it")
        if form != FORMAT:
            raise UserError(f"{place}: is of the format {form}, this version reads {FORMAT}; export it again")
        return strict_yaml.build(Header, told, place)
