"""Matching on a GPU gives the same as on the CPU; skipped without a GPU."""

from contextlib import nullcontext

import pytest
import torch
from helpers.strategies import normal

import saefast
from saefast.match.engines import Faiss

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def faiss_gpus() -> int:
    faiss = pytest.importorskip("faiss")
    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"absolute": True}, {"one_to_one": True}], ids=str)
def test_tensors_on_a_gpu_give_the_same_pairs(options):
    a, b = normal((3000, 96), 0, torch.float32), normal((2500, 96), 1, torch.float32)
    expected = saefast.match_features(a, b, **options)
    actual = saefast.match_features(a.cuda(), b.cuda(), **options)
    assert torch.equal(actual.partner.cpu(), expected.partner)
    torch.testing.assert_close(actual.similarity.cpu(), expected.similarity)


@needs_gpu
def test_saes_on_a_gpu_are_matched_and_compared_by_activations():
    saes = [saefast.SAE(8, 24, k=3, seed=seed) for seed in (0, 1)]
    x = normal((2000, 8), 2, torch.float32)
    groups = [{"half": torch.arange(24) < 12}] * 2
    found = []
    for device in ("cpu", "cuda"):
        there = [sae.to(device) for sae in saes]
        matches = saefast.activation_matches(there, x, progress=False)
        added = saefast.contribution_r2(there, x, groups=groups, draws=2, progress=False)
        found.append((matches.matches[0, 1].similarity, torch.tensor(added.pairs[0].r2)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["faiss", "cagra"])
def test_faiss_gives_the_same_on_gpus(backend):
    if not faiss_gpus():
        pytest.skip("needs faiss-gpu and a GPU")
    a, b = normal((3000, 96), 0, torch.float32), normal((25_000, 96), 1, torch.float32)
    exact = Faiss(backend, False).exact
    with nullcontext() if exact else pytest.warns(UserWarning, match="is approximate"):
        actual = saefast.match_features(a, b, backend=backend)
    expected = saefast.match_features(a, b, backend="saefast")
    if exact:
        assert torch.equal(actual.partner, expected.partner)
    assert (actual.partner == expected.partner).double().mean() > 0.8
