"""Principal angles and overlaps: planted, against projectors, and of random subspaces."""

import math

import pytest
import torch
from helpers.strategies import dtypes, generator, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from torch import Tensor

import saefast
from saefast.subspace.angles import excess, haar_capture, haar_overlap, overlaps, shared_dimensions
from saefast.subspace.spectra import Decomposition, decompose
from saefast.unit_rows import UnitRows

ANGLES = [0.0, 1e-10, 1e-5, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-10, math.pi / 2]


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal((d, d), seed, torch.float64)).Q


def planted(angles: list[float], d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make two rotated subspaces with these principal angles."""
    k = len(angles)
    first = torch.zeros(k, d, dtype=torch.float64)
    second = torch.zeros(k, d, dtype=torch.float64)
    for i, angle in enumerate(angles):
        first[i, i] = 1
        second[i, i], second[i, k + i] = math.cos(angle), math.sin(angle)
    turn = rotation(d, seed)
    return first @ turn, second @ turn


def mixed(rows: Tensor, more: int, seed: int) -> Tensor:
    """Return more, other rows of the same span."""
    k = len(rows)
    turn = rotation(k, seed)
    lengths = 1 + torch.rand(k, generator=generator(seed), dtype=torch.float64)
    repeated = turn[torch.arange(k + more) % k]
    return repeated * lengths[torch.arange(k + more) % k, None] @ rows


@pytest.mark.parametrize("seed", range(3))
def test_planted_angles_are_found_from_0_to_90_degrees(seed):
    a, b = planted(ANGLES, 20, seed)
    found = saefast.principal_angles(mixed(a, 5, seed + 1), mixed(b, 3, seed + 2))
    torch.testing.assert_close(found, torch.tensor(ANGLES, dtype=torch.float64), rtol=0, atol=5e-15)


def test_small_angles_are_precise():
    a, b = planted([1e-10], 2, 0)
    found = float(saefast.principal_angles(a, b))
    assert found == pytest.approx(1e-10, rel=1e-5)  # an arccos would give 0 or 1.5e-8


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), seeds)
def test_angles_equal_scipys(m, m2, d, seed):
    a, b = normal((m, d), seed, torch.float64), normal((m2, d), seed + 1, torch.float64)
    found = saefast.principal_angles(a, b)
    # scipy needs independent columns.
    expected = subspace_angles(a[:d].T.numpy(), b[:d].T.numpy())
    assert found.shape == (min(m, m2, d),)
    torch.testing.assert_close(
        found, torch.tensor(expected).flip(0)[: len(found)], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(found, saefast.principal_angles(b, a), rtol=0, atol=1e-9)
    turn = rotation(d, seed)
    torch.testing.assert_close(
        found, saefast.principal_angles(a @ turn, b @ turn), rtol=0, atol=1e-7
    )


@given(dtypes, seeds)
def test_contained_and_orthogonal_subspaces(dtype, seed):
    turn = torch.eye(8)[torch.randperm(8, generator=generator(seed))].to(dtype)
    small, large, other = turn[:2], turn[:5], turn[5:]
    right = torch.full((2,), math.pi / 2, dtype=torch.float64)
    assert saefast.principal_angles(small, large).max() <= 1e-15
    torch.testing.assert_close(saefast.principal_angles(small, other), right, rtol=1e-15, atol=0)


def test_zero_and_dependent_rows_do_not_change_the_span():
    rows = torch.eye(4)[:2]
    more = torch.cat([rows, torch.zeros(2, 4), rows[:1] + rows[1:], -3 * rows])
    assert saefast.principal_angles(more, torch.eye(4)[1:]).shape == (2,)
    assert saefast.principal_angles(torch.zeros(3, 4), rows).shape == (0,)
    assert saefast.principal_angles(torch.zeros(0, 4), rows).shape == (0,)


def random_decomposition(m: int, d: int, seed: int) -> Decomposition:
    rows = normal((m, d), seed, torch.float64) * torch.logspace(0, -1, d, dtype=torch.float64)
    return decompose([UnitRows.of_rows(rows, torch.arange(m))])[0]


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), seeds)
def test_overlaps_match_projectors(m, m2, d, seed):
    a, b = random_decomposition(m, d, seed), random_decomposition(m2, d, seed + 1)
    found = overlaps(a, b)
    assert all(len(curve) == min(m, m2, d) for curve in found)
    grams = [each.vectors * each.shares[: each.rank] @ each.vectors.T for each in (a, b)]
    for r in range(1, min(m, m2, d) + 1):
        projectors = [each.vectors[:, :r] @ each.vectors[:, :r].T for each in (a, b)]
        assert float(found.overlap[r - 1]) == pytest.approx(
            float((projectors[0] * projectors[1]).sum()) / r, abs=1e-9
        )
        capture_ab, capture_ba = (grams[0] * projectors[1]).sum(), (grams[1] * projectors[0]).sum()
        assert float(found.capture_ab[r - 1]) == pytest.approx(float(capture_ab), abs=1e-9)
        assert float(found.capture_ba[r - 1]) == pytest.approx(float(capture_ba), abs=1e-9)
    for curve in found:
        assert ((curve >= 0) & (curve <= 1)).all()


def test_overlap_is_the_mean_squared_cosine_of_the_angles():
    angles = [0.1, 0.4, 1.0, 1.5]
    a, b = (
        decompose([UnitRows.of_rows(each, torch.arange(4))], "svd")[0]
        for each in planted(angles, 9, 0)
    )
    found = overlaps(a, b)
    expected = sum(math.cos(angle) ** 2 for angle in angles) / 4
    assert float(found.overlap[-1]) == pytest.approx(expected, abs=1e-14)
    assert float(found.capture_ab[-1]) == pytest.approx(expected, abs=1e-14)


def haar(r: int, d: int, draws: int, seed: int) -> Tensor:
    """Draw orthonormal bases [draws, d, r]."""
    return torch.linalg.qr(normal((draws, d, r), seed, torch.float64)).Q


def assert_moments(values: Tensor, mean: float, sd: float) -> None:
    """Assert both within four standard errors."""
    assert abs(float(values.mean()) - mean) < 4 * sd / math.sqrt(len(values))
    error_of_variance = float((values - values.mean()).square().std()) / math.sqrt(len(values))
    assert abs(float(values.var()) - sd**2) < 4 * error_of_variance


@pytest.mark.parametrize(("r", "d"), [(1, 2), (1, 12), (3, 12), (9, 12), (11, 12)])
def test_the_formula_of_chance_overlap_holds_for_random_subspaces(r, d):
    a, b = haar(r, d, 4000, 0), haar(r, d, 4000, 1)
    overlap = (a.transpose(1, 2) @ b).square().sum((1, 2)) / r
    assert_moments(overlap, *haar_overlap(r, d))


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.3, 0.2], [0.3] + [0.1] * 7])
@pytest.mark.parametrize("r", [1, 4, 11])
def test_the_formula_of_chance_capture_holds_for_random_subspaces(shares, r):
    spectrum = torch.tensor(shares + [0.0] * (12 - len(shares)), dtype=torch.float64)
    captured = (haar(r, 12, 4000, 2).square().sum(2) * spectrum).sum(1)
    assert_moments(captured, *haar_capture(spectrum, r, 12))


def test_the_whole_space_has_overlap_one_by_chance():
    assert haar_overlap(5, 5) == (1, 0)
    assert haar_overlap(1, 1) == (1, 0)
    assert haar_capture(torch.tensor([0.6, 0.4]), 2, 2) == (1, 0)


def test_excess_is_0_at_chance_and_at_most_1():
    chance = torch.arange(1, 6, dtype=torch.float64) / 5
    torch.testing.assert_close(excess(chance, 5), torch.zeros(5).double(), rtol=0, atol=1e-15)
    assert excess(torch.ones(5).double(), 5).tolist() == [1, 1, 1, 1, 0]
    half = excess(torch.tensor([0.6], dtype=torch.float64), 5)
    assert float(half) == pytest.approx(0.5)


def test_the_shared_rank_is_found_by_excess_over_chance():
    """Three common dimensions of eight, then directions that overlap only by chance."""
    overlap = torch.tensor([0.2, 0.6, 1.0, 0.8, 0.7, 0.75, 0.9, 1.0], dtype=torch.float64)
    assert shared_dimensions(overlap, 8) == (3, pytest.approx(3))
    assert shared_dimensions(overlap[:2], 8) == (2, pytest.approx(2 * (0.6 - 0.25) / 0.75))
    assert shared_dimensions(torch.ones(8).double(), 8) == (7, pytest.approx(7))
    assert shared_dimensions(torch.ones(1).double(), 1) == (1, 0)


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        ([[1.0]], torch.ones(1, 1), TypeError, "a must be a torch.Tensor"),
        (torch.ones(2, 3), torch.ones(2, 4), ValueError, "b must have size 3"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), ValueError, "b must be finite"),
        (torch.ones(3), torch.ones(2, 3), ValueError, "a must have shape"),
    ],
)
def test_errors_name_bad_input(a, b, error, words):
    with pytest.raises(error, match=words):
        saefast.principal_angles(a, b)
