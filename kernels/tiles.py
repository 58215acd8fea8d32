"""The tiles in which `hot_groups` multiplies, chosen by what a block may have of shared memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Tile(NamedTuple):
    """A configuration of `hot_groups`."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def shared_bytes(self, product: str) -> int:
        """The shared memory that a block takes at most, on any architecture.

        Either all stages of both operands, or the sums when they are given to other threads for
        the epilogue; and some barriers. Where products run without wgmma the compiler keeps one
        stage less.
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
"""By product, and by whether tiles are loaded by descriptor; none of them spills."""

_measured: ContextVar[Tile | None] = ContextVar("measured tile", default=None)


def tile_candidates(product: str, tma: bool, shared_bytes: int) -> tuple[Tile, ...]:
    """The tiles worth measuring that fit `shared_bytes` of a block; the first is the default.

    `tma`: whether tiles are loaded by descriptor.
    """
    return tuple(t for t in _TILES[product, tma] if t.shared_bytes(product) <= shared_bytes)


def tile_for(product: str, tma: bool, shared_bytes: int) -> Tile:
    """The default tile for a device; see `tile_candidates`."""
    fitting = tile_candidates(product, tma, shared_bytes)
    if not fitting:
        raise RuntimeError(
            f"a fused product in {product} needs more shared memory than the {shared_bytes} bytes "
            f"that a block of this GPU may have; set SAEFAST_GPU_SCREEN=chunked-bfloat16"
        )
    return fitting[0]


@contextmanager
def measuring(tile: Tile) -> Iterator[None]:
    """Multiply in `tile` on any device, so that candidates can be timed."""
    token = _measured.set(tile)
    try:
        yield
    finally:
        _measured.reset(token)


def measured_tile() -> Tile | None:
    """The tile of `measuring`, inside it."""
    return _measured.get()
