"""decode_prefixes: errors of nested reconstructions against autograd on dense products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Shape, generator, normal, seeds, small_integers
from tolerance import assert_same_bits
from torch import Tensor

from saefast import reference

decode_prefixes = torch.ops.saefast.decode_prefixes


class Problem:
    """A code whose rows hold zeros among their values, and what it should decode to."""

    def __init__(self, shape: Shape, groups: int, seed: int, data: object, dtype: torch.dtype):
        n, d, m, k = shape
        self.values = data((n, k), seed, dtype).relu()
        noise = torch.rand(n, m, generator=generator(seed))
        self.indices = noise.argsort(1)[:, :k].contiguous()
        self.weight, self.bias = data((m, d), seed + 1, dtype), data((d,), seed + 2, dtype)
        self.target = data((n, d), seed + 3, dtype)
        ends = torch.randperm(m - 1, generator=generator(seed))[: groups - 1] + 1
        self.ends = torch.cat([ends.sort().values, torch.tensor([m])])

    def arguments(self, biased: bool = True) -> tuple[object, ...]:
        bias = self.bias if biased else None
        return self.values, self.indices, self.weight, bias, self.target, self.ends, 0.5


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Around the blocks of the interpreter: 4 entries, 16 columns, 8 places."""
    n = draw(st.sampled_from([0, 1, 3]))
    d = draw(st.sampled_from([1, 15, 16, 17, 33]))
    m = draw(st.sampled_from([3, 8, 31]))
    return Shape(n, d, m, draw(st.integers(1, min(m, 17))))


@settings(max_examples=15)
@given(shape=shapes(), groups=st.integers(1, 5), seed=seeds, biased=st.booleans())
def test_integers_give_the_reference_bit_for_bit(
    shape: Shape, groups: int, seed: int, biased: bool
) -> None:
    problem = Problem(shape, groups, seed, small_integers, torch.float32)
    actual = decode_prefixes(*problem.arguments(biased))
    expected = reference.decode_prefixes(*problem.arguments(biased))
    for mine, its in zip(actual, expected, strict=True):
        assert_same_bits(mine, its)


def test_the_reference_is_the_gradient_of_the_mean_of_squares() -> None:
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
    torch.testing.assert_close(value_grads, torch.where(values > 0, gradients[1], 0.0))
    torch.testing.assert_close(sums, torch.stack(squares).detach())


def test_zeros_that_fill_a_code_up_change_nothing() -> None:
    """Wherever they stand, and however many there are."""
    for seed in range(3):
        problem = Problem(Shape(4, 33, 31, 7), 3, seed, normal, torch.float32)
        expected = decode_prefixes(*problem.arguments())
        for extra in (1, 9, 60):
            wide = torch.zeros(4, 7 + extra)
            chosen = torch.randperm(7 + extra, generator=generator(seed))[:7].sort().values
            wide[:, chosen] = problem.values
            indices = torch.zeros(4, 7 + extra, dtype=torch.int64)
            indices[:, chosen] = problem.indices
            actual = decode_prefixes(wide, indices, *problem.arguments()[2:])
            assert_same_bits(actual[0], expected[0])
            assert_same_bits(actual[1][:, chosen], expected[1])
            assert_same_bits(actual[2], expected[2])


def test_bad_input_is_refused() -> None:
    problem = Problem(Shape(4, 5, 6, 3), 2, 0, normal, torch.float32)
    values, indices, weight, bias, target, ends, factor = problem.arguments()
    with pytest.raises(ValueError, match="target must have shape"):
        decode_prefixes(values, indices, weight, bias, target[1:], ends, factor)
    with pytest.raises(TypeError, match="group_ends must be int64"):
        decode_prefixes(values, indices, weight, bias, target, ends.int(), factor)
