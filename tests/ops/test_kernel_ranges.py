"""Division of columns, lists and entries by the GPU's kernels: arithmetic without a GPU."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from saefast.kernels.encode import threshold_encode
from saefast.kernels.encode.list_length import LONGEST
from saefast.kernels.encode.lists import GROUP
from saefast.kernels.encode.screening import phases
from saefast.kernels.encode.topk_encode import MOST_KEPT, capacity_of, first_phase

_HALF_A_GIGABYTE = 512 << 20
_LONGEST_LIST = 8192
"""Entries that fit the shared memory of a block, MOST_CAPACITY in csrc/cuda/select.h."""
around_powers_of_two = st.builds(
    lambda power, beside: (1 << power) + beside, st.integers(1, 20), st.sampled_from([-1, 0, 1])
)
counts = st.one_of(st.integers(1, 3_000_000), around_powers_of_two)
ks = st.one_of(st.integers(1, MOST_KEPT), st.sampled_from([1, 819, 820, 896, 897, MOST_KEPT]))


@settings(max_examples=300)
@given(
    m=counts,
    first=counts,
    n=counts,
    step=st.sampled_from([64, 128, 256]),
)
@example(m=131072, first=8192, n=8192, step=256)
@example(m=131072, first=131072, n=8192, step=256)
@example(m=1, first=1, n=1, step=64)
def test_phases_cover_every_column_once_in_order(m: int, first: int, n: int, step: int) -> None:
    ranges = phases(m, first, n, step)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == m
    for i, (begin, end) in enumerate(ranges):
        assert begin < end
        size = end - begin
        rounded = -(-size // step) * step
        assert rounded == step or 4 * n * rounded <= _HALF_A_GIGABYTE
        if i + 1 < len(ranges):
            assert ranges[i + 1][0] == end
            assert size % step == 0
        if i:
            assert begin % GROUP == 0
            assert size <= begin


@given(m=st.one_of(st.integers(1, 3_000_000), around_powers_of_two), k=ks)
@example(m=5000, k=1000)
def test_phases_grow_from_a_sixteenth_which_holds_k(m: int, k: int) -> None:
    """Without a limit of memory there are at most six: a sixteenth, then as many as before."""
    k = min(k, m)
    ranges = phases(m, first_phase(m, k), 1, 256)
    first = ranges[0][1]
    assert min(max(m // 16, k), m) <= first < max(m // 16, k) + 256
    assert all(end == m or end == 2 * begin for begin, end in ranges[1:])
    assert len(ranges) <= 6


@given(
    m=counts,
    d=st.integers(1, 20_000),
    k=ks,
    product=st.sampled_from([None, "bfloat16", "tfloat32", "float32"]),
    block=st.sampled_from([16, 256]),
)
def test_lists_have_room_for_all_candidates(
    m: int, d: int, k: int, product: str | None, block: int
) -> None:
    capacity = capacity_of(m, d, k, product, block)
    assert capacity & (capacity - 1) == 0
    assert capacity <= _LONGEST_LIST == LONGEST
    assert capacity >= 2 * k + block  # a cut list and the entries before the next cut
    assert capacity >= 2 * (k + k // 4)  # two cut lists, where parts of a row are joined
    if product is not None:
        assert capacity >= min(8 * k, 3072)


@given(width=st.integers(1, 1 << 20))
def test_lists_above_a_threshold_have_room_for_a_block_after_a_cut(width: int) -> None:
    """They also have room for an eighth of the kept entries, so that few blocks cut them again."""
    capacity, block = threshold_encode.capacity_of(width), 16
    assert capacity & (capacity - 1) == 0
    after_a_cut = (width + capacity - block) // 2  # at most, by `keep_most`
    assert after_a_cut + block + width // 8 <= capacity
