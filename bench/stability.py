"""stability: scores of the features of many dictionaries, from given matches and from weights.

n is the number of dictionaries. Given matches are synthetic: every feature has a counterpart of
random similarity in each dictionary. saefast also reads the weights for latents that are dead or
not finite, and keeps partners; numpy does neither, so it does less work. From weights, the rival
multiplies every two dictionaries once, in float32, and takes the maxima of rows and columns: the
least that an implementation of the definition needs.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import saefast
from bench.cases import Shape
from bench.measure import Contestant, gemm, time_rounds
from saefast import Matches, Stability

SHAPES = (Shape(64, 131072, 1, 8), Shape(64, 8192, 1, 4))
_THRESHOLD = 0.7
_MOST_DENSE = 16_384
_ROWS = 1024  # rows of the unit

Columns = list[NDArray[Any]]


class PlainScores(NamedTuple):
    """Scores that the rival computes, for each dictionary."""

    score: Columns
    low: Columns
    high: Columns
    soft: Columns


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time saefast and numpy, and analyses of the scores."""
    generator = torch.Generator().manual_seed(0)
    dictionaries = _dictionaries(shape, generator)
    matches = _planted_matches(shape, generator)
    given: Callable[[], Stability] = partial(
        saefast.score_stability, dictionaries, matches=matches, progress=False
    )
    stability = given()
    again = partial(saefast.at_threshold, stability, 0.5)
    plain = partial(_plain_given, shape, matches)
    agrees = _agree(stability, plain())
    contestants = [
        Contestant("saefast", "matches given", given, agrees),
        Contestant("numpy", "matches given", plain, agrees),
        Contestant("saefast", "another threshold", again, True),
        Contestant("saefast", "curve of 50", partial(saefast.stability_curve, stability), True),
        Contestant("saefast", "clusters", partial(saefast.find_clusters, stability), True),
        Contestant("saefast", "subset curve", partial(saefast.subset_curve, stability), True),
        Contestant("saefast", "table", stability.to_table, True),
    ]
    if shape.m <= _MOST_DENSE:
        ours = partial(saefast.score_stability, dictionaries, progress=False)
        theirs = partial(_plain_from_weights, dictionaries)
        agrees = _agree(ours(), theirs())
        contestants += [
            Contestant("saefast", "from weights", ours, agrees),
            Contestant("numpy", "from weights", theirs, agrees),
        ]
    unit = gemm(dictionaries[0][:_ROWS], dictionaries[1])
    return time_rounds("stability", shape, unit, contestants, rounds)


def _dictionaries(shape: Shape, generator: torch.Generator) -> list[Tensor]:
    """Return unit rows [m, d] for each dictionary, half of which are similar in all."""
    shared = torch.randn(shape.m // 2, shape.d, generator=generator)
    found = []
    for _ in range(shape.n):
        rows = torch.randn(shape.m, shape.d, generator=generator)
        rows[: len(shared)] = shared + 0.3 * rows[: len(shared)]
        rows = rows[torch.randperm(shape.m, generator=generator)]
        found.append(rows / rows.norm(dim=1, keepdim=True))
    return found


def _planted_matches(shape: Shape, generator: torch.Generator) -> dict[tuple[int, int], Matches]:
    """Return matches of features that lie at different places of each dictionary."""
    orders = [torch.randperm(shape.m, generator=generator) for _ in range(shape.n)]
    places = [order.argsort() for order in orders]
    matches = {}
    for s, t in permutations(range(shape.n), 2):
        similarity = torch.rand(shape.m, generator=generator)
        everywhere = torch.ones(shape.m, dtype=torch.bool)
        matches[s, t] = Matches(
            partner=places[t][orders[s]], similarity=similarity, mutual=everywhere
        )
    return matches


def _plain_given(shape: Shape, matches: dict[tuple[int, int], Matches]) -> PlainScores:
    similarity = [
        [matches[s, t].similarity.numpy() for t in range(shape.n) if t != s] for s in range(shape.n)
    ]
    return _plain_scores(similarity)


def _plain_from_weights(dictionaries: list[Tensor]) -> PlainScores:
    rows = [dictionary.numpy() for dictionary in dictionaries]
    similarity: list[Columns] = [[] for _ in rows]
    for s, t in combinations(range(len(rows)), 2):
        product = rows[s] @ rows[t].T
        similarity[s].append(product.max(1))
        similarity[t].append(product.max(0))
    return _plain_scores(similarity)


def _plain_scores(similarity: list[Columns]) -> PlainScores:
    from scipy.stats import beta

    others = len(similarity) - 1
    counts = np.arange(others + 1)
    low, high = beta.interval(0.95, counts + 0.5, others - counts + 0.5)
    low[0], high[-1] = 0, 1
    hits = [np.sum([found >= _THRESHOLD for found in own], axis=0) for own in similarity]
    soft = [np.asarray(np.mean(own, axis=0, dtype=np.float64)) for own in similarity]
    return PlainScores(
        [hit / others for hit in hits],
        [low[hit] for hit in hits],
        [high[hit] for hit in hits],
        soft,
    )


def _agree(ours: Stability, theirs: PlainScores) -> bool:
    """Return whether scores agree up to rounding of cosines at the threshold.

    Intervals are compared where scores are equal.
    """
    for s, score in enumerate(ours.score):
        same = score.numpy() == theirs.score[s]
        if same.mean() < 0.9999 or not np.allclose(ours.soft[s].numpy(), theirs.soft[s], atol=1e-5):
            return False
        for mine, other in ((ours.low[s], theirs.low[s]), (ours.high[s], theirs.high[s])):
            if not np.allclose(mine.numpy()[same], other[same]):
                return False
    return True
