"""Converts detectors from and to the files of other libraries, and datasets to COCO JSON."""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mmfuse import scaling
from mmfuse.recipes import save_yaml, write_whole
from mmfuse.convert import nyu, ultralytics
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import coco_card, coco_split, read_split
from mmfuse.errors import UserError
from mmfuse.model import graphs
from mmfuse.model.anchors import PER_PLACE
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.model.effdet_weights import FPN_NAMES, PUBLISHED, export_effdet, import_effdet, read_checkpoint
from mmfuse.model import checkpoint

_POINTWISE, _LAST_BIAS = "fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight", "class_net.predict.conv_pw.bias"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A file that was written: what `detector` it holds, how many tensors came over, what was adapted or left."""

    path: str
    detector: dict[str, Any]
    tensors: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def to_text(self) -> str:
        """Returns a line for the detector, one for the tensors and one for each thing adapted or left."""
        what = ", ".join(f"{key} {value}" for key, value in self.detector.items())
        lines = [f"adapted {line}" for line in self.adapted] + [f"left {line}" for line in self.left]
        return "\n".join([f"{self.path}: {what}", f"took over {self.tensors} tensors", *lines])


@dataclasses.dataclass(frozen=True)
class ConvertedCard:
    """A card that was written, and for each split its `file`, and how many `images` and `boxes` it holds."""

    path: str
    splits: dict[str, dict[str, str | int]]

    def to_text(self) -> str:
        """Returns a line for the card and one for each split."""
        lines = (f"{s['file']}: {name}, {s['images']} images, {s['boxes']} boxes" for name, s in self.splits.items())
        return "\n".join([self.path, *lines])


def to_coco(card: str | Path, out: str | Path, *, root: str | None = None) -> ConvertedCard:
    """Writes the splits of a card as COCO JSON with a file for each modality, and a card that reads them.

    The JSON files, OUT_SPLIT.json, are put into the dataset's folder, which the paths in them are relative to. The new
    card gives the same images, boxes, labels, conditions and sequences.

    Args:
        card: the dataset card.
        out: the new card, .yaml.
        root: the dataset's folder, in place of the card's.

    Raises:
        UserError: the card or a split has a mistake, or a file that isn't such a conversion would be replaced.
    """
    out, source = _writable(out, ".yaml"), load_card(card, root)
    if out.resolve() == Path(card).resolve():
        raise UserError(f"out: {out} is the card itself; give another name")
    names = {split: f"{out.stem}_{split}.json" for split in source.splits}
    taken = {split.file for split in source.splits.values()} & set(names.values())
    if taken:
        raise UserError(f"out: {min(taken)} is a split of {card} itself; give another name than {out.stem}")
    splits: dict[str, dict[str, str | int]] = {}
    dictionaries = {split: coco_split(source, read_split(source, split)) for split in source.splits}
    for split, dictionary in dictionaries.items():
        write_whole(source.root / names[split], json.dumps(dictionary).encode())
        counts = {"images": len(dictionary["images"]), "boxes": len(dictionary["annotations"])}
        splits[split] = {"file": str(source.root / names[split]), **counts}
    save_yaml(out, coco_card(source, names))
    return ConvertedCard(str(out), splits)


def from_nyu(
    labelled: str | Path, splits: str | Path, out: str | Path, *, classes: Sequence[str] | None = None
) -> ConvertedCard:
    """Writes NYU Depth v2 as image files, COCO JSON and a card, card.yaml; see `mmfuse.convert.nyu.write_nyu`.

    Args:
        labelled: nyu_depth_v2_labeled.mat, which is read image by image.
        splits: splits.mat.
        out: a new folder, which appears when all is written.
        classes: the labels to take, by default the usual 19.

    Raises:
        UserError: a file isn't the published one, a class isn't in it, or `out` is there and not empty.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out: {out} is not an empty folder; give a new one")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        counts = nyu.write_nyu(Path(labelled), Path(splits), partial, nyu.CLASSES if classes is None else classes)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    splits_of = {split: {**found, "file": str(out / str(found["file"]))} for split, found in counts.items()}
    return ConvertedCard(str(out / "card.yaml"), splits_of)


def from_ultralytics(data: str | Path, out: str | Path) -> ConvertedCard:
    """Writes a card for a dataset in Ultralytics' layout, with one modality named image; the data stays where it is.

    See `mmfuse.convert.ultralytics.card_values` for what is read of data.yaml. `check` the card to see what it holds.

    Args:
        data: data.yaml.
        out: the card, .yaml.

    Raises:
        UserError: the file or the layout has a mistake, or `out` is the file itself.
    """
    out = _writable(out, ".yaml")
    if out.resolve() == Path(data).resolve():
        raise UserError(f"out: {out} is the file itself; give another name")
    save_yaml(out, ultralytics.card_values(Path(data)))
    return ConvertedCard(str(out), {})


def from_effdet(
    source: str | Path,
    out: str | Path,
    *,
    size: str | None = None,
    modalities: Mapping[str, int] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Writes a detector, which `mmfuse.load` reads, with the weights of an EfficientDet of effdet's.

    The structure is told by the weights: see `structure`, and `weights.import_effdet` for what several modalities get.

    Args:
        source: a name of `weights.PUBLISHED`, or a file.
        out: the detector, .safetensors.
        size: as for `create_detector`, where the weights don't tell it.
        modalities: channels of each modality, {"rgb": 3} if None.
        classes: names of the classes, by default their numbers. The class head starts fresh for another number of them.

    Raises:
        UserError: the weights aren't those of an EfficientDet, or don't fit; what lay at `out` is still there.
    """
    out = _writable(out, ".safetensors")
    if classes is not None and (not all(classes) or len(set(classes)) < len(classes)):
        raise UserError(f"classes: {', '.join(classes)!r} has one twice or empty; give different names")
    named = _size_of(source)
    if named and size not in (None, named):
        raise UserError(f"size: {size} is not that of {source}; use {named}")
    state = read_checkpoint(source)
    options = structure(state, size or named)
    modalities = modalities or {"rgb": 3}
    if len(modalities) > 1:
        del options["fusion"]
    if classes is not None:
        options |= {"num_classes": len(classes), "classes": classes}
    detector = create_detector(modalities=modalities, **options)
    assert isinstance(detector, FusionDetector)
    imported = import_effdet(detector, state)
    checkpoint.save_detector(out, detector, {"from": str(source), **dataclasses.asdict(imported)})
    return Conversion(str(out), _facts(detector), imported.loaded, imported.adapted, imported.left)


def to_effdet(source: str | Path, out: str | Path) -> Conversion:
    """Writes the weights of a detector of one modality under effdet's names, which its models load strictly.

    Its heads' batch norms are sorted as in effdet's own models: by level first, except in BiFPNs.

    Args:
        source: a run folder or a detector, .safetensors.
        out: the state dict, .pth or .safetensors.

    Raises:
        UserError: `source` isn't a detector, or not one that effdet has; what lay at `out` is still there.
    """
    out = _writable(out, ".pth", ".safetensors")
    detector = checkpoint.load(source)
    level_first = detector.spec["pyramid"] != "bifpn"
    state = {name: x.contiguous() for name, x in export_effdet(detector, level_first=level_first).items()}
    if out.suffix == ".safetensors":
        content = safetensors.torch.save(state)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    write_whole(out, content)
    facts = _facts(detector) | {
        "fpn_name": FPN_NAMES[detector.spec["pyramid"], detector.spec["fusion"]],
        "head_bn_level_first": level_first,
    }
    left = [f"mean {list(s.mean or ())} and std {list(s.std or ())} of {m}" for m, s in detector.sensors.items()]
    if any(name != str(number) for number, name in enumerate(detector.classes)):
        left.append(f"the names of the classes: {', '.join(detector.classes)}")
    return Conversion(str(out), facts, len(state), (), tuple(left))


def structure(state: Mapping[str, Tensor], size: str | None = None) -> dict[str, Any]:
    """Returns the arguments of `create_detector`, for one modality, that effdet's state dict tells.

    Args:
        state: effdet's names and tensors.
        size: which to take, where several sizes or none have that width and these levels (D6 and D7 differ in their
            anchors and resolution alone).

    Raises:
        UserError: it isn't an EfficientDet, or `size` must be given, or is another.
    """
    cells = _count(state, r"fpn\.cell\.(\d+)\.")
    nodes = _count(state, r"fpn\.cell\.0\.fnode\.(\d+)\.")
    repeats = _count(state, r"class_net\.conv_rep\.(\d+)\.")
    norms = _count(state, r"class_net\.bn_rep\.(.+)\.weight")
    width, rows = (state.get(name, torch.zeros(())).shape[:1] for name in (_POINTWISE, _LAST_BIAS))
    levels = tuple(range(3, 3 + norms // max(repeats, 1)))
    pyramid = ""
    if len(levels) > 2 and width and rows and rows[0] and rows[0] % PER_PLACE == 0:
        sizes = {name: len(graphs.build(graphs.PYRAMIDS[name], levels, [""], 1)) for name, _ in FPN_NAMES}
        pyramid = next((name for name, count in sizes.items() if count == nodes), "")
    if not pyramid:
        some = next(iter(state), "none")
        raise UserError(f"weights: tensors such as {some!r} aren't an EfficientDet's of effdet's; give its checkpoint")
    own = {"width": width[0], "pyramid_depth": cells, "head_depth": repeats}
    fits = [s.name for s in scaling.PUBLISHED.values() if (s.width, s.levels) == (own["width"], levels)]
    if size is None and len(fits) != 1:
        which = f"that of {' and '.join(fits)}" if fits else "no published one's"
        raise UserError(f"size: the width of the weights, {own['width']}, is {which}; give the size")
    scale = scaling.size(size or fits[0])
    if fits and scale.name not in fits:
        raise UserError(f"size: {size} has another width than the weights, {own['width']}; use {' or '.join(fits)}")
    return {
        "size": scale.name,
        "num_classes": rows[0] // PER_PLACE,
        "flavour": "tf" if _POINTWISE.replace("weight", "bias") in state else "symmetric",
        "pyramid": pyramid,
        "fusion": "fast" if any(name.endswith(".edge_weights") for name in state) else "sum",
        **{key: number for key, number in own.items() if number != getattr(scale, key)},
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Returns how many different texts the group of `pattern` has at the start of names."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _size_of(source: str | Path) -> str | None:
    """Returns the size of a published checkpoint, given by its name or as its file; None for any other."""
    for name, file in PUBLISHED.items():
        if str(source) == name or Path(source).name == file:
            return name.rpartition("_")[2].replace("q", "d")
    return None


def _facts(detector: Detector) -> dict[str, Any]:
    facts = {key: detector.spec[key] for key in ("size", "flavour", "pyramid", "fusion", "modalities")}
    return facts | {"num_classes": len(detector.classes)}


def _writable(out: str | Path, *suffixes: str) -> Path:
    out = Path(out)
    if out.suffix not in suffixes or out.is_dir():
        raise UserError(f"out: {str(out)!r} is not a file name for this; end it in {' or '.join(suffixes)}")
    return out
