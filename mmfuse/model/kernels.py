"""Whether kernels of our own run on this machine's CUDA device."""

import warnings
from functools import cache

import torch


@torch.compiler.assume_constant_result
def kernels_run() -> bool:
    """Returns whether Triton is there and makes kernels that run, for which it needs a C compiler; if not, warns once.

    Ask where there is a CUDA device only.
    """
    return _kernels_run()


@cache
def _kernels_run() -> bool:
    try:
        from mmfuse.model.focal_kernels import FocalSum

        FocalSum.apply(torch.zeros(1, 1, 1, device="cuda"), torch.zeros(1, 1, dtype=torch.int64, device="cuda"), 1.0)
    except Exception as error:  # whatever Triton, a compiler or a linker says
        reason = " ".join(str(error).split())[:120]
        warnings.warn(
            f"loss and suppression are slower than they could be: Triton doesn't run here ({reason})", stacklevel=3
        )
        return False
    return True
