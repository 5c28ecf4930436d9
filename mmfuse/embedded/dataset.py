"""Writes the embedded paired set: street scenes that RGB, thermal and depth cameras see in their own way."""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmfuse.embedded.render import Pictures, render
from mmfuse.embedded.solids import FAR, NEAR, Array
from mmfuse.embedded.street import Scene, build_scene
from mmfuse.embedded.things import CLASSES
from mmfuse.errors import UserError
from mmfuse.files import require_name, write_whole
from mmfuse.strict_yaml import save_yaml

COUNTS = {"train": 320, "val": 64, "test": 160}


def draw(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[Scene, Pictures]:
    """Makes image `index` of a split; nothing else decides what it shows."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    scene = build_scene(rng, size)
    return scene, render(scene, rng)


def generate(
    root: Path, counts: dict[str, int] | None = None, seed: int = 0, size: tuple[int, int] = (192, 256)
) -> Path:
    """Writes the set below `root` and returns its card, `root/card.yaml`, which is there only when all else is.

    `counts` maps a split to its number of images, `COUNTS` if not given; `size` is height and width. RGB is JPEG,
    thermal PNG of 16-bit counts (7000 at 0 degrees Celsius, 40 a degree), depth PNG of 16-bit millimetres, 0 a hole.
    An annotation's `shows_in` names the sensors that can see the object, an image's `struck` those that fog or low sun
    washed out.

    Raises:
        UserError: a count, the size or the seed is out of range, or `root` can't be written.
    """
    counts = COUNTS if counts is None else counts
    if not counts or min(counts.values()) < 1:
        raise UserError(
            f"counts: {counts!r} leaves a split empty; give at least 1 image for each of at least one split"
        )
    for split in counts:
        require_name(split, "counts")
    if min(size) < 64:
        raise UserError(f"size: {size!r} is too small for the scenes; give a height and width of at least 64 pixels")
    if seed < 0:
        raise UserError(f"seed: {seed!r} is negative; give 0 or more")
    card = root / "card.yaml"
    try:
        card.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{card}: {error.strerror}; give a folder that can be written") from None
    with tqdm(total=sum(counts.values()), desc=f"drawing {root.name}", unit="image") as bar:
        for split, count in counts.items():
            _write_split(root, split, count, seed, size, bar)
    save_yaml(card, _card(counts, seed, size))
    return card


def _write_split(root: Path, split: str, count: int, seed: int, size: tuple[int, int], bar: Any) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene, pictures = draw(seed, split, index, size)
        stem = f"{split}/{index + 1:06d}"
        files = {"rgb": f"rgb/{stem}.jpg", "thermal": f"thermal/{stem}.png", "depth": f"depth/{stem}.png"}
        _write_image(root / files["rgb"], pictures.rgb, format="JPEG", quality=95)
        _write_image(root / files["thermal"], pictures.thermal, format="PNG", compress_level=1)
        _write_image(root / files["depth"], pictures.depth, format="PNG", compress_level=1)
        images.append(
            {
                "id": index + 1,
                "file_name": files["rgb"],
                "modalities": files,
                "width": size[1],
                "height": size[0],
                "condition": scene.condition,
                **({"struck": list(scene.struck)} if scene.struck else {}),
            }
        )
        for box, label, area, shows_in in zip(
            pictures.boxes.tolist(), pictures.labels, pictures.areas, pictures.shows_in, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": area,
                    "iscrowd": 0,
                    "shows_in": list(shows_in),
                }
            )
        bar.update()
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    listing = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(root / f"{split}.json", json.dumps(listing).encode())


def _write_image(path: Path, pixels: Array, **options: Any) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, **options)
    write_whole(path, content.getvalue())


def _card(counts: dict[str, int], seed: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": "Synthetic streets",
        "root": ".",
        "reader": "coco",
        "modalities": {
            "rgb": {"channels": 3},
            "thermal": {"channels": 1},
            "depth": {"channels": 1, "encoding": "inverse_depth", "unit": 0.001, "near": NEAR, "far": FAR},
        },
        "classes": list(CLASSES),
        "splits": {split: f"{split}.json" for split in counts},
        "conditions": ["day", "night"],
        "source": "rendered by mmfuse.embedded.dataset",
        "notes": f"seed {seed}, {size[0]} x {size[1]} pixels, "
        + ", ".join(f"{count} {split}" for split, count in counts.items()),
    }
