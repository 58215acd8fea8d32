"""Numbers of dictionaries that contain features: by hand, with planted laws and clusters."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.matches import random_matches
from helpers.strategies import generator, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import (
    Matches,
    Stability,
    find_clusters,
    fit_power_law,
    membership_counts,
    subset_curve,
)
from saefast import score_stability as score


@pytest.fixture(autouse=True)
def one_thread(torch_threads):
    """More threads would only wait for each other at these sizes."""
    torch.set_num_threads(1)


def drawn(sizes: list[int], seed: int) -> Stability:
    """Draw random partners among dictionaries with some dead features."""
    alive = [torch.rand(m, generator=generator(seed + i)) < 0.8 for i, m in enumerate(sizes)]
    matches = random_matches(sizes, seed)
    for (s, t), one in matches.items():
        partner = one.partner.clone()
        partner[~alive[s]] = -1
        partner[(partner >= 0) & ~alive[t][partner.clamp(min=0)]] = -1
        similarity = one.similarity * (partner >= 0)
        matches[s, t] = Matches(
            partner=partner, similarity=similarity, mutual=one.mutual & (partner >= 0)
        )
    blank = [torch.ones(m, 3) for m in sizes]
    return score(blank, threshold=0.5, matches=matches, alive=alive, progress=False)


def dictionaries_with(groups: list[list[int]], d: int = 24) -> list[Tensor]:
    """Make a feature for each group, in the dictionaries of the group, in random order."""
    s = max(map(max, groups)) + 1
    directions = normal((len(groups), d), 5, torch.float32)
    rows: list[list[Tensor]] = [[] for _ in range(s)]
    for group, direction in zip(groups, directions, strict=True):
        for member in group:
            rows[member].append(direction)
    return [
        torch.stack(own)[torch.randperm(len(own), generator=generator(i))]
        for i, own in enumerate(rows)
    ]


sizes = st.lists(st.integers(1, 25), min_size=2, max_size=5)


@settings(max_examples=25)
@given(sizes, seeds)
def test_counts_match_the_support(sizes, seed):
    stability = drawn(sizes, seed)
    counts = membership_counts(stability)
    assert counts.shape == (len(sizes), len(sizes))
    for s, row in enumerate(counts):
        for many, count in enumerate(row.tolist(), start=1):
            assert count == sum(
                1 + int(hits) == many
                for hits, alive in zip(stability.hit[s].sum(1), stability.alive[s], strict=True)
                if alive
            )
    assert torch.equal(counts.sum(1), torch.stack([alive.sum() for alive in stability.alive]))


@settings(max_examples=25)
@given(sizes, seeds)
def test_shares_of_subsets_equal_those_by_hand(sizes, seed):
    stability = drawn(sizes, seed)
    points = subset_curve(stability, subsets=100)
    assert [point.dictionaries for point in points] == list(range(2, len(sizes) + 1))
    for point in points:
        alone, everywhere = [], []
        for chosen in itertools.combinations(range(len(sizes)), point.dictionaries):
            hits = torch.cat(
                [
                    stability.hit[s][stability.alive[s]][:, [t for t in chosen if t != s]]
                    for s in chosen
                ]
            )
            alone.append(float((~hits.any(1)).double().mean()))
            everywhere.append(float(hits.all(1).double().mean()))
        assert point.subsets == len(alone)
        if not math.isnan(point.alone):
            assert point.alone == pytest.approx(np.mean(alone))
            assert point.alone_deviation == pytest.approx(np.std(alone), abs=1e-12)
            assert point.everywhere == pytest.approx(np.mean(everywhere))
            assert point.everywhere_deviation == pytest.approx(np.std(everywhere), abs=1e-12)


def test_there_may_be_more_dictionaries_than_bits_of_an_integer():
    """One feature is nowhere else, one everywhere, one in the last ten dictionaries."""
    count = 70
    hit = torch.stack([torch.zeros(count), torch.ones(count), torch.arange(count) >= 60]) > 0
    many = replace(
        drawn([3, 3], 0),
        score=(torch.zeros(3),) * count,
        alive=(torch.ones(3) > 0,) * count,
        hit=tuple(hit & (torch.arange(count) != s) for s in range(count)),
    )
    points = subset_curve(many, subsets=5)
    assert [point.dictionaries for point in points] == list(range(2, count + 1))
    whole, without_one = points[-1], points[-2]
    assert (whole.alone, whole.everywhere) == pytest.approx((1 / 3, 1 / 3))
    assert (without_one.alone, without_one.everywhere) == pytest.approx((1 / 3, 1 / 3))
    # Of two, the last feature is alone if the other one is not among the last ten.
    alone, everywhere = [], []
    for chosen in saefast.stability.membership._choices(count, 2, 5, 0):
        late = [t >= 60 for t in reversed(chosen)]
        alone.append(1 / 3 + np.mean([not each for each in late]) / 3)
        everywhere.append(1 / 3 + np.mean(late) / 3)
    assert points[0].alone == pytest.approx(np.mean(alone))
    assert points[0].everywhere == pytest.approx(np.mean(everywhere))


def test_subsets_are_distinct_and_reproducible():
    stability = drawn([10] * 7, 0)
    points = subset_curve(stability, subsets=20)
    assert [point.subsets for point in points] == [20, 20, 20, 20, 7, 1]
    assert points == subset_curve(stability, subsets=20)
    assert points != subset_curve(stability, subsets=20, seed=1)
    few = saefast.stability.membership._choices(7, 3, 34, 0)
    assert len(set(few)) == 34


@given(
    st.floats(-3, 3).filter(lambda a: abs(a) > 0.05),
    st.floats(-3, 2).filter(lambda b: abs(b) > 0.05),
    st.floats(-1, 1),
    st.integers(3, 12),
)
def test_a_planted_law_is_found(a, b, c, points):
    k = np.arange(2, 2 + points)
    fit = fit_power_law(k, a * k.astype(float) ** b + c)
    assert fit.residual <= 1e-9
    assert fit.b == pytest.approx(b, abs=1e-4)
    assert fit.a == pytest.approx(a, rel=1e-3)
    assert fit.at(5) == pytest.approx(a * 5**b + c, abs=1e-6)


def test_a_law_in_noise_is_the_best_fit():
    k = np.arange(2, 10)
    noise = np.random.default_rng(0).normal(size=8) * 0.003
    values = 0.72 * k**-0.35 + 0.05 + noise
    fit = fit_power_law(k, values)
    from scipy.optimize import curve_fit

    expected, _ = curve_fit(lambda x, a, b, c: a * x**b + c, k, values, p0=(0.72, -0.35, 0))
    assert (fit.a, fit.b, fit.c) == pytest.approx(tuple(expected), rel=1e-3)
    assert fit.residual == pytest.approx(
        np.sqrt(np.mean((expected[0] * k ** expected[1] + expected[2] - values) ** 2))
    )


def test_a_logarithm_is_a_law():
    k = np.arange(1, 9)
    fit = fit_power_law(k, 3 - 0.5 * np.log(k))
    assert fit.residual < 1e-6
    assert fit.at(20) == pytest.approx(3 - 0.5 * np.log(20), abs=1e-4)


@pytest.mark.parametrize(
    ("k", "values", "message"),
    [
        ([2, 3], [1, 2], "at least 3 different"),
        ([2, 2, 3], [1, 2, 3], "at least 3 different"),
        ([2, 3, 4], [1, 2], "the shape of k"),
        ([0, 3, 4], [1, 2, 3], "must be positive"),
        ([2, 3, 4], [1, 2, math.nan], "finite"),
    ],
)
def test_points_without_a_law_raise(k, values, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(k, values)


def test_planted_clusters_are_found():
    groups = [[0, 1, 2, 3]] * 5 + [[0, 2]] * 4 + [[1]] * 3 + [[0, 1, 3]] * 2 + [[3]] * 6
    stability = score(dictionaries_with(groups), threshold=0.9, progress=False)
    clusters = find_clusters(stability)
    assert clusters.by_dictionaries() == [
        {"dictionaries": 1, "complete": 9, "chains": 0},
        {"dictionaries": 2, "complete": 4, "chains": 0},
        {"dictionaries": 3, "complete": 2, "chains": 0},
        {"dictionaries": 4, "complete": 5, "chains": 0},
    ]
    assert clusters.dictionaries.tolist() == [4] * 5 + [3] * 2 + [2] * 4 + [1] * 9
    assert torch.equal(clusters.features, clusters.dictionaries)
    counts = membership_counts(stability).sum(0).tolist()
    assert counts == [9, 8, 6, 20]
    for label, support in zip(clusters.label, stability.support, strict=True):
        assert torch.equal(clusters.dictionaries[label], support)


def linked(pairs: list[tuple[tuple[int, int], tuple[int, int]]], s: int, m: int) -> Stability:
    """Make dictionaries in which exactly these features, as (dictionary, feature), match."""
    matches = {}
    for a, b in itertools.permutations(range(s), 2):
        partner = torch.full((m,), -1)
        for one, other in [*pairs, *((y, x) for x, y in pairs)]:
            if (one[0], other[0]) == (a, b):
                partner[one[1]] = other[1]
        matches[a, b] = Matches(
            partner=partner, similarity=(partner >= 0).float(), mutual=partner >= 0
        )
    return score([torch.ones(m, 2)] * s, matches=matches, progress=False)


def test_chains_are_not_called_complete():
    triangle = [((0, 0), (1, 0)), ((1, 0), (2, 0)), ((0, 0), (2, 0))]
    path = [((0, 1), (1, 1)), ((1, 1), (2, 1))]
    back = [((0, 2), (1, 2)), ((1, 2), (2, 2)), ((2, 2), (0, 3))]  # two features of dictionary 0
    clusters = find_clusters(linked(triangle + path + back, 3, 4))
    named = {label: i for i, label in enumerate(clusters.label[0].tolist())}
    assert len(named) == 3
    assert clusters.label[0][2] == clusters.label[0][3]
    by_label = dict(
        enumerate(zip(clusters.features.tolist(), clusters.complete.tolist(), strict=True))
    )
    assert by_label[int(clusters.label[0][0])] == (3, True)
    assert by_label[int(clusters.label[0][1])] == (3, False)
    assert by_label[int(clusters.label[0][2])] == (4, False)
    assert clusters.by_dictionaries()[2] == {"dictionaries": 3, "complete": 1, "chains": 2}


def by_hand(stability: Stability) -> set[frozenset[tuple[int, int]]]:
    """Find clusters by walking from feature to feature."""
    nodes = {(s, int(i)) for s, alive in enumerate(stability.alive) for i in alive.nonzero()[:, 0]}
    found = set()
    while nodes:
        waiting, cluster = [next(iter(nodes))], set()
        while waiting:
            s, i = waiting.pop()
            if (s, i) in cluster:
                continue
            cluster.add((s, i))
            for t in range(len(stability.score)):
                j = int(stability.partner[s][i, t])
                mutual = t != s and stability.hit[s][i, t] and stability.hit[t][j, s]
                if mutual and stability.partner[t][j, s] == i:
                    waiting.append((t, j))
        nodes -= cluster
        found.add(frozenset(cluster))
    return found


def partition(clusters: saefast.Clusters) -> set[frozenset[tuple[int, int]]]:
    members: dict[int, set[tuple[int, int]]] = {}
    for s, label in enumerate(clusters.label):
        for i, number in enumerate(label.tolist()):
            if number >= 0:
                members.setdefault(number, set()).add((s, i))
    return set(map(frozenset, members.values()))


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(1, 12), st.integers(0, 60), seeds)
def test_clusters_equal_those_by_hand(s, m, links, seed):
    random = np.random.default_rng(seed)
    pairs: dict[tuple, tuple] = {}
    for _ in range(links):
        a, b = random.choice(s, 2, replace=False).tolist()
        i, j = random.integers(m, size=2).tolist()
        if ((a, i), b) not in pairs and ((b, j), a) not in pairs:
            pairs[(a, i), b] = (b, j)
            pairs[(b, j), a] = (a, i)
    stability = linked([(one, other) for (one, _), other in pairs.items()], s, m)
    clusters = find_clusters(stability)
    expected = by_hand(stability)
    assert partition(clusters) == expected
    members: dict[int, list[int]] = {}
    for number, label in enumerate(clusters.label):
        for one in label.tolist():
            members.setdefault(one, []).append(number)
    for number, own in members.items():
        assert clusters.features[number] == len(own)
        assert clusters.dictionaries[number] == len(set(own))
    ranks = list(zip(clusters.dictionaries.tolist(), clusters.features.tolist(), strict=True))
    assert ranks == sorted(ranks, reverse=True)


@settings(max_examples=20)
@given(seeds, st.permutations(range(4)))
def test_clusters_and_counts_do_not_depend_on_any_order(seed, order):
    rows = [normal((15, 3), seed + i, torch.float32) for i in range(4)]
    first = find_clusters(score(rows, threshold=0.9, progress=False))
    shuffles = [torch.randperm(15, generator=generator(seed + i)) for i in range(4)]
    turned = score([rows[s][shuffles[s]] for s in order], threshold=0.9, progress=False)
    other = partition(find_clusters(turned))
    back = {
        frozenset((order[place], int(shuffles[order[place]][i])) for place, i in cluster)
        for cluster in other
    }
    assert back == partition(first)


def test_dead_features_are_in_no_cluster():
    rows = [torch.eye(4), torch.eye(4)]
    rows[0][1] = 0
    clusters = find_clusters(score(rows, progress=False))
    assert clusters.label[0].tolist() == [0, -1, 1, 2]
    assert clusters.by_dictionaries()[0] == {"dictionaries": 1, "complete": 1, "chains": 0}
    nothing = find_clusters(score([torch.zeros(3, 2)] * 2, progress=False))
    assert len(nothing.features) == 0


def test_a_long_chain_is_one_component():
    """Labels spread in few rounds, for any order of indices."""
    order = torch.randperm(5000, generator=generator(0))
    label = saefast.stability.clusters._components(5000, order[:-1], order[1:])
    assert (label == 0).all()
