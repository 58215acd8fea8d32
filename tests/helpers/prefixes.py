"""Problems of nested prefixes, and requirements on every implementation of `decode_prefixes`."""

import torch
from helpers.strategies import Shape, generator, normal, small_integers
from helpers.tolerance import assert_same_bits
from hypothesis import strategies as st

from saefast import reference


class Problem:
    """A code with values of both signs and zeros, and its targets."""

    def __init__(self, shape: Shape, groups: int, seed: int, data: object, dtype: torch.dtype):
        n, d, m, k = shape
        drawn = data((n, k), seed, dtype)
        self.values = torch.where(drawn.abs() > 0.5, drawn, 0.0)
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
    """Draw sizes around the blocks of the interpreter: 4 entries, 16 columns, 8 places."""
    n = draw(st.sampled_from([0, 1, 3]))
    d = draw(st.sampled_from([1, 15, 16, 17, 33]))
    m = draw(st.sampled_from([3, 8, 31]))
    return Shape(n, d, m, draw(st.integers(1, min(m, 17))))


def assert_integers_match_the_reference(shape: Shape, groups: int, seed: int, biased: bool) -> None:
    """Compare bit for bit on integers, whose sums are exact in any order."""
    problem = Problem(shape, groups, seed, small_integers, torch.float32)
    actual = torch.ops.saefast.decode_prefixes(*problem.arguments(biased))
    expected = reference.decode_prefixes(*problem.arguments(biased))
    for mine, its in zip(actual, expected, strict=True):
        assert_same_bits(mine, its)


def assert_padding_changes_nothing() -> None:
    """Insert zeros into a code, anywhere and in any number, and compare the results."""
    for seed in range(3):
        problem = Problem(Shape(4, 33, 31, 7), 3, seed, normal, torch.float32)
        expected = torch.ops.saefast.decode_prefixes(*problem.arguments())
        for extra in (1, 9, 60):
            wide = torch.zeros(4, 7 + extra)
            chosen = torch.randperm(7 + extra, generator=generator(seed))[:7].sort().values
            wide[:, chosen] = problem.values
            indices = torch.zeros(4, 7 + extra, dtype=torch.int64)
            indices[:, chosen] = problem.indices
            arguments = (wide, indices, *problem.arguments()[2:])
            actual = torch.ops.saefast.decode_prefixes(*arguments)
            assert_same_bits(actual[0], expected[0])
            assert_same_bits(actual[1][:, chosen], expected[1])
            assert_same_bits(actual[2], expected[2])
