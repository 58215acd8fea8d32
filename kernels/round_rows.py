"""Rows rounded to what a tensor core multiplies, and measured bounds on what the rounding lost.

A float16 keeps eight times as much of a number as a bfloat16, at the same speed, but has few
exponents: rows are multiplied by a power of two that brings their largest number below 2^14.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two

DROPPED_BITS = {"bfloat16": 16, "float16": 13, "tfloat32": 13, "float32": 0}
"""How many low bits of a float32 each screening product leaves out"""
_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_TOP_EXPONENT = tl.constexpr(13)
"""Exponent of the largest float16 of rows that are multiplied: 2^2 below the largest there is"""
_MOST_EXPONENT = tl.constexpr(60)
"""Largest exponent of a multiplier: those of a row and of a column can be multiplied"""
_BIAS = 127
"""What a float32 adds to its exponent"""


def padded_width(d: int) -> int:
    """The width of rounded rows: a multiple of 16, so that every row starts on 16 bytes."""
    return -(-d // 16) * 16


def unit_dtype(product: str) -> torch.dtype:
    """Return the dtype of rounded rows: in the interpreter float32, which is all it multiplies."""
    return torch.float32 if interpreting() else _NARROW.get(product, torch.float32)


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
    multiplier: Tensor | None = None
    """[rows] or [1] the powers of two that rows were multiplied by before they were rounded to
    float16; None for other products"""

    def part(self, rows: slice) -> "RoundedRows":
        """Return some of the rows."""
        multiplier = self.multiplier
        if multiplier is not None and len(multiplier) > 1:
            multiplier = multiplier[rows]
        return RoundedRows(
            self.product, self.units[rows], self.norm[rows], self.lost[rows], multiplier
        )


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
def half_of(value, multiplier):
    """The nearest float16 to `value` times a power of two, as a float32, ties to even.

    Subnormals are zero, as in `rounded_to`, and what is too large is the largest float16, while
    infinity stays.
    """
    kept = rounded_to(value * multiplier, 13)
    kept = tl.where(tl.abs(kept) < 2.0**-14, 0.0, kept)
    beyond = (tl.abs(kept) > 65504.0) & (tl.abs(kept) < float("inf"))
    return tl.where(beyond, tl.where(kept > 0.0, 65504.0, -65504.0), kept)


@triton.jit
def multiplier_of(largest):
    """The power of two that brings `largest` between 2^13 and 2^14, if it is not extreme."""
    exponent = ((largest.to(tl.uint32, bitcast=True) >> 23) & 0xFF).to(tl.int32) - 127
    up = tl.minimum(tl.maximum(_TOP_EXPONENT - exponent, -_MOST_EXPONENT), _MOST_EXPONENT)
    return ((up + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(multiplier):
    """1 / multiplier, exactly, of a power of two between 2^-120 and 2^120."""
    bits = (254 << 23) - multiplier.to(tl.int32, bitcast=True)
    return bits.to(tl.float32, bitcast=True)


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
    multipliers,
    rounded,
    norm,
    lost,
    d,
    padded,
    SCALED: tl.constexpr,
    DROP: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of `source` [rows, d], times its `scale`, into `rounded` [rows, padded].

    DROP: how many low bits of a float32 go, to the nearest even. `norm` gets a bound on the length
    of the row, `lost` one on the length of what rounding took; both are zero only if exactly so.
    HALF: rows become float16. "own": each row's multiplier follows from its largest number, and is
    written to `multipliers` [rows]; "shared": all rows are multiplied by `multipliers` [1].
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    lost_squares = tl.zeros((BLOCK,), tl.float32)
    factor = 1.0
    if SCALED:
        factor = tl.load(scale + row).to(tl.float32)
    if HALF == "own":
        most = tl.zeros((BLOCK,), tl.float32)
        for i in range(0, d, BLOCK):
            at = i + lane
            value = tl.load(source + row * d + at, at < d, other=0.0).to(tl.float32)
            most = tl.maximum(most, tl.abs(value * factor))
        multiplier = multiplier_of(tl.max(most))
        tl.store(multipliers + row, multiplier)
    if HALF == "shared":
        multiplier = tl.load(multipliers)
    for i in range(0, padded, BLOCK):
        at = i + lane
        value = tl.load(source + row * d + at, at < d, other=0.0).to(tl.float32)
        if SCALED:
            value *= factor
        if HALF == "none":
            units = rounded_to(value, DROP)
            kept = units
        else:
            units = half_of(value, multiplier)
            kept = units * inverse_of(multiplier)
        tl.store(rounded + row * padded + at, units.to(rounded.dtype.element_ty), at < padded)
        squares += square_of(value)
        lost_squares += square_of(value - kept)
    tl.store(norm + row, length_of(tl.sum(squares), d))
    tl.store(lost + row, length_of(tl.sum(lost_squares), d))


def rounded_rows(source: Tensor, product: str, scale: Tensor | None = None) -> RoundedRows:
    """Round contiguous rows [rows, d], each times its scale; float16 with a multiplier each."""
    multiplier = None
    if product == "float16":
        multiplier = source.new_empty(len(source), dtype=torch.float32)
    return _rounded(source, product, scale, multiplier, "own")


def rounded_columns(weight: Tensor, product: str, scale: Tensor | None = None) -> RoundedRows:
    """Round a contiguous weight [m, d], each row times its scale; float16 with one multiplier.

    A product has one number to undo for each of its rows, and none for its columns.
    """
    multiplier = _shared_multiplier(weight, scale) if product == "float16" else None
    return _rounded(weight, product, scale, multiplier, "shared")


def _shared_multiplier(weight: Tensor, scale: Tensor | None) -> Tensor:
    """[1] float32: as `multiplier_of`, for the largest number of a whole weight.

    Nothing here waits for a GPU. Beside NaN or infinity, and for zeros, any multiplier will do.
    """
    largest = torch.linalg.vector_norm(weight, torch.inf, dtype=torch.float32)
    if scale is not None:
        largest = largest * torch.linalg.vector_norm(scale, torch.inf, dtype=torch.float32)
    largest = torch.where(largest > 0.0, largest, 1.0)
    exponent = ((largest.view(torch.int32) >> 23) & 0xFF) - _BIAS
    most: int = _MOST_EXPONENT.value
    up = (_TOP_EXPONENT.value - exponent).clamp(-most, most)
    bits: Tensor = (up + _BIAS) << 23
    return bits.view(torch.float32).reshape(1)


def _rounded(
    source: Tensor, product: str, scale: Tensor | None, multiplier: Tensor | None, half: str
) -> RoundedRows:
    rows, d = source.shape
    padded = padded_width(d)
    rounded = RoundedRows(
        product,
        source.new_empty(rows, padded, dtype=unit_dtype(product)),
        source.new_empty(rows, dtype=torch.float32),
        source.new_empty(rows, dtype=torch.float32),
        multiplier,
    )
    round_rows[(rows,)](
        source,
        source if scale is None else scale,
        rounded.norm if multiplier is None else multiplier,
        rounded.units,
        rounded.norm,
        rounded.lost,
        d,
        padded,
        SCALED=scale is not None,
        DROP=DROPPED_BITS[product],
        HALF="none" if multiplier is None else half,
        BLOCK=min(power_of_two(padded), 1024),
        num_warps=4,
        **LAUNCH,
    )
    return rounded
