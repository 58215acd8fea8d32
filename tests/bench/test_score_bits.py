"""Exact scores are added in one order in all kernels, as far as the compiler's output can tell."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from bench.score_bits import SCORERS, summations


@pytest.mark.parametrize(
    ("architecture", "dtype", "d"),
    [(90, torch.float32, 768), (90, torch.bfloat16, 1001), (80, torch.bfloat16, 768)],
)
def test_scores_are_added_in_the_same_order_by_all_kernels(
    architecture: int, dtype: torch.dtype, d: int
) -> None:
    found = summations(architecture, dtype, d)
    assert {name.split()[0] for name in found} == set(SCORERS)
    layouts = {summation.layouts for summation in found.values()}
    assert len(layouts) == 1, found
    assert len(layouts.pop()) == 1, found
    for summation in found.values():
        assert summation.products == 1
        # Sixteen columns by 256 in 128 threads, each product added in one rounding.
        assert summation.multiply_adds >= 32
