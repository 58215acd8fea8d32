"""Products by cuBLAS in the precision that was asked for, whatever the user set for his own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .device import interpreting


@contextlib.contextmanager
def multiplying_in(product: str) -> Iterator[None]:
    """float32 operands as float32, or as TF32 for "tfloat32"; sums are never in bfloat16."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction
    settings.fp32_precision = "tf32" if product == "tfloat32" else "ieee"
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction = before


def product_of(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in float32 unless the operands are wider."""
    if left.dtype.itemsize >= 4:
        return torch.mm(left, right)
    if interpreting():  # on a CPU, whose products know no other dtype for their result
        return torch.mm(left.float(), right.float())
    return torch.mm(left, right, out_dtype=torch.float32)
