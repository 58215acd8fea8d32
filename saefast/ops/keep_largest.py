"""Of every row of dense scores the k largest; the others become zero, in place."""

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks, gpu


@torch.library.custom_op("saefast::keep_largest", mutates_args=("scores",))
def keep_largest(scores: Tensor, k: int, signed: bool) -> None:
    """See `reference.keep_largest`. For the fused step, so not differentiable."""
    _check(scores, k)
    reference.keep_largest(scores, k, signed=signed)


@keep_largest.register_kernel("cuda")
def _(scores: Tensor, k: int, signed: bool) -> None:
    _check(scores, k)
    if scores.dtype != torch.float32 or not gpu.serves(scores):
        reference.keep_largest(scores, k, signed=signed)
    else:
        gpu.launch("keep_largest.keep_largest", scores, k, signed=signed)


def _check(scores: Tensor, k: int) -> None:
    checks.floating("scores", scores, "[n, c]")
    checks.writable("scores", scores)
    checks.between("k", k, 1, 2**31 - 1, "how many scores stay")


@keep_largest.register_fake
def _(scores: Tensor, k: int, signed: bool) -> None:
    return None
