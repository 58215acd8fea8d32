"""Decompositions of directions: planted spectra, invariances and equal bits."""

import math

import pytest
import torch
from helpers.strategies import generator, normal, seeds, uneven
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import linalg
from saefast.linalg import side_by_side
from saefast.subspace import spectra
from saefast.subspace.spectra import Decomposition, decompose, gram
from saefast.unit_rows import UnitRows, normalised


def all_of(rows: Tensor) -> UnitRows:
    return UnitRows.of_rows(rows, torch.arange(len(rows)))


def decomposed(rows: Tensor, method: str = "gram") -> Decomposition:
    return decompose([all_of(rows)], method)[0]


def axes(counts: list[int], d: int) -> Tensor:
    """Repeat each axis: the counts are the eigenvalues."""
    rows = torch.eye(d).repeat_interleave(torch.tensor(counts + [0] * (d - len(counts))), 0)
    return rows[torch.randperm(len(rows), generator=generator(0))]


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


@pytest.mark.parametrize("method", spectra.METHODS)
def test_a_planted_spectrum_and_its_ranks_are_found(method):
    found = decomposed(axes([60, 30, 10], 7), method)
    assert found.size == 100
    assert found.rank == 3
    expected = torch.tensor([60, 30, 10, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-13, atol=0)
    entropy = -sum(share * math.log(share) for share in (0.6, 0.3, 0.1))
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-12)
    assert found.participation_ratio == pytest.approx(1 / 0.46, rel=1e-12)
    ranks = [found.energy_rank(energy) for energy in (0.1, 0.6, 0.61, 0.9, 0.91, 0.999)]
    assert ranks == [1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(found.vectors.abs(), torch.eye(7).double()[:, :3])


@pytest.mark.parametrize("method", spectra.METHODS)
def test_equal_eigenvalues_have_the_ranks_of_their_number(method):
    """Nine of ten hold 90 %, although .1 has no exact float."""
    rotation = torch.linalg.qr(normal((16, 16), 0, torch.float64)).Q
    found = decomposed(axes([5] * 10, 16).double() @ rotation, method)
    assert found.energy_rank(0.9) == 9
    assert found.effective_rank == pytest.approx(10, rel=1e-12)
    assert found.participation_ratio == pytest.approx(10, rel=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 700), st.integers(1, 40), seeds)
def test_the_gram_matrix_is_of_unit_rows(m, d, seed):
    rows = normal((m, d), seed, torch.float32)
    expected = (rows.double() / rows.double().norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(
        gram(all_of(rows)), expected @ expected.T, rtol=1e-12, atol=1e-13 * m
    )


@pytest.mark.parametrize(("tile", "block"), [(1, 1), (7, 1), (512, 20000), (17, 8 * 30 * 600)])
def test_blocks_and_tiles_cover_everything(tile, block, monkeypatch):
    rows = normal((700, 30), 1, torch.float32)
    expected = gram(all_of(rows))
    monkeypatch.setattr(linalg, "_TILE", tile)
    monkeypatch.setattr(spectra, "_BLOCK_BYTES", block)
    torch.testing.assert_close(gram(all_of(rows)), expected, rtol=1e-12, atol=1e-12)
    svd = decomposed(rows, "svd").eigenvalues
    torch.testing.assert_close(svd, decomposed(rows).eigenvalues, rtol=1e-11, atol=0)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 24), seeds)
def test_both_methods_find_the_same_subspaces(m, d, seed):
    rows = normal((m, d), seed, torch.float64)
    by_gram, by_svd = decomposed(rows), decomposed(rows, "svd")
    assert by_gram.rank == by_svd.rank == min(m, d)
    torch.testing.assert_close(by_gram.eigenvalues, by_svd.eigenvalues, rtol=1e-8, atol=1e-10)
    for found in (by_gram, by_svd):
        assert found.vectors.shape == (d, found.rank)
        torch.testing.assert_close(
            found.vectors.T @ found.vectors, torch.eye(found.rank).double(), rtol=0, atol=1e-12
        )
        # The rows are in the span of all directions.
        torch.testing.assert_close(
            normalised(rows) @ projector(found.vectors), normalised(rows), rtol=0, atol=1e-7
        )
        assert float(found.eigenvalues.sum()) == pytest.approx(m, rel=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 60), st.integers(1, 20), seeds, st.sampled_from(spectra.METHODS))
def test_lengths_signs_and_order_of_rows_do_not_matter(m, d, seed, method):
    rows = normal((m, d), seed, torch.float64)
    lengths = uneven((m, 1), seed + 1, torch.float64)
    lengths = torch.where(lengths == 0, -1.0, lengths)
    order = torch.randperm(m, generator=generator(seed))
    plain, other = decomposed(rows, method), decomposed((rows * lengths)[order], method)
    torch.testing.assert_close(other.eigenvalues, plain.eigenvalues, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        projector(other.vectors), projector(plain.vectors), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_whose_squares_overflow_or_underflow(dtype):
    rows = normal((40, 6), 0, dtype)
    reach = 2.0 ** (900 if dtype == torch.float64 else 100)
    small, large = rows / reach, rows * reach
    expected = decomposed(rows).eigenvalues
    for scaled in (small, large):
        assert_same_bits(decomposed(scaled).eigenvalues, expected)


def test_weak_directions_are_found_by_svd_only():
    weak = 1e-10
    rows = torch.tensor([[1, weak, 0], [1, -weak, 0], [-1, weak, 0]], dtype=torch.float64)
    by_svd, by_gram = decomposed(rows, "svd"), decomposed(rows)
    assert by_gram.rank == 1
    assert by_svd.rank == 2
    # Of x = (1, e), (1, -e), (1, -e): singular values of [[3, -e], [-e, 3 e^2]].
    assert float(by_svd.eigenvalues[1]) == pytest.approx(weak**2 * (3 - 1 / 3), rel=1e-5)


def test_few_directions_in_a_wide_space_need_no_gram_matrix(monkeypatch):
    monkeypatch.setattr(spectra, "gram", None)
    found = decomposed(normal((10, 40), 0, torch.float32))
    assert found.rank == 10
    assert float(found.eigenvalues.sum()) == pytest.approx(10)


@pytest.mark.parametrize("method", spectra.METHODS)
def test_no_directions_have_rank_zero(method):
    found = decomposed(torch.zeros(0, 5), method)
    assert found.rank == 0
    assert found.vectors.shape == (5, 0)
    assert set(found.ranks(0.9).values()) == {0}
    assert_same_bits(found.shares, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("method", spectra.METHODS)
@pytest.mark.parametrize(("m", "d"), [(3000, 96), (700, 600), (100, 500)])
def test_the_same_bits_on_any_number_of_threads(m, d, method, torch_threads):
    rows = [normal((m, d), seed, torch.float32) for seed in range(2)]
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        with side_by_side() as run:
            found.append(decompose([all_of(each) for each in rows], method, run))
        assert torch.get_num_threads() == threads
    # One after the other in a separate task, as for nulls.
    with side_by_side() as run:
        found.append([next(run(decomposed, [each])) for each in rows] if method == "gram" else [])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=False):
            assert_same_bits(same.eigenvalues, one.eigenvalues)
            assert_same_bits(same.vectors, one.vectors)


def test_tasks_run_on_one_thread_each_and_in_order(torch_threads):
    torch.set_num_threads(3)
    with side_by_side() as run:
        assert list(run(lambda i: (i, torch.get_num_threads()), range(20))) == [
            (i, 1) for i in range(20)
        ]
    assert torch.get_num_threads() == 3


def test_a_failing_task_restores_the_threads(torch_threads):
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), side_by_side() as run:
        list(run(lambda i: 1 / i, range(3)))
    assert torch.get_num_threads() == 2
    with side_by_side() as run:
        assert list(run(abs, [-1])) == [1]
