"""How tensors reach the C++ kernels: contiguous, with torch's number of threads."""

import os

import torch
from torch import Tensor

try:
    from saefast import _native as native
except ImportError as error:
    raise ImportError(
        "saefast._native, the compiled part, could not be imported. In the source tree it is not "
        "there: install with `pip install .` and start Python in another folder, or use "
        f"`pip install -e .`. The cause was: {error}"
    ) from error

__all__ = ["contiguous", "native", "threads"]

LEVEL_ENVIRONMENT = "SAEFAST_ISA"
"""Names the instruction set to use instead of the best one, for tests and for comparing."""

if os.environ.get(LEVEL_ENVIRONMENT):
    native.use_level(os.environ[LEVEL_ENVIRONMENT])


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor as C++ reads it: row after row, without autograd."""
    return tensor.detach().contiguous()


def threads() -> int:
    """What `torch.set_num_threads` said."""
    return torch.get_num_threads()
