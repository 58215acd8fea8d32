"""feature_statistics against dense brute force, for any batch size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import generator, random_sae, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saefast import SAE, FeatureStatistics, feature_statistics
from saefast.activations import IteratorActivations, StoreWriter
from saefast.evaluation.largest import Largest
from saefast.evaluation.statistics import DENSITY_EDGES
from saefast.evaluation.token_ties import folded_tokens, modal_share, token_ties
from saefast.sae import VARIANTS


def statistics(saes: Any, activations: Any, **options: Any) -> list[FeatureStatistics]:
    return feature_statistics(saes, activations, progress=False, **options)


def random_rows(n: int, d: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(seed)
    tokens = torch.randint(12, (n,), generator=random) ** 2
    positions = torch.arange(n) % 7
    rows = torch.randn(n, d, generator=random) + 0.3 * (tokens % 5)[:, None]
    return rows, tokens, positions


def dense_code(sae: SAE, rows: Tensor) -> Tensor:
    """Absolute values: only abstopk has others."""
    with torch.no_grad():
        return sae.encode(rows).to_dense(sae.m).abs()


def auroc(labels: Tensor, predictor: Tensor) -> float:
    """Return, by definition, how often a positive is above a negative, with ties counted half."""
    above = predictor[labels][:, None] - predictor[~labels]
    return float(((above > 0) + 0.5 * (above == 0)).double().mean())


def brute_force(sae: SAE, rows: Tensor, tokens: Tensor, positions: Tensor, top: int) -> Any:
    """Return the statistics of each feature in turn, from the dense matrix of activations."""
    code = dense_code(sae, rows).double()
    decoder, encoder = sae.W_dec.detach().double(), sae.W_enc.detach().double()
    for feature in range(sae.m):
        z = code[:, feature]
        active = (z > 0).nonzero()[:, 0]
        order = sorted(active.tolist(), key=lambda row: (-float(z[row]), row))[:top]
        its_tokens = tokens[active].tolist()
        share = [its_tokens.count(token) / len(its_tokens) for token in set(its_tokens)]
        top_tokens = [int(tokens[row]) for row in order]
        areas = {
            token: auroc(z > 0, (tokens == token).double())
            for token in set(its_tokens)
            if len(active) < len(z)
        }
        best = max(areas.values(), default=None)
        yield {
            "fired": len(active),
            "mean": float(z[active].mean()) if len(active) else 0,
            "largest": float(z.max()),
            "mass": float(z.sum() * decoder[feature].norm()),
            "top_rows": order,
            "top_tokens": top_tokens,
            "modal": max(map(top_tokens.count, top_tokens)) / len(top_tokens) if order else None,
            "entropy": -sum(p * np.log2(p) for p in share) if share else None,
            "auroc": best,
            "tokens": [t for t, area in areas.items() if best is not None and area > best - 1e-12],
            "start": float((positions[active] == 0).double().mean()) if len(active) else None,
            "position": float(positions[active].double().mean()) if len(active) else None,
            "density": np.histogram(
                z[active].clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1]), DENSITY_EDGES.numpy()
            )[0]
            / len(z),
            "cosine": float(torch.cosine_similarity(encoder[feature], decoder[feature], dim=0)),
        }


def close(found: Tensor, expected: float | None) -> None:
    if expected is None:
        assert found.isnan()
    else:
        assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=40)
@given(
    st.integers(1, 120),
    st.integers(1, 6),
    st.integers(1, 30),
    st.sampled_from(VARIANTS),
    st.integers(1, 5),
    st.integers(1, 130),
    seeds,
)
def test_statistics_match_the_dense_matrix(n, d, m, variant, top, batch_size, seed):
    sae = random_sae(m, d, seed, variant)
    rows, tokens, positions = random_rows(n, d, seed)
    (found,) = statistics(
        sae, rows, tokens=tokens, positions=positions, top=top, batch_size=batch_size
    )
    assert found.rows == n
    expected = list(brute_force(sae, rows, tokens, positions, top))
    total = sum(each["mass"] for each in expected)
    for feature, each in enumerate(expected):
        assert int(found.fired[feature]) == each["fired"] == int(found.sampled[feature])
        assert float(found.largest[feature]) == each["largest"]
        listed = found.top_rows[feature]
        assert listed[listed >= 0].tolist() == each["top_rows"]
        assert found.top_tokens[feature][listed >= 0].tolist() == each["top_tokens"]
        values = dense_code(sae, rows)[each["top_rows"], feature]
        assert torch.equal(found.top_values[feature][listed >= 0], values)
        close(found.mean[feature], each["mean"])
        close(found.mass[feature], each["mass"] / total if total else 0.0)
        close(found.modal_share[feature], each["modal"])
        close(found.token_entropy[feature], each["entropy"])
        close(found.token_auroc[feature], each["auroc"])
        assert int(found.token[feature]) in (each["tokens"] or [-1])
        close(found.start_share[feature], each["start"])
        close(found.mean_position[feature], each["position"])
        close(found.encoder_decoder_cosine[feature], each["cosine"])
        np.testing.assert_allclose(found.density[feature], each["density"], atol=1e-12)


def assert_same(found: FeatureStatistics, expected: FeatureStatistics) -> None:
    """Compare counts and lists bit for bit; sums may be added in another order in float64."""
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, Tensor):
            if value.dtype == torch.float64:
                torch.testing.assert_close(other, value, rtol=1e-12, atol=0, equal_nan=True)
            else:
                assert_same_bits(other, value)
        else:
            assert other == value


@pytest.fixture(scope="module")
def world() -> tuple[list[SAE], Tensor, Tensor, Tensor]:
    saes = [random_sae(60, 8, seed) for seed in (0, 1, 2)]
    return saes, *random_rows(3000, 8, 5)


def test_several_saes_share_a_pass_independently(world):
    saes, rows, tokens, positions = world
    together = statistics(saes, rows, tokens=tokens, positions=positions, top=9, sample=20)
    for sae, its in zip(saes, together, strict=True):
        (alone,) = statistics(sae, rows, tokens=tokens, positions=positions, top=9, sample=20)
        assert_same(its, alone)
    assert not torch.equal(together[0].fired, together[1].fired)


def test_batches_and_sources_do_not_matter(world, tmp_path: Path):
    saes, rows, tokens, positions = world
    kept = {"tokens": tokens.int(), "positions": positions}
    with StoreWriter(tmp_path / "store", 8, dtype=torch.float32, rows_per_shard=700) as writer:
        writer.append(rows, **kept)
    (expected,) = statistics(saes[0], rows, top=9, sample=20, **kept)
    for batch_size in (1000, 137):
        (found,) = statistics(saes[0], rows, top=9, sample=20, batch_size=batch_size, **kept)
        assert_same(found, expected)
        (found,) = statistics(saes[0], tmp_path / "store", top=9, sample=20, batch_size=batch_size)
        assert_same(found, expected)
    pieces = IteratorActivations(list(rows.split(400)))
    (found,) = statistics(saes[0], pieces, rows=3000, top=9, sample=20, batch_size=137, **kept)
    assert_same(found, expected)
    with pytest.raises(ValueError, match="rows must be given, since the activations"):
        statistics(saes[0], pieces)


def test_without_tokens_their_statistics_are_missing(world):
    saes, rows, *_ = world
    (found,) = statistics(saes[0], rows, rows=500)
    assert found.rows == 500
    for name in ("top_tokens", "modal_share", "token_entropy", "token_auroc", "start_share"):
        assert getattr(found, name) is None
    table = found.to_table()
    assert table.num_rows == 60
    assert "token" not in table.column_names


def test_the_table_has_a_row_for_each_feature(world):
    saes, rows, tokens, positions = world
    (found,) = statistics(saes[0], rows, tokens=tokens, positions=positions, top=9)
    table = found.to_table().to_pydict()
    assert table["feature"] == list(range(60))
    assert table["fired"] == found.fired.tolist()
    for feature, (values, count) in enumerate(
        zip(table["top_values"], table["fired"], strict=True)
    ):
        assert len(values) == min(9, count)
        assert values == found.top_values[feature, : len(values)].tolist()
    assert len(table["density"][0]) == len(DENSITY_EDGES) - 1
    assert table["fired"][30] == 0
    assert np.isnan(table["token_entropy"][30])


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 300), st.integers(1, 60), seeds)
def test_the_largest_match_a_sorted_list(m, count, entries, piece, seed):
    random = generator(seed)
    feature = torch.randint(m, (entries,), generator=random)
    key = torch.randint(9, (entries,), generator=random).int()
    row = torch.arange(entries)
    largest = Largest(m, count)
    for place in row.split(piece):
        largest.add(feature[place], key[place], place, -place)
        largest._sort_in()  # as if there were too many to keep waiting
    keys, rows, tokens = largest.lists()
    for number in range(m):
        mine = row[feature == number].tolist()
        mine.sort(key=lambda place: (-int(key[place]), place))
        mine = mine[:count]
        fill = [-1] * (count - len(mine))
        assert rows[number].tolist() == mine + fill
        assert tokens[number].tolist() == [-place for place in mine] + fill
        assert keys[number].tolist() == [int(key[place]) for place in mine] + fill


def test_many_entries_are_merged_before_the_end():
    m, count = 400, 50
    key = torch.randint(2**31 - 1, (1_000_000,), generator=generator(0)).int()
    feature = torch.arange(len(key)) % m
    row = torch.arange(len(key))
    largest = Largest(m, count)
    most = 0
    for place in row.split(10_000):
        largest.add(feature[place], key[place], place, place)
        most = max(most, largest._waiting)
    _, rows, _ = largest.lists()
    assert most < 200_000
    expected = key.view(-1, m).topk(count, 0).values
    assert torch.equal(key[rows.T].sort(0).values, expected.sort(0).values)


def test_the_sample_is_uniform():
    """A feature that always fires: each twentieth of the rows has a twentieth of the sample."""
    sae = SAE(1, 1, variant="relu", k=1, seed=0)
    with torch.no_grad():
        sae.b_enc += 5
    rows = torch.ones(20_000, 1)
    (found,) = statistics(sae, rows, tokens=torch.arange(20_000) // 1000, sample=4000)
    assert int(found.sampled) == 4000
    # Uniform draws lose 19 / (2 * 4000 * ln 2) bits on average.
    assert np.log2(20) - 0.014 < float(found.token_entropy) < np.log2(20)
    # It fires everywhere, so no token predicts it.
    assert found.token_auroc.isnan()
    assert int(found.token) == -1


def test_scores_of_a_sample_are_close_to_scores_of_all_firings():
    random = generator(3)
    n = 40_000
    tokens = torch.randint(50, (n,), generator=random)
    fires = (tokens == 17) & (torch.rand(n, generator=random) < 0.8)
    fires |= torch.rand(n, generator=random) < 0.01
    rows = fires.float()[:, None]
    sae = SAE(1, 1, variant="relu", k=1, seed=0)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
    (all_of_them,) = statistics(sae, rows, tokens=tokens, sample=n)
    some, other = (statistics(sae, rows, tokens=tokens, sample=300, seed=s)[0] for s in (0, 1))
    assert float(other.token_entropy) != float(some.token_entropy)
    assert float(all_of_them.token_auroc) == pytest.approx(
        auroc(fires[:2000], (tokens == 17)[:2000].double()), abs=0.05
    )
    assert int(some.token) == int(all_of_them.token) == 17
    # three standard errors of a share of 300
    error = 3 * (0.25 / 300) ** 0.5 / 2
    for drawn in (some, other):
        assert float(drawn.token_auroc) == pytest.approx(float(all_of_them.token_auroc), abs=error)


def test_token_and_context_features_are_distinguished():
    random = generator(4)
    tokens = torch.randint(30, (5000,), generator=random)
    context = torch.randint(2, (5000,), generator=random)
    rows = torch.stack([(tokens == 3).float(), context.float()], 1)
    sae = SAE(2, 2, variant="relu", k=1, seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
    (found,) = statistics(sae, rows, tokens=tokens, sample=5000)
    assert float(found.token_auroc[0]) == 1.0
    assert float(found.token_entropy[0]) == 0.0
    assert float(found.modal_share[0]) == 1.0
    assert float(found.token_auroc[1]) < 0.53
    assert float(found.token_entropy[1]) > 4.8


def test_folded_tokens_count_as_one():
    folded = folded_tokens(["the", " The", "\u0120THE", "\u2581cat", "Cat", "\n", " "])
    assert folded.tolist() == [0, 0, 0, 3, 3, 5, 6]
    sae = SAE(1, 1, variant="relu", k=1, seed=0)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
    tokens = torch.tensor([0, 1, 2, 3, 4, 5])
    rows = torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None]
    (raw,) = statistics(sae, rows, tokens=tokens)
    (found,) = statistics(sae, rows, tokens=tokens, folded=folded)
    assert float(raw.modal_share) == pytest.approx(1 / 3)
    assert (float(found.modal_share), float(found.token_auroc)) == (1.0, 1.0)
    assert found.top_tokens[0, :3].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="tokens must be from 0 to 2, got 5"):
        statistics(sae, rows, tokens=tokens, folded=folded[:3])


def test_ties_of_silent_features():
    nothing = torch.full((2, 3), -1)
    ties = token_ties(nothing, torch.zeros(2, dtype=torch.int64), 10, torch.tensor([10]))
    assert ties.entropy.isnan().all()
    assert ties.auroc.isnan().all()
    assert ties.token.tolist() == [-1, -1]
    assert modal_share(nothing).isnan().all()


def test_bad_input_raises(world):
    saes, rows, tokens, _ = world
    bad = rows.clone()
    bad[1234, 2] = torch.nan
    for arguments, kind, words in (
        ((saes[0], bad), ValueError, "NaN or infinity: the tensor, row 1234"),
        (([], rows), ValueError, "saes must hold at least 1"),
        (([saes[0], "sae"], rows), TypeError, r"saes\[1\] must be a saefast.SAE, got str"),
        ((SAE(3, 4, k=1), rows), ValueError, "d=8, got d=3"),
    ):
        with pytest.raises(kind, match=words):
            statistics(*arguments)
    for options, kind, words in (
        ({"tokens": tokens[:10]}, ValueError, "one entry for each row, 3000, got 10"),
        ({"tokens": tokens.float()}, TypeError, "tokens must be integers, got float32"),
        ({"tokens": tokens - 1}, ValueError, "tokens must be from 0 to 2147483647, got -1"),
        ({"positions": tokens[:, None]}, ValueError, r"positions must have shape \[rows\]"),
        ({"rows": 3001}, ValueError, "rows must be from 1 to 3000"),
        ({"top": 0}, ValueError, "top must be at least 1"),
        ({"sample": 1.5}, TypeError, "sample must be an int"),
    ):
        with pytest.raises(kind, match=words):
            statistics(saes[0], rows, **options)
