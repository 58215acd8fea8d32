"""The bounds of a screen against their definition in torch."""

import pytest
import torch
from helpers.strategies import generator, normal, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast.kernels.encode.bounds import column_bounds, row_bounds
from saefast.kernels.encode.keep_best import OVERFLOW
from saefast.kernels.encode.lists import GROUP, Lists
from saefast.kernels.keys import EMPTY
from saefast.kernels.round_rows import RoundedRows


def rounded(rows: int, seed: int, largest: float) -> RoundedRows:
    """Draw norms up to about `largest`, and their losses by rounding to bfloat16."""
    norm = normal((rows,), seed, torch.float32).abs() * largest
    lost = normal((rows,), seed + 1, torch.float32).abs() * largest * 2.0**-9
    return RoundedRows("bfloat16", torch.empty(0), norm, lost)


def masking(values: Tensor, seed: int, with_: float) -> Tensor:
    """Replace a tenth of the values."""
    chosen = torch.rand(values.shape, generator=generator(seed)) < 0.1
    return torch.where(chosen, with_, values)


@settings(max_examples=40)
@given(
    m=st.sampled_from([1, 31, 32, 33, 63, 64, 65, 130]),
    with_bias=st.booleans(),
    with_scale=st.booleans(),
    with_threshold=st.booleans(),
    raised=st.booleans(),
    seed=seeds,
)
def test_bounds_of_columns_equal_their_definition(
    m: int, with_bias: bool, with_scale: bool, with_threshold: bool, raised: bool, seed: int
) -> None:
    columns = rounded(m, seed, 2.0)
    bias = masking(normal((m,), seed + 2, torch.float32), seed, -torch.inf) if with_bias else None
    scale = normal((m,), seed + 3, torch.float32) if with_scale else None
    threshold = normal((m,), seed + 4, torch.float32) if with_threshold else None
    if threshold is not None:
        threshold = masking(threshold, seed + 1, torch.inf)
    found = column_bounds(columns, bias, scale, threshold, raised=raised)

    shift = torch.zeros(m) if bias is None else bias
    if scale is not None:
        shift = torch.where(shift == -torch.inf, shift, shift * scale)
    size = shift.abs()
    if threshold is not None:
        shift, size = shift - threshold, size + threshold.abs()
    size = size.masked_fill(shift == -torch.inf, 0.0)
    if raised:
        more = (shift.double() + 2.0**-20 * size.double()).float()
        assert_same_bits(found.shift, torch.where(shift == -torch.inf, shift, more))
    else:
        assert_same_bits(found.shift, shift)
    assert_same_bits(found.largest.amax(1)[0], (columns.norm + columns.lost).max())
    assert_same_bits(found.largest.amax(1)[1], size.max())
    for maxima, values in ((found.group_norm, columns.norm), (found.group_lost, columns.lost)):
        expected = torch.stack([part.max() for part in values.split(GROUP)])
        assert_same_bits(maxima, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=20)
@given(
    n=st.sampled_from([1, 15, 16, 17, 40]),
    m=st.sampled_from([1, 64, 65, 1100]),
    largest=st.sampled_from([1e-3, 1.0, 1.5e18, 4e18]),
    seed=seeds,
)
def test_rows_near_overflow_fail_immediately(n: int, m: int, largest: float, seed: int) -> None:
    """At 1.5e18 some rows do; lists and floor agree on every row."""
    d = 40
    rows, columns = rounded(n, seed, largest), rounded(m, seed + 2, largest)
    bias = normal((m,), seed + 4, torch.float32) * largest
    by_column = column_bounds(columns, bias, None)
    lists, floor = Lists.allocate(n, 8, bias.device), torch.empty(n)
    bounds = row_bounds(rows, by_column, d, lists)
    alone = row_bounds(rows, by_column, d, floor)
    arithmetic = 2.5 * (d + 32) * 2.0**-24
    length = rows.norm + rows.lost
    for found in (bounds, alone):
        torch.testing.assert_close(found.reach, rows.lost + arithmetic * length)
        torch.testing.assert_close(found.spread, (1 + arithmetic) * length)
    most = (columns.norm + columns.lost).max().double() + bias.abs().max().double()
    safe = (length.double() + 1) * most < 1e37
    assert_same_bits(lists.counts, torch.where(safe, 0, OVERFLOW.value).int())
    assert_same_bits(lists.floor, torch.where(safe, -torch.inf, torch.inf).float())
    assert_same_bits(lists.floor_keys, torch.full((n,), EMPTY.value))
    assert_same_bits(floor.isnan(), ~safe)
    assert_same_bits(floor[safe], torch.zeros(int(safe.sum())))


def test_lists_fail_and_nothing_is_above_with_a_nan_column() -> None:
    columns = rounded(100, 0, 1.0)
    columns.norm[70] = torch.nan
    by_column = column_bounds(columns, None, None)
    floor, lists = torch.empty(5), Lists.allocate(5, 8, columns.norm.device)
    row_bounds(rounded(5, 1, 1.0), by_column, 8, floor)
    row_bounds(rounded(5, 1, 1.0), by_column, 8, lists)
    assert_same_bits(floor, torch.full((5,), torch.inf))
    assert_same_bits(lists.counts, torch.full((5,), OVERFLOW.value, dtype=torch.int32))
    assert by_column.group_norm[70 // GROUP] == torch.inf
