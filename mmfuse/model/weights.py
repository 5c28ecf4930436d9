"""Weights of effdet, the reference implementation in PyTorch, in and out."""

import math
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mmfuse.errors import UserError, unknown_name
from mmfuse.model import graphs
from mmfuse.model.backbones import STRIDES
from mmfuse.model.detector import CLASS_PRIOR, FusionDetector
from mmfuse.model.nodes import Feature
from mmfuse.model.pyramid import initialise

RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"
_FILES = """
tf_efficientdet_d0_34-f153e0cf tf_efficientdet_d1_40-a30f94af tf_efficientdet_d2_43-8107aa99
tf_efficientdet_d3_47-0b525f35 tf_efficientdet_d4_49-f56376d9 tf_efficientdet_d5_51-c79f9be6
tf_efficientdet_d6_52-4eda3773 tf_efficientdet_d7_53-6d1d7a95 tf_efficientdet_d7x-f390b87c
efficientdet_d0-f3276ba8 efficientdet_d1-bb7e98fe
"""
PUBLISHED = {re.split("_[0-9]|-", file)[0]: f"{file}.pth" for file in _FILES.split()}
"""Known checkpoints and their files in the release, whose names end in the first digits of their SHA-256."""

_PARTS = {"norm": "bn", "depthwise": "conv_dw", "pointwise": "conv_pw", "convs": "conv_rep"}
_HEADS = {"class_head": "class_net", "box_head": "box_net"}
_EDGES = ".combine.edge_weights"
_FIX = "use the size and flavour of the checkpoint (tf_efficientdet_*: tf, efficientdet_*: symmetric)"
_NEW_SHARE = 1e-9
"""Weight of an edge that the checkpoint has nothing like: too small to be seen, but not zero, where ReLU is stuck."""


@dataclass(frozen=True)
class Imported:
    """What an import did: how many tensors it set, what it adapted, and what it left as it was or fresh."""

    loaded: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def to_text(self) -> str:
        """Returns a line for the tensors loaded and one for each thing adapted or left."""
        lines = [f"adapted {line}" for line in self.adapted] + [f"left {line}" for line in self.left]
        return "\n".join([f"loaded {self.loaded} tensors", *lines])


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Reads a published checkpoint by its name (`PUBLISHED`, through torch.hub's cache) or any other by its path.

    A file is .safetensors, or what torch.save wrote; no code in it runs. Training checkpoints are unwrapped (their
    averaged weights first), and so are names under `module.` or `model.`.

    Raises:
        UserError: it isn't there, or can't be downloaded, or is damaged, holds code, or holds no tensors.
    """
    url = RELEASE + PUBLISHED[str(source)] if str(source) in PUBLISHED else None
    if not url and not Path(source).exists():
        raise UserError(f"weights: {unknown_name(str(source), PUBLISHED, 'file or checkpoint')}")
    try:
        if url:
            loaded = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        elif Path(source).suffix == ".safetensors":
            loaded = load_file(source)
        else:
            with torch.serialization.safe_globals([Namespace]):
                loaded = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"weights: {url or source} can't be read ({_line(error)}); connect, or give a file") from None
    except Exception as error:  # a broken pickle can raise anything
        what = f"weights: {url or source} is damaged or holds more than tensors ({_line(error)})"
        raise UserError(f"{what}; get it again, or save the state dict alone") from None
    return _unwrap(loaded, url or source)


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
    return {key: name for key, (name, _) in _counterparts(detector, level_first).items()}


def _counterparts(detector: FusionDetector, level_first: bool) -> dict[str, tuple[str, str | None]]:
    """Returns for each tensor that effdet has its name there, and the modality that it belongs to, "shared" or None."""
    return {key: pair for key in detector.state_dict() if (pair := _counterpart(key, detector, level_first))}


def _counterpart(key: str, detector: FusionDetector, level_first: bool) -> tuple[str, str | None] | None:
    graph = detector.pyramid.graph
    cell = len(graph) // detector.size.pyramid_depth
    match [_PARTS.get(part, part) for part in key.split(".")]:
        case ["backbones", owner, "net", *_]:
            return f"backbone.{key.split('.', 3)[3]}", owner
        case ["pyramid", "extend", owner, part, name]:
            return f"fpn.resample.{len(STRIDES)}.conv.{part}.{name}", owner
        case ["pyramid", "nodes", index, *rest]:
            node = f"fpn.cell.{int(index) // cell}.fnode.{int(index) % cell}"
            match rest:
                case ["laterals", place, part, name] if int(index) < cell:
                    source = graph[int(index)].inputs[int(place)]
                    assert isinstance(source, Feature)
                    offset = source.level - detector.size.levels[0]
                    return f"{node}.combine.resample.{offset}.conv.{part}.{name}", source.modality
                case ["merge", "weight"]:
                    return node + _EDGES, None
                case ["conv", part, name] | [part, name]:
                    return f"{node}.after_combine.conv.{part}.{name}", None
        case [head, "norms", repeat, level, name]:
            place = f"{level}.{repeat}" if level_first else f"{repeat}.{level}.bn"
            return f"{_HEADS[head]}.bn_rep.{place}.{name}", None
        case [head, *rest] if head in _HEADS:
            return ".".join([_HEADS[head], *rest]), None
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
    pairs = _counterparts(detector, level_first="class_net.bn_rep.0.0.weight" in state)
    weighted = any(name.endswith(_EDGES) for name in state)
    values = _edges(detector, state, main, weighted)
    trunk = (None, "shared", main)
    needed = {name for name, owner in pairs.values() if owner in trunk and (weighted or not name.endswith(_EDGES))}
    for what, wrong in (("lacks", needed - state.keys()), ("has an unknown", state.keys() - needed)):
        if wrong:
            raise UserError(f"weights: the checkpoint {what} {min(wrong)!r} (of {len(wrong)} such); {_FIX}")
    own = detector.state_dict()
    adapted, fresh, unlike = [], False, set()
    for key, (name, owner) in pairs.items():
        value, here = state.get(name), own[key]
        if key in values:
            continue
        if value is not None and value.shape == here.shape:
            values[key] = value
        elif (
            value is not None and key.startswith("backbones.") and value.shape == (*here.shape[:1], 3, *here.shape[2:])
        ):
            values[key] = adapt_input_conv(here.shape[1], value)
            adapted.append(f"the stem of {owner} from 3 input channels to {here.shape[1]}")
        elif value is not None and key.startswith("class_head.predict.pointwise") and value.shape[1:] == here.shape[1:]:
            fresh = True
        elif owner in trunk:
            raise UserError(f"weights: {name} is {tuple(state[name].shape)}, not {tuple(here.shape)}; {_FIX}")
        else:
            unlike.add(owner)
    values = {key: value for key, value in values.items() if pairs[key][1] not in unlike}
    others = ", ".join(m for m in channels if m != main and m not in unlike)
    adapted += [f"the edges of {others}, which start like those of {main}"] if others else []
    left = [f"the branch of {m}, whose backbone is another" for m in channels if m in unlike]
    new = [key for key in own if key not in pairs and not key.startswith(("mean_", "std_"))]
    left += [f"{len(new)} tensors that the checkpoint has nothing for, such as {new[0]}"] if new else []
    if fresh:
        initialise(detector.class_head.predict.pointwise)
        nn.init.constant_(detector.get_parameter("class_head.predict.pointwise.bias"), CLASS_PRIOR)
        left.append(f"the last layer of the class head, which starts fresh for {len(detector.classes)} classes")
    detector.load_state_dict(values, strict=False)
    return Imported(len(values), tuple(adapted), tuple(left))


def _edges(detector: FusionDetector, state: Mapping[str, Tensor], main: str, weighted: bool) -> dict[str, Tensor]:
    """Returns the fusion weights of every node: those of the checkpoint, each modality's edge like that of `main`.

    Where the checkpoint adds up, they are 1. Edges that it has nothing like get almost no share.
    """
    spec, size, names = detector.spec, detector.size, key_map(detector)
    sums = ["sum", "unbounded"] if len(spec["modalities"]) == 1 else ["unbounded"]
    fits = ["fast", "softmax", "channel", "gated"] if weighted else sums
    for what, theirs in (("pyramid", ["bifpn"]), ("fusion", fits)):
        if spec[what] not in theirs:
            raise UserError(f"weights: the checkpoint doesn't fit {what} {spec[what]}; use {' or '.join(theirs)}")
    if (fusion := spec["fusion"]) == "sum":
        return {}
    plain = graphs.build(graphs.PYRAMIDS["bifpn"], size.levels, (main,), size.pyramid_depth)
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
        chosen = chosen * 2 if fusion == "gated" else chosen  # a fresh gate is half open
        edges[key] = chosen[:, None].expand(-1, size.width) if fusion == "channel" else chosen
    return edges


def export_effdet(detector: FusionDetector, *, level_first: bool = False) -> dict[str, Tensor]:
    """Returns the weights under effdet's names, which its models load strictly; see `key_map` for `level_first`.

    Raises:
        UserError: the detector has several modalities, or a pyramid or fusion that effdet hasn't.
    """
    modalities, pyramid, fusion = (detector.spec[key] for key in ("modalities", "pyramid", "fusion"))
    if len(modalities) > 1 or pyramid != "bifpn" or fusion not in ("fast", "softmax", "sum"):
        what = f"modalities {', '.join(modalities)}, pyramid {pyramid}, fusion {fusion}"
        raise UserError(f"{what}: effdet has one modality, bifpn and fast, softmax or sum; export such a detector")
    own = detector.state_dict()
    return {name: own[key] for key, name in key_map(detector, level_first=level_first).items()}
