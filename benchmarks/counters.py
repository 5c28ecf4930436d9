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
    included. Views and empty tensors write nothing; calls in place write their whole output.
    """

    calls: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


class _Listener(TorchDispatchMode):
    def __init__(self, found: Count) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        self.found.calls[name] += 1
        outputs = (result,) if len(func._schema.returns) == 1 else result or ()
        for returned, output in zip(func._schema.returns, outputs, strict=True):
            if name not in UNWRITTEN and (returned.alias_info is None or returned.alias_info.is_write):
                self.found.bytes[name] += sum(x.numel() * x.element_size() for x in _tensors(output))
        by_mask = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in _tensors(args[1]))
        if name in WAITS or by_mask:
            self.found.waits[name] += 1
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


def count(function: Callable[[], object]) -> Count:
    """Runs a function once, with the backward passes that it starts, and returns what it asked of ATen."""
    found = Count()
    with _Listener(found):
        function()
    return found
