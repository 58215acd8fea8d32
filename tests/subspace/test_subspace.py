"""fit_subspaces: planted subspaces, groups, the low-rank mechanism in miniature, and errors."""

import math
from typing import NamedTuple

import pyarrow as pa
import pytest
import torch
from helpers.planted_subspaces import fit, groups_of, in_subspace, random_subspace
from helpers.strategies import generator, normal, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import Dictionary, Subspaces
from saefast.run_folder import SUBSPACE_TABLES


class Scores(NamedTuple):
    """The part of a `Stability` that subspaces need."""

    score: list[Tensor]
    alive: list[Tensor]


def test_planted_angles_and_their_overlap_are_found():
    angles = [0.0, 1e-6, 0.2, 1.0, math.pi / 2]
    first = random_subspace(10, 24, 0)
    turned = torch.stack(
        [
            math.cos(angle) * first[i] + math.sin(angle) * first[5 + i]
            for i, angle in enumerate(angles)
        ]
    )
    found = fit([in_subspace(first[:5], 200, 1), in_subspace(turned, 300, 2)], rank=5)
    (pair,) = found.pairs
    assert pair.rank == 5
    torch.testing.assert_close(
        pair.angles, torch.tensor(angles, dtype=torch.float64), rtol=0, atol=1e-13
    )
    overlap = sum(math.cos(angle) ** 2 for angle in angles) / 5
    assert pair.overlap == pytest.approx(overlap, abs=1e-12)
    assert pair.excess == pytest.approx((overlap - 5 / 24) / (1 - 5 / 24), abs=1e-12)
    assert [spectrum.rank for spectrum in found.spectra] == [5, 5]
    # Its basis spans the subspace.
    basis = found.spectrum("all", 0).basis
    assert saefast.principal_angles(basis, first[:5]).max() < 1e-12


def test_capture_is_the_share_of_energy_in_the_other_subspace():
    """Three quarters of a's features are in b's subspace, all of b's in a's."""
    axes = torch.eye(6)
    a = axes[[0] * 5 + [1] * 4 + [2] * 3]
    b = axes[[0] * 4 + [1] * 3]
    pair = fit([a, b], rank=2).pair("all", 0, 1)
    assert pair.capture_ab == pytest.approx(0.75)
    assert pair.capture_ba == pytest.approx(1)
    assert pair.overlap == pytest.approx(1)
    assert pair.capture_ab_curve.tolist() == pytest.approx([5 / 12, 0.75])


def miniature(shared: bool, seed: int) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Make seeds with a stable block, and unit vectors in one shared or separate subspaces."""
    d, r, m = 32, 6, 60
    stable = normal((40, d), seed, torch.float64)
    same = random_subspace(r, d, seed + 1)
    dictionaries = []
    for s in range(3):
        basis = same if shared else random_subspace(r, d, seed + 10 + s)
        dictionaries.append(torch.cat([stable, in_subspace(basis, m, seed + 20 + s)]))
    unstable = torch.arange(40 + m) >= 40
    return dictionaries, [{"stable": ~unstable, "unstable": unstable}] * 3


def test_features_that_do_not_recur_may_span_a_subspace_that_does():
    dictionaries, groups = miniature(True, 0)
    found = fit(dictionaries, groups, nulls=saefast.subspace.nulls.NULLS, rank=6, draws=40)
    for pair in found.pairs:
        if pair.group == "unstable":
            assert pair.overlap > 1 - 1e-12
            assert {test.null for test in pair.tests} == {"haar", "random", "subset", "rotated"}
            tests = [test for test in pair.tests if test.draws]
            assert all(test.p == pytest.approx(1 / 41) for test in tests)
            assert all(test.high < test.value for test in tests)
    stable = found.spectrum("stable", 0)
    unstable = found.spectrum("unstable", 0)
    assert unstable.effective_rank < 6 < stable.effective_rank
    subset = next(t for t in unstable.tests if (t.null, t.statistic) == ("subset", "energy_rank"))
    assert subset.value < subset.low
    assert found.skipped == (
        "null 'covariance': covariance was not given",
        "null 'initial': initial was not given",
    )


def test_a_shared_subspace_is_found_at_its_own_rank():
    """A rank for 90 % of the energy would cut it: each seed would leave out another part."""
    same, noise = random_subspace(12, 40, 0), 1e-3
    rows = [
        in_subspace(same, 100, 1 + s) + noise * normal((100, 40), 5 + s, torch.float64)
        for s in range(3)
    ]
    for pair in fit(rows, nulls=["rotated"], draws=40).pairs:
        assert pair.rank < 12
        assert pair.overlap < 0.95
        assert pair.shared_rank == 12
        assert pair.shared_dimensions == pytest.approx(12, abs=1e-3)
        (test,) = (test for test in pair.tests if test.statistic == "shared_dimensions")
        assert test.p == pytest.approx(1 / 41)
        assert 2 * test.high < test.value
    apart = [in_subspace(random_subspace(12, 40, 10 + s), 100, 20 + s) for s in range(2)]
    (test,) = (
        test
        for test in fit(apart, nulls=["rotated"], draws=40).pairs[0].tests
        if test.statistic == "shared_dimensions"
    )
    assert test.low <= test.value <= test.high


def test_separate_subspaces_overlap_by_chance():
    dictionaries, groups = miniature(False, 0)
    found = fit(dictionaries, groups, nulls=["haar", "rotated"], rank=6, draws=40)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = found.pair("unstable", a, b)
        for test in pair.tests:
            assert abs(test.value - test.mean) < 4 * test.sd
            assert test.p is None or test.p > 0.02
        assert abs(pair.excess) < 0.2
        assert pair.capture_ab == pytest.approx(pair.overlap, abs=0.05)


def test_groups_of_a_stability_are_compared():
    d, m = 12, 50
    dictionaries = [normal((m, d), s, torch.float32) for s in range(2)]
    dictionaries[1][7] = 0
    score = torch.linspace(0, 1, m)
    score[3], score[4] = 0.2, 0.7999999523
    alive = torch.ones(m).bool()
    alive[5] = False
    scores = Scores([score, score], [alive, torch.ones(m).bool()])
    extra = [{"first": torch.arange(m) < 10}] * 2
    found = saefast.fit_subspaces(
        dictionaries, scores, groups=extra, nulls=["haar"], progress=False
    )
    assert found.groups == ("stable", "unstable", "first")
    low = int((score <= 0.2).sum())
    high = int((score >= 0.8).sum()) + 1  # as rounded to float32
    counts = {(s.group, s.seed): (s.features, s.dead) for s in found.spectra}
    assert counts == {
        ("stable", 0): (high, 0),
        ("stable", 1): (high, 0),
        ("unstable", 0): (low - 1, 0),
        ("unstable", 1): (low - 1, 1),
        ("first", 0): (9, 1),
        ("first", 1): (9, 1),
    }
    wider = saefast.fit_subspaces(
        dictionaries, scores, stable=0.5, unstable=0.4, nulls=["haar"], progress=False
    )
    assert wider.spectrum("stable", 0).features > high


def test_masks_of_groups_give_the_result_of_a_stability():
    """Masks give the result of the stability itself, and feature_function accepts them as well."""
    saes = [saefast.SAE(8, 20, k=4, seed=seed) for seed in range(3)]
    with torch.no_grad():
        for sae in saes[1:]:
            sae.W_dec[:7] = saes[0].W_dec[:7]
    stability = saefast.score_stability(saes, progress=False)
    groups = stability.groups()
    quiet = {"draws": 2, "progress": False}
    by_score, by_mask = (
        saefast.fit_subspaces(saes, scored, groups=masks, nulls=["random"], **quiet)
        for scored, masks in ((stability, None), (None, groups))
    )
    assert by_score.groups == ("stable", "unstable")
    assert tables_of(by_mask) == tables_of(by_score)
    x = normal((200, 8), 0, torch.float32)
    by_score, by_mask = (
        saefast.contribution_r2(saes, x, scored, groups=masks, **quiet)
        for scored, masks in ((stability, None), (None, groups))
    )
    assert len(by_score.pairs) == 6
    assert by_mask.to_table() == by_score.to_table()
    found = saefast.feature_function(saes, x, groups, progress=False)
    assert [row.features for row in found[0].groups] == [int(m.sum()) for m in groups[0].values()]


def test_dead_features_are_left_out():
    rows = [normal((20, 8), s, torch.float64) for s in range(2)]
    rate = (torch.arange(30) < 20).float()
    padded = [
        torch.cat([each, normal((10, 8), 5 + s, torch.float64)]) for s, each in enumerate(rows)
    ]
    found = fit([Dictionary(each, firing_rate=rate) for each in padded], groups_of(30))
    plain = fit(rows)
    assert [spectrum.dead for spectrum in found.spectra] == [10, 10]
    assert_same_bits(found.pairs[0].overlap_curve, plain.pairs[0].overlap_curve)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 10), seeds)
def test_rotations_lengths_signs_and_order_do_not_matter(m, m2, d, seed):
    """A rotation of the space, and lengths, signs and order of the features."""
    spread = torch.logspace(0, -0.5, d, dtype=torch.float64)
    a, b = (normal((k, d), seed + k, torch.float64) * spread for k in (m, m2 + 50))
    turn = torch.linalg.qr(normal((d, d), seed + 2, torch.float64)).Q
    lengths = normal((len(b), 1), seed + 3, torch.float64)
    order = torch.randperm(len(b), generator=generator(seed))
    plain, turned = fit([a, b]), fit([a @ turn, b @ turn])
    other = fit([a, (b * lengths)[order]])
    for found in (turned, other):
        for one, same in zip(plain.spectra, found.spectra, strict=True):
            torch.testing.assert_close(
                same.singular_values, one.singular_values, rtol=1e-7, atol=1e-9
            )
            assert same.effective_rank == pytest.approx(one.effective_rank, rel=1e-9)
        one, same = plain.pairs[0], found.pairs[0]
        assert one.rank == same.rank
        for curve in ("overlap_curve", "capture_ab_curve", "capture_ba_curve"):
            assert len(getattr(one, curve)) == min(m, d)
            torch.testing.assert_close(getattr(same, curve), getattr(one, curve), rtol=0, atol=1e-6)
            assert (getattr(one, curve) >= 0).all()
            assert (getattr(one, curve) <= 1).all()


def test_seeds_in_another_order_give_the_same_pairs():
    a, b = normal((30, 6), 0, torch.float64), normal((20, 6), 1, torch.float64)
    one, other = fit([a, b]).pairs[0], fit([b, a]).pairs[0]
    torch.testing.assert_close(one.overlap_curve, other.overlap_curve)
    assert one.capture_ab == pytest.approx(other.capture_ba)
    assert one.capture_ab != pytest.approx(one.capture_ba, abs=1e-4)


def test_the_rank_is_limited_by_the_energy():
    a = torch.eye(8).repeat(5, 1)
    b = torch.eye(8)[:3].repeat(5, 1)
    pair = fit([a, b], energy=0.95).pairs[0]
    assert pair.rank == 3
    assert len(pair.overlap_curve) == 3
    found = fit([a, b], rank=5)
    assert found.pairs[0].rank == 3
    assert [len(spectrum.basis) for spectrum in found.spectra] == [5, 3]
    assert fit([a, a], energy=0.5).pairs[0].rank == 4


def test_small_and_empty_groups_are_reported():
    dictionaries = [normal((30, 8), s, torch.float32) for s in range(3)]
    dictionaries[2][10:20] = 0
    one, none = torch.arange(30) < 1, torch.arange(30) < 0
    gone = (torch.arange(30) >= 10) & (torch.arange(30) < 20)
    groups = [{"one": one, "none": none, "gone": gone}] * 3
    found = fit(
        dictionaries, groups, nulls=saefast.subspace.nulls.NULLS, initial=dictionaries, draws=3,
        covariance=torch.eye(8),
    )  # fmt: skip
    assert [(pair.group, pair.a, pair.b) for pair in found.pairs] == [
        ("one", 0, 1),
        ("one", 0, 2),
        ("one", 1, 2),
        ("gone", 0, 1),
    ]
    assert found.skipped == (
        "group 'none' in dictionary 0: none of its features is alive",
        "group 'none' in dictionary 1: none of its features is alive",
        "group 'none' in dictionary 2: none of its features is alive",
        "group 'gone' in dictionary 2: none of its features is alive",
    )
    assert found.spectrum("gone", 2).dead == 10
    assert found.spectrum("none", 0).effective_rank == 0
    assert found.pair("one", 0, 1).rank == 1
    assert_finite(found)
    with pytest.raises(ValueError, match="in which group 'gone' has features, got 0 and 2"):
        found.pair("gone", 0, 2)
    with pytest.raises(ValueError, match="group must be one of one, none, gone"):
        found.spectrum("other", 0)


def tables_of(found: Subspaces) -> list[pa.Table]:
    return [found.to_table(name) for name in SUBSPACE_TABLES]


def assert_finite(found: Subspaces) -> None:
    for name in SUBSPACE_TABLES:
        for row in found.to_table(name).to_pylist():
            assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))


def test_the_tables_have_all_results():
    dictionaries, groups = miniature(True, 3)
    found = fit(dictionaries, groups, nulls=["haar", "subset"], draws=3)
    tables = {name: found.to_table(name) for name in SUBSPACE_TABLES}
    assert tables["spectra"].num_rows == 6
    assert tables["singular_values"].num_rows == 6 * 32
    assert tables["pairs"].num_rows == 6
    pair = found.pair("unstable", 1, 2)
    curves = tables["curves"].to_pylist()
    mine = [row for row in curves if (row["group"], row["a"], row["b"]) == ("unstable", 1, 2)]
    assert [row["overlap"] for row in mine] == pair.overlap_curve.tolist()
    assert [row["subset_high"] for row in mine] == pair.bands["subset"].high.tolist()
    assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
    assert [row["haar_mean"] for row in mine] == pytest.approx([r / 32 for r in range(1, 7)])
    share = sum(
        row["share"]
        for row in tables["singular_values"].to_pylist()
        if (row["group"], row["seed"]) == ("stable", 0)
    )
    assert share == pytest.approx(1)
    assert len([row for row in tables["angles"].to_pylist() if row["group"] == "unstable"]) == (
        3 * pair.rank
    )
    nulls = tables["nulls"].to_pylist()
    assert {row["statistic"] for row in nulls if row["b"] is None} == {
        "effective_rank",
        "participation_ratio",
        "energy_rank",
    }
    assert found.to_table() == tables["pairs"]
    with pytest.raises(ValueError, match="name must be one of spectra"):
        found.to_table("subspaces")


def test_the_same_bits_on_any_number_of_threads(torch_threads):
    dictionaries, groups = miniature(False, 5)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        subspaces = fit(
            dictionaries, groups, nulls=saefast.subspace.nulls.NULLS, draws=4,
            initial=dictionaries, covariance=dictionaries[0].T @ dictionaries[0],
        )  # fmt: skip
        found.append(tables_of(subspaces))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_the_encoder_side_and_both_methods_agree(method):
    encoder = [normal((30, 6), s, torch.float32) for s in range(2)]
    decoder = [normal((30, 6), 7 + s, torch.float32) for s in range(2)]
    both = [Dictionary(d, e) for d, e in zip(decoder, encoder, strict=True)]
    found = fit(both, groups_of(30), side="encoder", method=method).pairs[0]
    expected = fit(encoder, method="gram").pairs[0]
    torch.testing.assert_close(found.overlap_curve, expected.overlap_curve, rtol=0, atol=1e-9)


TWO = [torch.ones(4, 3), torch.eye(4)[:, :3]]
ALL = [{"all": torch.ones(4).bool()}] * 2
WIDE = Scores([torch.ones(5)] * 2, [torch.ones(4).bool()] * 2)
SCORED = Scores([torch.ones(4)] * 2, [torch.ones(4).bool()] * 2)
FEW = Scores([torch.ones(4)], [torch.ones(4).bool()] * 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stability": WIDE}, ValueError, r"stability.score\[0\] must have size 4"),
        ({"stability": FEW}, ValueError, "stability.score must hold a tensor for each"),
        ({"dictionaries": TWO[:1]}, ValueError, "dictionaries must hold at least 2"),
        ({"dictionaries": [TWO[0], torch.ones(4, 2)]}, ValueError, r"dictionaries\[1\].*the first"),
        ({"groups": None}, ValueError, "stability or groups must be given"),
        ({"groups": [{}, {}]}, ValueError, "stability or groups must be given"),
        ({"groups": ALL[:1]}, ValueError, "groups must hold a dict .* for each of the 2 SAEs"),
        ({"groups": {"x": [torch.ones(4).bool()] * 2}}, ValueError, "groups must hold a dict"),
        ({"groups": [torch.ones(4).bool()] * 2}, TypeError, r"groups\[0\] must be a dict"),
        ({"groups": [{"x": torch.ones(4)}] * 2}, TypeError, r"groups\[0\]\['x'\] must be a bool"),
        ({"groups": [{"x": torch.ones(5).bool()}] * 2}, ValueError, r"groups\[0\]\['x'\] mu"),
        ({"groups": [ALL[0], {}]}, ValueError, r"groups\[1\] must have the names of groups\[0\]"),
        ({"stability": SCORED, "stable": 0.2}, ValueError, "stable must be a share above unstable"),
        ({"side": "both"}, ValueError, "side must be one of decoder, encoder"),
        ({"side": "encoder"}, ValueError, r"dictionaries\[0\] has no W_enc"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": 2.0}, TypeError, "rank must be an int"),
        ({"energy": 1.5}, ValueError, "energy must be at least 0 and below 1"),
        ({"nulls": "haar"}, TypeError, "nulls must be a sequence of names"),
        ({"nulls": ["other"]}, ValueError, "nulls must be one of haar, random"),
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"band": 1.0}, ValueError, "band must be at least 0 and below 1"),
        ({"method": "qr"}, ValueError, "method must be one of gram, svd"),
        ({"covariance": torch.eye(4)}, ValueError, r"covariance must have shape \(3, 3\)"),
        ({"covariance": torch.ones(3, 3).triu()}, ValueError, "covariance must be symmetric"),
        ({"covariance": torch.zeros(3, 3)}, ValueError, "covariance must have a positive trace"),
        ({"initial": TWO[:1]}, ValueError, "initial must have one dictionary for each of the 2"),
        ({"initial": [torch.ones(5, 3)] * 2}, ValueError, r"initial\[0\] must have shape \(4, 3\)"),
    ],
)  # fmt: skip
def test_errors_name_bad_input(options, error, words):
    arguments = {"dictionaries": TWO, "groups": ALL, "progress": False} | options
    with pytest.raises(error, match=words):
        saefast.fit_subspaces(**arguments)
