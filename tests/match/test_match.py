"""match_features against scipy's dense solver, and its certificate against all pairs."""

import pytest
import torch
from helpers.graphs import assert_best, random_graph
from helpers.strategies import dtypes, generator, normal, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from bench.match_kinds import KINDS, alive, assert_proven, best_value, cosines, features
from saefast import Matches
from saefast.match import one_to_one
from saefast.match.assignment import Assignment, best_assignment
from saefast.match.plan import divided


def promised(matches: Matches) -> list[float | None]:
    return [matches.value, matches.upper_bound, matches.certified, matches.rounds]


def assert_optimal(
    a: Tensor,
    b: Tensor,
    neighbours: int,
    floor: float | None = None,
    absolute: bool = False,
) -> Matches:
    matches = saefast.match_features(
        a, b, one_to_one=True, neighbours=neighbours, floor=floor, absolute=absolute
    )
    expected = best_value(cosines(a[alive(a)], b[alive(b)], absolute), floor)
    assert matches.value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert matches.value <= matches.upper_bound + 1e-9
    assert matches.certified
    assert_proven(matches, a, b, floor, absolute)
    return matches


sizes = st.one_of(st.integers(1, 40), st.integers(41, 600))


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(KINDS),
    sizes,
    st.one_of(st.none(), sizes),
    st.sampled_from([1, 2, 5, 16, 64]),
    st.sampled_from([1, 3, 16, 64]),
    st.one_of(st.none(), st.floats(-1, 1)),
    st.booleans(),
    seeds,
)
def test_the_value_equals_a_dense_solvers_and_is_certified(
    kind, m, m2, d, neighbours, floor, absolute, seed
):
    a, b = features(kind, m, m2 or m, d, seed)
    assert_optimal(a, b, neighbours, floor, absolute)


@pytest.mark.parametrize("floor", [None, 0.3, -0.5])
@pytest.mark.parametrize("absolute", [False, True])
def test_features_without_any_candidate_have_the_least_price(floor, absolute):
    """The other dictionary has features of zeros only, so all stay unmatched."""
    some, zeros = torch.randn(3, 4, generator=generator(0)), torch.zeros(2, 4)
    some[1] = 0
    for a, b in ((some, zeros), (zeros, some)):
        assert_optimal(a, b, 1, floor, absolute)


@pytest.mark.parametrize("floor", [None, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_large_dictionaries_are_matched_optimally(kind, floor):
    a, b = features(kind, 2048, 2048, 32, 0)
    assert_optimal(a, b, 16, floor)


@pytest.mark.parametrize(("m", "m2"), [(2048, 700), (700, 2048)])
def test_large_dictionaries_of_unequal_size_are_matched_optimally(m, m2):
    assert_optimal(*features("hubs", m, m2, 32, 0), 16)


graphs = st.builds(
    random_graph,
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 600),
    st.booleans(),
    seeds,
)
floors = st.floats(-3, 3)


@settings(deadline=None, max_examples=300)
@given(graphs, floors)
def test_assignments_of_random_graphs_are_optimal(graph, floor):
    assert_best(graph, floor, best_assignment(graph, floor))


@settings(deadline=None, max_examples=300)
@given(graphs, floors, seeds)
def test_any_initial_prices_lead_to_the_optimum(graph, floor, seed):
    """Free columns with an initial price end at price 0."""
    rows = len(graph.row_start) - 1
    price = torch.randn(graph.columns, generator=generator(seed), dtype=torch.float64) * 2
    partner = torch.full((rows,), -1)
    some = min(rows, graph.columns) // 2
    partner[:some] = torch.randperm(graph.columns, generator=generator(seed))[:some]
    start = Assignment(partner, torch.empty(0), price, False)
    assert_best(graph, floor, best_assignment(graph, floor, start=start))


def test_without_time_the_bound_holds_without_a_certificate():
    a, b = features("hubs", 500, 500, 16, 0)
    matches = saefast.match_features(a, b, one_to_one=True, neighbours=4, seconds=0)
    best = best_value(cosines(a, b), None)
    assert not matches.certified
    assert matches.value < best <= matches.upper_bound


@pytest.mark.parametrize("kilobytes", [0, 100, 140, 180])
def test_without_memory_the_bound_holds_without_a_certificate(kilobytes):
    """A warning names the argument to change."""
    a, b = features("hubs", 500, 500, 16, 0)
    with pytest.warns(UserWarning, match=r"memory=.* is too little to certify"):
        matches = saefast.match_features(a, b, one_to_one=True, memory=kilobytes * 1e-6)
    best = best_value(cosines(a, b), None)
    assert not matches.certified
    assert matches.value < best <= matches.upper_bound
    assert torch.equal(matches.partner.sort().values, torch.arange(500))


def test_less_memory_only_needs_more_rounds():
    """Lists of 64 if memory suffices; shorter ones give the same value."""
    a, b = features("hubs", 500, 500, 16, 0)
    plenty = saefast.match_features(a, b, one_to_one=True)
    little = saefast.match_features(a, b, one_to_one=True, memory=1e-3)
    assert plenty.certified
    assert little.certified
    assert little.rounds > plenty.rounds
    assert little.value == pytest.approx(plenty.value, abs=1e-9)


@settings(deadline=None)
@given(
    st.floats(0, 1e12),
    st.integers(1, 2**21),
    st.integers(1, 2**21),
    st.integers(1, 100),
    st.booleans(),
)
def test_lists_leave_a_quarter_of_the_memory(memory, rows, columns, neighbours, solved):
    """Lists of the requested length, or else the longest that leave a quarter of the memory."""
    share = divided(memory, rows, columns, neighbours, solved)
    both, wished = rows + columns, min(neighbours, rows, columns) if solved else neighbours
    assert share.lists == 16 * both * share.neighbours
    assert share.rest == max(0, memory - share.lists)
    needed = both * (16 + 72)
    if not solved or needed * wished <= 0.75 * memory:
        assert share.neighbours == wished
    else:
        assert share.neighbours == 1 or needed * share.neighbours <= 0.75 * memory
        assert needed * (share.neighbours + 1) > 0.75 * memory * (1 - 1e-9)


def withheld(*_: object) -> one_to_one.Arcs:
    none = torch.zeros(0, dtype=torch.int64)
    return one_to_one.Arcs(none, none, torch.zeros(0, dtype=torch.float64))


@pytest.mark.parametrize("rows", [3, 0])
def test_only_one_to_one_matchings_have_a_proof(rows: int) -> None:
    a, b = torch.eye(3)[:rows], torch.eye(3)
    nearest = saefast.match_features(a, b)
    assert nearest.proof is None
    assert promised(nearest) == [None] * 4
    best = saefast.match_features(a, b, one_to_one=True)
    assert promised(best) == [rows, rows, True, min(rows, 1)]
    assert best.proof.row_price.shape == (rows,)
    assert best.proof.column_price.shape == (3,)


def test_a_matching_that_lacks_an_arc_is_not_certified(monkeypatch):
    a, b = features("hubs", 500, 500, 16, 0)
    complete = saefast.match_features(a, b, one_to_one=True, neighbours=2)
    assert complete.certified
    assert complete.rounds > 1
    monkeypatch.setattr(one_to_one, "_beating", withheld)
    matches = saefast.match_features(a, b, one_to_one=True, neighbours=2)
    best = best_value(cosines(a, b), None)
    assert matches.value < best - 1e-3
    assert best <= matches.upper_bound + 1e-9
    assert not matches.certified


@settings(deadline=None)
@given(seeds, st.sampled_from([1, 7, 64, 300]), st.integers(1, 40), st.integers(1, 8))
def test_suspects_are_all_features_of_better_pairs(seed, m, m2, levels):
    """Against the definition, pair by pair; coarse values make equality common."""
    random = generator(seed)
    draw = [
        torch.randint(-levels, levels, (size,), generator=random).double()
        for size in (m, m, m2, m2)
    ]
    reach, price, other_reach, other_price = draw
    most = torch.minimum(reach[:, None], other_reach)
    expected = (most > price[:, None] + other_price).any(1).nonzero()[:, 0]
    assert torch.equal(one_to_one._suspects(*draw), expected)


@pytest.mark.parametrize("one", [False, True])
def test_a_permuted_copy_matches_perfectly(one):
    a, _ = features("isotropic", 300, 300, 24, 0)
    order = torch.randperm(300, generator=generator(1))
    b = a[order] * torch.rand(300, 1, generator=generator(2)).add(0.1)
    matches = saefast.match_features(a, b, one_to_one=one)
    assert torch.equal(order[matches.partner], torch.arange(300))
    assert matches.mutual.all()
    torch.testing.assert_close(matches.similarity, torch.ones(300))


@pytest.mark.parametrize("one", [False, True])
def test_the_order_of_features_does_not_matter_to_the_matching(one):
    a, b = features("hubs", 300, 280, 24, 0)
    p, q = torch.randperm(300, generator=generator(1)), torch.randperm(280, generator=generator(2))
    matches = saefast.match_features(a, b, one_to_one=one)
    turned = saefast.match_features(a[p], b[q], one_to_one=one)
    found = q[turned.partner].where(turned.partner >= 0, -1)
    assert torch.equal(found, matches.partner[p])
    assert torch.equal(turned.similarity, matches.similarity[p])
    assert torch.equal(turned.mutual, matches.mutual[p])


def test_same_bits_for_any_number_of_threads():
    a, b = features("hubs", 700, 700, 24, 0)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        matches = saefast.match_features(a, b, one_to_one=True, neighbours=4)
        found.append(
            [matches.partner, matches.similarity, matches.mutual, *vars(matches.proof).values()]
        )
    torch.set_num_threads(before)
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            if isinstance(first, Tensor):
                assert_same_bits(first, second)
            else:
                assert first == second


@settings(deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 100),
    st.integers(1, 100),
    st.one_of(st.none(), st.floats(-1, 1)),
    st.booleans(),
    seeds,
)
def test_the_nearest_equal_the_definition(kind, m, m2, floor, absolute, seed):
    a, b = features(kind, m, m2, 9, seed)
    matches = saefast.match_features(a, b, floor=floor, absolute=absolute)
    similarity = cosines(a, b, absolute).nan_to_num(-2)
    best = similarity.max(1).values
    has = matches.partner >= 0
    expected = best >= (-1.5 if floor is None else floor)
    near = (best - (2 if floor is None else floor)).abs() < 1e-12
    assert ((has == expected) | near).all()
    chosen = similarity[has].gather(1, matches.partner[has, None])[:, 0]
    torch.testing.assert_close(chosen, best[has], rtol=0, atol=1e-12)
    torch.testing.assert_close(matches.similarity[has], chosen.float(), rtol=0, atol=1e-6)
    assert (matches.similarity[~has] == 0).all()
    backward = saefast.match_features(b, a, absolute=absolute).partner
    returns = backward[matches.partner] == torch.arange(m)
    assert torch.equal(matches.mutual, returns & has)
    assert matches.proof is None


@given(dtypes)
def test_similarities_have_the_dtype_of_scores(dtype):
    a = normal((5, 4), 0, dtype)
    for one in (False, True):
        matches = saefast.match_features(a, a, one_to_one=one)
        assert matches.similarity.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(matches.partner, torch.arange(5))


@pytest.mark.parametrize(("m", "m2"), [(0, 3), (3, 0), (0, 0), (3, 3)])
@pytest.mark.parametrize("one", [False, True])
def test_empty_dictionaries_have_no_matches(m, m2, one):
    matches = saefast.match_features(torch.zeros(m, 4), torch.zeros(m2, 4), one_to_one=one)
    assert torch.equal(matches.partner, torch.full((m,), -1))
    assert not matches.mutual.any()
    assert promised(matches) == ([0.0, 0.0, True, 0] if one else [None] * 4)


def test_features_of_any_length_have_a_direction():
    a, _ = features("isotropic", 40, 40, 8, 0)
    a = a.double()
    matches = saefast.match_features(a * 1e300, a.flip(0) * 1e-300, one_to_one=True)
    assert torch.equal(matches.partner, torch.arange(40).flip(0))
    assert matches.value == pytest.approx(40)
