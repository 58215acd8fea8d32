"""Candidate tiles of the fused product, timed in an exact encode and alone."""

import importlib
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from bench.gpu.contest import Contest
from bench.gpu.times import milliseconds
from bench.gpu.worker import Item
from bench.shapes import gpu_shape
from saefast.ops import gpu
from saefast.ops.encode_gpu import encode_rounded
from saefast.ops.gpu_screens import GpuScreen

PRODUCTS = ("float16", "bfloat16")
_ROUNDS = 10


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield each tile of each product, and cuBLAS by chunks beside it."""
    contest = Contest(gpu_shape(argument))
    for product in PRODUCTS:
        for tile in candidates(product, contest):
            name = str(tuple(tile))
            run = partial(_timed, contest, argument, GpuScreen("fused", product), name, tile)
            yield Item(f"{product} {name}", run, {"at": argument, "tile": name})
        if product == "float16":
            continue
        chunked = partial(_timed, contest, argument, GpuScreen("chunked", product), "cuBLAS", None)
        yield Item(f"{product} cuBLAS", chunked, {"at": argument, "tile": "cuBLAS"})


def candidates(product: str, contest: Contest) -> tuple[Any, ...]:
    """Return the tiles that are worth measuring on this device."""
    device = importlib.import_module("saefast.kernels.device")
    tiles = importlib.import_module("saefast.kernels.encode.tiles")
    x = contest.x
    found: tuple[Any, ...] = tiles.tile_candidates(
        product, device.has_tma(x), device.shared_bytes(x)
    )
    return found


def _multiplying_in(tile: Any) -> AbstractContextManager[object]:
    tiles = importlib.import_module("saefast.kernels.encode.tiles")
    context: AbstractContextManager[object] = (
        nullcontext() if tile is None else tiles.measuring(tile)
    )
    return context


def _timed(
    contest: Contest, at: str, screen: GpuScreen, name: str, tile: Any
) -> Iterator[dict[str, Any]]:
    x, w_enc, b_enc = contest.centred, contest.weights.w_enc, contest.weights.b_enc
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", w_enc, screen.product)
    # Scores of an encode that is not exact are products in bfloat16.
    for exact in (False, True) if screen.product == "bfloat16" else (True,):

        def run(exact: bool = exact) -> object:
            return encode_rounded(
                x, w_enc, b_enc, None, contest.shape.k, exact, screen, left, right
            )

        with _multiplying_in(tile):
            [times] = milliseconds([run], _ROUNDS)
        ms = statistics.median(times)
        yield {
            "at": at,
            "product": f"{screen.product}{' exact' if exact else ''}",
            "tile": name,
            "ms": round(ms, 4),
            "flops_per_second": round(contest.shape.gemm_flops / (ms * 1e-3)),
        }
