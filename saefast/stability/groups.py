"""Define groups of features: stable and unstable ones by score, others by masks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from saefast import checks

Groups = Sequence[Mapping[str, Tensor]]
"""For each SAE its groups of features, {name: [m] bool}"""

_ROUNDING = 1e-6
"""Least distance of a score to a cut that counts: rounding alone makes 0.1 + 0.2 more than 3 of 10,
and scores of fewer than a million SAEs lie further apart"""


class Scored(Protocol):
    """Features with a score of their stability: `Stability` is one."""

    @property
    def score(self) -> Sequence[Tensor]:
        """[m] for each dictionary, in [0, 1]"""

    @property
    def alive(self) -> Sequence[Tensor]:
        """[m] bool for each dictionary"""


def is_stable(score: Tensor, stable: float) -> Tensor:
    """Return which scores are at least `stable`, as a bool tensor of their shape."""
    return score >= stable - _ROUNDING


def is_unstable(score: Tensor, unstable: float) -> Tensor:
    """Return which scores are at most `unstable`, as a bool tensor of their shape."""
    return score <= unstable + _ROUNDING


def check_cuts(stable: float, unstable: float) -> None:
    """Raise a ValueError unless 0 <= unstable < stable <= 1."""
    if not 0 <= unstable < stable <= 1:
        raise ValueError(
            f"stable must be a share above unstable, {unstable}, and at most 1, got {stable}"
        )


def groups_by_score(scored: Scored, stable: float, unstable: float) -> list[dict[str, Tensor]]:
    """Group the features alive of each dictionary into "stable" and "unstable" ones.

    Args:
        scored: the features' scores.
        stable: the least score of a stable feature.
        unstable: the largest score of an unstable one.
    """
    check_cuts(stable, unstable)
    return [
        {
            "stable": is_stable(score, stable) & alive,
            "unstable": is_unstable(score, unstable) & alive,
        }
        for score, alive in zip(scored.score, scored.alive, strict=True)
    ]


def as_groups(
    groups: Groups | Mapping[str, Tensor], sizes: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Check groups of features and return them, a dict for each SAE.

    Args:
        groups: {name: mask} for each SAE; one mapping alone if there is one SAE.
        sizes: m of each SAE.
    """
    each = [groups] if isinstance(groups, Mapping) else list(groups)
    for s, named in enumerate(each):
        if not isinstance(named, Mapping):
            raise TypeError(
                f"groups[{s}] must be a dict {{name: mask}}, got {type(named).__name__}"
            )
    if len(each) != len(sizes):
        raise ValueError(
            f"groups must hold a dict {{name: mask}} for each of the {len(sizes)} SAEs, got "
            f"{len(each)}"
        )
    for s, (named, size) in enumerate(zip(each, sizes, strict=True)):
        for name, mask in named.items():
            checks.mask(f"groups[{s}][{name!r}]", mask, size)
    return [dict(named) for named in each]


def feature_groups(
    sizes: Sequence[int],
    stability: Scored | None,
    groups: Groups | None,
    stable: float,
    unstable: float,
) -> list[dict[str, Tensor]]:
    """Return the groups to compare between SAEs, which all have the same names.

    They are "stable" and "unstable" of a score, if there is one, and those given by masks.

    Args:
        sizes: m of each SAE.
        stability: the features' scores.
        groups: {name: mask} for each SAE.
        stable: the least score of a stable feature.
        unstable: the largest score of an unstable one.
    """
    found: list[dict[str, Tensor]] = [{} for _ in sizes]
    if stability is not None:
        for name, values in (("score", stability.score), ("alive", stability.alive)):
            _check_sizes(f"stability.{name}", values, sizes)
        found = groups_by_score(stability, stable, unstable)
    if groups is not None:
        given = as_groups(groups, sizes)
        for s, named in enumerate(given):
            if named.keys() != given[0].keys():
                raise ValueError(
                    f"groups[{s}] must have the names of groups[0], {sorted(given[0])}, to be "
                    f"compared with it, got {sorted(named)}"
                )
        found = [scored | named for scored, named in zip(found, given, strict=True)]
    if not found[0]:
        raise ValueError(
            "stability or groups must be given: what score_stability returned, or a dict "
            "{name: mask} for each SAE"
        )
    return found


def _check_sizes(name: str, values: Sequence[Tensor], sizes: Sequence[int]) -> None:
    if len(values) != len(sizes):
        raise ValueError(
            f"{name} must hold a tensor for each of the {len(sizes)} dictionaries, got "
            f"{len(values)}"
        )
    for s, (each, size) in enumerate(zip(values, sizes, strict=True)):
        checks.size(f"{name}[{s}]", each, 0, size, "its features")
