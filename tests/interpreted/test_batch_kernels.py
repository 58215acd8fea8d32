"""GPU kernels for whole batches: selection, and errors of nested prefixes."""

import torch
from helpers.codes import assert_keeps, codes
from helpers.prefixes import (
    Problem,
    assert_integers_match_the_reference,
    assert_padding_changes_nothing,
    shapes,
)
from helpers.strategies import Shape, normal, seeds
from helpers.tolerance import assert_no_worse_than_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import reference


@settings(max_examples=10)
@given(code=codes(), share=st.floats(0, 1.2))
def test_the_largest_are_kept_and_ties_go_to_the_first(
    code: tuple[Tensor, Tensor], share: float
) -> None:
    values, indices = code
    assert_keeps(values, indices, round(share * values.numel()))
    assert_keeps(values, indices, int((values > 0).sum()))


@settings(max_examples=15)
@given(shape=shapes(), groups=st.integers(1, 5), seed=seeds, biased=st.booleans())
def test_integers_give_the_reference_bit_for_bit(
    shape: Shape, groups: int, seed: int, biased: bool
) -> None:
    assert_integers_match_the_reference(shape, groups, seed, biased)


def test_padding_zeros_do_not_change_results() -> None:
    assert_padding_changes_nothing()


@settings(max_examples=10)
@given(shape=shapes(), groups=st.integers(1, 5), seed=seeds)
def test_errors_of_prefixes_are_within_float32_rounding(
    shape: Shape, groups: int, seed: int
) -> None:
    problem = Problem(shape, groups, seed, normal, torch.float32)
    wide = [
        part.double() if isinstance(part, Tensor) and part.is_floating_point() else part
        for part in problem.arguments()
    ]
    for mine, plain, truth in zip(
        torch.ops.saefast.decode_prefixes(*problem.arguments()),
        reference.decode_prefixes(*problem.arguments()),
        reference.decode_prefixes(*wide),
        strict=True,
    ):
        # Squares are summed in float32, token by token, and reported in float64.
        assert_no_worse_than_torch(mine.float(), plain.float(), truth)
