"""Rows rounded to what a tensor core multiplies, and measured bounds on what the rounding lost."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two

DROPPED_BITS = {"bfloat16": 16, "tfloat32": 13, "float32": 0}
"""What each screening product leaves out of a float32."""


def padded_width(d: int) -> int:
    """The width of rounded rows: a multiple of 16, so that every row starts on 16 bytes."""
    return -(-d // 16) * 16


def unit_dtype(product: str) -> torch.dtype:
    """The interpreter's arithmetic on bfloat16 is wrong, so there float32 carries its values."""
    narrow = product == "bfloat16" and not interpreting()
    return torch.bfloat16 if narrow else torch.float32


@dataclass(frozen=True)
class RoundedRows:
    """Rows as the screen multiplies them, and bounds on what they lost."""

    product: str
    units: Tensor
    """[rows, d rounded up to 16]"""
    norm: Tensor
    """[rows] at least the length before rounding"""
    lost: Tensor
    """[rows] at least the length of what rounding took"""


@triton.jit
def rounded_to(value, DROP: tl.constexpr):
    """The nearest float32 whose lowest DROP bits are zero, ties to even; subnormals are zero.

    Tensor cores may take subnormals for zero; so do we, and count them as lost.
    """
    if DROP > 0:
        bits = value.to(tl.uint32, bitcast=True)
        half = ((bits >> DROP) & 1) + ((1 << (DROP - 1)) - 1)
        kept = ((bits + half) & ((0xFFFFFFFF << DROP) & 0xFFFFFFFF)).to(tl.float32, bitcast=True)
    else:
        kept = value
    return tl.where(tl.abs(kept) < 2.0**-126, 0.0, kept)


@triton.jit
def square_of(value):
    """The square, and for what is not zero a little more than any underflow takes."""
    return value * value + tl.where(value == 0.0, 0.0, 2.0**-100)


@triton.jit
def length_of(sum_of_squares, d):
    """At least the length of d numbers, from the float32 sum of `square_of` them in any order.

    Such a sum is off by at most d 2^-24 of itself. The 2^-40 keeps a bound on a product of two
    lengths above all that float32 products smaller than its smallest number can lose. Zero stays
    zero: there is nothing to lose.
    """
    length = tl.sqrt_rn(sum_of_squares) * (1.0 + (d + 16) * 2.0**-24) + 2.0**-40
    return tl.where(sum_of_squares == 0.0, 0.0, length)


@triton.jit
def round_rows(
    source,
    scale,
    rounded,
    norm,
    lost,
    d,
    padded,
    SCALED: tl.constexpr,
    DROP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of `source` [rows, d], times its `scale`, into `rounded` [rows, padded].

    DROP: how many low bits of a float32 go, to the nearest even. `norm` gets a bound on the length
    of the row, `lost` one on the length of what rounding took; both are zero only if exactly so.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    lost_squares = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, padded, BLOCK):
        at = i + lane
        value = tl.load(source + row * d + at, at < d, other=0.0).to(tl.float32)
        if SCALED:
            value *= tl.load(scale + row).to(tl.float32)
        kept = rounded_to(value, DROP)
        tl.store(rounded + row * padded + at, kept.to(rounded.dtype.element_ty), at < padded)
        squares += square_of(value)
        lost_squares += square_of(value - kept)
    tl.store(norm + row, length_of(tl.sum(squares), d))
    tl.store(lost + row, length_of(tl.sum(lost_squares), d))


def rounded_rows(source: Tensor, product: str, scale: Tensor | None = None) -> RoundedRows:
    """Round contiguous rows [rows, d], each times its scale."""
    rows, d = source.shape
    padded = padded_width(d)
    rounded = RoundedRows(
        product,
        source.new_empty(rows, padded, dtype=unit_dtype(product)),
        source.new_empty(rows, dtype=torch.float32),
        source.new_empty(rows, dtype=torch.float32),
    )
    round_rows[(rows,)](
        source,
        source if scale is None else scale,
        rounded.units,
        rounded.norm,
        rounded.lost,
        d,
        padded,
        SCALED=scale is not None,
        DROP=DROPPED_BITS[product],
        BLOCK=min(power_of_two(padded), 1024),
        num_warps=4,
        **LAUNCH,
    )
    return rounded
