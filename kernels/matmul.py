"""Products by cuBLAS in the precision that was asked for, whatever the user set for his own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


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
    """left @ right in float32, from operands of any float dtype."""
    if left.dtype == torch.float32:
        return torch.mm(left, right)
    return torch.mm(left, right, out_dtype=torch.float32)
