"""Encode above a threshold on a GPU: a product rules out columns, the others are scored exactly.

The threshold of a column is subtracted from its bias, so a single floor, zero, serves all columns,
and the engines of `screening` find those that may exceed it. `keep_above` scores them as
`topk_encode` scores its candidates: exact scores have the same bits in both.
"""

import torch
from torch import Tensor

from ..device import LAUNCH, power_of_two, thread_registers
from ..keys import EMPTY
from ..round_rows import RoundedRows
from .bounds import column_bounds, row_bounds
from .exact_scores import dot_block
from .keep_above import keep_above, settle_lists
from .largest_waiting import keep_largest_waiting
from .lists import GROUP, Screened, block
from .screening import Screening
from .select_triton import choose

_LIST_BYTES = 1 << 30
"""maximum size of the lists of the rows that are encoded at a time"""
_SORTED_BY_ROWS = 4096
"""maximum length of a list that a program sorts in its registers; torch sorts longer ones"""


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    *,
    exact: bool,
    engine: str,
    left: RoundedRows,
    right: RoundedRows,
    wanted: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode rows above a threshold by a screen.

    The host waits neither for the GPU nor for a check for NaN. Nothing is above its threshold in a
    row that holds NaN or infinity, nor in any row if the weight holds NaN; if it holds infinity,
    all columns of all rows are scored.

    Args:
        x: [n, d] float32 or bfloat16, contiguous.
        weight: [m, d] of the same dtype, contiguous.
        bias: [m]; -infinity masks a latent; None: no bias.
        scale: [m]; None: no scale.
        threshold: [m] float32, infinity if no score may be above it.
        width: number of entries per row.
        exact: whether values are float32 scores of the operands; otherwise of the rounded operands.
        engine: "chunked" or "fused".
        left: x, rounded.
        right: weight times scale, rounded for the same product.
        wanted: if only the `wanted` largest scores of all rows matter: other scores may be left
            out, as if they were not above the threshold, if at least `wanted` are. The threshold
            must then be one number for all columns, not negative, and there must be no scale. None:
            all scores above the threshold matter.

    Returns:
        Values and indices [n, width], the largest of each row padded with zeros, and the number of
        scores above their thresholds [n] int64.
    """
    n = x.shape[0]
    values, indices = x.new_empty(n, width), x.new_empty(n, width, dtype=torch.int64)
    counts = x.new_zeros(n, dtype=torch.int32)
    if not exact:  # the rounded operands are scored, so the screen has lost nothing of them
        bias, scale = column_bounds(right, bias, scale, raised=False).shift, None
        left, right = _lossless(left), _lossless(right)
        x, weight = left.units, right.units
    rows = max(1, _LIST_BYTES // (8 * capacity_of(width)))
    if rows < n or wanted == 0:  # the largest of a batch are those of all rows together
        wanted = None
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        _encode_rows(
            (x[part], weight, bias, scale, threshold),
            (values[part], indices[part], counts[part]),
            left.part(part),
            right,
            engine,
            wanted,
        )
    empty = torch.arange(width, device=x.device) >= counts[:, None]
    return values.masked_fill_(empty, 0.0), indices.masked_fill_(empty, 0), counts.long()


def _encode_rows(
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor],
    results: tuple[Tensor, Tensor, Tensor],
    left: RoundedRows,
    right: RoundedRows,
    engine: str,
    wanted: int | None,
) -> None:
    """Encode rows whose lists fit into memory; results beyond a row's count are undefined."""
    x, weight, bias, scale, threshold = operands
    values, indices, counts = results
    (n, d), width = x.shape, values.shape[1]
    by_column = column_bounds(right, bias, scale, threshold)
    floor = torch.empty_like(left.norm)
    bounds = row_bounds(left, by_column, d, floor)
    capacity = capacity_of(width)
    keys = x.new_empty(n, capacity, dtype=torch.int64)
    held, waiting = counts.new_zeros(2, n)
    scored = (x, weight, *(weight if t is None else t for t in (bias, scale)), threshold)
    columns, depth = dot_block(d)
    constants = {
        "BIASED": bias is not None,
        "SCALED": scale is not None,
        "CAPACITY": capacity,
        "COLUMNS": columns,
        "BLOCK_D": depth,
        "num_warps": 4,
        # Rows that are not aligned are loaded element by element, which takes more registers.
        "maxnreg": thread_registers(12 if d % 16 == 0 else 8),
        **LAUNCH,
    }

    def keep(screened: Screened) -> None:
        scores, maxima, hot_list, *ranges = screened
        keep_above[(n,)](
            scores,
            scores if maxima is None else maxima,
            scores if hot_list is None else hot_list,
            *bounds,
            floor,
            *scored,
            keys,
            held,
            waiting,
            counts,
            *ranges,
            d,
            width,
            HOT=maxima is not None,
            GROUP=GROUP,
            BLOCK=block(),
            LOOK=min(capacity, 1024),
            **constants,
        )

    first = weight.shape[0]
    Screening(left, right, by_column, bounds, floor, True, first, keep).run(engine)
    if wanted is not None:
        lists = (keys, held, waiting)
        keep_largest_waiting(*lists, bias, threshold, bounds, floor, wanted, capacity // 2)
    settle_lists[(n,)](*scored, keys, held, waiting, counts, d, **constants)
    if capacity <= _SORTED_BY_ROWS:
        choose(keys, held, values, indices)
    else:
        _choose_by_torch(keys, held, values, indices)


def capacity_of(width: int) -> int:
    """Return the length of a list, a power of two.

    A list has room for a quarter more than `width`, so that few lists are cut twice, and for two
    blocks of columns.
    """
    return power_of_two(width + width // 4 + 2 * block())


def _lossless(rows: RoundedRows) -> RoundedRows:
    """Return rounded rows as operands of their own, from which nothing was removed."""
    length = rows.norm + rows.lost
    return RoundedRows(rows.product, rows.units, length, torch.zeros_like(length))


def _choose_by_torch(keys: Tensor, counts: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the best entries of every list, as `choose`, for lists of any length."""
    used = torch.arange(keys.shape[1], device=keys.device) < counts[:, None]
    best = keys.masked_fill_(~used, EMPTY.value).topk(values.shape[1], dim=1).values
    bits = (best >> 32).int()
    values.copy_((bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32))
    indices.copy_(0x7FFFFFFF - (best & 0x7FFFFFFF))
