"""The tiles of the fused product: which of them fit a device, and which one is chosen."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from saefast.kernels import device
from saefast.kernels.encode.tiles import Tile, measured_tile, measuring, tile_candidates, tile_for

PRODUCTS = ("float16", "bfloat16", "tfloat32", "float32")
SHARED = {"A100": 166_912, "RTX 3090, 4090 and 5090": 101_376, "H100 and B200": 232_448}
"""shared_memory_per_block_optin of GPUs"""


@pytest.mark.parametrize("limit", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("product", PRODUCTS)
def test_tiles_fit_the_shared_memory_of_a_device(product: str, tma: bool, limit: int) -> None:
    fitting = tile_candidates(product, tma, limit)
    assert fitting[0] == tile_for(product, tma, limit)
    assert len(set(fitting)) == len(fitting)
    for tile in fitting:
        operand = 2 if product in ("float16", "bfloat16") else 4
        assert tile.stages * (tile.rows + tile.columns) * tile.depth * operand < limit


def test_defaults_are_the_largest_that_fit() -> None:
    largest = Tile(128, 256, 64, 8, 3)
    assert tile_for("bfloat16", True, SHARED["H100 and B200"]) == largest
    assert tile_for("bfloat16", True, largest.shared_bytes("bfloat16")) == largest
    for limit in (largest.shared_bytes("bfloat16") - 1, SHARED["RTX 3090, 4090 and 5090"]):
        assert tile_for("bfloat16", True, limit) == Tile(128, 128, 64, 8, 3)


@pytest.mark.parametrize("limit", SHARED.values(), ids=SHARED)
def test_two_blocks_of_four_warps_can_be_measured(limit: int) -> None:
    assert Tile(128, 128, 64, 4, 3) in tile_candidates("bfloat16", True, limit)


def test_too_little_shared_memory_raises() -> None:
    with pytest.raises(RuntimeError, match="more shared memory than the 16384 bytes"):
        tile_for("bfloat16", False, 16_384)


def test_a_measured_tile_is_used_inside_the_context_only() -> None:
    one, other = Tile(64, 64, 32, 4, 2), Tile(128, 64, 32, 4, 2)
    with measuring(one):
        with measuring(other):
            assert measured_tile() == other
        assert measured_tile() == one
    assert measured_tile() is None
    with contextlib.suppress(KeyError), measuring(one):
        raise KeyError
    assert measured_tile() is None


def test_the_limit_is_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {0: 232_448, 1: 101_376}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(shared_memory_per_block_optin=limits[index]),
    )
    device._shared_bytes.cache_clear()
    on = [SimpleNamespace(get_device=lambda index=index: index) for index in limits]
    assert [device.shared_bytes(tensor) for tensor in on] == list(limits.values())
    device._shared_bytes.cache_clear()
