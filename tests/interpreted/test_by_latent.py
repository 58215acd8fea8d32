"""The sort of a code by latent against its definition in torch."""

import pytest
import torch
from helpers.strategies import generator, normal, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast.kernels.codes import by_latent
from saefast.kernels.codes.by_latent import PIECE, ByLatent, sort_by_latent


def by_torch(indices: Tensor, latents: int, piece: int) -> ByLatent:
    """Compute the definition: starts by bisection, pieces of latents that are cut."""
    ordered, entry = torch.sort(indices.flatten().int(), stable=True)
    start = torch.searchsorted(ordered, torch.arange(latents + 1, dtype=torch.int32))
    count = start.diff()
    cut = torch.where(count > piece, (count + (piece - 1)) // piece, 0)
    piece_start = torch.nn.functional.pad(cut.cumsum(0), (1, 0))
    number = torch.arange(2 * indices.numel() // piece)
    latent = torch.searchsorted(piece_start, number, right=True).clamp(max=latents) - 1
    begin = start[latent] + (number - piece_start[latent]) * piece
    begin = torch.where(number < piece_start[-1], begin, start[-1])
    return ByLatent(
        entry, start, piece_start, begin, torch.minimum(begin + piece, start[latent + 1])
    )


@settings(max_examples=25)
@given(
    n=st.sampled_from([0, 1, 2, 7, 40]),
    k=st.integers(1, 5),
    latents=st.sampled_from([1, 2, 15, 16, 17, 31, 32, 70, 300]),
    hot=st.floats(0, 1),
    piece=st.sampled_from([1, 2, 3, 8, 64]),
    seed=seeds,
)
def test_entries_starts_and_pieces_equal_torchs(
    n: int, k: int, latents: int, hot: float, piece: int, seed: int
) -> None:
    """A share `hot` of the entries belongs to three latents, which are cut if it is large.

    Programs of the interpreter handle 16 latents, so that pieces are counted across several.
    """
    random = generator(seed)
    indices = torch.randint(latents, (n, k), generator=random)
    few = torch.randint(latents, (3,), generator=random)[torch.randint(3, (n, k), generator=random)]
    indices = torch.where(torch.rand(n, k, generator=random) < hot, few, indices)
    expected, actual = by_torch(indices, latents, piece), sort_by_latent(indices, latents, piece)
    for name in ByLatent._fields:
        assert_same_bits(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize("stray", [-1, 5, 2**31 - 1])
def test_indices_out_of_range_are_ignored(stray: int) -> None:
    indices = torch.tensor([[4, stray], [0, 4], [4, 4]])
    for a, e in zip(sort_by_latent(indices, 5, 2), by_torch(indices, 5, 2), strict=True):
        assert_same_bits(a, e)


@pytest.mark.parametrize("latents", [2**16 - 2, 2**16 - 1])
def test_keys_have_two_bytes_as_long_as_all_latents_fit(
    latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_latent, "interpreting", lambda: False)
    sorted_types = []

    def sort(keys: Tensor, *, stable: bool) -> tuple[Tensor, Tensor]:
        sorted_types.append(keys.dtype)
        return torch.Tensor.sort(keys, stable=stable)

    indices = torch.tensor([[0, latents - 1], [latents, -1], [latents // 2, latents - 1]])
    expected = by_torch(indices, latents, 1)
    monkeypatch.setattr(by_latent.torch, "sort", sort)
    for a, e in zip(sort_by_latent(indices, latents, 1), expected, strict=True):
        assert_same_bits(a, e)
    assert sorted_types == [torch.int16 if latents < 2**16 - 1 else torch.int32]


def test_entries_whose_value_is_zero_are_ignored() -> None:
    random = generator(0)
    indices, values = torch.randint(9, (20, 3), generator=random), normal((20, 3), 0, torch.float32)
    values[:4] = 0.0
    expected = by_torch(torch.where(values != 0, indices, 9), 9, 2)
    for a, e in zip(sort_by_latent(indices, 9, 2, values=values), expected, strict=True):
        assert_same_bits(a, e)


@settings(max_examples=25)
@given(
    m=st.integers(1, 12),
    entries=st.one_of(st.integers(0, 90), st.sampled_from([PIECE * 4 - 1, PIECE * 4 + 1])),
    piece=st.sampled_from([1, 2, 7, 20, PIECE]),
    heavy=st.booleans(),
    seed=seeds,
)
@example(m=1, entries=PIECE, piece=PIECE, heavy=False, seed=0)
@example(m=1, entries=PIECE + 1, piece=PIECE, heavy=False, seed=0)
def test_pieces_cover_every_entry_of_a_long_latent_once_in_order(
    m: int, entries: int, piece: int, heavy: bool, seed: int
) -> None:
    indices = torch.randint(0, m, (entries, 1), generator=generator(seed))
    if heavy:
        indices[: entries // 2] = 0
    code = sort_by_latent(indices, m, piece)
    pieces = list(zip(code.piece_begin.tolist(), code.piece_end.tolist(), strict=True))
    used = int(code.piece_start[-1])
    assert used <= len(pieces)
    assert all(begin == end for begin, end in pieces[used:])
    assert code.start[0] == 0
    assert code.start[-1] == entries
    for latent in range(m):
        begin, end = code.start[latent : latent + 2].tolist()
        assert code.entry[begin:end].tolist() == (indices == latent).nonzero()[:, 0].tolist()
        mine = pieces[slice(*code.piece_start[latent : latent + 2].tolist())]
        if end - begin <= piece:
            assert mine == []
        else:
            covered = [place for ends in mine for place in range(*ends)]
            assert covered == list(range(begin, end))
            assert all(0 < e - b <= piece for b, e in mine)
