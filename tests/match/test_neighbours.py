"""The nearest features by any engine and in any blocks, against a dense product in float64."""

import sys

import pytest
import torch
from helpers.strategies import normal, seeds, small_integers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import Dictionary
from saefast.match import engines, neighbours
from saefast.match.engines import Encode, Faiss, settled
from saefast.match.neighbours import Search, nearest, nearest_both_ways
from saefast.unit_rows import UnitRows


def unit(rows: Tensor) -> Tensor:
    return rows.double() / rows.double().norm(dim=1, keepdim=True)


def directions(rows: Tensor) -> UnitRows:
    return UnitRows.of(rows, "decoder", "rows")


def dense(x: Tensor, y: Tensor, k: int, price: Tensor | None = None) -> tuple[Tensor, Tensor]:
    gain = unit(x) @ unit(y).T - (0 if price is None else price)
    order = gain.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return gain.gather(1, order), order


ENGINES = [Encode(False), Faiss("faiss", False)]
names = ["encode", "faiss"]


@pytest.mark.parametrize("engine", ENGINES, ids=names)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(5, 24), st.integers(1, 50), seeds)
def test_any_size_of_blocks_gives_the_same_lists(engine, n, m, block, k, seed):
    """All lists, bit for bit."""
    x, y = normal((n, 9), seed, torch.float32), normal((m, 9), seed + 1, torch.float32)
    k = min(k, m)
    whole = nearest(directions(x), directions(y), k, Encode(False), 1e9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "block_rows", lambda width, memory: block)
        patch.setattr(neighbours, "_ROWS", 7)
        pieces = nearest(directions(x), directions(y), k, engine, 1e9)
        both = [
            lists
            for a, b in ((x, y), (y, x))
            for lists in nearest_both_ways(
                Search(directions(a), directions(b), engine, absolute=False, memory=1e9), min(k, n)
            )
        ]
    assert torch.equal(pieces.values, whole.values)
    assert torch.equal(pieces.indices, whole.indices)
    for actual, (a, b) in zip(both, ((x, y), (y, x), (y, x), (x, y)), strict=True):
        expected = nearest(directions(a), directions(b), min(k, n), Encode(False), 1e9)
        assert torch.equal(actual.values, expected.values)
        assert torch.equal(actual.indices, expected.indices)


@pytest.mark.parametrize("engine", ENGINES, ids=names)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 40), st.integers(1, 80), seeds)
def test_lists_match_a_dense_product(engine, n, m, d, k, seed):
    x, y = normal((n, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    found = nearest(directions(x), directions(y), min(k, m), engine, 1e9)
    values, indices = dense(x, y, min(k, m))
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-13)
    alike = (found.indices == indices) | ((found.values - values).abs() < 1e-13)
    assert alike.all()
    shown = (unit(x) @ unit(y).T).gather(1, found.indices)
    torch.testing.assert_close(shown, found.values, rtol=0, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES, ids=names)
@given(seeds, st.integers(1, 12))
def test_equal_similarities_are_ordered_by_index(engine, seed, k):
    """Rows of one direction: their similarities are equal in every bit."""
    few = small_integers((3, 8), seed, torch.float32) + 0.5
    y = few.repeat(5, 1)
    found = nearest(directions(few), directions(y), k, engine, 1e9)
    same = found.values.diff() == 0
    assert (found.indices.diff()[same] > 0).all()
    assert torch.equal(found.indices[:, 0], torch.arange(3))


@pytest.mark.parametrize("engine", [Encode(True), Faiss("faiss", True)], ids=names)
@given(seeds, st.integers(1, 12), st.integers(1, 15))
def test_equal_similarities_of_either_sign_are_ordered_by_index(engine, seed, k, block):
    few = small_integers((3, 8), seed, torch.float32) + 0.5
    signs = torch.randint(2, (15, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    y = few.repeat(5, 1) * signs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "block_rows", lambda width, memory: block)
        found = nearest(directions(few), directions(y), k, engine, 1e9)
    same = found.values.diff() == 0
    assert (found.indices.diff()[same] > 0).all()
    assert torch.equal(found.indices[:, 0], torch.arange(3))


@settings(deadline=None)
@given(st.integers(17, 60), st.integers(1, 10), st.integers(20, 30), seeds)
def test_errors_of_scores_do_not_change_lists(m, k, bits, seed):
    """The worst scores within the error: float64 decides, and doubtful rows are searched again."""
    rows, others = (directions(normal((size, 6), seed, torch.float64)) for size in (20, m))
    x, y = rows.block(0, 20), others.block(0, m)
    error = 2.0 ** -(bits - 18)

    def candidates(_: Tensor, width: int) -> tuple[Tensor, Tensor]:
        true = x @ y.T
        off = (torch.rand(true.shape, generator=torch.Generator().manual_seed(seed)) - 0.5).sign()
        return (true + 0.999 * error * off).topk(width)

    found = settled(candidates, y, None, error, 1)(x, k)
    expected = nearest(rows, others, k, Encode(False), 1e9)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


def test_rows_without_doubt_are_not_searched_again(monkeypatch):
    x, y = normal((200, 64), 0, torch.float32), normal((400, 64), 1, torch.float32)
    searched = []
    full = engines.topk_encode
    monkeypatch.setattr(
        engines,
        "topk_encode",
        lambda rows, *_, **__: searched.append(len(rows)) or full(rows, *_, **__),
    )
    nearest(directions(x), directions(y), 8, Faiss("faiss", False), 1e9)
    assert sum(searched) < 10


@given(seeds, st.integers(1, 20), st.booleans())
def test_prices_shift_similarities(seed, k, absolute):
    x, y = normal((30, 7), seed, torch.float32), normal((40, 7), seed + 1, torch.float32)
    price = normal((40,), seed + 2, torch.float64).abs()
    found = nearest(directions(x), directions(y), k, Encode(absolute), 1e9, price)
    similarity = unit(x) @ unit(y).T
    gain = (similarity.abs() if absolute else similarity) - price
    assert ((found.values[:, 0] - gain.amax(1)).abs() < 1e-13).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "block_rows", lambda width, memory: 21)
        pieces = nearest(directions(x), directions(y), k, Encode(absolute), 1e9, price)
    assert torch.equal(pieces.values, found.values)


@pytest.mark.parametrize("backend", ["saefast", "faiss"])
@pytest.mark.parametrize("options", [{}, {"absolute": True}, {"one_to_one": True}], ids=str)
def test_backends_agree_bit_for_bit(backend, options):
    a, b = normal((700, 24), 0, torch.float32), normal((900, 24), 1, torch.float32)
    expected = saefast.match_features(a, b, **options)
    actual = saefast.match_features(a, b, backend=backend, memory=2e-3, **options)
    assert torch.equal(actual.partner, expected.partner)
    assert torch.equal(actual.similarity, expected.similarity)
    assert torch.equal(actual.mutual, expected.mutual)
    assert actual.value == expected.value


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_approximate_indexes_warn_of_their_recall(backend):
    a, b = normal((600, 16), 0, torch.float32), normal((5000, 16), 1, torch.float32)
    with pytest.warns(UserWarning, match="is approximate: it found") as warned:
        found = saefast.match_features(a, b, backend=backend)
    exact = saefast.match_features(a, b)
    hits = float((found.partner == exact.partner).double().mean())
    printed = float(str(warned[0].message).split("found ")[1].split("%")[0]) / 100
    assert abs(printed - hits) < 0.1
    assert hits > 0.2
    assert (found.similarity <= exact.similarity).all()


def test_approximate_indexes_cannot_certify():
    rows = torch.eye(4)
    with pytest.raises(ValueError, match="backend must be exact for one_to_one"):
        saefast.match_features(rows, rows, one_to_one=True, backend="hnsw")


def test_the_error_names_a_missing_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'saefast\[cpu\]'"):
        saefast.match_features(torch.eye(4), torch.eye(4), backend="faiss")


def test_auto_measures_only_large_searches(monkeypatch):
    x = directions(normal((64, 8), 0, torch.float32))
    assert engines.engine_for("auto", False, x, x, 1) == Encode(False)
    monkeypatch.setattr(engines, "_WORTH_MEASURING", 0)
    for ours, theirs, chosen in ((1, 2, Encode(True)), (2, 1, Faiss("faiss", True))):
        seconds = {Encode(True): ours, Faiss("faiss", True): theirs}
        monkeypatch.setattr(engines, "_seconds", lambda engine, *_, s=seconds: s[engine])
        assert engines.engine_for("auto", True, x, x, 1) == chosen


@pytest.mark.parametrize("one_to_one", [False, True])
@pytest.mark.parametrize("side", ["decoder", "encoder", "both"])
def test_sides_compare_decoders_and_encoders(side, one_to_one):
    """Against rows made by hand; dead features are left out."""
    firing = torch.ones(40)
    firing[::7] = 0
    a, b = (
        Dictionary(
            normal((40, 5), seed, torch.float32),
            normal((40, 6), seed + 9, torch.float32),
            firing_rate=rate,
        )
        for seed, rate in ((0, firing), (1, None))
    )
    found = saefast.match_features(a, b, side=side, one_to_one=one_to_one)
    decoder, encoder = unit(a.W_dec) @ unit(b.W_dec).T, unit(a.W_enc) @ unit(b.W_enc).T
    cosine = {"decoder": decoder, "encoder": encoder, "both": (decoder + encoder) / 2}[side]
    alive = firing > 0
    assert (found.partner[~alive] == -1).all()
    shown = cosine.gather(1, found.partner.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(found.similarity[alive], shown[alive].float())
    if not one_to_one:
        assert torch.equal(found.partner[alive], cosine.argmax(1)[alive])


def test_rows_mapped_from_disk_are_read_by_blocks(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    rows = normal((3000, 32), 0, torch.float32)
    save_file({"W_dec": rows}, tmp_path / "sae_weights.safetensors")
    with safe_open(tmp_path / "sae_weights.safetensors", "pt") as file:
        mapped = file.get_tensor("W_dec")
        found = saefast.match_features(mapped, rows.flip(0), memory=1e-3)
    assert torch.equal(found.partner, torch.arange(3000).flip(0))
