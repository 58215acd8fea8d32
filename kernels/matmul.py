"""Multiply by cuBLAS in a given precision, independently of the user's settings."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from .device import interpreting

_SETTINGS = threading.RLock()
"""held while torch's settings are changed, which all threads share: two threads that changed them
at the same time could each restore what the other had set"""


@contextlib.contextmanager
def multiplying_in(product: str) -> Iterator[None]:
    """Set the precision of float32 products: TF32 for "tfloat32", float32 otherwise.

    Sums of bfloat16 products are kept in float32. The previous settings are restored at the end.
    """
    settings = torch.backends.cuda.matmul
    with _SETTINGS:
        before = settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction
        settings.fp32_precision = "tf32" if product == "tfloat32" else "ieee"
        settings.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction = before


def product_of(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in float32, or in the operands' dtype if that is wider.

    Args:
        left: [n, d].
        right: [d, m], of the same dtype.
    """
    if left.dtype.itemsize >= 4:
        return torch.mm(left, right)
    if interpreting():  # torch's CPU products support no other dtype for their result
        return torch.mm(left.float(), right.float())
    return torch.mm(left, right, out_dtype=torch.float32)
