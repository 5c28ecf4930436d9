"""Images and label files in Ultralytics' layout."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def write_image(path: Path, text: str | None = "1 0.5 0.5 0.25 0.5\n") -> None:
    """An image of noise, the same for the same name, and its label file unless the text is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    before, _, after = str(path.with_suffix(".txt")).rpartition("/images/")
    label = Path(before) / "labels" / after
    label.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        label.write_text(text)


def write_trees(root: Path) -> None:
    for split in ("train", "val", "test"):
        for sensor in ("rgb", "thermal"):
            write_image(root / sensor / "images" / split / f"{split}1.jpg", "2 0.5 0.5 0.25 0.5\n")
            write_image(root / sensor / "images" / split / f"{split}2.jpg", None)
