"""Encode on the CPU by a given screen, with a weight that may be packed already.

The native engine is csrc/encode.cpp with the tiles of the active instruction set. The torch engine
multiplies tiles with `torch.mm` and filters them in C++, csrc/tile_screen.cpp.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.ops.cpu import contiguous, native, threads
from saefast.types import SparseCode, ThresholdCode

_ROWS, _COLUMNS = 1024, 2048  # of a torch tile: 8 MiB, which fits in cache

_SETTINGS = threading.Lock()
"""Held while torch's settings are changed, which all threads share: two threads that changed them
at the same time could each restore what the other had set"""


class Screen(NamedTuple):
    """An engine and the product it screens with."""

    engine: str
    """native or torch"""
    product: str
    """bfloat16, float32 or, for the native engine only, int16"""

    def __str__(self) -> str:
        return f"{self.engine}-{self.product}"


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the layout of the native screen, with the norms that bound its errors."""

    screen: Screen
    level: str
    """instruction set of the tiles for which the weight is packed"""
    units: Tensor
    """int32, the packed panels"""
    norm: Tensor
    """[m] float32, norms of the rows"""
    lost: Tensor
    """[m] float32, norms of the rounding errors of the rows"""

    @classmethod
    def of(cls, weight: Tensor, screen: Screen, scale: Tensor | None = None) -> "PackedWeight":
        """Pack a contiguous weight [m, d], with each row multiplied by its entry of `scale` [m]."""
        m, d = weight.shape
        count = native.panel_units(screen.product, d, m)
        units = torch.empty(count, dtype=torch.int32, device="cpu")
        norm, lost = torch.empty(2, m, dtype=torch.float32, device="cpu")
        packed = cls(screen, native.level(), units, norm, lost)
        native.pack_weight(
            screen.product, weight, scale, packed.units, packed.norm, packed.lost, threads()
        )
        return packed


def encode_on_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    screen: Screen,
    packed: PackedWeight | None = None,
    *,
    absolute: bool = False,
) -> SparseCode:
    """Compute `topk_encode` of checked input; an exact result does not depend on `screen`."""
    values, indices, _ = _encode(
        x, weight, bias, scale, None, k, precision, screen, packed, absolute=absolute
    )
    return SparseCode(values, indices)


def threshold_on_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
    screen: Screen,
    packed: PackedWeight | None = None,
) -> ThresholdCode:
    """Compute `threshold_encode` of checked input, with `threshold` [m] or [] in scores' dtype."""
    threshold = contiguous(threshold.expand(weight.shape[0]))
    return _encode(x, weight, bias, scale, threshold, width, precision, screen, packed)


def _encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor | None,
    k: int,
    precision: str,
    screen: Screen,
    packed: PackedWeight | None,
    *,
    absolute: bool = False,
) -> ThresholdCode:
    """Encode the k largest scores of each row, or those above a threshold, with their counts."""
    x, weight = contiguous(x), contiguous(weight)
    bias = bias if bias is None else contiguous(bias)
    scale = scale if scale is None else contiguous(scale)
    n = len(x)
    code = ThresholdCode(
        x.new_empty(n, k),
        torch.empty(n, k, dtype=torch.int64, device="cpu"),
        torch.empty(0 if threshold is None else n, dtype=torch.int64, device="cpu"),
    )
    arrays = (x, weight, bias, scale, threshold, *code)
    if screen.engine == "torch":
        screening = native.TileScreen(*arrays, absolute, screen.product, threads())
        _feed_tiles(screening, x, weight, scale, screen)
    else:
        units, norm, lost = (packed.units, packed.norm, packed.lost) if packed else (None,) * 3
        exact = precision == "exact"
        native.encode(*arrays, exact, absolute, screen.product, units, norm, lost, threads())
    return code


@contextlib.contextmanager
def _multiplying_in(product: str) -> Iterator[None]:
    """Multiply float32 in float32 or with bfloat16 operands, regardless of torch's settings."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _SETTINGS:
        before = settings.fp32_precision
        settings.fp32_precision = "bf16" if product == "bfloat16" else "ieee"
        try:
            yield
        finally:
            settings.fp32_precision = before


def _feed_tiles(
    screening: native.TileScreen, x: Tensor, weight: Tensor, scale: Tensor | None, screen: Screen
) -> None:
    """Fill a code by tiles of `torch.mm`, which C++ filters while they are in cache."""
    n, m = x.shape[0], weight.shape[0]
    tile = torch.empty(min(_ROWS, n), min(_COLUMNS, m), dtype=torch.float32, device="cpu")
    with _multiplying_in(screen.product):
        for row in range(0, n, _ROWS):
            left = x[row : row + _ROWS].float()
            for column in range(0, m, _COLUMNS):
                right = _tile_operand(weight, scale, column)
                torch.mm(left, right.T, out=tile[: len(left), : len(right)])
                screening.feed(tile, row, len(left), column, len(right), threads())
            screening.finish(row, left.shape[0], threads())


def _tile_operand(weight: Tensor, scale: Tensor | None, column: int) -> Tensor:
    rows = weight[column : column + _COLUMNS]
    if scale is None:
        return rows.float()
    factors = scale[column : column + _COLUMNS, None]
    wide = torch.promote_types(rows.dtype, torch.float32)
    return (rows.to(wide) * factors.to(wide)).float()
