"""score_stability against counting pair by pair, on planted copies and on random directions."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.matches import random_matches
from helpers.strategies import generator, normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import saefast
from saefast import Dictionary, Matches, at_threshold, score_stability, stability_curve
from saefast.nulls.cosines import BestOfRandom
from saefast.stability.inputs import MATCHES


@pytest.fixture(autouse=True)
def one_thread(torch_threads):
    """More threads would only wait for each other at these sizes."""
    torch.set_num_threads(1)


def score(dictionaries, **options):
    return score_stability(dictionaries, progress=False, **options)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return (a @ b.T) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1)).clamp(min=1e-300)


def planted(shares: list[float], m: int, d: int, seed: int) -> list[Tensor]:
    """Make dictionaries with these shares of rows from the first one, slightly rotated."""
    first = normal((m, d), seed, torch.float32)
    found = []
    for i, share in enumerate(shares):
        rows = normal((m, d), seed + i + 1, torch.float32)
        same = int(share * m)
        rows[:same] = first[:same] + 0.05 * rows[:same]
        found.append(rows[torch.randperm(m, generator=generator(seed + i))])
    return found


def count_by_hand(rows: list[Tensor], threshold: float, match: str, absolute: bool) -> list[Tensor]:
    """Count hits [m] for each dictionary, from whole matrices of cosines."""
    hits = []
    for s, a in enumerate(rows):
        found = torch.zeros(len(a))
        for t, b in enumerate(rows):
            if s == t:
                continue
            matrix = cosines(a, b).abs() if absolute else cosines(a, b)
            matrix[(a == 0).all(1)] = -2
            matrix[:, (b == 0).all(1)] = -2
            best = matrix.max(1)
            hit = best.values >= threshold
            if match == "mutual":
                hit &= matrix.argmax(0)[best.indices] == torch.arange(len(a))
            found += hit
        hits.append(found)
    return hits


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.sampled_from([2, 5, 16]),
    st.floats(0.05, 0.99),
    st.sampled_from(["nearest", "mutual"]),
    st.booleans(),
    seeds,
)
def test_counts_equal_those_by_hand(sizes, d, threshold, match, absolute, seed):
    """Dictionaries of any sizes, a fifth of the features dead."""
    rows = [normal((m, d), seed + i, torch.float32) for i, m in enumerate(sizes)]
    for i, features in enumerate(rows):
        features[torch.rand(len(features), generator=generator(seed + i)) < 0.2] = 0
    result = score(rows, threshold=threshold, match=match, absolute=absolute)
    expected = count_by_hand(rows, threshold, match, absolute)
    others = len(rows) - 1
    for s, hits in enumerate(expected):
        alive = (rows[s] != 0).any(1)
        assert torch.equal(result.alive[s], alive)
        assert torch.equal(result.score[s], hits.double() / others)
        assert torch.equal(result.support[s], (hits.long() + 1) * alive)
        assert ((result.score[s] >= 0) & (result.score[s] <= 1)).all()
        assert ((result.low[s] <= result.score[s]) & (result.score[s] <= result.high[s])).all()
        for values in (result.score, result.support, result.low, result.high, result.soft):
            assert (values[s][~alive] == 0).all()
        assert (result.partner[s][:, s] == -1).all()
    assert result.dead == tuple(int((features == 0).all(1).sum()) for features in rows)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("side", ["decoder", "encoder", "both"])
def test_permuted_and_scaled_copies_are_perfectly_stable(match, side):
    first = Dictionary(normal((60, 12), 0, torch.float32), normal((60, 12), 1, torch.float32))
    copies = []
    for seed in range(4):
        order = torch.randperm(60, generator=generator(seed))
        scale = torch.rand(60, 1, generator=generator(seed + 9)) * 100 + 1e-3
        copies.append(Dictionary(first.W_dec[order] * scale, first.W_enc[order] / scale))
    result = score(copies, threshold=0.999, match=match, side=side, same_partner=side == "both")
    for s in range(4):
        assert (result.score[s] == 1).all()
        assert (result.support[s] == 4).all()
        assert (result.high[s] == 1).all()
        torch.testing.assert_close(result.soft[s], torch.ones(60).double(), rtol=0, atol=1e-6)
    assert all(mask.all() for mask in result.stable())
    assert not any(mask.any() for mask in result.unstable())


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize(("m", "d", "threshold"), [(100, 8, 0.7), (100, 8, "null"), (150, 16, 0.5)])
def test_random_dictionaries_are_at_the_null(match, m, d, threshold):
    """Within sampling error of the expectation; stricter rules do not find more."""
    rows = [normal((m, d), seed, torch.float32) for seed in range(8)]
    result = score(rows, threshold=threshold, match=match)
    null = BestOfRandom(m, d)
    level = float(null.reaches(result.thresholds[0]))
    if match == "nearest":
        assert torch.equal(result.chance, torch.full((8,), level, dtype=torch.float64))
    if threshold == "null":
        assert level == pytest.approx(0.001, rel=1e-6)
    # 8 * 7 * m hits; those of one feature depend on each other, so its 7 count as one draw.
    error = math.sqrt(level * (1 - level) / (8 * m))
    if match == "nearest":
        assert abs(result.mean() - level) <= 4 * error
        assert float(torch.cat(result.soft).mean()) == pytest.approx(null.mean(), abs=0.005)
    else:
        assert result.mean() <= level + 4 * error


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize(
    ("side", "same_partner"), [("decoder", False), ("both", False), ("both", True)]
)
def test_chance_is_the_score_of_random_dictionaries_by_the_same_rule(match, side, same_partner):
    """Also for unequal sizes; a rule that asks for more has a lower chance."""
    sizes = (60, 90, 120)
    scores, found = [], []
    for draw in range(12):
        sides = [normal((2, m, 16), 12 * m + draw, torch.float32) for m in sizes]
        rows = [Dictionary(*each) for each in sides]
        result = score(rows, threshold=0.5, match=match, side=side, same_partner=same_partner)
        (point,) = stability_curve(result, [0.5])
        scores.append(point.score)
        found.append(
            [
                torch.cat([result.hit[s][:, t] for s in range(3) if s != t]).double().mean()
                for t in range(3)
            ]
        )
    scores, found = torch.tensor(scores).double(), torch.tensor(found)
    error, errors = (values.std(0) / len(values) ** 0.5 for values in (scores, found))
    assert abs(point.chance - float(scores.mean())) <= 4 * float(error) + 0.01
    assert bool(((result.chance - found.mean(0)).abs() <= 4 * errors + 0.02).all())


@pytest.mark.parametrize("match", MATCHES)
def test_only_planted_features_are_found(match):
    """Half of the features are in all of five dictionaries, a quarter in three, the rest in one."""
    rows = planted([0.75, 0.75, 0.75, 0.5, 0.5], 80, 32, 3)
    first = normal((80, 32), 3, torch.float32)
    result = score(rows, threshold=0.8, match=match)
    for s, features in enumerate(rows):
        truth = cosines(features, first).max(1)
        planted_row = truth.indices.where(truth.values > 0.9, 79)
        expected = torch.full((80,), 1)
        expected[planted_row < 40] = 5
        if s < 3:
            expected[(planted_row >= 40) & (planted_row < 60)] = 3
        assert torch.equal(result.support[s], expected)
        assert torch.equal(result.stable()[s], expected == 5)
        assert torch.equal(result.unstable()[s], expected == 1)
        assert torch.equal(result.groups()[s]["stable"], expected == 5)
        assert torch.equal(result.groups(stable=0.5)[s]["stable"], expected >= 3)
        assert torch.equal(result.groups(unstable=0.5)[s]["unstable"], expected <= 3)


def test_rounding_of_a_cut_omits_no_feature():
    """3 of 10 are 0.3, which is less than 0.1 + 0.2 in floating point; 1 of 10 is above 1 - 0.9."""
    matches = {}
    for s, t in itertools.permutations(range(11), 2):
        hit = torch.arange(11) > (t - (t > s))  # feature i hits in i of the others
        matches[s, t] = Matches(partner=torch.zeros(11).long(), similarity=hit.float(), mutual=hit)
    result = score([torch.ones(11, 2)] * 11, matches=matches)
    stable, unstable = 0.1 + 0.2, 1 - 0.9
    expected = torch.arange(11) >= 3, torch.arange(11) <= 1
    assert torch.equal(result.stable(stable)[0], expected[0])
    assert torch.equal(result.unstable(unstable)[0], expected[1])
    groups = result.groups(stable=stable, unstable=unstable)[0]
    assert torch.equal(groups["stable"], expected[0])
    assert torch.equal(groups["unstable"], expected[1])
    (point,) = stability_curve(result, [0.7], stable=stable, unstable=unstable)
    assert (point.stable, point.unstable) == pytest.approx((8 / 11, 2 / 11))
    with pytest.raises(ValueError, match="stable must be a share above unstable"):
        stability_curve(result, stable=0.2, unstable=0.2)


@settings(max_examples=20)
@given(seeds, st.lists(st.integers(1, 30), min_size=2, max_size=5), st.booleans())
def test_both_sides_need_both_cosines_and_optionally_the_same_partner(seed, sizes, same_partner):
    blank = [torch.ones(m, 3) for m in sizes]
    decoder, encoder = random_matches(sizes, seed), random_matches(sizes, seed + 1)
    for key, one in encoder.items():  # half of the partners agree
        agree = torch.rand(len(one.partner), generator=generator(seed + 2)) < 0.5
        encoder[key] = replace(one, partner=torch.where(agree, decoder[key].partner, one.partner))
    dictionaries = [Dictionary(rows, rows) for rows in blank]
    result = score(
        dictionaries,
        side="both",
        threshold=0.4,
        same_partner=same_partner,
        matches=(decoder, encoder),
    )
    for s, m in enumerate(sizes):
        for i in range(m):
            hits, sum_of_least = 0, 0.0
            for t in range(len(sizes)):
                if t == s:
                    continue
                dec, enc = decoder[s, t], encoder[s, t]
                named = dec.partner[i] >= 0 and enc.partner[i] >= 0
                if same_partner and dec.partner[i] != enc.partner[i]:
                    named = False
                least = min(float(dec.similarity[i]), float(enc.similarity[i])) if named else 0
                hits += least >= 0.4
                sum_of_least += least
            assert result.support[s][i] == hits + 1
            assert float(result.soft[s][i]) == pytest.approx(
                sum_of_least / (len(sizes) - 1), abs=1e-6
            )


def test_both_sides_differ_from_one_side(monkeypatch):
    """A decoder that recurs with another encoder is not a hit; sides are matched separately."""
    first = normal((50, 16), 0, torch.float32)
    encoders = [first.clone(), first.clone()]
    encoders[1][:20] = normal((20, 16), 5, torch.float32)
    swapped = first.clone()
    swapped[20:40] = first[20:40].flip(0)  # both sides recur, but not together
    pair = [Dictionary(first, encoders[0]), Dictionary(swapped, encoders[1])]
    assert (score(pair).score[0] == 1).all()
    both = score(pair, side="both").score[0]
    assert (both[:20] == 0).all()
    assert (both[20:] == 1).all()
    same = score(pair, side="both", same_partner=True).score[0]
    assert (same[20:40] == 0).all()
    assert (same[40:] == 1).all()


@settings(max_examples=20)
@given(seeds, st.permutations(range(4)))
def test_the_order_of_seeds_and_features_does_not_matter(seed, order):
    rows = planted([0.9, 0.6, 0.6, 0.3], 40, 12, seed)
    result = score(rows, threshold=0.6)
    shuffles = [torch.randperm(40, generator=generator(seed + i)) for i in range(4)]
    scale = 2.0 ** torch.arange(4)
    turned = [rows[s][shuffles[s]] * scale[s] for s in order]
    other = score(turned, threshold=0.6)
    for place, s in enumerate(order):
        for name in ("score", "support", "low", "high", "alive"):
            before, after = getattr(result, name)[s], getattr(other, name)[place]
            assert torch.equal(after, before[shuffles[s]])
        torch.testing.assert_close(
            other.soft[place], result.soft[s][shuffles[s]], rtol=0, atol=1e-6
        )


@settings(max_examples=20)
@given(st.integers(1, 12), st.floats(0.5, 0.99))
def test_the_interval_is_jeffreys_interval(trials, confidence):
    m = trials + 1
    matches = {}
    for s, t in itertools.permutations(range(m), 2):
        hit = torch.arange(m) > (t - (t > s))  # feature i hits in i of the others
        matches[s, t] = Matches(partner=torch.zeros(m).long(), similarity=hit.float(), mutual=hit)
    result = score([torch.ones(m, 2)] * m, matches=matches, confidence=confidence)
    for hits in range(m):
        assert result.support[0][hits] == hits + 1
        interval = stats.beta(hits + 0.5, trials - hits + 0.5).interval(confidence)
        low = 0 if hits == 0 else interval[0]
        high = 1 if hits == trials else interval[1]
        assert float(result.low[0][hits]) == pytest.approx(low, rel=1e-9)
        assert float(result.high[0][hits]) == pytest.approx(high, rel=1e-9)


def test_the_null_threshold_depends_on_the_number_alive():
    rows = [normal((m, 24), m, torch.float32) for m in (50, 400)]
    rows[1][100:] = 0
    result = score(rows, threshold="null")
    expected = [BestOfRandom(n, 24).quantile(0.999) for n in (50, 100)]
    assert result.thresholds.tolist() == pytest.approx(expected)
    signed = BestOfRandom(50, 24).quantile(0.999)
    assert score(rows, threshold="null", absolute=True).thresholds[0] > signed


@pytest.mark.parametrize("match", MATCHES)
def test_given_matches_are_not_computed_again(match, monkeypatch):
    rows = planted([0.9, 0.5, 0.5], 30, 12, 0)
    matches = saefast.match_all(rows, progress=False, one_to_one=match == "one_to_one")
    expected = score(rows, match=match)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("matched again")

    monkeypatch.setattr(saefast.stability.score, "match_all", never)
    result = score(rows, match=match, matches=matches)
    assert all(map(torch.equal, result.score, expected.score))
    assert all(map(torch.equal, result.soft, expected.soft))
    assert all(map(torch.equal, result.partner, expected.partner))


def test_curves_are_scores_at_other_thresholds():
    rows = planted([0.9, 0.6, 0.6, 0.3], 40, 12, 0)
    result = score(rows)
    for threshold in (0.2, 0.5, 0.9, "null"):
        again, expected = at_threshold(result, threshold), score(rows, threshold=threshold)
        assert all(map(torch.equal, again.score, expected.score))
        assert all(map(torch.equal, again.high, expected.high))
        assert again.rule == expected.rule
    curve = stability_curve(result, [0.1, 0.5, 0.7, 1.0])
    assert [point.score for point in curve] == [
        score(rows, threshold=point.threshold).mean() for point in curve
    ]
    assert [point.chance for point in curve] == pytest.approx(
        [float(BestOfRandom(40, 12).reaches(point.threshold)) for point in curve]
    )
    at = at_threshold(result, 0.5)
    stable, unstable = (torch.cat(masks).double().mean() for masks in (at.stable(), at.unstable()))
    assert (curve[1].stable, curve[1].unstable) == (float(stable), float(unstable))


def test_alive_masks_can_be_given():
    rows = planted([1, 1, 1], 20, 32, 0)
    alive = [torch.arange(20) < 15, torch.ones(20).bool(), torch.ones(20).bool()]
    result = score(rows, alive=alive)
    assert result.dead == (5, 0, 0)
    assert (result.score[0][15:] == 0).all()
    # Their copies have lost one of two partners.
    assert sorted(result.support[1].tolist()) == [2] * 5 + [3] * 15
    # Matches of all features would count dead partners.
    matches = saefast.match_all(rows, progress=False)
    with pytest.raises(ValueError, match=r"matches\[1, 0\] must match alive features only"):
        score(rows, alive=alive, matches=matches)
    known = [Dictionary(one, firing_rate=its.float()) for one, its in zip(rows, alive, strict=True)]
    matches = saefast.match_all(known, progress=False)
    assert all(map(torch.equal, score(rows, alive=alive, matches=matches).score, result.score))


def test_an_empty_dictionary_has_no_scores():
    rows = [normal((5, 4), 0, torch.float32), torch.zeros(3, 4), torch.zeros(0, 4)]
    for threshold in (0.5, "null"):
        result = score(rows, threshold=threshold)
        assert (result.score[0] == 0).all()
        assert result.dead == (0, 3, 0)
        assert result.chance[1:].tolist() == [0, 0]


def test_the_table_has_a_row_for_every_feature():
    rows = [normal((m, 8), m, torch.float32) for m in (5, 9, 7)]
    rows[1][2] = 0
    result = score(rows, threshold=0.5)
    table = result.to_table(seeds=[3, 1, 10])
    assert table.num_rows == 21
    columns = table.to_pydict()
    assert columns["seed"] == [3] * 5 + [1] * 9 + [10] * 7
    assert columns["feature"] == [*range(5), *range(9), *range(7)]
    for name, values in (("stability", result.score), ("low", result.low), ("soft", result.soft)):
        assert columns[name] == torch.cat(values).tolist()
    for name, values in (("high", result.high), ("support", result.support)):
        assert columns[name] == torch.cat(values).tolist()
    assert columns["alive"] == torch.cat(result.alive).tolist()
    dead = 5 + 2
    for t, seed in enumerate((3, 1, 10)):
        partners, similar = columns[f"partner_{seed}"], columns[f"similarity_{seed}"]
        assert partners[dead] is None
        for row, (partner, own) in enumerate(zip(partners, columns["seed"], strict=True)):
            assert (partner is None) == (own == seed or row == dead)
            assert (similar[row] is None) == (partner is None)
            if partner is not None:
                s = (3, 1, 10).index(own)
                assert partner == int(result.partner[s][columns["feature"][row], t])
    assert result.to_table()["seed"].to_pylist() == [0] * 5 + [1] * 9 + [2] * 7
    with pytest.raises(
        ValueError, match="seeds must have one entry for each of the 3 dictionaries"
    ):
        result.to_table(seeds=[0, 0, 1])
