"""decode_prefixes: errors of nested reconstructions against autograd on dense products."""

import pytest
import torch
from helpers.prefixes import (
    Problem,
    assert_integers_match_the_reference,
    assert_padding_changes_nothing,
    shapes,
)
from helpers.strategies import Shape, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import reference

decode_prefixes = torch.ops.saefast.decode_prefixes


@settings(max_examples=15)
@given(shape=shapes(), groups=st.integers(1, 5), seed=seeds, biased=st.booleans())
def test_integers_give_the_reference_bit_for_bit(
    shape: Shape, groups: int, seed: int, biased: bool
) -> None:
    assert_integers_match_the_reference(shape, groups, seed, biased)


def test_the_reference_equals_the_gradient_of_the_mean_of_squares() -> None:
    problem = Problem(Shape(5, 7, 20, 9), 4, 0, normal, torch.float64)
    values = problem.values.clone().requires_grad_()
    decoded = torch.zeros(4, 5, 7, dtype=torch.float64).requires_grad_()
    dense = torch.zeros(5, 20, dtype=torch.float64).scatter(1, problem.indices, values)
    squares, last = [], 0
    parts: list[Tensor] = []
    for group, end in enumerate(problem.ends.tolist()):
        parts.append(dense[:, last:end] @ problem.weight[last:end] + decoded[group])
        squares.append((sum(parts) + problem.bias - problem.target).square().sum())
        last = end
    residual, value_grads, sums = reference.decode_prefixes(*problem.arguments())
    gradients = torch.autograd.grad(sum(squares) / 4, [decoded, values])
    torch.testing.assert_close(residual, gradients[0])
    torch.testing.assert_close(value_grads, torch.where(values != 0, gradients[1], 0.0))
    torch.testing.assert_close(sums, torch.stack(squares).detach())


def test_padding_zeros_do_not_change_results() -> None:
    assert_padding_changes_nothing()


def test_bad_input_raises() -> None:
    problem = Problem(Shape(4, 5, 6, 3), 2, 0, normal, torch.float32)
    values, indices, weight, bias, target, ends, factor = problem.arguments()
    with pytest.raises(ValueError, match="target must have shape"):
        decode_prefixes(values, indices, weight, bias, target[1:], ends, factor)
    with pytest.raises(TypeError, match="group_ends must be int64"):
        decode_prefixes(values, indices, weight, bias, target, ends.int(), factor)
