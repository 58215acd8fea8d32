"""Matching on a GPU: the same as on the CPU. Skipped where there is none."""

import pytest
import torch
from strategies import normal

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


@pytest.mark.parametrize("backend", ["faiss", "cagra"])
def test_faiss_on_gpus(backend):
    if not faiss_gpus():
        pytest.skip("needs faiss-gpu and a GPU")
    a, b = normal((3000, 96), 0, torch.float32), normal((25_000, 96), 1, torch.float32)
    actual = saefast.match_features(a, b, backend=backend)
    expected = saefast.match_features(a, b, backend="saefast")
    if Faiss(backend, False).exact:
        assert torch.equal(actual.partner, expected.partner)
    assert (actual.partner == expected.partner).double().mean() > 0.8
