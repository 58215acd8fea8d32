"""measure_overlap against plain matrices, on copies, and at its nulls."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from helpers.strategies import generator, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import saefast
from saefast import Dictionary, measure_overlap
from saefast.nulls.cosines import BestOfRandom, PairsOfRandom
from saefast.stability.overlap import Key


@pytest.fixture(autouse=True)
def one_thread(torch_threads):
    """More threads would only wait for each other at these sizes."""
    torch.set_num_threads(1)


def overlap(a, b, **options):
    return measure_overlap(a, b, progress=False, **options)


def drawn(m: int, d: int, seed: int) -> Dictionary:
    """Draw random directions on both sides, a fifth of them dead."""
    decoder, encoder = normal((m, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    dead = torch.rand(m, generator=generator(seed)) < 0.2
    decoder[dead] = 0
    return Dictionary(decoder, encoder)


def related(a: Dictionary, m: int, share: float, seed: int) -> Dictionary:
    """Draw rows of which some are those of `a`, rotated differently in encoder and decoder."""
    b = drawn(m, a.W_dec.shape[1], seed)
    same = min(int(share * m), a.m)
    rows = torch.randperm(m, generator=generator(seed))[:same]
    for side, noise in ((b.W_dec, 0.1), (b.W_enc, 0.3)):
        source = a.W_dec if side is b.W_dec else a.W_enc
        side[rows] = source[:same] + noise * side[rows]
    return b


def cosines(x: Tensor, y: Tensor, absolute: bool) -> Tensor:
    unit = [rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (x, y)]
    product = unit[0] @ unit[1].T
    return product.abs() if absolute else product


class ByHand:
    """Partners and cosines of alive features, from whole matrices."""

    def __init__(self, a: Dictionary, b: Dictionary, match: str, absolute: bool) -> None:
        self.match = match
        self.matrix = {
            side: cosines(getattr(a, name)[a.alive], getattr(b, name)[b.alive], absolute)
            for side, name in (("decoder", "W_dec"), ("encoder", "W_enc"))
        }

    def partners(self, side: str, of: str) -> tuple[Tensor, Tensor]:
        matrix = self.matrix[side] if of == "a" else self.matrix[side].T
        if self.match == "nearest":
            best = matrix.max(1)
            return best.indices, best.values
        partner = torch.full((len(matrix),), -1)
        value = torch.zeros(len(matrix), dtype=torch.float64)
        rows, columns = map(torch.as_tensor, linear_sum_assignment(matrix.numpy(), maximize=True))
        partner[rows], value[rows] = columns, matrix[rows, columns]
        return partner, value

    def hits(self, of: str, side: str, threshold: float) -> int:
        (dec, dec_value), (enc, enc_value) = (self.partners(s, of) for s in ("decoder", "encoder"))
        reached = {
            "decoder": (dec >= 0) & (dec_value >= threshold),
            "encoder": (enc >= 0) & (enc_value >= threshold),
        }
        reached["both"] = reached["decoder"] & reached["encoder"]
        reached["same"] = reached["both"] & (dec == enc)
        return int(reached[side].sum())


@settings(max_examples=20)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([2, 5, 16]),
    st.sampled_from(["nearest", "one_to_one"]),
    st.booleans(),
    seeds,
)
def test_every_measure_equals_that_by_hand(m, m2, d, match, absolute, seed):
    a = drawn(m, d, seed)
    b = related(a, m2, 0.6, seed + 7)
    sign = "absolute" if absolute else "signed"
    thresholds = [0.3, 0.7, 0.9]
    result = overlap(a, b, match=[match], signs=[sign], thresholds=thresholds)
    counts = {"a": int(a.alive.sum()), "b": int(b.alive.sum())}
    assert result.alive == tuple(counts.values())
    assert result.dead == (m - counts["a"], m2 - counts["b"])
    if 0 in counts.values():
        return
    hand = ByHand(a, b, match, absolute)
    sizes = {"a": m, "b": m2}
    for of in ("a", "b"):
        for side in ("decoder", "encoder", "both", "same"):
            for threshold in thresholds:
                found = result.find("shared", side=side, of=of, threshold=threshold)
                hits = hand.hits(of, side, threshold)
                assert found.value == pytest.approx(hits / counts[of])
                assert found.of_all == pytest.approx(hits / sizes[of])
        equal = hand.partners("decoder", of)[0] == hand.partners("encoder", of)[0]
        equal &= hand.partners("decoder", of)[0] >= 0
        found = result.find("equal_partner", of=of)
        assert found.value == pytest.approx(int(equal.sum()) / counts[of])
    for side in ("decoder", "encoder"):
        sums = [float(hand.partners(side, of)[1].sum()) for of in ("a", "b")]
        if match == "one_to_one":
            found = result.find("pw_mcc", side=side)
            assert found.value == pytest.approx(sums[0] / min(counts.values()), abs=1e-6)
            assert found.of_all == pytest.approx(sums[0] / min(m, m2), abs=1e-6)
        else:
            means = [total / counts[of] for total, of in zip(sums, ("a", "b"), strict=True)]
            for of, mean in (("a", means[0]), ("b", means[1]), ("both", sum(means) / 2)):
                assert result.find("mmcs", side=side, of=of).value == pytest.approx(mean, abs=1e-6)
            matrix = hand.matrix[side]
            mutual = matrix.argmax(0)[matrix.argmax(1)] == torch.arange(len(matrix))
            found = result.find("mutual", side=side, of="a")
            assert found.value == pytest.approx(int(mutual.sum()) / counts["a"])


def test_copies_overlap_completely():
    a = Dictionary(normal((50, 9), 0, torch.float32), normal((50, 9), 1, torch.float32))
    order = torch.randperm(50, generator=generator(2))
    copy = Dictionary(-a.W_dec[order] * 3, a.W_enc[order])
    result = overlap(a, copy)
    for measure in result.measures:
        if measure.sign == "absolute" and measure.threshold != 1:
            assert measure.value == pytest.approx(1, abs=1e-6)
    assert (
        result.find(
            "shared", side="both", sign="signed", of="a", threshold=0.98, match="nearest"
        ).value
        == 0
    )


KEY = ("name", "match", "side", "sign", "of", "threshold")


def test_every_null_equals_the_mean_of_random_directions():
    """Each measure, averaged over draws, equals its stated expectation."""
    d, draws = 12, 16
    found: dict[tuple, list[float]] = {}
    nulls = {}
    for seed in range(draws):
        a, b = (
            Dictionary(*(normal((m, d), 100 * seed + i + m, torch.float32) for i in (0, 1)))
            for m in (120, 150)
        )
        for measure in overlap(a, b, thresholds=[0.5, 0.6, 0.7]).measures:
            key = tuple(getattr(measure, name) for name in KEY)
            found.setdefault(key, []).append(measure.value)
            nulls[key] = measure.null
    assert len(found) == len(overlap(a, b, thresholds=[0.5, 0.6, 0.7]).measures)
    for key, values in found.items():
        values = torch.tensor(values)
        error = max(float(values.std()) / math.sqrt(draws), 1e-3)
        # The expectation for one-to-one matching is less precise.
        slack = 0.02 if key[0] == "shared" and key[1] == "one_to_one" else 0.004
        assert abs(float(values.mean()) - nulls[key]) <= 4 * error + slack, key


def test_nulls_state_their_quantile():
    a, b = normal((40, 8), 0, torch.float32), normal((60, 8), 1, torch.float32)
    result = overlap(a, b)
    mmcs = result.find("mmcs", of="a", sign="signed")
    assert mmcs.null == pytest.approx(BestOfRandom(60, 8).mean())
    assert mmcs.null_high == pytest.approx(BestOfRandom(60, 8).quantile(0.999))
    pairs = result.find("pw_mcc", sign="absolute")
    assert pairs.null == pytest.approx(PairsOfRandom(40, 60, 8, True).mean())
    assert pairs.null < pairs.null_high <= 1


def test_given_matches_are_not_computed_again(monkeypatch):
    a = drawn(20, 6, 0)
    b = related(a, 30, 0.5, 5)
    first = overlap(a, b)
    assert set(first.matches) >= {Key("nearest", "encoder", "absolute", True)}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("matched again")

    monkeypatch.setattr(saefast.stability.overlap, "match_features", never)
    again = overlap(a, b, thresholds=[0.5], matches=first.matches)
    assert set(again.measures) <= set(first.measures)


def test_without_encoders_their_measures_are_missing():
    result = overlap(torch.eye(4), torch.eye(4))
    assert {measure.side for measure in result.measures} == {"decoder"}
    rows = result.to_table().to_pylist()
    assert rows[0].keys() == {field.name for field in fields(saefast.Measure)}
    assert len(rows) == len(result.measures)
    curve = result.select("shared", match="nearest", sign="signed", of="both")
    assert [point.threshold for point in curve] == list(saefast.stability.result.CURVE)


def test_dead_dictionaries_have_no_overlap():
    result = overlap(torch.zeros(3, 2), torch.eye(2), match=["nearest"])
    for measure in result.measures:
        if measure.of == "b":  # whose features have no candidates
            assert measure.value == measure.null == 0
        else:
            assert math.isnan(measure.value)
    assert result.dead == (3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": ["mutual"]}, "match must be one of nearest, one_to_one"),
        ({"signs": ["both"]}, "signs must be one of signed, absolute"),
        ({"thresholds": [-1]}, "thresholds must be at least 0"),
    ],
)
def test_bad_input_raises(options, message):
    with pytest.raises(ValueError, match=message):
        overlap(torch.eye(3), torch.eye(3), **options)


def test_an_unknown_measure_raises():
    with pytest.raises(ValueError, match=r"name must be one of .*shared.*, got 'share'"):
        overlap(torch.eye(3), torch.eye(3)).find("share")


def test_an_ambiguous_measure_raises():
    with pytest.raises(ValueError, match=r"where must select one measure 'mmcs', but .* selects 6"):
        overlap(torch.eye(3), torch.eye(3)).find("mmcs")


def test_a_single_feature_is_mutual_with_its_nearest():
    """Without chance the null equals the value: the only row is the nearest of its column."""
    result = overlap(normal((1, 6), 0, torch.float32), normal((5, 6), 1, torch.float32))
    for of, expected in (("a", 1), ("b", 1 / 5)):
        mutual = result.find("mutual", of=of, sign="signed")
        assert mutual.value == pytest.approx(expected)
        assert mutual.null == pytest.approx(expected)


@pytest.mark.parametrize("progress", [True, False])
def test_each_matching_shows_a_bar_on_request(
    progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def listening(*dictionaries: Any, progress: bool = True, **options: Any) -> Any:
        asked.append(progress)
        return saefast.match_features(*dictionaries, **options)

    monkeypatch.setattr("saefast.stability.overlap.match_features", listening)
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    saefast.measure_overlap(rows, rows.flip(0), progress=progress)
    assert set(asked) == {progress}
