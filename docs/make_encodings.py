"""Draws a scene of the embedded set in every encoding, for units.md: .venv/bin/python docs/make_encodings.py."""

import io
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mmfuse.embedded.dataset import draw
from mmfuse.embedded.render import COUNT_AT_ZERO, COUNTS_PER_DEGREE
from mmfuse.embedded.solids import FAR, NEAR
from mmfuse.files import write_whole
from mmfuse.images.scenes import prepare_scene
from mmfuse.report.pictures import displayable
from mmfuse.sensor import Calibration, Sensor

SIZE = (288, 384)
SCENE = (0, "train", 9)
PICTURE = Path(__file__).parent / "pictures" / "encodings.png"


def main() -> None:
    """Writes the picture."""
    scene, pictures = draw(*SCENE, SIZE)
    rows, columns = SIZE
    camera = Calibration((columns, rows), (scene.camera.focal,) * 2 + ((columns - 1) / 2, (rows - 1) / 2))
    counts = torch.from_numpy(pictures.thermal)[None]
    low, high = (COUNT_AT_ZERO + COUNTS_PER_DEGREE * celsius for celsius in (-10, 40))
    shown = {"rgb: intensity": displayable(torch.from_numpy(pictures.rgb).permute(2, 0, 1), Sensor(3))}
    for title, sensor in {
        "thermal: intensity": Sensor(1, range=(low, high)),
        "thermal: percentile": Sensor(1, "percentile"),
        "thermal: clahe": Sensor(1, "clahe"),
    }.items():
        (prepared,) = prepare_scene({"x": counts}, {"x": sensor}).values()
        grey = 255 * (sensor.encode(prepared[None])[0] if sensor.range else prepared)
        shown[title] = displayable(grey.to(torch.uint8), Sensor(1))
    for encoding in ("inverse_depth", "normals", "hha", "depth_colours"):
        sensor = Sensor(1, encoding, near=NEAR, far=FAR, calibration=camera)
        (prepared,) = prepare_scene({"x": torch.from_numpy(pictures.depth)[None]}, {"x": sensor}).values()
        shown[f"depth: {encoding}"] = displayable(prepared, sensor)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for ax, (title, pixels) in zip(figure.subplots(2, 4).flat, shown.items(), strict=True):
        ax.imshow(pixels)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    write_whole(PICTURE, buffer.getvalue())


if __name__ == "__main__":
    main()
