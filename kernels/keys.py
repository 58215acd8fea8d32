"""Encode a score and its index as one integer, so that comparing keys ranks scores.

A larger key ranks first: descending keys are descending scores, with equal scores by ascending
index. No two keys are equal.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-(2**63))
"""key of an unused place; lower than every other key"""


@triton.jit
def ordered(score):
    """Map float32 scores to int32 of the same order.

    NaN comes after infinity, as in torch's sorts; both zeros are equal.

    Returns:
        int32 of the shape of `score`.
    """
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score != score, 0x7FFFFFFF, bits)


@triton.jit
def key_of(score, index):
    """Return the int64 keys of float32 scores and int32 indices."""
    return (ordered(score).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(key):
    """Return the int32 index that a key contains."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def score_of(key):
    """Return the float32 score that a key contains."""
    bits = (key >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)
