"""The screen in 16-bit integers: sums against their definition, and worst cases of the bound."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.strategies import FLOATS, Shape, normal, seeds, shapes, uneven
from helpers.tolerance import assert_same_bits
from hypothesis import given
from torch import Tensor

from saefast.ops.cpu import native
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu, threshold_on_cpu

INT16 = Screen("native", "int16")
FLOAT32 = Screen("native", "float32")
LONGEST = 32767
"""of the rows in steps, before they are rounded"""
COLUMNS = 16
"""of a panel"""


@pytest.fixture(autouse=True)
def _integers(level: str) -> None:
    if not native.has_int16_products():
        pytest.skip(f"{level} does not screen in integers")


def screened(x: Tensor, weight: Tensor) -> Tensor:
    """Return [n, m] scores of the screen for all columns, from an encode without exact scores."""
    values, indices = encode_on_cpu(x, weight, None, None, len(weight), "bf16", INT16)
    return torch.zeros_like(values).scatter(1, indices, values)


def integers(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return packed rows: integers [n, d], and for each row the value of 2^15 [n]."""
    n, d = rows.shape
    pairs = (d + 1) // 2
    units = PackedWeight.of(rows, INT16).units.view(-1, pairs + 1, COLUMNS)
    worth = units[:, pairs].reshape(-1).view(torch.float32)[:n]
    halves = units[:, :pairs].permute(0, 2, 1).reshape(-1)[: n * pairs]
    packed = halves.clone().view(torch.int16).view(n, 2 * pairs).long()
    assert (packed[:, d:] == 0).all()
    return packed[:, :d], worth


@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("draw", [normal, uneven])
def test_scores_match_the_packed_integers(
    draw: Callable[..., Tensor], shape: Shape, seed: int
) -> None:
    n, d, m, _ = shape
    x, weight = draw((n, d), seed, torch.float32), draw((m, d), seed + 9, torch.float32)
    left, row_worth = integers(x)
    right, column_worth = integers(weight)
    sums = (left @ right.T).float()
    assert_same_bits(screened(x, weight), sums * (row_worth * 2.0**-30)[:, None] * column_worth)


@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_integers_are_the_nearest_and_the_loss_is_measured(
    dtype: torch.dtype, shape: Shape, seed: int
) -> None:
    weight = uneven((shape.m, shape.d), seed, dtype)
    packed, worth = integers(weight)
    measured = PackedWeight.of(weight, INT16)
    exact, step = weight.double(), worth.double()[:, None] / 2**15
    assert (step[:, 0] * LONGEST >= exact.norm(dim=1)).all()
    rest = exact - packed * step
    assert (rest.abs() <= 0.51 * step).all()
    assert (measured.norm.double() >= exact.norm(dim=1)).all()
    assert (measured.lost.double() >= rest.norm(dim=1)).all()
    assert (measured.lost.double() <= rest.norm(dim=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("d", [1, 2, 3, 64, 577, 5000])
@pytest.mark.parametrize("kind", ["even", "one entry"])
def test_the_largest_sums_fit_32_bits(kind: str, d: int) -> None:
    row = (
        torch.ones(1, d) if kind == "even" else torch.zeros(1, d).index_fill(1, torch.tensor(0), 1)
    )
    product = float((row * row).sum())
    scores = screened(torch.cat([row, -row]), torch.cat([row, -row]))
    expected = product * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.allclose(scores, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("d", [64, 576, 3000])
@pytest.mark.parametrize("loser", ["x", "weight"])
def test_rounding_in_one_direction(d: int, loser: str) -> None:
    """The best column loses almost half a step in each entry; its rivals lose nothing.

    A first entry gives the row a step of 1; the other entries are rounded down to zero.
    """
    lossy = torch.full((1, d), 0.49)
    lossy[0, 0] = math.sqrt(LONGEST**2 - 0.49**2 * (d - 1))
    ones = torch.ones(1, d)
    ones[0, 0] = 0
    x, best = (lossy, ones) if loser == "x" else (ones, lossy)
    score = float((x.double() * best.double()).sum())
    rivals = 40
    weight = torch.zeros(rivals + 1, d)
    weight[rivals] = best
    bias = torch.full((rivals + 1,), score * (1 - 2.0**-10))
    bias[rivals] = 0
    assert encode_on_cpu(x, weight, bias, None, 1, "exact", INT16).indices.item() == rivals
    assert encode_on_cpu(x, weight, bias, None, 1, "bf16", INT16).indices.item() != rivals
    threshold = torch.tensor(score * (1 - 2.0**-10))
    above = threshold_on_cpu(x, weight, bias * 0, None, threshold, 3, "exact", INT16)
    assert above.counts.tolist() == [1]
    assert above.indices[0, 0] == rivals


# For these draws, sums of rounded operands alone select other latents.
@pytest.mark.parametrize("seed", range(8))
def test_near_ties_below_a_step_are_distinguished(seed: int) -> None:
    m, d, k = 700, 96, 50
    base = normal((1, d), seed, torch.float32)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    weight = base + normal((1, d), seed + 1, torch.float32) * 2.0**-22 * order[:, None]
    x = base * 3
    exact = encode_on_cpu(x, weight, None, None, k, "exact", INT16)
    by_floats = encode_on_cpu(x, weight, None, None, k, "exact", FLOAT32)
    assert_same_bits(exact.indices, by_floats.indices)
    assert_same_bits(exact.values, by_floats.values)
    alone = encode_on_cpu(x, weight, None, None, k, "bf16", INT16)
    assert set(alone.indices[0].tolist()) != set(exact.indices[0].tolist())


@pytest.mark.parametrize("size", [2.0**-140, 2.0**-110, 2.0**-90, 1.0, 2.0**110, 2.0**124])
@pytest.mark.parametrize("side", ["x", "weight"])
def test_rows_beyond_all_steps_lose_nothing(side: str, size: float) -> None:
    """Rows near the ends of float32, against others whose scores are of order 1."""
    x = normal((5, 24), 0, torch.float32) * (size if side == "x" else min(1 / size, 2.0**120))
    weight = normal((300, 24), 1, torch.float32)
    weight = weight * (size if side == "weight" else min(1 / size, 2.0**120))
    weight[::7] = 0
    by_integers = encode_on_cpu(x, weight, None, None, 9, "exact", INT16)
    by_floats = encode_on_cpu(x, weight, None, None, 9, "exact", FLOAT32)
    assert_same_bits(by_integers.indices, by_floats.indices)
    assert_same_bits(by_integers.values, by_floats.values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 13])
@pytest.mark.parametrize("d", [1, 2, 5, 6, 7, 8])
def test_any_number_of_rows_and_units(n: int, d: int) -> None:
    x, weight = normal((n, d), n, torch.float32), normal((50, d), d, torch.float32)
    by_integers = encode_on_cpu(x, weight, None, None, 7, "exact", INT16)
    by_floats = encode_on_cpu(x, weight, None, None, 7, "exact", FLOAT32)
    assert_same_bits(by_integers.indices, by_floats.indices)
    assert_same_bits(by_integers.values, by_floats.values)
