"""Partial sums of ranks against sums over whole rows."""

import pytest
import torch
from helpers.strategies import normal
from helpers.tolerance import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from saefast.ops.partial_sums import halved, most_ranks, partial_dots, partial_squares


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    d=st.sampled_from([1, 3, 15, 16, 17, 63, 64, 65, 100, 129, 192, 333]),
    ranks=st.sampled_from([2, 4, 8, 16]),
    seed=st.integers(0, 99),
)
def test_partial_dots_add_to_the_bits_of_whole_rows(
    level: str, dtype: torch.dtype, d: int, ranks: int, seed: int
) -> None:
    ranks = min(ranks, most_ranks(dtype))
    rows, weight = normal((5, d), seed, dtype), normal((9, d), seed + 1, dtype)
    rows *= torch.exp(4 * normal((5, d), seed + 2, dtype))  # so that any other order rounds
    indices = torch.randint(0, 9, (5, 3), generator=torch.Generator().manual_seed(seed))
    parts = [
        partial_dots(rows[:, r::ranks], weight[:, r::ranks], indices, d, ranks)
        for r in range(ranks)
    ]
    assert_same_bits(halved(parts), torch.ops.saefast.gather_dots(rows, weight, indices))
    squares = [partial_squares(rows[:, r::ranks], d, ranks) for r in range(ranks)]
    each = torch.arange(5)[:, None]
    assert_same_bits(halved(squares), torch.ops.saefast.gather_dots(rows, rows, each)[:, 0])


@pytest.mark.parametrize("ranks", [1, 3, 32])
def test_other_numbers_of_ranks_are_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"ranks must be a power of two from 2 to 16, got {ranks}"):
        partial_squares(torch.ones(2, 4), 4, ranks)
