"""Run the screening product of an encode by one of two engines, a range of columns at a time.

The chunked engine multiplies chunks of columns by cuBLAS into memory that stays in the L2 cache;
the fused engine runs `hot_groups`, which stores only groups of columns that exceed a row's floor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device import LAUNCH, has_tma, interpreting, power_of_two, shared_bytes
from ..matmul import multiplying_in, product_of
from ..round_rows import RoundedRows
from .bounds import ColumnBounds
from .hot_groups import hot_groups
from .lists import GROUP, Bounds, Screened
from .tiles import Tile, measured_tile, tile_for

ENGINES = ("chunked", "fused")
"""names of the engines"""
_PHASE_BYTES = 512 << 20
"""maximum size of the scores of one phase of the fused engine"""
_CHUNK_FLOATS = 1 << 22
"""maximum number of scores in a chunk, unless 512 columns have more"""


_INTERPRETED_TILE = Tile(16, 64, 16, 4, 1)


@dataclass(frozen=True)
class Screening:
    """The operands and bounds of one encode, and the consumer of its scores."""

    left: RoundedRows
    """x [n, d], rounded"""
    right: RoundedRows
    """weight [m, d] times its scale, rounded for the same product"""
    columns: ColumnBounds
    """error bounds of the columns"""
    bounds: Bounds
    """error bounds of the rows"""
    floor: Tensor
    """[n] float32; a group is stored only if its upper bound exceeds the floor, which `keep` may
    raise"""
    bounded: bool
    """whether upper bounds of scores are compared with the floor, instead of the products
    themselves"""
    first: int
    """minimum number of columns in the first phase, after which the floor has risen enough to be
    useful"""
    keep: Callable[[Screened], None]
    """function that receives the scores of each range of columns, in ascending order"""

    def run(self, engine: str) -> None:
        """Pass the scores of all columns to `keep`; `engine` is one of `ENGINES`."""
        if engine == "fused":
            self._fused()
        else:
            self._chunked()

    def _chunked(self) -> None:
        n, m = self.left.units.shape[0], self.right.units.shape[0]
        chunk = 64 if interpreting() else max(512, power_of_two(_CHUNK_FLOATS // n))
        with multiplying_in(self.left.product):
            for first in range(0, m, chunk):
                part = self.right.units[first : first + chunk]
                scores = product_of(self.left.units, part.T)
                columns = part.shape[0]
                self.keep(Screened(scores, None, None, first, columns, columns))

    def _fused(self) -> None:
        left, right = self.left.units, self.right.units
        tma = has_tma(left)
        tile = measured_tile() or (
            _INTERPRETED_TILE
            if interpreting()
            else tile_for(self.left.product, tma, shared_bytes(left))
        )
        n, m = left.shape[0], right.shape[0]
        ranges = phases(m, self.first, n, tile.columns)
        widths = [-(-(end - begin) // tile.columns) * tile.columns for begin, end in ranges]
        # Only hot groups are ever written and read, so most of this memory stays untouched.
        scores = left.new_empty(n * max(widths), dtype=torch.float32)
        maxima = left.new_empty(n * max(widths) // GROUP, dtype=torch.float32)
        hot_list = torch.empty_like(maxima, dtype=torch.int32)
        bounds = self.bounds._replace(norm=self.columns.group_norm, lost=self.columns.group_lost)
        operands = (
            (
                TensorDescriptor.from_tensor(left, [tile.rows, tile.depth]),
                TensorDescriptor.from_tensor(right, [tile.columns, tile.depth]),
            )
            if tma
            else (left, right)
        )
        multipliers = [
            self.floor if rows.multiplier is None else rows.multiplier
            for rows in (self.left, self.right)
        ]
        for (begin, end), width in zip(ranges, widths, strict=True):
            hot_groups[(-(-n // tile.rows) * (width // tile.columns),)](
                *operands,
                *multipliers,
                *bounds,
                self.floor,
                scores,
                maxima,
                n,
                m,
                begin,
                end - begin,
                width,
                left.shape[1],
                PRECISION="tf32" if self.left.product == "tfloat32" else "ieee",
                MULTIPLIED=self.left.multiplier is not None,
                BOUNDED=self.bounded,
                TMA=tma,
                GROUP=GROUP,
                BLOCK_ROWS=tile.rows,
                BLOCK_COLUMNS=tile.columns,
                BLOCK_D=tile.depth,
                TOGETHER=8,
                num_warps=tile.warps,
                num_stages=tile.stages,
                **LAUNCH,
            )
            self.keep(Screened(scores, maxima, hot_list, begin, end - begin, width))


def phases(m: int, first: int, n: int, step: int) -> list[tuple[int, int]]:
    """Return ranges of columns that cover m in order, each as long as all before it together.

    The first has `first` columns. All but the last are multiples of `step`. The scores of a phase
    for n rows take at most `_PHASE_BYTES`, unless a single step takes more.
    """
    most = max(_PHASE_BYTES // (4 * n) // step, 1) * step
    size = min(-(-first // step) * step, most)
    ranges, begin = [], 0
    while begin < m:
        end = min(begin + size, m)
        ranges.append((begin, end))
        begin, size = end, min(max(end, size), most)
    return ranges
