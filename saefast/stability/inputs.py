"""Checks of the arguments of stability scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from torch import Tensor

from saefast import checks
from saefast.dictionary import SIDES, Dictionary
from saefast.match.result import Matches

MATCHES = ("nearest", "mutual", "one_to_one")


PairMatches = Mapping[tuple[int, int], Matches]
"""Result of `match_all`: [s, t] holds the partners of the features of s among those of t"""


def given_matches(matches: Any, side: str) -> list[PairMatches]:
    """Check the type of the given matches and return them, for one side or both."""
    found = list(matches) if isinstance(matches, tuple | list) else [matches]
    wanted = 2 if side == "both" else 1
    if len(found) != wanted or not all(isinstance(pairs, Mapping) for pairs in found):
        expected = (
            "a pair of results of match_all, of decoders and of encoders,"
            if wanted == 2
            else "a result of match_all"
        )
        raise TypeError(
            f"matches must be {expected} for side={side!r}, got "
            f"{[type(pairs).__name__ for pairs in found]}"
        )
    return found


def check_pairs(
    pairs: PairMatches, each: Sequence[Dictionary], alive: Sequence[Tensor], match: str
) -> None:
    """Raise an error unless every pair is present, fits its dictionaries and fits `match`."""
    for s, t in permutations(range(len(each)), 2):
        if (s, t) not in pairs:
            raise ValueError(
                f"matches must hold every pair of {len(each)} dictionaries, but ({s}, {t}) is "
                f"missing; make them with match_all"
            )
        one, name = pairs[s, t], f"matches[{s}, {t}]"
        checks.indices(f"{name}.partner", one.partner, "[m]")
        checks.floating(f"{name}.similarity", one.similarity, "[m]")
        for field in ("partner", "similarity", "mutual"):
            checks.size(f"{name}.{field}", getattr(one, field), 0, each[s].m, "one per feature")
        checks.finite(f"{name}.similarity", one.similarity)
        if each[s].m and int(one.partner.max()) >= each[t].m:
            raise ValueError(
                f"{name}.partner must be below {each[t].m}, the size of dictionary {t}, got "
                f"{int(one.partner.max())}"
            )
        mine = (alive[s] & (one.partner >= 0)).nonzero()[:, 0]
        dead = mine[~alive[t][one.partner[mine]]]
        if len(dead):
            raise ValueError(
                f"{name} must match alive features only, but the partner of feature "
                f"{int(dead[0])}, {int(one.partner[dead[0]])}, is dead; match the same "
                f"dictionaries, with the same firing rates, or give the alive features of "
                f"activation_matches as alive"
            )
        if (one.proof is not None) != (match == "one_to_one"):
            made = "nearest" if one.proof is None else "one to one"
            raise ValueError(
                f"{name} must be made with match={match!r}, got a matching that is {made}"
            )


def with_alive(each: Sequence[Dictionary], alive: Sequence[Tensor]) -> list[Dictionary]:
    """Return the dictionaries with the given features alive."""
    if len(alive) != len(each):
        raise ValueError(
            f"alive must have one tensor per dictionary, {len(each)}, got {len(alive)}"
        )
    for i, (dictionary, living) in enumerate(zip(each, alive, strict=True)):
        checks.mask(f"alive[{i}]", living, dictionary.m)
    return [
        replace(dictionary, firing_rate=living.float())
        for dictionary, living in zip(each, alive, strict=True)
    ]


def check_arguments(
    threshold: object, match: str, side: str, same_partner: bool, confidence: float
) -> None:
    """Raise an error unless the arguments of `score_stability` are valid and fit each other."""
    check_threshold(threshold)
    checks.one_of("match", match, MATCHES)
    checks.one_of("side", side, SIDES)
    if same_partner and side != "both":
        raise ValueError(f"same_partner needs side='both', got side={side!r}")
    checks.at_least("confidence", confidence, 0, below=1)


def check_threshold(threshold: object) -> None:
    """Raise an error unless a threshold is a number in (0, 1] or "null"."""
    if threshold == "null":
        return
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        kind = repr(threshold) if isinstance(threshold, str) else type(threshold).__name__
        raise TypeError(f"threshold must be a number or 'null', got {kind}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, or 'null', got {threshold}")
