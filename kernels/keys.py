"""A score and its index as one integer: a larger key is chosen first, and no two are equal."""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-(2**63))


@triton.jit
def ordered(score):
    """int32 in the order of float32: NaN above infinity, as torch sorts; both zeros alike."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score != score, 0x7FFFFFFF, bits)


@triton.jit
def key_of(score, index):
    """Descending keys are descending scores, equal scores by ascending index."""
    return (ordered(score).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(key):
    """The index inside a key."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def score_of(key):
    """The float32 score inside a key."""
    bits = (key >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)
