"""keep_of_batch: the largest values of a batch from rows in descending order."""

import pytest
import torch
from helpers.codes import assert_keeps, codes, keep_of_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


@settings(max_examples=40)
@given(code=codes(), share=st.floats(0, 1.2))
def test_the_largest_are_kept_and_ties_go_to_the_first(
    code: tuple[Tensor, Tensor], share: float
) -> None:
    values, indices = code
    assert_keeps(values, indices, round(share * values.numel()))
    assert_keeps(values, indices, int((values > 0).sum()))


def test_bad_input_raises() -> None:
    values, indices = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="indices must have shape"):
        keep_of_batch(values, indices[:1], 2)
    with pytest.raises(ValueError, match="wanted must be at least 0"):
        keep_of_batch(values, indices, -1)
    with pytest.raises(TypeError, match="values must be float32 or float64"):
        keep_of_batch(values.bfloat16(), indices, 2)
