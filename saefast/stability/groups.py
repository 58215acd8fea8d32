"""Groups of features: stable and unstable features by score, and groups given by masks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from saefast import checks

Groups = Sequence[Mapping[str, Tensor]]
"""Groups of features of each SAE, {name: [m] bool}"""

_ROUNDING = 1e-6
"""Tolerance of comparisons of scores with cuts: by rounding, 0.1 + 0.2 exceeds 3 / 10. Distinct
scores differ by more for fewer than a million SAEs"""


class Scored(Protocol):
    """Result that assigns a stability score to each feature, such as `Stability`."""

    @property
    def score(self) -> Sequence[Tensor]:
        """[m] scores in [0, 1] for each dictionary."""

    @property
    def alive(self) -> Sequence[Tensor]:
        """[m] bool for each dictionary, features that are not dead."""


def is_stable(score: Tensor, stable: float) -> Tensor:
    """Return a mask of the scores that are at least `stable`, up to rounding."""
    return score >= stable - _ROUNDING


def is_unstable(score: Tensor, unstable: float) -> Tensor:
    """Return a mask of the scores that are at most `unstable`, up to rounding."""
    return score <= unstable + _ROUNDING


def check_cuts(stable: float, unstable: float) -> None:
    """Raise a ValueError unless 0 <= unstable < stable <= 1."""
    if not 0 <= unstable < stable <= 1:
        raise ValueError(
            f"stable must be a share above unstable, {unstable}, and at most 1, got {stable}"
        )


def groups_by_score(scored: Scored, stable: float, unstable: float) -> list[dict[str, Tensor]]:
    """Return the groups "stable" and "unstable" of the alive features of each dictionary.

    Args:
        scored: scores of the features.
        stable: minimum score of a stable feature.
        unstable: maximum score of an unstable feature.

    Returns:
        {"stable": [m] bool, "unstable": [m] bool} for each dictionary.
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
    """Check groups of features and return them as a dict for each SAE.

    Args:
        groups: {name: [m] bool} for each SAE; a single mapping is accepted for one SAE.
        sizes: number of latents of each SAE.

    Returns:
        {name: [m] bool} for each SAE.
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
    """Return the groups to compare between SAEs, with the same names in each SAE.

    The groups are "stable" and "unstable" if `stability` is given, and those of `groups`.

    Args:
        sizes: number of latents of each SAE.
        stability: scores of the features; None: no groups by score.
        groups: {name: [m] bool} for each SAE; None: no groups by masks.
        stable: minimum score of a stable feature.
        unstable: maximum score of an unstable feature.

    Returns:
        {name: [m] bool} for each SAE.
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
            "stability or groups must be given: a result of score_stability, or a dict "
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
