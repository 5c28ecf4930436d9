"""A small copy of SUN RGB-D's layout, quirks included."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SPLIT = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
META = "SUNRGBDMeta2DBB_v2.mat"
WIDTH, HEIGHT = 73, 53

NYU, B3DO = "kv1/NYUdata/NYU0001", "kv1/b3dodata/img_0063"
KINECT = "kv2/kinect2data/000065_2014-05-16_20-14-38_260595134347_rgbf000121-resize"
SCAN = "xtion/sun3ddata/brown_bm_1/brown_bm_1"
LISTS = {
    "train": [KINECT, f"{SCAN}/0000103-000003441538"],
    "val": [NYU],
    "test": ["realsense/lg/2014_10_21-18_15_33-1311000073", B3DO],
}
Boxes = Sequence[tuple[str, Sequence[float]]]
BOXES: dict[str, Boxes] = {
    KINECT: [("chair", (10, 20, 30, 5)), ("sofa_chair", (1, 1, 5, 5)), ("night_stand", (40.5, 2, 20, 48))],
    LISTS["train"][1]: [("bed", (1, 2, 60, 40))],
    NYU: [("table", (50, 30, 23, 23)), ("desk", ())],
    LISTS["test"][0]: [],
    B3DO: [("bathtub", (60, 40, 12, 6))],
}


def cells(values: Sequence[str], down: bool = False) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0, :] = [f"/n/fs/sun3d/data/SUNRGBD/{value}" for value in values]
    return array.T if down else array


def write_lists(root: Path, lists: dict[str, list[str]]) -> None:
    inner = {"train": cells(lists["train"], down=True), "val": cells(lists["val"], down=True)}
    values = {"alltrain": cells(lists["train"] + lists["val"]), "alltest": cells(lists["test"]), "trainvalsplit": inner}
    (root / SPLIT).parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / SPLIT, values, do_compression=True)


def write_boxes(root: Path, boxes: dict[str, Boxes]) -> None:
    views = np.empty((1, len(boxes)), [("sequenceName", object), ("rgbname", object), ("groundtruth2DBB", object)])
    for i, (name, objects) in enumerate(boxes.items()):
        table = np.empty((1, len(objects)), [("classname", object), ("gtBb2D", object), ("has3dbox", object)])
        for j, (label, box) in enumerate(objects):
            table[0, j] = (label, np.array([box], float), 1)
        views[0, i] = (f"SUNRGBD/{name}", "0000121.jpg", table if len(objects) else np.zeros((0, 0)))
    scipy.io.savemat(root / META, {"SUNRGBDMeta2DBB": views}, do_compression=True)


def write_view(root: Path, name: str, rng: np.random.Generator) -> None:
    view = root / "SUNRGBD" / name
    for folder in ("image", "depth", "depth_bfx", "extrinsics"):
        (view / folder).mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(view / "image" / "0000121.jpg")
    (view / "image" / "._0000121.jpg").write_bytes(b"left by a Mac")
    millimetres = rng.integers(500, 8000, (HEIGHT, WIDTH)).astype(np.uint16)
    millimetres[0, 0] = 4321
    rotated = (millimetres << 3) | (millimetres >> 13)
    for folder in ("depth", "depth_bfx"):
        Image.fromarray(rotated).save(view / folder / "0000121.png")
    (view / "intrinsics.txt").write_text("529.5 0 36 \n0 529.5 26 \n0 0 1 \n")
    for file, angle in (("20140101000000.txt", 0.5), ("20150101000000.txt", 0.1)):
        c, s = np.cos(angle), np.sin(angle)
        (view / "extrinsics" / file).write_text(f"1 0 0 0\n0 {c:f} {-s:f} 0\n0 {s:f} {c:f} 0\n")


def write_sun_rgbd(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in BOXES:
        write_view(root, name, rng)
    write_lists(root, LISTS)
    write_boxes(root, BOXES)
