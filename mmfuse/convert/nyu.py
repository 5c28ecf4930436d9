"""Writes NYU Depth v2, which is published as one MATLAB file, as image files with COCO JSON and a card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmfuse.data.annotations.cards import Card, load_card
from mmfuse.data.annotations.coco import coco_split
from mmfuse.data.annotations.matlab import open_mat, read_mat, rows, texts
from mmfuse.data.annotations.records import Record
from mmfuse.errors import UserError, unknown_name
from mmfuse.strict_yaml import plain, save_yaml

CLASSES = (
    "bathtub", "bed", "bookshelf", "box", "chair", "counter", "desk", "door", "dresser", "garbage bin", "lamp",
    "monitor", "night stand", "pillow", "sink", "sofa", "table", "television", "toilet",
)  # fmt: skip
"""The 19 classes of Gupta et al., Learning Rich Features from RGB-D Images, ECCV 2014."""

_ARRAYS = ("images", "depths", "labels", "instances", "names")
_SPLITS = ("train", "val", "test")
_HEIGHT, _WIDTH = 480, 640
_BORDER = (40, 44, 39, 9)
_INTRINSICS = (518.8579, 519.4696, 325.5824, 253.7362)
_EVERY = 10


def write_nyu(labelled: Path, splits: Path, folder: Path, classes: Sequence[str]) -> dict[str, dict[str, str | int]]:
    """Writes the images, train.json, val.json, test.json and card.yaml into an empty folder.

    RGB is PNG; depth is TIFF of 32-bit floats, metres to the last bit, where 16-bit millimetres would round. The card
    has the camera's intrinsics and cuts off the frame that shows nothing: rows 45 to 471 and columns 41 to 601 stay,
    as in the authors' toolbox. A box encloses the pixels of a label and an instance in what stays. Val is every tenth
    scene of the training list, or every tenth image where the file names no scenes.

    Source: Silberman et al., Indoor Segmentation and Support Inference from RGBD Images, ECCV 2012.

    Returns:
        For each split the name of its file, and the number of images and boxes.

    Raises:
        UserError: a file is missing or damaged, has other arrays than published, or no class of that name.
    """
    with open_mat(labelled, *_ARRAYS) as file:
        count = _check_shapes(labelled, file)
        scenes = texts(file["scenes"]) if "scenes" in file else []
        if scenes and len(scenes) != count:
            raise UserError(f"{labelled}: scenes: names {len(scenes)} for {count} images; fetch the file anew")
        split_of = _split_of(splits, count, scenes)
        names = texts(file["names"])
        for name in classes:
            if name not in names:
                raise UserError(f"classes: {unknown_name(name, names, f'label of {labelled}')}")
        save_yaml(folder / "card.yaml", plain(_card(classes)))
        card = load_card(folder / "card.yaml")
        for m in card.modalities:
            (folder / m).mkdir()
        label_of = np.full(2**16, -1)
        label_of[[names.index(name) + 1 for name in classes]] = range(len(classes))
        records: dict[str, list[Record]] = {split: [] for split in _SPLITS}
        images = zip(*(rows(file[name]) for name in _ARRAYS[:4]), strict=True)
        for number, arrays in enumerate(tqdm(images, desc="writing images", unit="image", total=count), 1):
            image, depth, labels, instances = (np.ascontiguousarray(array.T) for array in arrays)
            files = {"rgb": card.root / f"rgb/{number:05}.png", "depth": card.root / f"depth/{number:05}.tiff"}
            Image.fromarray(image).save(files["rgb"])
            Image.fromarray(depth).save(files["depth"], compression="tiff_adobe_deflate")
            if split := split_of.get(number):
                scene = scenes[number - 1] if scenes else None
                records[split].append(_record(number, files, label_of[labels], instances, scene))
    return {split: _write_split(card, split, records[split]) for split in _SPLITS}


def _check_shapes(path: Path, file: Any) -> int:
    count = int(file["images"].shape[0]) if file["images"].ndim else 0
    plain = (count, _WIDTH, _HEIGHT)
    shapes = {"images": (count, 3, _WIDTH, _HEIGHT), "depths": plain, "labels": plain, "instances": plain}
    kinds = {"images": "uint8", "depths": "float32", "labels": "uint16", "instances": "uint8"}
    for name, shape in shapes.items():
        found = f"{file[name].shape} {file[name].dtype}"
        if found != f"{shape} {kinds[name]}" or not count:
            raise UserError(f"{path}: {name}: is {found}, not {shape} {kinds[name]}; give nyu_depth_v2_labeled.mat")
    return count


def _split_of(path: Path, count: int, scenes: Sequence[str]) -> dict[int, str]:
    """Returns the split of each image, counted from 1."""
    lists = {}
    for name, value in read_mat(path, "trainNdxs", "testNdxs").items():
        numbers = np.atleast_1d(np.asarray(value)).ravel()
        if numbers.dtype.kind not in "iuf" or not ((numbers >= 1) & (numbers <= count) & (numbers % 1 == 0)).all():
            raise UserError(f"{path}: {name}: has entries other than 1 to {count}, the images; give splits.mat")
        lists[name] = numbers.astype(int).tolist()
    train, test = lists["trainNdxs"], lists["testNdxs"]
    if twice := set(train) & set(test):
        raise UserError(f"{path}: the image {min(twice)} is in trainNdxs and in testNdxs; keep it in one")
    places = {
        number: re.sub(r"(?<=\d)[a-z]$", "", scenes[number - 1]) if scenes else str(number).zfill(9) for number in train
    }
    val = set(sorted(set(places.values()))[_EVERY - 1 :: _EVERY])
    return {n: "val" if place in val else "train" for n, place in places.items()} | dict.fromkeys(test, "test")


def _record(
    number: int, files: dict[str, Path], labels: np.ndarray, instances: np.ndarray, scene: str | None
) -> Record:
    left, top, right, bottom = _BORDER
    height, width = _HEIGHT - top - bottom, _WIDTH - left - right
    labels, instances = (x[top : top + height, left : left + width] for x in (labels, instances))
    ys, xs = np.nonzero((labels >= 0) & (instances > 0))
    keys, objects = np.unique(labels[ys, xs] * 256 + instances[ys, xs], return_inverse=True)
    boxes = np.tile(np.array([width, height, 0, 0], np.float32), (len(keys), 1))
    for side, ends in enumerate((xs, ys)):
        np.minimum.at(boxes[:, side], objects, ends)
        np.maximum.at(boxes[:, side + 2], objects, ends + 1)
    return Record(number, files, width, height, boxes, keys // 256, np.zeros(len(keys), bool), sequence=scene)


def _write_split(card: Card, split: str, records: Sequence[Record]) -> dict[str, str | int]:
    dictionary = coco_split(card, records)
    (card.root / f"{split}.json").write_text(json.dumps(dictionary))
    return {"file": f"{split}.json", "images": len(records), "boxes": len(dictionary["annotations"])}


def _card(classes: Sequence[str]) -> dict[str, Any]:
    left, top, right, bottom = _BORDER
    fx, fy, cx, cy = _INTRINSICS
    camera = {
        "border": list(_BORDER),
        "calibration": {
            "size": [_WIDTH - left - right, _HEIGHT - top - bottom],
            "intrinsics": [fx, fy, round(cx - left, 4), round(cy - top, 4)],
        },
    }
    return {
        "name": "NYU Depth v2",
        "root": ".",
        "reader": "coco",
        "modalities": {
            "rgb": {"channels": 3, **camera},
            "depth": {"channels": 1, "encoding": "inverse_depth", "unit": 1.0, "near": 0.7, "far": 10.0, **camera},
        },
        "classes": list(classes),
        "splits": {split: f"{split}.json" for split in _SPLITS},
        "licence": "The authors state no terms.",
        "source": "NYU Depth v2, Silberman et al., ECCV 2012",
        "notes": "Written by mmfuse convert nyu; see datasets/nyu_depth_v2.yaml.",
    }
