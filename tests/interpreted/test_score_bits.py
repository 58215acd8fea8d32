"""Scores of a top k, of rows scored in full and above a threshold agree bit for bit."""

import pytest
import torch
from helpers.strategies import normal
from helpers.tolerance import assert_same_bits

from bench.score_bits import scores_by_kernel


@pytest.mark.parametrize("with_bias", [False, True])
def test_all_kernels_give_the_same_scores(with_bias: bool) -> None:
    x, weight = normal((3, 37), 0, torch.float32), normal((50, 37), 1, torch.float32)
    bias, scale = (
        (normal((50,), 2, torch.float32), normal((50,), 3, torch.float32).abs())
        if with_bias
        else (None, None)
    )
    first, *others = scores_by_kernel(x, weight, bias, scale, 7).values()
    assert len(others) == 2
    for other in others:
        assert_same_bits(other.values, first.values)
        assert_same_bits(other.indices, first.indices)
