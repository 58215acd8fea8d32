"""Access to the C++ kernels: the compiled module, contiguous tensors, number of threads."""

import os

import torch
from torch import Tensor

try:
    from saefast import _native as native
except ImportError as error:
    raise ImportError(
        f"the compiled module saefast._native could not be imported. The source tree does not "
        f"contain it: install with `pip install .` and start Python in another folder, or use `pip "
        f"install -e .`. The error was: {error}"
    ) from error

__all__ = ["contiguous", "native", "threads"]

LEVEL_ENVIRONMENT = "SAEFAST_ISA"
"""Environment variable that selects an instruction set instead of the best one, for tests."""

if os.environ.get(LEVEL_ENVIRONMENT):
    native.use_level(os.environ[LEVEL_ENVIRONMENT])


def contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor in the form that kernels read: detached, contiguous, not a lazy negative.

    The imaginary part of a conjugate, for example, is a view whose memory holds the negatives.
    """
    return tensor.detach().contiguous().resolve_neg()


def threads() -> int:
    """Return torch's number of threads."""
    return torch.get_num_threads()
