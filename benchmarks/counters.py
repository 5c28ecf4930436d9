"""Counts what a function asks of ATen: calls, bytes written and waits for the device. No clock, so no noise."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "repeat_interleave", "unique_dim", "_unique2",
    "bincount", "torchvision::nms",
}  # fmt: skip
"""Operators that make the host wait for a CUDA device; `.item()` and `bool(tensor)` are the first."""

UNWRITTEN = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


@dataclass(frozen=True)
class Count:
    """By operator: `calls`, the `bytes` of their outputs, and `waits` of the host for the device, indexing by a mask
    and copies between devices that aren't `non_blocking` among them. Views and empty tensors write nothing; calls in
    place write their whole output.
    """

    calls: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


class _Listener(TorchDispatchMode):
    def __init__(self, found: Count, device: str) -> None:
        super().__init__()
        self.found = found
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        self.found.calls[name] += 1
        outputs = (result,) if len(func._schema.returns) == 1 else result or ()
        for returned, output in zip(func._schema.returns, outputs, strict=True):
            if name not in UNWRITTEN and (returned.alias_info is None or returned.alias_info.is_write):
                self.found.bytes[name] += sum(x.numel() * x.element_size() for x in _tensors(output))
        by_mask = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in _tensors(args[1]))
        reads = (name in WAITS or by_mask) and any(x.device.type == self.device for x in _tensors(args))
        if reads or _joins_devices(name, args, kwargs, result):
            self.found.waits[name] += 1
        return result


def _joins_devices(name: str, args: Any, kwargs: Any, result: Any) -> bool:
    """Returns whether a call waits since it has to do with several devices; but for copies, a tensor () is a number."""
    copies = name in ("_to_copy", "copy_")
    if copies and ((kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])):
        return False
    return len({x.device for x in _tensors((args, kwargs, result)) if x.ndim or copies}) > 1


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


def count(function: Callable[[], object], device: str = "cpu") -> Count:
    """Runs a function once, with the backward passes that it starts, and returns what it asked of ATen.

    `device` is the kind of device that may be waited for. "meta" stands for an accelerator where there is none.
    """
    found = Count()
    with _Listener(found, device):
        function()
    return found
