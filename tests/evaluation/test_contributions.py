"""contribution_r2: planted features whose contributions are known."""

import math
from typing import Any

import pytest
import torch
from helpers.strategies import generator, normal
from torch import Tensor

import saefast
from saefast import SAE

D, M = 12, 24


def sae_of(decoder: Tensor, k: int = 4, seed: int = 0) -> SAE:
    """Return a TopK SAE with these decoder rows, tied to its encoder."""
    sae = SAE(decoder.shape[1], len(decoder), k=k, seed=seed)
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(decoder)
        sae.b_dec.copy_(0.1 * normal((decoder.shape[1],), 7, torch.float32))
    return sae


def unit_rows(m: int, d: int, seed: int) -> Tensor:
    rows = normal((m, d), seed, torch.float32)
    return rows / rows.norm(dim=1, keepdim=True)


def contributions(sae: SAE, x: Tensor, mask: Tensor) -> Tensor:
    """Return contributions [n, d] float64 from the definition."""
    code = sae.encode(x).to_dense(sae.m).detach().double()
    return (code * mask) @ sae.W_dec.detach().double()


def measure(saes, x, groups, **options: Any) -> saefast.Contributions:
    options = {"draws": 0, "progress": False} | options
    return saefast.contribution_r2(saes, x, groups=groups, **options)


@pytest.fixture
def x() -> Tensor:
    return normal((1000, D), 3, torch.float32)


def test_contributions_match_dense_codes(x):
    saes = [sae_of(unit_rows(M, D, s)) for s in range(3)]
    masks = [torch.rand(M, generator=generator(s)) < 0.4 for s in range(3)]
    found = measure(saes, x, [{"some": mask} for mask in masks], batch_size=300)
    assert found.rows == 1000
    assert [(pair.a, pair.b) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    for pair in found.pairs:
        a, b = (contributions(saes[s], x, masks[s]) for s in (pair.a, pair.b))
        apart = (a - b).square().sum()
        centred = [each - each.mean(0) for each in (a, b)]
        variance = [each.square().sum() for each in centred]
        assert pair.r2_ab == pytest.approx(float(1 - apart / variance[0]), abs=1e-6)
        assert pair.r2_ba == pytest.approx(float(1 - apart / variance[1]), abs=1e-6)
        together = (centred[0] * centred[1]).sum()
        assert pair.r2 == pytest.approx(float(together**2 / variance[0] / variance[1]), abs=1e-6)
        both = (a.abs().sum(1) > 0) & (b.abs().sum(1) > 0)
        cosine = torch.nn.functional.cosine_similarity(a[both], b[both]).square()
        assert 0.5 < pair.both == float(both.double().mean())
        assert pair.token_r2 == pytest.approx(float(cosine.mean()), abs=1e-6)
        assert int(pair.histogram.sum()) == int(both.sum())
        middle = (torch.arange(20) + 0.5) / 20
        assert float((pair.histogram * middle).sum() / both.sum()) == pytest.approx(
            pair.token_r2, abs=0.025
        )


def test_a_permuted_copy_contributes_the_same(x):
    first = sae_of(unit_rows(M, D, 0))
    order = torch.randperm(M, generator=generator(0))
    second = sae_of(first.W_dec.detach()[order])
    mask = torch.arange(M) < 10
    pair = measure([first, second], x, [{"g": mask}, {"g": mask[order]}]).pairs[0]
    assert pair.r2_ab == pytest.approx(1, abs=1e-9)
    assert pair.r2_ba == pytest.approx(1, abs=1e-9)
    assert pair.r2 == pytest.approx(1, abs=1e-9)
    assert pair.token_r2 == pytest.approx(1, abs=1e-9)
    assert pair.histogram[:-1].sum() == 0


def test_a_scaled_copy_is_explained_up_to_the_scale(x):
    """Equal codes, half the decoder rows: 1 - 1/4 var / var, and 1 - 1/4 var / (1/4 var)."""
    first, second = (sae_of(unit_rows(M, D, 0)) for _ in range(2))
    with torch.no_grad():
        second.W_dec.mul_(0.5)
    groups = [{"all": torch.ones(M).bool()}] * 2
    pair = measure([first, second], x, groups).pairs[0]
    assert pair.r2 == pytest.approx(1)
    assert pair.token_r2 == pytest.approx(1)
    assert pair.r2_ab < 1
    assert pair.r2_ba < pair.r2_ab


def miniature() -> tuple[list[SAE], list[dict[str, Tensor]], Tensor]:
    """Make two seeds with a shared block in one half of the space and their own in the other."""
    d, m = 16, 8
    x = normal((3000, d), 0, torch.float32)
    stable = torch.eye(d)[:8]
    saes = []
    for s in range(2):
        basis = torch.zeros(16, d)
        basis[:, 8:] = unit_rows(16, 8, 50 + s)
        saes.append(sae_of(torch.cat([stable, basis]), k=12))
    unstable = torch.arange(24) >= m
    return saes, [{"stable": ~unstable, "unstable": unstable}] * 2, x


def test_other_features_of_the_same_subspace_contribute_much_of_the_same():
    saes, groups, x = miniature()
    found = measure(saes, x, groups, draws=30)
    stable, unstable = found.pairs
    assert stable.r2 > 0.95
    assert 0.4 < unstable.r2 < stable.r2
    tests = {test.statistic: test for test in unstable.tests}
    assert set(tests) == {"r2_ab", "r2_ba", "r2", "token_r2"}
    assert tests["r2"].p == pytest.approx(1 / 31)
    assert tests["r2"].high < unstable.r2
    rows = found.to_table().to_pylist()
    assert rows[1]["r2"] == unstable.r2
    assert rows[1]["r2_p"] == tests["r2"].p
    assert rows[1]["r2_null"] == tests["r2"].mean


def test_random_groups_agree_with_their_null():
    saes, _, x = miniature()
    inside, ps = 0, []
    for seed in range(20):
        masks = [torch.randperm(24, generator=generator(5 * seed + s)) < 8 for s in range(2)]
        groups = [{"g": mask} for mask in masks]
        pair = measure(saes, x[:300], groups, draws=19, seed=seed).pairs[0]
        (test,) = (test for test in pair.tests if test.statistic == "r2")
        ps.append(test.p)
        inside += test.low <= test.value <= test.high
    assert abs(sum(ps) / 20 - 0.525) < 4 * math.sqrt(1 / 12 / 20)
    assert inside >= 14


def test_random_groups_can_have_equal_mass():
    """A few features contribute most: as many others contribute less, equal mass as much."""
    saes, _, x = miniature()
    mass = [each.mass for each in saefast.feature_statistics(saes, x, progress=False)]
    groups = [{"busiest": its >= its.sort().values[-3]} for its in mass]
    by_number, by_mass = (
        measure(saes, x, groups, draws=10, mass=given).pairs[0] for given in (None, mass)
    )
    assert by_number.r2 == by_mass.r2
    kinds = [{test.null for test in pair.tests} for pair in (by_number, by_mass)]
    assert kinds == [{"subset"}, {"mass"}]
    tests = [
        next(test for test in pair.tests if test.statistic == "r2") for pair in (by_number, by_mass)
    ]
    assert tests[0].mean < tests[1].mean
    again = measure(saes, x, groups, draws=10, mass=mass).pairs[0]
    assert again.tests == by_mass.tests


def test_only_groups_with_a_contribution_are_compared(x):
    saes = [sae_of(unit_rows(M, D, s)) for s in range(2)]
    none = torch.zeros(M).bool()
    found = measure(saes, x, [{"none": none}, {"none": ~none}], draws=2)
    assert not found.pairs
    assert found.skipped == ("group 'none' in sae 0: its contribution is constant",)


def test_all_rows_are_counted(x):
    saes = [sae_of(unit_rows(M, D, s)) for s in range(2)]
    groups = [{"all": torch.ones(M).bool()}] * 2
    assert measure(saes, x, groups, rows=700, batch_size=300).rows == 700
    assert measure(saes, x, groups, rows=5000, batch_size=300).rows == 1000
    whole = measure(saes, x, groups, batch_size=1000).pairs[0]
    parts = measure(saes, x, groups, batch_size=77).pairs[0]
    assert parts.r2 == pytest.approx(whole.r2, rel=1e-12)
    batches = (x[i : i + 100] for i in range(0, 1000, 100))
    with pytest.raises(ValueError, match="rows must be given"):
        measure(saes, batches, groups)
    assert measure(saes, batches, groups, rows=500).rows == 500


def test_the_same_bits_on_any_number_of_threads(torch_threads, x):
    saes = [sae_of(unit_rows(M, D, s)) for s in range(3)]
    groups = [{"some": torch.arange(M) < 9}] * 3
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(measure(saes, x, groups, draws=3).to_table())
        assert torch.get_num_threads() == threads
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"saes": [torch.ones(4, 3)] * 2}, TypeError, r"saes\[0\] must be a saefast.SAE"),
        ({"saes": [SAE(3, 4, k=2)]}, ValueError, "saes must hold at least 2"),
        (
            {"saes": [SAE(3, 4, k=2), SAE(5, 4, k=2)]},
            ValueError,
            r"saes\[1\] must have the width of the activations",
        ),
        ({"activations": torch.ones(9, 5)}, ValueError, "d=5, got d=3"),
        ({"groups": None}, ValueError, "stability or groups must be given"),
        ({"draws": -1}, ValueError, "draws must be at least 0"),
        ({"mass": [torch.ones(4)]}, ValueError, "mass must be given for each of saes, 2, got 1"),
        ({"mass": [torch.ones(3)] * 2}, ValueError, r"mass\[0\]"),
        ({"rows": 1}, ValueError, "rows must be at least 2"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_errors_name_bad_input(options, error, words):
    arguments = {
        "saes": [SAE(3, 4, k=2) for _ in range(2)],
        "activations": torch.ones(9, 3),
        "groups": [{"all": torch.ones(4).bool()}] * 2,
        "progress": False,
    }
    with pytest.raises(error, match=words):
        saefast.contribution_r2(**arguments | options)
