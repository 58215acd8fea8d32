"""Who computes the scores that screen the columns of `topk_encode`: measured once, not assumed.

The result of an exact encode does not depend on the choice; only its speed does. The native
engine is csrc/topk_encode.cpp with the tiles of the active instruction set. The torch engine
multiplies tiles with `torch.mm` and filters them in C++: it wins where torch has what we have
not, such as AMX or a vendor's library on a processor without our vector kernels.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.ops.cpu import address, dtype_name, native, threads
from saefast.types import SparseCode

ENVIRONMENT = "SAEFAST_SCREEN"
_ROWS, _COLUMNS = 1024, 2048  # of a torch tile: 8 MiB, near the processor


class Screen(NamedTuple):
    """An engine and the product it screens with."""

    engine: str
    """native or torch"""
    product: str
    """bfloat16 or float32"""

    def __str__(self) -> str:
        return f"{self.engine}-{self.product}"


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the layout of the native screen, and the norms that bound its errors."""

    screen: Screen
    level: str
    """the instruction set whose tiles it fits"""
    units: Tensor
    norm: Tensor
    lost: Tensor

    @classmethod
    def of(cls, weight: Tensor, screen: Screen) -> "PackedWeight":
        """Pack a contiguous [m, d] weight."""
        m, d = weight.shape
        units = torch.empty(native.panel_units(screen.product, d, m), dtype=torch.int32)
        packed = cls(screen, native.level(), units, torch.empty(m), torch.empty(m))
        native.pack_weight(
            dtype_name(weight),
            screen.product,
            address(weight),
            0,
            d,
            m,
            *packed.addresses(),
            threads(),
        )
        return packed

    def addresses(self) -> tuple[int, int, int]:
        """What C++ is told."""
        return address(self.units), address(self.norm), address(self.lost)


class Measured(NamedTuple):
    """The fastest screen, and the milliseconds of a small encode with each."""

    best: Screen
    milliseconds: dict[str, float]


_measured: dict[tuple[str, int], Measured] = {}
_lock = threading.Lock()


def usable_screens() -> list[Screen]:
    """The screens that can run on this processor."""
    screens = [Screen("native", "float32"), Screen("torch", "float32")]
    if native.has_bfloat16_products():
        screens.append(Screen("native", "bfloat16"))
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            screens.append(Screen("torch", "bfloat16"))
    return screens


def best_screen() -> Screen:
    """The screen for exact encodes: the environment's choice, or the fastest one measured."""
    chosen = os.environ.get(ENVIRONMENT, "auto")
    if chosen == "auto":
        return measure_screens().best
    by_name = {str(screen): screen for screen in usable_screens()}
    if chosen not in by_name:
        raise ValueError(
            f"{ENVIRONMENT} must be auto or one of {', '.join(by_name)} on this processor, got "
            f"{chosen!r}"
        )
    return by_name[chosen]


def measure_screens() -> Measured:
    """Time every usable screen on one small encode; once per process, level and thread count."""
    key = (native.level(), threads())
    with _lock:
        if key not in _measured:
            _measured[key] = _measure()
        return _measured[key]


def _measure() -> Measured:
    from saefast.ops.topk_encode import encode_on_cpu

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(192, 512, generator=generator)
    weight = torch.randn(4096, 512, generator=generator)

    def milliseconds(screen: Screen) -> float:
        start = time.perf_counter()
        encode_on_cpu(x, weight, None, None, 32, "exact", screen)
        return (time.perf_counter() - start) * 1e3

    screens = usable_screens()
    rounds = [[milliseconds(screen) for screen in screens] for _ in range(4)]
    best_times = [min(times) for times in zip(*rounds[1:], strict=True)]
    table = {str(screen): round(ms, 3) for screen, ms in zip(screens, best_times, strict=True)}
    return Measured(screens[best_times.index(min(best_times))], table)


@contextlib.contextmanager
def _multiplying_in(product: str) -> Iterator[None]:
    """float32 products as float32, or with operands rounded to bfloat16, whatever the user set."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if product == "bfloat16" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def encode_by_tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    screen: Screen,
    code: SparseCode,
) -> None:
    """Fill `code` by tiles of `torch.mm` that C++ filters while they are near."""
    n, d = x.shape
    m = weight.shape[0]
    screening = native.TileScreen(
        dtype_name(x),
        address(x),
        address(weight),
        address(bias),
        address(scale),
        n,
        d,
        m,
        k,
        address(code.values),
        address(code.indices),
        screen.product,
        threads(),
    )
    tile = torch.empty(min(_ROWS, n), min(_COLUMNS, m))
    with _multiplying_in(screen.product):
        for row in range(0, n, _ROWS):
            left = x[row : row + _ROWS].float()
            for column in range(0, m, _COLUMNS):
                right = _tile_operand(weight, scale, column)
                scores = tile[: left.shape[0], : right.shape[0]]
                torch.mm(left, right.T, out=scores)
                screening.feed(
                    address(scores),
                    scores.stride(0),
                    row,
                    left.shape[0],
                    column,
                    right.shape[0],
                    threads(),
                )
            screening.finish(row, left.shape[0], threads())


def _tile_operand(weight: Tensor, scale: Tensor | None, column: int) -> Tensor:
    rows = weight[column : column + _COLUMNS]
    if scale is None:
        return rows.float()
    factors = scale[column : column + _COLUMNS, None]
    wide = torch.promote_types(rows.dtype, torch.float32)
    return (rows.to(wide) * factors.to(wide)).float()
