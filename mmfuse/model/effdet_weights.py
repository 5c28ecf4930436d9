"""Weights of effdet, the reference implementation in PyTorch, in and out."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.architecture import Architecture
from mmfuse.errors import UserError, unknown_name
from mmfuse.model import graphs
from mmfuse.model.backbones import STRIDES
from mmfuse.model.detector import CLASS_PRIOR, SHARED, STACKED, Detector, FusionDetector
from mmfuse.model.fusion import FUSIONS, Merge, Sum
from mmfuse.model.layers import initialise
from mmfuse.model.nodes import Feature, Graph
from mmfuse.model.pyramid import PyramidNode
from mmfuse.model.tensor_files import one_line, read_tensors, unwrapped

RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"
_FILES = """
tf_efficientdet_d0_34-f153e0cf tf_efficientdet_d1_40-a30f94af tf_efficientdet_d2_43-8107aa99
tf_efficientdet_d3_47-0b525f35 tf_efficientdet_d4_49-f56376d9 tf_efficientdet_d5_51-c79f9be6
tf_efficientdet_d6_52-4eda3773 tf_efficientdet_d7_53-6d1d7a95 tf_efficientdet_d7x-f390b87c
efficientdet_d0-f3276ba8 efficientdet_d1-bb7e98fe efficientdet_q0-bdf1bdb5 efficientdet_q2-0f7564e5
"""
PUBLISHED = {re.split("_[0-9]|-", file)[0]: f"{file}.pth" for file in _FILES.split()}
"""Known checkpoints and their files in the release, whose names end in the first digits of their SHA-256.

effdet's others have another backbone, activation, resampling (q1) or normalisation (AdvProp, `_ap`).
"""

FPN_NAMES = {
    ("bifpn", "fast"): "bifpn_fa",
    ("bifpn", "softmax"): "bifpn_attn",
    ("bifpn", "sum"): "bifpn_sum",
    ("panet", "fast"): "pan_fa",
    ("panet", "sum"): "pan_sum",
    ("quad_fpn", "fast"): "qufpn_fa",
}
"""effdet's `fpn_name` of each pyramid and fusion that it has."""

_PARTS = {"norm": "bn", "depthwise": "conv_dw", "pointwise": "conv_pw", "convs": "conv_rep"}
_HEADS = {"class_head": "class_net", "box_head": "box_net"}
_EDGES = ".combine.edge_weights"
_LAST_LAYER = "class_head.predict.pointwise"
_FIX = (
    "use the size, flavour and pyramid of the checkpoint "
    "(tf_efficientdet_*: tf, efficientdet_*: symmetric, efficientdet_q*: quad_fpn)"
)
_NEW_SHARE = 1e-9
"""Weight of an edge that the checkpoint has nothing like: too small to be seen, but not zero, where ReLU is stuck."""
_LINEAR = 2.0**-22
"""Scale at which SiLU(x) is x / 2 up to rounding."""


@dataclass(frozen=True)
class Imported:
    """What an import did: how many tensors it set, what it adapted, and what it left as it was or fresh."""

    modalities: tuple[str, ...]
    loaded: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def to_text(self) -> str:
        """Returns a line for the tensors loaded and one for each thing adapted or left."""
        lines = [f"adapted {line}" for line in self.adapted] + [f"left {line}" for line in self.left]
        return "\n".join([f"loaded {self.loaded} tensors for {', '.join(self.modalities)}", *lines])


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Reads a published checkpoint by its name (`PUBLISHED`, through torch.hub's cache) or any other by its path.

    A file is .safetensors, or what torch.save wrote; no code in it runs. Training checkpoints are unwrapped (their
    averaged weights first), and so are names under `module.` or `model.`.

    Raises:
        UserError: it isn't there, or can't be downloaded, or is damaged, holds code, or holds no weights of effdet's.
    """
    file = PUBLISHED.get(str(source))
    where = RELEASE + file if file else str(source)
    if not file and not Path(source).exists():
        if Path(source).suffix:
            raise UserError(f"weights: {source} does not exist; check the path")
        raise UserError(f"weights: {unknown_name(str(source), PUBLISHED, 'checkpoint')}")
    try:
        if not file:
            loaded: object = read_tensors(source)
        else:
            loaded = torch.hub.load_state_dict_from_url(where, map_location="cpu", check_hash=True, weights_only=True)
    except UserError as error:
        raise UserError(f"weights: {error}") from None
    except OSError as error:
        raise UserError(f"weights: {where} can't be read ({one_line(error)}); connect, or give a file") from None
    except Exception as error:  # a broken pickle can raise anything
        fix = f"delete {torch.hub.get_dir()}/checkpoints/{file}"
        raise UserError(f"weights: {where} is damaged or holds more than tensors ({one_line(error)}); {fix}") from None
    state = {name.removeprefix("model."): x for name, x in unwrapped(loaded, f"weights: {where}").items()}
    if any("backbones." in name for name in state):
        raise UserError(f"weights: {where} is a checkpoint of mmfuse's, not of effdet's; read it with mmfuse.load")
    return {name: x for name, x in state.items() if not name.endswith("anchors.boxes")}


def key_map(detector: FusionDetector, *, level_first: bool = False) -> dict[str, str]:
    """Returns effdet's name of each tensor of the detector that effdet has; modalities share names.

    `level_first` is effdet's `head_bn_level_first`: its heads' batch norms are sorted by level, then repeat.

    Raises:
        UserError: effdet hasn't the detector's pyramid.
    """
    return {key: name for key, (name, _) in _counterparts(detector, level_first).items()}


Counterpart = tuple[str, str | None]
"""effdet's name of a tensor, and whose it is: a modality's, SHARED or STACKED, or None where it is the detector's."""


def _counterparts(detector: FusionDetector, level_first: bool) -> dict[str, Counterpart]:
    plain = _plain(detector)
    return {key: pair for key in detector.state_dict() if (pair := _counterpart(key, detector, plain, level_first))}


def _plain(detector: FusionDetector) -> Graph:
    """Returns effdet's graph, whose one modality is "".

    The detector's is one with more edges, or one for each modality and then the joints: nodes that merge them.
    """
    architecture = Architecture.of(detector.spec)
    pyramid, known = architecture.pyramid, sorted({name for name, _ in FPN_NAMES})
    if pyramid not in known:
        raise UserError(f"weights: effdet hasn't the pyramid {pyramid}; use {' or '.join(known)}")
    return graphs.build(graphs.PYRAMIDS[pyramid], detector.levels, [""], architecture.scale.pyramid_depth)


def _joints(detector: FusionDetector, plain: Graph) -> range:
    count = len(detector.pyramid.graph)
    return range(count - count % len(plain), count)


def _counterpart(key: str, detector: FusionDetector, plain: Graph, level_first: bool) -> Counterpart | None:
    graph = detector.pyramid.graph
    match [_PARTS.get(part, part) for part in key.split(".")]:
        case ["backbones", owner, "net", *_]:
            return f"backbone.{key.split('.', 3)[3]}", owner
        case ["pyramid", "extend", owner, part, name]:
            return f"fpn.resample.{len(STRIDES)}.conv.{part}.{name}", owner
        case ["pyramid", "nodes", index, *rest] if int(index) not in _joints(detector, plain):
            cell, number = divmod(int(index) % len(plain), sum(node.cell == 0 for node in plain))
            node = f"fpn.cell.{cell}.fnode.{number}"
            match rest:
                case ["laterals", edge, part, name] if cell == 0:
                    source = graph[int(index)].inputs[int(edge)]
                    assert isinstance(source, Feature)
                    offset = source.level - detector.levels[0]
                    return f"{node}.combine.resample.{offset}.conv.{part}.{name}", source.modality
                case ["merge", "weight"]:
                    return node + _EDGES, None
                case ["conv", part, name] | [part, name] if part != "merge":
                    return f"{node}.after_combine.conv.{part}.{name}", None
        case [head, "norms", repeat, level, name]:
            place = f"{level}.{repeat}" if level_first else f"{repeat}.{level}.bn"
            return f"{_HEADS[head]}.bn_rep.{place}.{name}", None
        case [head, *rest] if head in _HEADS:
            return ".".join([_HEADS[head], *rest]), None
    return None


def import_effdet(
    detector: FusionDetector,
    state: Mapping[str, Tensor],
    modality: str | None = None,
    *,
    edges: Literal["fast", "softmax"] = "fast",
) -> Imported:
    """Sets the detector's weights from effdet's state dict, so that one modality alone gives the imported output.

    `modality` is the one like the images that the checkpoint was trained on; by default the first with 3 channels, or
    else the first. The others get the same branch, where they have the same backbone, with the stem adapted to their
    channels, and their edges start with the weight of that modality's. Where the channels of all are stacked, those of
    the others start at 0; where each has its own pyramid, the nodes that merge them start as the identity. The last
    layer of the class head starts fresh where the number of classes differs.

    Names and shapes don't tell how weights of edges are normalised: `edges` does, by effdet's `fastattn`, as in all
    published checkpoints, or its `attn`. Neither do they tell activation and resampling, which must be SiLU,
    max-pooling and nearest.

    Raises:
        UserError: a key is missing or unknown, a shape is wrong, or the pyramid or fusion can't hold the weights; the
            detector is as it was.
    """
    architecture, kind = Architecture.of(detector.spec), type(detector.pyramid.merges[0])
    channels = _channels(detector)
    if modality is not None and modality not in channels:
        raise UserError(f"modality: {unknown_name(modality, channels, 'modality of this detector')}")
    main = modality or next((m for m, count in channels.items() if count == 3), next(iter(channels)))
    pairs = _counterparts(detector, level_first="class_net.bn_rep.0.0.weight" in state)
    form: type[Merge] = FUSIONS[edges] if any(map(_is_edge, state)) else Sum
    if not kind.learned and (form.learned or (architecture.placement == "every" and len(channels) > 1)):
        what = "the checkpoint weighs its edges" if form.learned else "placement every has edges that must start at 0"
        raise UserError(f"weights: {what}, but fusion {architecture.fusion} has no weights; use fusion fast")
    trunk = [name for name, owner in pairs.values() if owner in _trunk(main)]
    needed = {name for name in trunk if form.learned or not _is_edge(name)}
    _check_names(state, needed)
    values, adapted, unlike, fresh = _fitted(detector, state, pairs, needed, main)
    merges, joints = _merges(detector, state, pairs, form), _identities(detector, values)
    loaded = len(values) + (sum(key in pairs for key in merges) if form.learned else 0)
    values |= merges | joints

    others = ", ".join(m for m in channels if m != main)
    if others and not detector.stacked:
        adapted.append(f"the edges of {others}, which start like those of {main}")
    if joints:
        adapted.append("the nodes that merge the pyramids of the modalities, which start as the identity")
    if form.learned and not issubclass(kind, form):
        adapted.append(f"the weights of edges, taken as those of {edges} fusion")
    left = [f"the branch of {m}, whose backbone is another" for m in channels if m in unlike]
    rest = [key for key in detector.state_dict() if key not in pairs and key not in values]
    new = [key for key in rest if not key.startswith(("mean_", "std_"))]
    left += [f"{len(new)} tensors that the checkpoint has nothing for, such as {new[0]}"] if new else []
    if fresh:
        initialise(detector.class_head.predict.pointwise)
        nn.init.constant_(detector.get_parameter(f"{_LAST_LAYER}.bias"), CLASS_PRIOR)
        left.append(f"the last layer of the class head, which starts fresh for {len(detector.classes)} classes")
    detector.load_state_dict(values, strict=False)
    return Imported(tuple(channels), loaded, tuple(adapted), tuple(left))


def _channels(detector: Detector) -> dict[str, int]:
    return {m: sensor.encoded_channels for m, sensor in detector.sensors.items()}


def _is_edge(name: str) -> bool:
    return name.endswith(_EDGES)


def _trunk(main: str) -> tuple[str | None, ...]:
    """Returns the owners of the tensors that the checkpoint must fill; other modalities' branches may be unlike."""
    return None, SHARED, STACKED, main


def _check_names(state: Mapping[str, Tensor], needed: Set[str]) -> None:
    lacking = {name for name in needed - state.keys() if not name.endswith("num_batches_tracked")}
    for what, wrong in (("lacks", lacking), ("has an unknown", state.keys() - needed)):
        if wrong:
            first = min(wrong)
            fix = f"{_FIX}; other backbones, as effdet's lite, don't fit" if first.startswith("backbone.") else _FIX
            raise UserError(f"weights: the checkpoint {what} {first!r} (of {len(wrong)} such); {fix}")


def _fitted(
    detector: FusionDetector,
    state: Mapping[str, Tensor],
    pairs: Mapping[str, Counterpart],
    needed: Set[str],
    main: str,
) -> tuple[dict[str, Tensor], list[str], set[str | None], bool]:
    """Returns tensors but for weights of edges, what was adapted, whose backbone is unlike, and if the classes are."""
    own, stem = detector.state_dict(), next(name for name, owner in pairs.values() if owner in _trunk(main))
    values, adapted, unlike, fresh = dict[str, Tensor](), list[str](), set[str | None](), set[str]()
    for key, (name, owner) in pairs.items():
        value, here = state.get(name), own[key]
        if _is_edge(name) or (value is None and name in needed):
            continue
        if value is not None and name == stem and value.ndim == 4:
            value, notes = _stem(value, here.shape[1], owner, main, _channels(detector))
            adapted += notes
        if value is not None and value.shape == here.shape:
            values[key] = value
        elif value is not None and key.startswith(_LAST_LAYER) and value.shape[1:] == here.shape[1:]:
            fresh.add(name)
        elif owner in _trunk(main):
            raise UserError(f"weights: {name} is {tuple(state[name].shape)}, not {tuple(here.shape)}; {_FIX}")
        else:
            unlike.add(owner)
    if len(fresh) == 1:
        raise UserError(f"weights: {min(fresh)} doesn't fit the other tensor of its layer; {_FIX}")
    return {k: x for k, x in values.items() if pairs[k][1] not in unlike}, adapted, unlike, bool(fresh)


def _stem(
    value: Tensor, width: int, owner: str | None, main: str, channels: Mapping[str, int]
) -> tuple[Tensor, list[str]]:
    """Returns the stem's kernel (O, C, h, w) for `width` input channels, and what was adapted."""
    from timm.models import adapt_input_conv

    notes = []
    own = channels[main] if owner == STACKED else width
    if value.shape[1] == 3 != own:
        value = adapt_input_conv(own, value)
        notes.append(f"the stem of {main if owner == STACKED else owner} from 3 input channels to {own}")
    if owner == STACKED:
        names = list(channels)
        before = sum(channels[m] for m in names[: names.index(main)])
        value = F.pad(value, (0, 0, 0, 0, before, width - own - before))
        notes.append(f"the stem, which starts at 0 for {', '.join(m for m in names if m != main)}")
    return value, notes


def _merges(
    detector: FusionDetector, state: Mapping[str, Tensor], pairs: Mapping[str, Counterpart], form: type[Merge]
) -> dict[str, Tensor]:
    """Returns weights and gain of every merge, with which each modality's inputs alone add up as in the checkpoint.

    Edges that it has nothing like get almost no share.
    """
    plain = _plain(detector)
    values = dict[str, Tensor]()
    alike: list[int | None]
    theirs: Merge
    for index, (node, merge) in enumerate(zip(detector.pyramid.graph, detector.pyramid.merges, strict=True)):
        key = f"pyramid.nodes.{index}.merge"
        if joint := index in _joints(detector, plain):
            theirs, alike = Sum(1, 1), [0] * len(node.inputs)
        else:
            copy, place = divmod(index, len(plain))
            places = {source: number for number, source in enumerate(plain[place].inputs)}
            plainly = (Feature("", s.level) if isinstance(s, Feature) else s - copy * len(plain) for s in node.inputs)
            alike = [places.get(source) for source in plainly]
            theirs = form(len(places), 1)
            if form.learned:
                name = pairs[f"{key}.weight"][0]
                if state[name].shape != theirs.weight.shape:
                    raise UserError(f"weights: {name} is {tuple(state[name].shape)}, not ({len(places)},); {_FIX}")
                theirs.weight.data.copy_(state[name])
        started = merge.starting_from(theirs, alike, _NEW_SHARE)
        if joint:
            started["gain"] = started["gain"] * _LINEAR
        values |= {f"{key}.{name}": x for name, x in started.items()}
    return values


def _identities(detector: FusionDetector, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with which joints pass on what they merge, scaled down to where SiLU(x) is x / 2.

    The depthwise kernel scales it up again, so it hardly learns; the statistics are those that the batch norm of the
    pyramid before gives it.
    """
    graph, made = detector.pyramid.graph, dict[str, Tensor]()
    for index in _joints(detector, _plain(detector)):
        node, before = detector.pyramid.nodes[index], f"pyramid.nodes.{graph[index].inputs[0]}.norm"
        assert isinstance(node, PyramidNode)
        assert isinstance(node.norm, nn.BatchNorm2d)
        own = {key: torch.zeros_like(x) for key, x in node.state_dict().items() if key.startswith(("conv.", "norm."))}
        own["conv.depthwise.weight"][:, 0, 1, 1] = 2 / _LINEAR
        own["conv.pointwise.weight"][:, :, 0, 0].fill_diagonal_(1)
        own["norm.bias"] += values[f"{before}.bias"]
        own["norm.running_mean"] += values[f"{before}.bias"]
        own["norm.running_var"] += values[f"{before}.weight"] ** 2
        own["norm.weight"] += (own["norm.running_var"] + node.norm.eps).sqrt()
        made |= {f"pyramid.nodes.{index}.{key}": x for key, x in own.items()}
    return made


def export_effdet(detector: Detector, *, level_first: bool = False) -> dict[str, Tensor]:
    """Returns the weights under effdet's names, which its models load strictly; see `key_map` for `level_first`.

    Raises:
        UserError: the detector has several modalities, a pyramid or fusion that effdet hasn't, or gains in its merges.
    """
    architecture, modalities = Architecture.of(detector.spec), detector.modalities
    pyramid, fusion = architecture.pyramid, architecture.fusion
    if not isinstance(detector, FusionDetector) or len(modalities) > 1 or (pyramid, fusion) not in FPN_NAMES:
        what = f"modalities {', '.join(modalities)}, pyramid {pyramid}, fusion {fusion}"
        fits = ", ".join(f"{p} with {f}" for p, f in FPN_NAMES)
        raise UserError(f"{what}: effdet has one modality, and {fits}; export such a detector")
    own = detector.state_dict()
    if any(key.endswith(".gain") and x != 1 for key, x in own.items()):
        raise UserError(
            f"fusion {fusion}: was started from a checkpoint that merges otherwise, which effdet can't hold"
        )
    return {name: own[key] for key, name in key_map(detector, level_first=level_first).items()}
