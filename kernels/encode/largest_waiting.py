"""Drop columns that wait to be scored but are certainly not among the largest of the batch.

A batch top k lists all columns above a guess of its threshold, which is lower than the threshold:
most listed columns are not kept. The screen bounds every score from below and from above. If
`wanted` lower bounds reach a level, so do the `wanted` largest scores, and columns with upper
bounds below the level need no exact score.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting
from ..keys import EMPTY, index_of, score_of
from .keep_best import doubt_of
from .keep_of_batch import count_bytes, found_so_far
from .lists import Bounds

_LEVEL_BYTES = tl.constexpr(2)
"""bytes of the level that are computed; the others are taken as zero, which lowers it by at most
2^-7 of itself"""


@triton.jit
def bound_below(
    keys,
    held,
    waiting,
    bias,
    threshold,
    norm,
    lost,
    reach,
    spread,
    floor,
    lower,
    places,
    BIASED: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute lower bounds of score less threshold of one row's waiting columns.

    Args:
        keys: [rows, CAPACITY] int64, lists, see `keep_above`, as the next two.
        held: [rows] int32.
        waiting: [rows] int32.
        bias: [m], if BIASED; scores have no scale.
        threshold: [m] float32.
        norm: [m] float32, see `Bounds`, as the next three.
        lost: [m] float32.
        reach: [rows] float32.
        spread: [rows] float32.
        floor: [rows] float32, NaN for a row whose scores have no bounds.
        lower: [rows, places] float32 output: bounds of the first waiting columns, and zeros.
        places: number of columns per row whose bounds are computed.
        BIASED: whether there is a bias.
        CAPACITY: length of a list.
        BLOCK: columns per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    bar = tl.load(floor + row)
    has = tl.load(held + row)
    more = tl.where(bar == bar, tl.load(waiting + row), 0)
    lane = tl.arange(0, BLOCK)
    for start in range(0, places, BLOCK):
        place = start + lane
        there = place < tl.minimum(more, places)
        key = tl.load(keys + row * CAPACITY + has + place, there, other=EMPTY)
        column = tl.where(there, index_of(key), 0)
        size = tl.abs(tl.load(threshold + column, there, other=0.0))
        if BIASED:
            size += tl.abs(tl.load(bias + column, there, other=0.0).to(tl.float32))
        doubt = 2.0 * doubt_of(column, there, row, reach, spread, norm, lost)
        # More than twice the 2^-20 by which the shift was raised for the rounding of its terms.
        least = score_of(key) - doubt - 2.0**-18 * size
        tl.store(lower + row * places + place, tl.where(there, least, 0.0), place < places)


@triton.jit(do_not_specialize=["wanted"])
def drop_beaten(keys, held, waiting, digits, wanted, CAPACITY: tl.constexpr, BLOCK: tl.constexpr):
    """Drop the waiting columns of one row whose upper bound is below the level of the batch.

    Args:
        keys: [rows, CAPACITY] int64, lists, updated in place.
        held: [rows] int32.
        waiting: [rows] int32, updated.
        digits: [4, 256] int32, counts of the first bytes of the lower bounds, see `count_bytes`.
        wanted: number of lower bounds that reach the level; with fewer positive ones it is 0.
        CAPACITY: length of a list.
        BLOCK: keys per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    list_at = keys + row * CAPACITY + tl.load(held + row)
    more = tl.load(waiting + row)
    prefix, _ = found_so_far(digits, wanted, _LEVEL_BYTES)
    level = (prefix << (32 - 8 * _LEVEL_BYTES)).to(tl.float32, bitcast=True)
    lane = tl.arange(0, BLOCK)
    kept = 0
    for start in range(0, more, BLOCK):
        key = tl.load(list_at + start + lane, start + lane < more, other=EMPTY)
        stays = (start + lane < more) & ~(score_of(key) < level)  # NaN stays
        after = kept + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.debug_barrier()  # keys move to places, which all threads must have read
        tl.store(list_at + after, key, mask=stays)
        kept += tl.sum(stays.to(tl.int32))
    tl.store(waiting + row, kept)


def keep_largest_waiting(
    keys: Tensor,
    held: Tensor,
    waiting: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    bounds: Bounds,
    floor: Tensor,
    wanted: int,
    places: int,
) -> None:
    """Drop waiting columns that are certainly not among the `wanted` largest scores of the batch.

    Nothing is dropped unless `wanted` scores certainly exceed the threshold. Exact scores in the
    lists are not counted, so that the level may be lower than possible after a list was full.

    Args:
        keys: [n, capacity] int64, lists of all rows, see `keep_above`, as the next two.
        held: [n] int32.
        waiting: [n] int32, updated.
        bias: [m]; None: no bias. Scores must have no scale.
        threshold: [m] float32, the same number for all columns, not negative.
        bounds: bounds of the screen.
        floor: [n] float32, see `keep_above`.
        wanted: number of largest scores of the batch, at least 1.
        places: number of columns per row whose lower bounds are counted.
    """
    n, capacity = keys.shape
    places = min(places, capacity)
    lower = torch.empty(n, places, dtype=torch.float32, device=keys.device)
    block = 16 if interpreting() else 256
    bound_below[(n,)](
        keys,
        held,
        waiting,
        threshold if bias is None else bias,
        threshold,
        bounds.norm,
        bounds.lost,
        bounds.reach,
        bounds.spread,
        floor,
        lower,
        places,
        BIASED=bias is not None,
        CAPACITY=capacity,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
    digits = count_bytes(lower, wanted, _LEVEL_BYTES.value)
    drop_beaten[(n,)](
        keys,
        held,
        waiting,
        digits,
        wanted,
        CAPACITY=capacity,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
