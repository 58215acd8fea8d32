"""activation_matches against dense correlations of whole codes."""

import numpy as np
import pytest
import torch
from helpers.strategies import generator, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import SAE, activation_matches, score_stability
from saefast.match import by_activations as activation_match
from saefast.match.all_pairs import match_all
from saefast.synthetic import PlantedWorld


@pytest.fixture(autouse=True)
def one_thread(torch_threads):
    """More threads would only wait for each other at these sizes."""
    torch.set_num_threads(1)


def match(saes, x, **options):
    return activation_matches(saes, x, progress=False, **options)


def correlations(a: SAE, b: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlations [m, m2], and the number of firings of each feature."""
    with torch.no_grad():
        codes = [sae.encode(x).to_dense(sae.m).double().abs() for sae in (a, b)]
    fires = [(code > 0).sum(0) for code in codes]
    centred = [code - code.mean(0) for code in codes]
    lengths = [code.norm(dim=0) for code in centred]
    product = (centred[0].T @ centred[1]) / (lengths[0][:, None] * lengths[1]).clamp(min=1e-300)
    return product, fires[0], fires[1]


@settings(max_examples=20)
@given(
    st.lists(st.integers(3, 30), min_size=2, max_size=3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["topk", "abstopk", "relu"]),
    seeds,
)
def test_partners_match_dense_correlations(sizes, k, least_fires, variant, seed):
    x = normal((60, 5), seed, torch.float32)
    saes = [SAE(5, m, k=k, variant=variant, seed=seed + i) for i, m in enumerate(sizes)]
    found = match(saes, x, least_fires=least_fires)
    assert found.rows == 60
    for (s, t), one in found.matches.items():
        matrix, fires, fires_there = correlations(saes[s], saes[t], x)
        matrix[fires < least_fires] = 0
        matrix[:, fires_there < least_fires] = 0
        best = matrix.max(1).values
        some = best > 1e-9
        chosen = matrix.gather(1, one.partner.clamp(min=0)[:, None])[:, 0]
        torch.testing.assert_close(chosen[some], best[some], rtol=0, atol=1e-9)
        torch.testing.assert_close(one.similarity[some].double(), best[some], rtol=0, atol=1e-6)
        assert (one.partner[some] >= 0).all()
        lacking = one.partner < 0
        assert (best[lacking] <= 1e-9).all()
        assert (one.similarity[lacking] == 0).all()
        back = found.matches[t, s].partner
        returned = (back[one.partner] == torch.arange(len(back[one.partner]))) & ~lacking
        assert torch.equal(one.mutual, returned)
        torch.testing.assert_close(found.firing_rate[s], (fires / 60).float())
        assert not found.alive[s][fires < least_fires].any()
    assert set(found.matches) == {
        (s, t) for s in range(len(saes)) for t in range(len(saes)) if s != t
    }


def shuffled(sae: SAE, seed: int) -> tuple[SAE, Tensor]:
    """Return the same features in another order."""
    order = torch.randperm(sae.m, generator=generator(seed))
    copy = SAE(sae.d, sae.m, k=sae.k, seed=0)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec"):
            getattr(copy, name).copy_(getattr(sae, name)[order])
    return copy, order


def test_permuted_copies_are_perfectly_stable():
    x = PlantedWorld.create(40, 16, active=3).sample(2000, 0)
    sae = SAE(16, 40, k=4, seed=3)
    copies = [shuffled(sae, seed) for seed in range(3)]
    saes = [copy for copy, _ in copies]
    found = match(saes, x)
    stability = score_stability(
        saes, matches=found.matches, alive=found.alive, threshold=0.99, progress=False
    )
    for s, (_, order) in enumerate(copies):
        alive = found.alive[s]
        assert alive.sum() > 20
        assert (stability.score[s][alive] == 1).all()
        there = copies[(s + 1) % 3][1]
        partner = found.matches[s, (s + 1) % 3].partner[alive]
        assert torch.equal(there[partner], order[alive])
        torch.testing.assert_close(
            stability.soft[s][alive], torch.ones(int(alive.sum())).double(), rtol=0, atol=1e-6
        )


def test_activations_match_where_weights_differ():
    """The same activations from other weights: rows differ in directions without data."""
    data = torch.cat([normal((3000, 8), 0, torch.float32), torch.zeros(3000, 8)], 1)
    a = SAE(16, 24, k=3, seed=1)
    b = SAE(16, 24, k=3, seed=1)
    with torch.no_grad():
        b.W_enc[:, 8:] = normal((24, 8), 9, torch.float32)
        b.W_dec[:, 8:] = 5 * normal((24, 8), 10, torch.float32)
    found = match([a, b], data)
    alive = found.alive[0]
    assert torch.equal(found.matches[0, 1].partner[alive], torch.arange(24)[alive])
    assert (found.matches[0, 1].similarity[alive] > 0.999).all()
    assert (match_all([a, b], progress=False)[0, 1].similarity < 0.9).all()


def test_same_bits_for_any_size_of_blocks(monkeypatch):
    x = normal((300, 6), 0, torch.float32)
    saes = [SAE(6, m, k=3, seed=m) for m in (30, 50)]
    whole = match(saes, x)
    for cells, pairs in ((1, 1), (200, 7), (1 << 20, 50)):
        monkeypatch.setattr(activation_match, "_CELLS", cells)
        monkeypatch.setattr(activation_match, "_PAIRS", pairs)
        again = match(saes, x)
        for key, one in whole.matches.items():
            assert torch.equal(one.partner, again.matches[key].partner)
            assert torch.equal(one.similarity, again.matches[key].similarity)
            assert torch.equal(one.mutual, again.matches[key].mutual)


def test_only_the_given_number_of_rows_is_read(tmp_path):
    x = normal((500, 6), 0, torch.float32)
    saes = [SAE(6, 12, k=2, seed=seed) for seed in (0, 1)]
    some = match(saes, x, rows=130)
    assert some.rows == 130
    np.save(tmp_path / "x.npy", x.numpy())
    stored = match(saes, tmp_path / "x.npy", rows=10**9)
    assert stored.rows == 500
    everything = match(saes, x)
    other = match(saes, x, rows=130, seed=1)
    assert not torch.equal(other.firing_rate[0], some.firing_rate[0])
    for key, one in everything.matches.items():
        torch.testing.assert_close(one.similarity, stored.matches[key].similarity)


@pytest.mark.parametrize(
    ("saes", "options", "error", "message"),
    [
        ([SAE(4, 8, k=2)], {}, ValueError, "saes must hold at least 2"),
        ([SAE(4, 8, k=2), torch.eye(4)], {}, TypeError, r"saes\[1\] must be a saefast.SAE"),
        (
            [SAE(4, 8, k=2), SAE(5, 8, k=2)],
            {},
            ValueError,
            r"saes\[1\] must have the width of the activations",
        ),
        ([SAE(4, 8, k=2)] * 2, {"rows": 0}, ValueError, "rows must be at least 1"),
        ([SAE(4, 8, k=2)] * 2, {"least_fires": 1.5}, TypeError, "least_fires must be an int"),
    ],
)
def test_bad_input_raises(saes, options, error, message):
    with pytest.raises(error, match=message):
        match(saes, torch.ones(3, 4), **options)
