"""Weights of effdet, the reference implementation in PyTorch, in and out."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mmfuse.errors import UserError, unknown_name
from mmfuse.model import graphs
from mmfuse.model.anchors import PER_PLACE
from mmfuse.model.backbones import STRIDES
from mmfuse.model.detector import CLASS_PRIOR, FusionDetector
from mmfuse.model.graphs import Feature
from mmfuse.model.pyramid import initialise

RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"
PUBLISHED = {
    "tf_efficientdet_d0": "tf_efficientdet_d0_34-f153e0cf.pth",
    "tf_efficientdet_d1": "tf_efficientdet_d1_40-a30f94af.pth",
    "tf_efficientdet_d2": "tf_efficientdet_d2_43-8107aa99.pth",
    "tf_efficientdet_d3": "tf_efficientdet_d3_47-0b525f35.pth",
    "tf_efficientdet_d4": "tf_efficientdet_d4_49-f56376d9.pth",
    "tf_efficientdet_d5": "tf_efficientdet_d5_51-c79f9be6.pth",
    "tf_efficientdet_d6": "tf_efficientdet_d6_52-4eda3773.pth",
    "tf_efficientdet_d7": "tf_efficientdet_d7_53-6d1d7a95.pth",
    "tf_efficientdet_d7x": "tf_efficientdet_d7x-f390b87c.pth",
    "efficientdet_d0": "efficientdet_d0-f3276ba8.pth",
    "efficientdet_d1": "efficientdet_d1-bb7e98fe.pth",
}
"""Known checkpoints: assets of the release, whose names end in the first digits of their SHA-256."""

_PARTS = {"norm": "bn", "depthwise": "conv_dw", "pointwise": "conv_pw", "convs": "conv_rep"}
_HEADS = {"class_head": "class_net", "box_head": "box_net"}
_EDGES = ".edge_weights"
_FIX = "use the size and flavour of the checkpoint (tf_efficientdet_*: tf, efficientdet_*: symmetric)"
_NEW_SHARE = 1e-6
"""Weight of an edge that the checkpoint has nothing like: too small to be seen, but not zero, where ReLU is stuck."""


@dataclass(frozen=True)
class Imported:
    """What an import did: how many tensors it set, and in words what it adapted and what it left out."""

    loaded: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def to_text(self) -> str:
        """Returns a line for the tensors loaded and one for each thing adapted or left."""
        lines = [f"adapted {line}" for line in self.adapted] + [f"left {line}" for line in self.left]
        return "\n".join([f"loaded {self.loaded} tensors", *lines])


def load_weights(detector: FusionDetector, source: str | Path) -> Imported:
    """Imports a published checkpoint by its name (`PUBLISHED`, through torch.hub's cache) or any other by its path.

    Raises:
        UserError: the name or file isn't there or isn't right, or doesn't fit; the detector is as it was.
    """
    if str(source) not in PUBLISHED:
        if not Path(source).exists():
            raise UserError(f"weights: {unknown_name(str(source), PUBLISHED, 'checkpoint or file')}")
        return import_effdet(detector, read_checkpoint(source))
    url = RELEASE + PUBLISHED[str(source)]
    try:
        loaded = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise UserError(
            f"weights: {url} can't be downloaded ({type(error).__name__}); connect, or give the path of a file"
        ) from None
    except Exception as error:
        raise UserError(f"weights: {url} came damaged ({_line(error)}); delete it from torch.hub's cache") from None
    return import_effdet(detector, _unwrap(loaded, url))


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors file, or of what torch.save wrote, without running code from it.

    Training checkpoints are unwrapped (their averaged weights first), and so are names under `module.` or `model.`.

    Raises:
        UserError: there is no such file, or it is damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals([Namespace]):
            safe = path.suffix == ".safetensors"
            loaded = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"weights: {path} can't be read ({error.strerror or _line(error)}); give a file") from None
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(
            f"weights: {path} is damaged or holds more than tensors ({_line(error)}); save the state dict alone"
        ) from None
    return _unwrap(loaded, path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _unwrap(loaded: object, where: str | Path) -> dict[str, Tensor]:
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise UserError(f"weights: {where} holds no state dict (tensors by name); give a checkpoint of effdet's")
    state = {str(name).removeprefix("module.").removeprefix("model."): x for name, x in loaded.items()}
    state.pop("anchors.boxes", None)
    return state


def key_map(detector: FusionDetector, *, level_first: bool = False) -> dict[str, str]:
    """Returns effdet's name of each tensor of the detector that effdet has; modalities share names.

    `level_first` is effdet's `head_bn_level_first`: its heads' batch norms are sorted by level, then repeat.
    """
    names = {key: _effdet_name(key, detector, level_first) for key in detector.state_dict()}
    return {key: name for key, name in names.items() if name}


def _effdet_name(key: str, detector: FusionDetector, level_first: bool) -> str | None:
    graph = detector.pyramid.graph
    cell = len(graph) // detector.size.pyramid_depth
    match [_PARTS.get(part, part) for part in key.split(".")]:
        case ["backbones", _, "net", *_]:
            return f"backbone.{key.split('.', 3)[3]}"
        case ["pyramid", "extend", _, part, name]:
            return f"fpn.resample.{len(STRIDES)}.conv.{part}.{name}"
        case ["pyramid", "nodes", index, *rest]:
            node = f"fpn.cell.{int(index) // cell}.fnode.{int(index) % cell}"
            match rest:
                case ["laterals", place, part, name] if int(index) < cell:
                    source = graph[int(index)].inputs[int(place)]
                    assert isinstance(source, Feature)
                    offset = source.level - detector.size.levels[0]
                    return f"{node}.combine.resample.{offset}.conv.{part}.{name}"
                case ["merge", "weight"]:
                    return f"{node}.combine{_EDGES}"
                case ["conv", part, name] | [part, name]:
                    return f"{node}.after_combine.conv.{part}.{name}"
        case [head, "norms", repeat, level, name]:
            place = f"{level}.{repeat}" if level_first else f"{repeat}.{level}.bn"
            return f"{_HEADS[head]}.bn_rep.{place}.{name}"
        case [head, *rest] if head in _HEADS:
            return ".".join([_HEADS[head], *rest])
    return None


def _owner(key: str, detector: FusionDetector) -> str | None:
    """Returns the modality that a tensor belongs to, "shared", or None for those of the fused stream."""
    match key.split("."):
        case ["backbones", modality, *_] | ["pyramid", "extend", modality, *_]:
            return modality
        case ["pyramid", "nodes", index, "laterals", place, *_]:
            source = detector.pyramid.graph[int(index)].inputs[int(place)]
            assert isinstance(source, Feature)
            return source.modality
    return None


def import_effdet(detector: FusionDetector, state: Mapping[str, Tensor], modality: str | None = None) -> Imported:
    """Sets the detector's weights from effdet's state dict.

    `modality` is the one like the images that the checkpoint was trained on; by default the first with 3 channels, or
    else the first. The others get the same branch, where they have the same backbone, with the stem adapted to their
    channels, and their edges start with the weight of that modality's: with it alone present, the output is the
    imported model's. The last layer of the class head starts fresh where the number of classes differs.

    Raises:
        UserError: a key is missing or unknown, a shape is wrong, or the fusions differ; the detector is as it was.
    """
    channels = detector.spec["modalities"]
    if modality is not None and modality not in channels:
        raise UserError(f"modality: {unknown_name(modality, channels, 'modality of this detector')}")
    main = modality or next((m for m, count in channels.items() if count == 3), next(iter(channels)))
    names = key_map(detector, level_first="class_net.bn_rep.0.0.weight" in state)
    own = detector.state_dict()
    owner = {key: _owner(key, detector) for key in own}
    weighted = any(name.endswith(_EDGES) for name in state)
    _check_fusion(detector.spec, weighted)
    needed = {
        name: key
        for key, name in names.items()
        if owner[key] in (None, "shared", main) and (weighted or not name.endswith(_EDGES))
    }
    for what, wrong in (("lacks", needed.keys() - state.keys()), ("has an unknown", state.keys() - needed.keys())):
        if wrong:
            raise UserError(f"weights: the checkpoint {what} {min(wrong)!r} (of {len(wrong)} such); {_FIX}")
    values = _edges(detector, state, main) if detector.spec["fusion"] != "sum" else {}
    adapted, fresh, unlike = [], False, set()
    for key, name in names.items():
        value, shape = state.get(name), own[key].shape
        if key in values:
            continue
        if value is not None and value.shape == shape:
            values[key] = value
        elif value is not None and key.startswith("backbones.") and _alike(value, own[key], 1) and value.shape[1] == 3:
            values[key] = adapt_input_conv(shape[1], value)
            adapted.append(f"the stem of {owner[key]} from 3 input channels to {shape[1]}")
        elif value is not None and key.startswith("class_head.predict.pointwise.") and _alike(value, own[key], 0):
            fresh = True
        elif name in needed and owner[key] in (None, "shared", main):
            raise UserError(f"weights: {name} is {tuple(state[name].shape)}, not {tuple(shape)}; {_FIX}")
        else:
            unlike.add(owner[key])
    values = {key: value for key, value in values.items() if owner[key] is None or owner[key] not in unlike}
    others = ", ".join(m for m in channels if m != main and m not in unlike)
    adapted += [f"the edges of {others}, which start like those of {main}"] if others else []
    left = [f"out the branch of {m}, whose backbone is another" for m in channels if m in unlike]
    new = [key for key in own if key not in names and not key.startswith(("mean_", "std_"))]
    left += [f"out {len(new)} tensors that the checkpoint has nothing for, such as {new[0]}"] if new else []
    if fresh:
        last = detector.class_head.predict.pointwise
        initialise(last)
        assert last.bias is not None
        nn.init.constant_(last.bias, CLASS_PRIOR)
        left.append(f"out the last layer of the class head, which starts fresh for {len(detector.classes)} classes")
    detector.load_state_dict(values, strict=False)
    return Imported(len(values), tuple(adapted), tuple(left))


def _alike(a: Tensor, b: Tensor, but: int) -> bool:
    """Whether the shapes are the same but for one dimension."""
    return a.ndim == b.ndim > but and a.movedim(but, 0).shape[1:] == b.movedim(but, 0).shape[1:]


def _check_fusion(spec: Mapping[str, Any], weighted: bool) -> None:
    if spec["pyramid"] != "bifpn":
        raise UserError(f"weights: the checkpoint has pyramid bifpn, the detector {spec['pyramid']}; use bifpn")
    sums = ["sum", "unbounded"] if len(spec["modalities"]) == 1 else ["unbounded"]
    fits = ["fast", "softmax", "channel", "gated"] if weighted else sums
    if spec["fusion"] not in fits:
        kind = "weighs" if weighted else "adds up"
        raise UserError(
            f"weights: the checkpoint {kind} what it merges, not fusion {spec['fusion']}; use {' or '.join(fits)}"
        )


def _edges(detector: FusionDetector, state: Mapping[str, Tensor], main: str) -> dict[str, Tensor]:
    """Returns the fusion weights of every node: those of the checkpoint, each modality's edge like that of `main`.

    Where the checkpoint adds up, they are 1. Edges that it has nothing like get almost no share.
    """
    fusion, names = detector.spec["fusion"], key_map(detector)
    size = detector.size
    plain = graphs.build(graphs.bifpn, size.levels, (main,), size.pyramid_depth)
    edges = {}
    for index, (node, model) in enumerate(zip(detector.pyramid.graph, plain, strict=True)):
        key = f"pyramid.nodes.{index}.merge.weight"
        weights = state.get(names[key], torch.ones(len(model.inputs)))
        if weights.shape != (len(model.inputs),):
            raise UserError(f"weights: {names[key]} is {tuple(weights.shape)}, not ({len(model.inputs)},); {_FIX}")
        new = weights.max() + math.log(_NEW_SHARE) if fusion == "softmax" else weights.new_tensor(_NEW_SHARE)
        place = {source: i for i, source in enumerate(model.inputs)}
        alike = [place.get(Feature(main, s.level) if isinstance(s, Feature) else s) for s in node.inputs]
        chosen = torch.stack([new if i is None else weights[i] for i in alike])
        if fusion == "gated":  # a fresh gate is half open
            chosen = chosen * 2
        edges[key] = chosen[:, None].expand(-1, detector.size.width) if fusion == "channel" else chosen
    return edges


def export_effdet(detector: FusionDetector, *, level_first: bool = False) -> dict[str, Tensor]:
    """Returns the weights under effdet's names, which its models load strictly; see `key_map` for `level_first`.

    Raises:
        UserError: the detector has several modalities, or a pyramid or fusion that effdet hasn't.
    """
    spec = detector.spec
    if len(spec["modalities"]) > 1:
        raise UserError(f"modalities: effdet has one, this detector {', '.join(spec['modalities'])}; export one alone")
    if spec["pyramid"] != "bifpn" or spec["fusion"] not in ("fast", "softmax", "sum"):
        raise UserError(
            f"pyramid {spec['pyramid']} with fusion {spec['fusion']}: effdet has none; use bifpn with fast, softmax or sum"
        )
    own = detector.state_dict()
    return {name: own[key] for key, name in key_map(detector, level_first=level_first).items()}
