"""keep_of_batch: the largest values of a batch out of rows that descend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, normal, seeds, small_integers
from tolerance import assert_same_bits
from torch import Tensor

from saefast import reference

keep_of_batch = torch.ops.saefast.keep_of_batch


@st.composite
def codes(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows of positive values that descend and end in zeros; ties within rows and between them."""
    n, width = draw(st.integers(0, 9)), draw(st.sampled_from([1, 2, 15, 16, 17, 33, 64]))
    data = draw(st.sampled_from([normal, small_integers]))
    scale = draw(st.sampled_from([1.0, 1e-42, 1e30]))  # the first gives denormal numbers
    seed = draw(seeds)
    values = (data((n, width), seed, dtype) * scale).relu().sort(dim=1, descending=True).values
    indices = torch.randint(0, 1000, (n, width), generator=generator(seed + 1))
    return values, torch.where(values > 0, indices, 0)


def assert_keeps(values: Tensor, indices: Tensor, wanted: int) -> None:
    """One value after another, the largest first."""
    expected = torch.zeros_like(values)
    order = sorted(
        (-value, place) for place, value in enumerate(values.flatten().tolist()) if value > 0
    )
    places = [place for _, place in order[:wanted]]
    for place in places:
        expected.view(-1)[place] = values.view(-1)[place]
    kept_values, kept_indices, kept, smallest = keep_of_batch(values, indices, wanted)
    assert_same_bits(kept_values, expected)
    assert_same_bits(kept_indices, torch.where(expected > 0, indices, 0))
    assert_same_bits(kept, (expected > 0).sum(1))
    assert float(smallest) == (float(expected.view(-1)[places[-1]]) if places else 0.0)
    for mine, its in zip(
        (kept_values, kept_indices, kept, smallest),
        reference.keep_of_batch(values, indices, wanted),
        strict=True,
    ):
        assert_same_bits(mine, its)


@settings(max_examples=40)
@given(code=codes(), share=st.floats(0, 1.2))
def test_the_largest_are_kept_and_of_equal_ones_the_first(
    code: tuple[Tensor, Tensor], share: float
) -> None:
    values, indices = code
    assert_keeps(values, indices, round(share * values.numel()))
    assert_keeps(values, indices, int((values > 0).sum()))


def test_bad_input_is_refused() -> None:
    values, indices = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="indices must have shape"):
        keep_of_batch(values, indices[:1], 2)
    with pytest.raises(ValueError, match="wanted must be at least 0"):
        keep_of_batch(values, indices, -1)
    with pytest.raises(TypeError, match="values must be float32 or float64"):
        keep_of_batch(values.bfloat16(), indices, 2)
