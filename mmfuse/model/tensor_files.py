"""Reads tensors from a stranger's file: no code in it runs, and what can't be weights is refused."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.files import open_regular

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a .safetensors file, or what torch.save wrote; training checkpoints are unwrapped, averaged weights first.

    Raises:
        UserError: it isn't there, is damaged, holds code, or holds no floating, finite tensors by name.
    """
    try:
        if Path(path).suffix == ".safetensors":
            open_regular(path).close()
            loaded: object = load_file(path)
        else:
            with open_regular(path) as content, torch.serialization.safe_globals([Namespace]):
                loaded = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({one_line(error)}); check the path") from None
    except Exception as error:  # a broken pickle can raise anything
        fix = "get it again, or save its tensors alone"
        raise UserError(f"{path}: is damaged or holds more than tensors ({one_line(error)}); {fix}") from None
    return unwrapped(loaded, path)


def unwrapped(loaded: object, place: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of what a file held, by name.

    Raises:
        UserError: it holds none, or such as can't be weights.
    """
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise UserError(f"{place}: holds no state dict (tensors by name); give a checkpoint")
    state = {str(name).removeprefix("module."): x for name, x in loaded.items()}
    check_sound(state, place)
    return state


def check_sound(tensors: Mapping[str, Tensor], place: str | Path) -> None:
    """Refuses tensors that can't be weights.

    Raises:
        UserError: one isn't floating, but for counters, or isn't finite.
    """
    for name, x in tensors.items():
        kind = str(x.dtype).removeprefix("torch.")
        if not x.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise UserError(f"{place}: the tensor {name!r} is {kind}, not float; give weights that aren't quantised")
        if not bool(x.isfinite().all()):
            raise UserError(f"{place}: the tensor {name!r} holds values that aren't finite; give sound weights")


def one_line(error: Exception) -> str:
    """Returns what an exception says, in one line, cut short."""
    return " ".join(str(error).split())[:120] or type(error).__name__
