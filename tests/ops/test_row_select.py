"""The selection of the CUDA kernels for a row, run on the CPU by one lane and by 32 threads."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from helpers.strategies import generator, normal, seeds, small_integers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast.ops.cpu import native

GROUP = 32
OVERFLOW = -1
EMPTY = -(2**63)
NO_MORE = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """Columns of one row, their order, and the capacity of its list."""

    kind: str
    columns: int
    k: int
    block: int
    room: int
    """how many times the capacity is doubled beyond the least that is possible"""
    doubt: float | None
    """width of the bounds of an exact screen; None: the product is the score"""
    hot: bool
    seed: int
    together: int = 600
    """the most columns that come at once"""

    @property
    def capacity(self) -> int:
        return (1 << (self.k + self.block - 1).bit_length()) << self.room


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw lists barely longer than k, blocks of any size, and bounds from narrow to useless."""
    columns = draw(st.one_of(st.integers(1, 1500), st.sampled_from([255, 256, 257, 512])))
    return Case(
        draw(st.sampled_from(["normal", "ties", "rising", "falling", "equal"])),
        columns,
        draw(st.integers(1, min(columns, 130))),
        draw(st.sampled_from([1, 16, 100, 256])),
        draw(st.integers(0, 2)),
        draw(st.sampled_from([None, 0.01, 0.2, 2.0])),
        draw(st.booleans()),
        draw(seeds),
        draw(st.sampled_from([40, 600, 3000])),
    )


def keys_of(scores: Tensor, index: Tensor) -> Tensor:
    """Return keys as defined in kernels/keys.py."""
    bits = torch.where(scores == 0.0, 0.0, scores).view(torch.int32).long()
    return ((bits ^ ((bits >> 31) & NO_MORE)) << 32) | (NO_MORE - index)


def score_of(key: int) -> float:
    bits = key >> 32
    bits ^= (bits >> 31) & NO_MORE
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()


class Row:
    """The second of two rows, the first of which must not change, and its scores."""

    def __init__(self, case: Case) -> None:
        self.case = case
        m, seed = case.columns, case.seed
        make = small_integers if case.kind == "ties" else normal
        product = make((m,), seed, torch.float32)
        if case.kind in ("rising", "falling"):
            product = product.sort(descending=case.kind == "falling").values
        if case.kind == "equal":
            product = torch.where(product > 0.0, 0.0, -0.0)
        self.product = product
        self.shift = small_integers((m,), seed + 1, torch.float32)
        if case.kind not in ("normal", "ties"):
            self.shift = torch.full((m,), -0.0)  # which keeps a product of -0.0
        self.shift[torch.rand(m, generator=generator(seed + 2)) < 1 / 16] = -torch.inf
        # With eighths, every sum below except the last is exact.
        self.norm = torch.randint(0, 8, (m,), generator=generator(seed + 3)) / 8
        self.lost = torch.randint(0, 8, (m,), generator=generator(seed + 4)) / 8
        wide = torch.tensor([0.0, case.doubt or 0.0]).bfloat16().float()
        self.reach, self.spread = wide, wide / 2
        doubt = self.reach[1] * self.norm + self.spread[1] * self.lost
        bounded = case.doubt is not None
        self.most = self.product + self.shift + doubt * bounded
        size = self.shift.double().abs().nan_to_num(posinf=0.0)
        slack = (2.0**-18 * size + 2 * doubt.double()).float()
        self.least = self.most - slack * bounded
        # anywhere between the two, including the ends
        share = torch.randint(0, 5, (m,), generator=generator(seed + 5)) / 4
        true = self.least + share * (self.most - self.least)
        self.true = torch.where(self.most == -torch.inf, self.most, true).clamp(
            self.least, self.most
        )

        index = torch.arange(m)
        self.most_keys, self.least_keys = keys_of(self.most, index), keys_of(self.least, index)
        self.true_keys = keys_of(self.true, index)
        self.keys = torch.full((2, case.capacity), EMPTY)
        self.counts = torch.zeros(2, dtype=torch.int32)
        self.floor_keys = torch.full((2,), EMPTY)
        self.floor = torch.full((2,), -torch.inf)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield ranges that cover the columns in order, in hot mode from multiples of a group."""
        step = GROUP if self.case.hot else 1
        at, draw = 0, generator(self.case.seed + 6)
        while at < self.case.columns:
            size = step * int(torch.randint(1, 1 + self.case.together // step, (), generator=draw))
            yield at, min(at + size, self.case.columns)
            at += size

    def feed(self, begin: int, end: int, lanes: int) -> None:
        """Values that must not be read are infinite, so that reading them would select them."""
        case, columns = self.case, end - begin
        width = -(-columns // GROUP) * GROUP + 2 * GROUP if case.hot else columns + 3
        scores = torch.full((2, width), torch.inf)
        scores[1, :columns] = self.product[begin:end]
        maxima = torch.full((2, width // GROUP), -torch.inf)
        if case.hot:
            scores[1, :columns] += self.shift[begin:end]
            for group, columns_of_it in enumerate(self.most[begin:end].split(GROUP)):
                maxima[1, group] = columns_of_it.max()
            cold = (maxima[1] <= self.floor[1]).repeat_interleave(GROUP)
            scores[1, cold] = torch.inf
        self.floor_key_before = int(self.floor_keys[1])
        native.keep_best_row(
            scores,
            maxima,
            self.shift,
            self.norm,
            self.lost,
            self.reach,
            self.spread,
            self.keys,
            self.counts,
            self.floor_keys,
            self.floor,
            row=1,
            first=begin,
            columns=columns,
            k=case.k,
            block=case.block,
            hot=case.hot,
            bounded=case.doubt is not None,
            lanes=lanes,
        )

    @property
    def listed(self) -> Tensor:
        """Return the columns in the list, ascending."""
        return (NO_MORE - (self.keys[1, : int(self.counts[1])] & NO_MORE)).sort().values

    def needs(self, end: int) -> int:
        """Return the length of the longest list that any rule needs for the first columns."""
        longest, k = 0, self.case.k
        for seen in range(k, end + 1):
            floor = self.least_keys[:seen].kthvalue(seen - k + 1).values
            matters = (self.most_keys[:seen] >= floor) & (self.most[:seen] > -torch.inf)
            longest = max(longest, int(matters.sum()))
        return longest

    def check(self, end: int) -> bool:
        """Check the list after the first columns; return False if it overflowed."""
        case, count = self.case, int(self.counts[1])
        assert self.counts[0] == 0
        assert self.floor[0] == -torch.inf
        assert (self.keys[0] == EMPTY).all()
        longest = case.capacity - case.block
        if count == OVERFLOW:
            assert self.floor[1] == torch.inf
            assert self.needs(end) > longest
            return False
        assert count <= longest
        listed = self.listed
        assert listed.unique().numel() == count
        assert (listed < end).all()
        assert torch.equal(self.keys[1, :count].sort().values, self.most_keys[listed].sort().values)

        possible = self.most[:end] > -torch.inf
        order = self.true_keys[:end].sort(descending=True).indices
        best = order[possible[order]][: case.k]
        assert torch.isin(best, listed).all()
        floor_key = int(self.floor_keys[1])
        assert floor_key >= self.floor_key_before
        if floor_key == EMPTY:
            assert self.floor[1] == -torch.inf
            assert count < case.k + case.k // 4
        else:
            assert self.floor[1] == score_of(floor_key)
            assert (self.least_keys[listed] >= floor_key).sum() >= case.k
            assert floor_key <= self.true_keys[best].min()
        return True

    def choose(self, k: int, lanes: int) -> tuple[Tensor, Tensor]:
        """Return the best of the list by exact scores."""
        keys = self.true_keys[self.listed]
        keys = keys[torch.randperm(keys.numel(), generator=generator(self.case.seed))]
        values, indices = torch.full((k,), torch.nan), torch.full((k,), -1)
        native.choose_row(keys, len(keys), values, indices, lanes)
        return values, indices


def best_by_value_and_index(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = sorted(range(scores.numel()), key=lambda j: (-float(scores[j]), j))[:k]
    return scores[order], torch.tensor(order)


def check_whole(case: Case, lanes: int) -> Row:
    row = Row(case)
    for begin, end in row.chunks():
        row.feed(begin, end, lanes)
        if not row.check(end):
            return row
    k = min(case.k, int((row.most > -torch.inf).sum()))
    values, indices = row.choose(case.k, lanes)
    expected = best_by_value_and_index(row.true, k)
    assert torch.equal(values[:k], expected[0])
    assert torch.equal(indices[:k], expected[1])
    assert (indices[k:] == NO_MORE).all()
    return row


@settings(max_examples=300)
@given(case=cases())
def test_the_list_has_all_candidates_for_the_best(case: Case) -> None:
    check_whole(case, lanes=1)


TIGHT = Case("rising", 1000, 100, 16, 0, None, hot=False, seed=0)
"""100 of 112 places are needed, 125 kept if the cut may end early."""
MANY_GROUPS = Case("normal", 20_000, 64, 256, 1, 0.01, hot=True, seed=1, together=80_000)
"""More groups than are looked through at once."""


@settings(max_examples=12)
@given(case=cases())
@example(case=TIGHT)
@example(case=MANY_GROUPS)
def test_a_warp_keeps_the_same_columns_as_one_lane(case: Case) -> None:
    alone, warp = check_whole(case, lanes=1), check_whole(case, lanes=32)
    assert torch.equal(warp.listed, alone.listed)
    assert torch.equal(warp.counts, alone.counts)
    assert torch.equal(warp.floor_keys, alone.floor_keys)
    assert torch.equal(warp.floor, alone.floor)


def test_teams_can_take_turns() -> None:
    row = Row(Case("normal", 1500, 20, 100, 1, 0.2, hot=False, seed=0))
    for turn, (begin, end) in enumerate(row.chunks()):
        row.feed(begin, end, lanes=(1, 32)[turn % 2])
        assert row.check(end)


@pytest.mark.parametrize("hot", [False, True])
def test_a_list_that_is_just_long_enough_does_not_overflow(hot: bool) -> None:
    row = check_whole(Case("rising", 1000, 112, 16, 0, None, hot=hot, seed=0), lanes=1)
    assert row.counts[1] == 112


@pytest.mark.parametrize("hot", [False, True])
def test_a_row_with_useless_bounds_overflows(hot: bool) -> None:
    row = Row(Case("normal", 1500, 20, 100, 1, 100.0, hot=hot, seed=0))
    for begin, end in row.chunks():
        row.feed(begin, end, lanes=1)
    assert row.counts[1] == OVERFLOW
    assert row.floor[1] == torch.inf


@pytest.mark.parametrize("lanes", [1, 32])
@pytest.mark.parametrize(
    ("count", "k"), [(OVERFLOW, 3), (0, 3), (1, 1), (7, 3), (64, 64), (65, 1), (2000, 1000)]
)
def test_choosing_sorts_any_number_of_keys(count: int, k: int, lanes: int) -> None:
    there = max(count, 0)
    scores = small_integers((there,), there, torch.float32)
    keys = keys_of(scores, torch.arange(there))
    values, indices = torch.full((k,), 0.5), torch.full((k,), -1)
    native.choose_row(keys, count, values, indices, lanes)
    expected = best_by_value_and_index(scores, k)
    assert torch.equal(values[:there], expected[0])
    assert torch.equal(indices[:there], expected[1])
    assert (indices[there:] == NO_MORE).all()


@given(
    st.lists(
        st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), -1.0, 1.0]), min_size=1
    )
)
def test_keys_are_ordered_like_torchs_sort(drawn: list[float]) -> None:
    """NaN first, then descending; both zeros alike; equal scores by their index."""
    scores = torch.tensor(drawn, dtype=torch.float32)
    keys = torch.empty(len(drawn), dtype=torch.int64)
    native.keys_of(scores, keys)
    by_key = keys.sort(descending=True).indices
    assert torch.equal(by_key, scores.sort(descending=True, stable=True).indices)
    assert len(keys.unique()) == len(drawn)
    not_nan = ~scores.isnan()
    assert torch.equal(keys[not_nan], keys_of(scores, torch.arange(len(drawn)))[not_nan])


def test_an_unknown_team_raises() -> None:
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="lanes must be 1 or 32, got 2"):
        native.choose_row(none, 0, torch.empty(0), none, lanes=2)
