"""All kernels add exact scores in one order, according to the compiler's output."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from bench.score_bits import SCORERS, summations


@pytest.mark.parametrize(
    ("architecture", "dtype", "d"),
    [(90, torch.float32, 768), (90, torch.bfloat16, 1001), (80, torch.bfloat16, 768)],
)
def test_all_kernels_add_scores_in_the_same_order(
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
