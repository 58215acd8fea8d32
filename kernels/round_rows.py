"""Round rows to the operands of a tensor core, and bound the rounding errors.

A float16 keeps eight times the precision of a bfloat16 at the same speed, but has a small range:
rows are multiplied by a power of two that brings their largest number below 2^14.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two

DROPPED_BITS = {"bfloat16": 16, "float16": 13, "tfloat32": 13, "float32": 0}
"""low bits of a float32 that each screening product omits"""
_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_TOP_EXPONENT = tl.constexpr(13)
"""exponent to which the largest number of a row is brought before it is rounded to float16; the
range of float16 ends at about four times that number"""
_MOST_EXPONENT = tl.constexpr(60)
"""largest exponent of a multiplier, so that the product of a row's and a column's is a normal
float32"""
_BIAS = 127
"""bias of a float32's exponent"""


def padded_width(d: int) -> int:
    """Return d rounded up to a multiple of 16, so that rounded rows are aligned to 16 bytes."""
    return -(-d // 16) * 16


def unit_dtype(product: str) -> torch.dtype:
    """Return the dtype of rounded rows; in the interpreter float32, the only one it multiplies."""
    return torch.float32 if interpreting() else _NARROW.get(product, torch.float32)


@dataclass(frozen=True)
class RoundedRows:
    """Rows rounded for the screening product, and bounds of the rounding errors."""

    product: str
    """float16, bfloat16, tfloat32 or float32"""
    units: Tensor
    """[rows, d rounded up to 16] rounded rows, padded with zeros"""
    norm: Tensor
    """[rows] float32, upper bounds of the norms before rounding"""
    lost: Tensor
    """[rows] float32, upper bounds of the norms of the rounding errors"""
    multiplier: Tensor | None = None
    """[rows] or [1] float32, powers of two by which rows were multiplied before they were rounded
    to float16; None for other products"""

    def part(self, rows: slice) -> "RoundedRows":
        """Return a slice of the rows."""
        multiplier = self.multiplier
        if multiplier is not None and len(multiplier) > 1:
            multiplier = multiplier[rows]
        return RoundedRows(
            self.product, self.units[rows], self.norm[rows], self.lost[rows], multiplier
        )


@triton.jit
def rounded_to(value, DROP: tl.constexpr):
    """Round float32 values to the nearest whose lowest DROP bits are zero, ties to even.

    Subnormal results become zero, since tensor cores may treat them as zero; they count as lost.

    Returns:
        float32 of the shape of `value`.
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
    """Round `value` times a power of two to the nearest float16, as float32, ties to even.

    Subnormal results become zero, as in `rounded_to`. Finite values that are too large become the
    largest float16; infinity stays.

    Returns:
        float32 of the shape of `value`.
    """
    kept = rounded_to(value * multiplier, 13)
    kept = tl.where(tl.abs(kept) < 2.0**-14, 0.0, kept)
    beyond = (tl.abs(kept) > 65504.0) & (tl.abs(kept) < float("inf"))
    return tl.where(beyond, tl.where(kept > 0.0, 65504.0, -65504.0), kept)


@triton.jit
def multiplier_of(largest):
    """Return the power of two that brings `largest` between 2^13 and 2^14.

    Its exponent is clamped to [-60, 60].
    """
    exponent = ((largest.to(tl.uint32, bitcast=True) >> 23) & 0xFF).to(tl.int32) - 127
    # The interpreter of Triton 3.7 cannot subtract a tensor from a constexpr.
    up = -(exponent - _TOP_EXPONENT)
    up = tl.minimum(tl.maximum(up, -_MOST_EXPONENT), _MOST_EXPONENT)
    return ((up + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(multiplier):
    """Return 1 / multiplier, exactly, for a power of two between 2^-120 and 2^120."""
    bits = (254 << 23) - multiplier.to(tl.int32, bitcast=True)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def square_of(value):
    """Return the square, increased for nonzero values by more than underflow can remove."""
    return value * value + tl.where(value == 0.0, 0.0, 2.0**-100)


@triton.jit
def length_of(sum_of_squares, d):
    """Return an upper bound of the norm of d numbers.

    A float32 sum is off by at most d 2^-24 of itself. The added 2^-40 keeps a bound on a product of
    two norms above everything that underflow of float32 products can remove. Zero stays zero:
    nothing can be lost.

    Args:
        sum_of_squares: float32 sum of `square_of` the numbers, in any order.
        d: number of numbers.
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
    """Round one row per program, times its scale, and bound its norm and rounding error.

    Both bounds are zero only if the norms are exactly zero.

    Args:
        source: [rows, d] rows to round.
        scale: [rows] factors of the rows, if SCALED.
        multipliers: [rows] float32 output if HALF is "own"; [1] input if HALF is "shared".
        rounded: [rows, padded] output, with zeros from column d on.
        norm: [rows] float32 output.
        lost: [rows] float32 output.
        d: width of `source`.
        padded: width of `rounded`.
        SCALED: whether rows are multiplied by `scale`.
        DROP: low bits of a float32 that are rounded away, ties to even.
        HALF: "none"; or, for float16, "own": each row's multiplier is computed from its largest
            number; "shared": all rows have the multiplier that is given.
        BLOCK: elements per iteration.
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
    """Round contiguous rows, each times its scale; float16 rows get a multiplier each.

    Args:
        source: [rows, d] rows to round.
        product: float16, bfloat16, tfloat32 or float32.
        scale: [rows]; None: no scale.

    Returns:
        Rounded rows [rows, d], with norms, errors and multipliers.
    """
    multiplier = None
    if product == "float16":
        multiplier = source.new_empty(len(source), dtype=torch.float32)
    return _rounded(source, product, scale, multiplier, "own")


def rounded_columns(weight: Tensor, product: str, scale: Tensor | None = None) -> RoundedRows:
    """Round a contiguous weight, each row times its scale; float16 weights get a single multiplier.

    So the product is divided by one number for each of its rows, and by none for its columns.

    Args:
        weight: [m, d] rows to round; they are the columns of the product.
        product: float16, bfloat16, tfloat32 or float32.
        scale: [m]; None: no scale.

    Returns:
        Rounded rows [m, d], with norms, errors and the multiplier.
    """
    multiplier = _shared_multiplier(weight, scale) if product == "float16" else None
    return _rounded(weight, product, scale, multiplier, "shared")


def _shared_multiplier(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return the `multiplier_of` the largest number of a whole weight, float32 [1].

    The host does not wait for the GPU. If the weight holds NaN or infinity, or only zeros, any
    multiplier serves.
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
