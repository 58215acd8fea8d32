"""Choose the tile of the fused screening product by the shared memory that a block may use."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Tile(NamedTuple):
    """A launch configuration of `hot_groups`."""

    rows: int
    """rows of x per tile"""
    columns: int
    """columns of scores (rows of the weight) per tile"""
    depth: int
    """elements of the width that are loaded per iteration"""
    warps: int
    """warps per block"""
    stages: int
    """stages of the software pipeline"""

    def shared_bytes(self, product: str) -> int:
        """Return an upper bound of the shared memory of a block, valid on every architecture.

        The larger of all stages of both operands and of the sums, which the epilogue redistributes
        between threads; plus some barriers. If products run without wgmma, the compiler keeps one
        stage less.

        Args:
            product: float16, bfloat16, tfloat32 or float32.

        Returns:
            Bytes.
        """
        operand = 2 if product in ("bfloat16", "float16") else 4
        stages = self.stages * (self.rows + self.columns) * self.depth * operand
        return max(stages, 4 * self.rows * self.columns) + 128


_NARROW_BY_DESCRIPTOR = (
    Tile(128, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 4, 3),
    Tile(128, 256, 64, 8, 4),
)
_NARROW = (Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3))
_TILES = {
    ("bfloat16", True): _NARROW_BY_DESCRIPTOR,
    ("bfloat16", False): _NARROW,
    ("float16", True): _NARROW_BY_DESCRIPTOR,
    ("float16", False): _NARROW,
    ("tfloat32", True): (Tile(128, 128, 32, 8, 3), Tile(128, 128, 32, 4, 3)),
    ("tfloat32", False): (Tile(128, 128, 32, 8, 3), Tile(128, 128, 32, 4, 3)),
    ("float32", True): (Tile(64, 64, 16, 8, 2),),
    ("float32", False): (Tile(64, 64, 16, 8, 2),),
}
"""tiles by product and by whether they are loaded by descriptor, in order of preference; with none
of them does the kernel spill registers"""

_measured: ContextVar[Tile | None] = ContextVar("measured tile", default=None)


def tile_candidates(product: str, tma: bool, shared_bytes: int) -> tuple[Tile, ...]:
    """Return the tiles worth timing whose blocks fit into `shared_bytes`; the first is the default.

    Args:
        product: float16, bfloat16, tfloat32 or float32.
        tma: whether tiles are loaded by descriptor.
        shared_bytes: shared memory that a block may use.
    """
    return tuple(t for t in _TILES[product, tma] if t.shared_bytes(product) <= shared_bytes)


def tile_for(product: str, tma: bool, shared_bytes: int) -> Tile:
    """Return the default tile; raise RuntimeError if none fits. See `tile_candidates`."""
    fitting = tile_candidates(product, tma, shared_bytes)
    if not fitting:
        raise RuntimeError(
            f"a fused product in {product} needs more shared memory than the {shared_bytes} bytes "
            f"that a block of this GPU may have; set SAEFAST_GPU_SCREEN=chunked-bfloat16"
        )
    return fitting[0]


@contextmanager
def measuring(tile: Tile) -> Iterator[None]:
    """Use `tile` for all fused products inside the context, so that candidates can be timed."""
    token = _measured.set(tile)
    try:
        yield
    finally:
        _measured.reset(token)


def measured_tile() -> Tile | None:
    """Return the tile set by `measuring`, or None outside of it."""
    return _measured.get()
