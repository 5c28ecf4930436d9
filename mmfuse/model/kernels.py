"""Whether kernels of our own run on this machine's CUDA device."""

import warnings
from functools import cache

import torch


@cache
def kernels_run() -> bool:
    """Returns whether Triton is there and makes kernels that run, for which it needs a C compiler; if not, warns once.

    Ask where there is a CUDA device only, and not while compiling: then it is there.
    """
    try:
        from mmfuse.model.focal_kernels import FocalSum

        FocalSum.apply(torch.zeros(1, 1, 1, device="cuda"), torch.zeros(1, 1, dtype=torch.int64, device="cuda"), 1.0)
    except Exception as error:  # whatever Triton, a compiler or a linker says
        reason = " ".join(str(error).split())[:120]
        warnings.warn(
            f"loss and suppression are slower than they could be: Triton doesn't run here ({reason})", stacklevel=2
        )
        return False
    return True
