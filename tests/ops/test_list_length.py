"""The lists of a GPU's exact screen are long enough for Gaussian scores of any width."""

from itertools import product as pairs

import pytest
import torch
from helpers.strategies import normal

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from saefast.kernels.encode.list_length import (
    LONGEST,
    arithmetic_error,
    fits,
    list_length,
    most_candidates,
)
from saefast.kernels.encode.topk_encode import capacity_of
from saefast.kernels.round_rows import RoundedRows
from saefast.ops import encode_gpu, gpu_screens
from saefast.ops.gpu_screens import CANDIDATES, GpuScreen, candidates_for

BLOCK = 256
PRODUCTS = ("float16", "bfloat16", "tfloat32", "float32")


def rounded(rows: torch.Tensor, product: str) -> RoundedRows:
    """Compute the rows of `round_rows` with torch."""
    bits = rows.view(torch.int32)
    # Normal float16 have the significant bits of a TF32.
    drop = {"bfloat16": 16, "float16": 13, "tfloat32": 13, "float32": 0}[product]
    if drop:
        half = ((bits >> drop) & 1) + ((1 << (drop - 1)) - 1)
        units = ((bits + half) & -(1 << drop)).view(torch.float32)
    else:
        units = rows
    return RoundedRows(product, units, rows.norm(dim=1), (rows - units).norm(dim=1))


def candidates(m: int, d: int, k: int, product: str, rows: int) -> torch.Tensor:
    """Return how many columns each row keeps in the end, with 1.25 k scores above its floor.

    The bounds are those of the kernels; the list is the result of `keep_best` at the latest floor.
    """
    left, right = (
        rounded(normal((s, d), i, torch.float32), product) for i, s in ((0, rows), (1, m))
    )
    length = left.norm + left.lost
    reach, spread = left.lost + arithmetic_error(d) * length, (1 + arithmetic_error(d)) * length
    doubt = reach[:, None] * right.norm + spread[:, None] * right.lost
    scores = left.units @ right.units.T
    floor = (scores - doubt).topk(k + k // 4, dim=1).values[:, -1:]
    return (scores + doubt > floor).sum(1)


@pytest.mark.parametrize(
    ("m", "d", "k", "product"),
    [
        (4096, 512, 32, "bfloat16"),
        (4096, 4096, 32, "bfloat16"),
        (4096, 4096, 1, "bfloat16"),
        (4096, 4096, 200, "bfloat16"),
        (2048, 16_384, 16, "bfloat16"),
        (2048, 16_384, 16, "float16"),
        (4096, 512, 32, "float16"),
        (2048, 16_384, 16, "tfloat32"),
        (2048, 16_384, 16, "float32"),
    ],
)
def test_gaussian_rows_keep_at_most_the_expected_candidates(
    m: int, d: int, k: int, product: str
) -> None:
    """They do not keep much less, so lists are not longer than necessary."""
    kept = candidates(m, d, k, product, rows=48).double()
    assert kept.max() <= most_candidates(m, d, k, product)
    assert kept.mean() >= most_candidates(m, d, k, product) / (10 if k == 1 else 3)


@pytest.mark.parametrize("k", [1, 8, 32, 64, 128, 256, 512])
def test_no_shape_overflows_with_its_screens(k: int) -> None:
    for m, d in pairs([2**12, 2**15, 2**17, 2**20, 2**22], [64, 768, 2304, 4096, 8192, 16_384]):
        fitting = {product for product in PRODUCTS if fits(m, d, k, product)}
        for screen in candidates_for(fitting.__contains__):
            capacity = capacity_of(m, d, k, screen.product, BLOCK)
            assert most_candidates(m, d, k, screen.product) + BLOCK <= capacity <= LONGEST


def test_common_shapes_keep_the_length_of_their_lists() -> None:
    """Longer lists cost time on every row."""
    assert list_length(131_072, 4096, 64, "bfloat16", BLOCK) == 1024
    assert list_length(65_536, 2304, 64, "bfloat16", BLOCK) == 1024
    assert list_length(32_768, 768, 32, "bfloat16", BLOCK) == 512
    for d, product in pairs([4096, 2304, 768], ["bfloat16", "tfloat32"]):
        assert fits(131_072, d, 64, product)


def test_wide_rows_have_longer_lists() -> None:
    """Lists of 8 k have 512 and 768 entries at d = 8192, but 415 and 725 are candidates."""
    assert list_length(131_072, 8192, 32, "bfloat16", BLOCK) == 2048
    assert list_length(131_072, 8192, 64, "bfloat16", BLOCK) == 2048


def test_a_screen_with_too_wide_bounds_is_not_a_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert candidates_for(lambda product: True) == CANDIDATES
    assert candidates_for(lambda product: product == "tfloat32") == (CANDIDATES[2],)
    assert candidates_for(lambda product: False) == (GpuScreen("chunked", "float32"),)
    monkeypatch.delenv(gpu_screens.ENVIRONMENT, raising=False)
    for m, product in ((131_072, "float16"), (2**22, "float32"), (8192, "float16")):
        x, weight = torch.empty(9, 16_384, device="meta"), torch.empty(m, 16_384, device="meta")
        assert encode_gpu.screen_for(x, weight, 512, exact=True).product == product
        assert encode_gpu.screen_for(x, weight, 512, exact=False).product == "bfloat16"
