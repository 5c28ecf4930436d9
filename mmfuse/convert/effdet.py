"""Converts checkpoints from effdet and to it."""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mmfuse import scaling
from mmfuse.architecture import Architecture
from mmfuse.errors import UserError
from mmfuse.files import named_like, write_whole
from mmfuse.model import checkpoint, graphs
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.model.effdet_weights import FPN_NAMES, PUBLISHED, export_effdet, import_effdet, read_checkpoint
from mmfuse.model.heads import PER_PLACE

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


def from_effdet(
    source: str | Path,
    out: str | Path,
    *,
    size: str | None = None,
    modalities: Mapping[str, int] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Writes a detector, which `mmfuse.load` reads, with the weights of an EfficientDet of effdet's.

    The structure is told by the weights: see `structure`, and `effdet_weights.import_effdet` for what several
    modalities get.

    Args:
        source: a name of `effdet_weights.PUBLISHED`, or a file.
        out: the detector, .safetensors.
        size: as for `create_detector`, where the weights don't tell it.
        modalities: channels of each modality, {"rgb": 3} if None.
        classes: names of the classes, by default their numbers. The class head starts fresh for another number of them.

    Raises:
        UserError: the weights aren't those of an EfficientDet, or don't fit; what lay at `out` is still there.
    """
    out = named_like(out, ".safetensors")
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
    out = named_like(out, ".pth", ".safetensors")
    detector = checkpoint.load(source)
    architecture = Architecture.of(detector.spec)
    level_first = architecture.pyramid != "bifpn"
    state = {name: x.contiguous() for name, x in export_effdet(detector, level_first=level_first).items()}
    if out.suffix == ".safetensors":
        content = safetensors.torch.save(state)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    write_whole(out, content)
    facts = _facts(detector) | {
        "fpn_name": FPN_NAMES[architecture.pyramid, str(architecture.fusion)],
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
    architecture = Architecture.of(detector.spec)
    facts = {key: getattr(architecture, key) for key in ("size", "flavour", "pyramid", "fusion")}
    channels = {m: sensor.encoded_channels for m, sensor in detector.sensors.items()}
    return facts | {"modalities": channels, "num_classes": len(detector.classes)}
