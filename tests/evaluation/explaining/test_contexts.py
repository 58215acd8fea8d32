"""Windows, halves and firings of held-out text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.planted_text import planted, write_text

import saefast
from saefast.activations import StoreActivations, StoreWriter
from saefast.evaluation.explaining.contexts import TokenText, text_of_sequences, token_text
from saefast.evaluation.explaining.firings import MOST_ACTIVE, firings


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenText]:
    folder = tmp_path_factory.mktemp("text") / "store"
    tokenizer = write_text(folder, contexts=40)
    return folder, token_text(folder, tokenizer)


def test_windows_cross_no_context(stored: tuple[Path, TokenText]) -> None:
    folder, text = stored
    positions = StoreActivations(folder).read("positions", 0, text.rows).numpy()
    for first, end in zip(text.window_starts[:-1], text.window_starts[1:], strict=True):
        assert end - first <= 32
        assert (np.diff(positions[first:end]) == 1).all()
    assert text.context[-1] == 39


def test_halves_share_no_context_and_few_are_adjacent(stored: tuple[Path, TokenText]) -> None:
    _, text = stored
    by_context = [set(text.explaining[text.context == number]) for number in range(40)]
    assert all(len(halves) == 1 for halves in by_context)
    sides = np.array([halves.pop() for halves in by_context])
    assert sides.sum() == 20
    assert (np.diff(sides.astype(int)) != 0).sum() == 7


def test_documents_are_not_split_and_end_windows(stored: tuple[Path, TokenText]) -> None:
    folder, _ = stored
    tokenizer = write_text(folder.parent / "again", contexts=40)
    documents = torch.arange(40 * 95) // 130  # borders are inside of contexts
    text = token_text(folder, tokenizer, documents=documents)
    numbers = documents.numpy()
    for first, end in zip(text.window_starts[:-1], text.window_starts[1:], strict=True):
        assert len(set(numbers[first:end])) == 1
    halves = {number: set(text.explaining[numbers == number]) for number in set(numbers)}
    assert all(len(half) == 1 for half in halves.values())
    assert 0.4 < text.explaining.mean() < 0.6


def test_texts_of_tokens_match_the_tokenizer(stored: tuple[Path, TokenText]) -> None:
    folder, text = stored
    tokenizer = write_text(folder.parent / "strings", contexts=40)
    ids = StoreActivations(folder).read("tokens", 100, 130).tolist()
    assert text.pieces(100, 130) == tokenizer.convert_ids_to_tokens(ids)


def test_bos_in_a_context_hides_the_previous_token(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", 1, dtype=torch.float32) as writer:
        writer.append(
            torch.zeros(6, 1),
            tokens=torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int32),
            positions=torch.tensor([1, 2, 4, 1, 2, 3], dtype=torch.int32),
        )
    tokenizer = write_text(tmp_path / "other", contexts=2)
    text = token_text(tmp_path / "store", tokenizer)
    assert text.after_gap.tolist() == [True, False, True, True, False, False]
    assert text.context.tolist() == [0, 0, 0, 1, 1, 1]


def test_firings_match_the_codes(stored: tuple[Path, TokenText]) -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 16)
    saes = [
        saefast.SAE(16, 48, k=5, seed=1),
        saefast.SAE(16, 48, variant="relu", seed=2).double(),
    ]
    for sae, found in zip(saes, firings(saes, rows, batch_size=77, progress=False), strict=True):
        dense = sae.encode(rows.to(sae.W_enc.dtype)).to_dense(48)
        again = torch.zeros(300, 48)
        for latent in range(48):
            row, value = found.of(latent)
            assert (np.diff(row) > 0).all()
            again[torch.from_numpy(row).long(), latent] = torch.from_numpy(value)
        torch.testing.assert_close(again, dense.float())
        assert found.fired.tolist() == (dense > 0).sum(0).tolist()


def test_firings_are_the_largest_activations_of_a_dense_gated_code() -> None:
    sae = saefast.SAE(16, 60, variant="gated", k=5, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.r_mag.copy_(torch.randn(60, generator=generator))
        x = torch.randn(20, 16, generator=generator)
        code = sae.encode(x)
    dense = torch.zeros(20, 60).scatter_(1, code.indices, code.values)
    (found,) = firings(sae, x, most=4, progress=False)
    kept = np.zeros((20, 60), dtype=np.float32)
    kept[found.row, found.latent] = found.value
    largest = dense.topk(4).values
    np.testing.assert_array_equal(np.sort(kept, 1)[:, ::-1][:, :4], largest.numpy())
    assert ((kept > 0).sum(1) == 4).all()


def test_rows_of_dense_codes_keep_their_largest_values() -> None:
    sae = saefast.SAE(4, 2 * MOST_ACTIVE, variant="relu", seed=0)
    with torch.no_grad():
        sae.b_enc += 5.0
    (found,) = firings(sae, torch.ones(3, 4), progress=False)
    assert len(found.row) == 3 * MOST_ACTIVE
    code = sae.encode(torch.ones(1, 4))
    assert sorted(set(found.latent.tolist())) == sorted(code.indices[0, :MOST_ACTIVE].tolist())


def test_scrambled_firings_stay_in_their_contexts(stored: tuple[Path, TokenText]) -> None:
    _, text = stored
    generator = np.random.default_rng(0)
    rates = [0.002, 0.05, 0.4, 0.6, 0.99, 1.0]
    before = planted([generator.random(text.rows) < rate for rate in rates])
    after = before.scrambled(text.context_starts, seed=1)
    for latent in range(len(rates)):
        old, new = before.of(latent)[0], after.of(latent)[0]
        assert (np.diff(new) > 0).all()
        assert (np.bincount(text.context[old]) == np.bincount(text.context[new])).all()
    moved = set(before.of(1)[0]) & set(after.of(1)[0])
    assert len(moved) < 0.15 * len(before.of(1)[0])
    again = before.scrambled(text.context_starts, seed=1)
    assert (again.row == after.row).all()
    assert (before.scrambled(text.context_starts, seed=2).row != after.row).any()


@pytest.mark.parametrize("fires", [3, 50])
def test_scrambled_firings_are_uniform_over_rows(fires: int) -> None:
    truth = np.zeros((400, 60), dtype=bool)
    truth[:, :fires] = True
    before = planted(list(truth))
    after = before.scrambled(np.array([0, 60]), seed=0)
    counts = np.bincount(after.row, minlength=60)
    expected = 400 * fires / 60
    deviation = np.sqrt(400 * fires / 60 * (1 - fires / 60))
    assert (np.abs(counts - expected) < 4.5 * deviation).all()


def test_errors_name_bad_input(tmp_path: Path, stored: tuple[Path, TokenText]) -> None:
    folder, _ = stored
    tokenizer = write_text(tmp_path / "one", contexts=1)
    with pytest.raises(ValueError, match="two documents or contexts"):
        token_text(tmp_path / "one", tokenizer)
    with StoreWriter(tmp_path / "bare", 2, dtype=torch.float32) as writer:
        writer.append(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"lacks positions and tokens; saefast\.lm\.harvest"):
        token_text(tmp_path / "bare", tokenizer)
    with pytest.raises(ValueError, match="documents must have one entry for each row"):
        token_text(folder, tokenizer, documents=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="none of them empty"):
        text_of_sequences([[1], []], tokenizer)
