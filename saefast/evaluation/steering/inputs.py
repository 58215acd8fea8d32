"""Alignment of explanations, rules and matches of latents with the sample to steer with."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from saefast import checks
from saefast.evaluation.scores import TRAINED
from saefast.evaluation.steering.latents import SiteRows
from saefast.evaluation.steering.outcomes import SELF, Member, Outcome
from saefast.evaluation.steering.runs import Items
from saefast.match.result import Matches
from saefast.sae import SAE

_PREFERRED = ("rule", "other seed", "judge", SELF)
"""Outcomes in order of preference; the first defined one is primary"""


def sampled_items(
    every: Sequence[tuple[str, Sequence[SAE]]],
    groups: Sequence[Mapping[str, Tensor]],
    rows: SiteRows,
    features: tuple[int, int],
    seed: int,
) -> Items:
    """Sample latents of all conditions.

    Args:
        every: name and SAEs of each condition.
        groups: for each trained SAE its groups {name: [m] bool}.
        rows: activations at the site.
        features: numbers of latents of each trained SAE, and of each SAE of other conditions.
        seed: seed of the sample and of random directions.

    Returns:
        The sampled items.
    """
    parts = []
    for name, saes in every:
        of_trained = name == TRAINED
        wanted = features[0] if of_trained else features[1]
        for place, sae in enumerate(saes):
            its_groups = groups[place] if of_trained else {}
            parts.append((name, place, rows.latents(sae, wanted, its_groups, seed)))
    return Items(parts, rows, seed)


def check_per_latent(name: str, given: Sequence[Tensor], trained: Sequence[SAE]) -> None:
    """Raise unless there is one tensor [m] for each trained SAE.

    Args:
        name: name of the argument, for the error.
        given: tensors.
        trained: trained SAEs.
    """
    if len(given) != len(trained):
        raise ValueError(
            f"{name} must be one tensor for each SAE, {len(trained)}, got {len(given)}"
        )
    for place, (values, sae) in enumerate(zip(given, trained, strict=True)):
        checks.shape(f"{name}[{place}]", values, (sae.m,))


def of_items(
    name: str, given: Sequence[Any] | Mapping[str, Sequence[Any]] | None, items: Items
) -> list[Any]:
    """Return the given value for the latent of each item, or None.

    Args:
        name: name of the argument, for errors.
        given: for each SAE a sequence or mapping over its latents, or a dict of these by condition.
        items: latents to steer with.
    """
    by_condition = given if isinstance(given, Mapping) else {TRAINED: given or ()}
    found: list[Any] = []
    for condition, place, latents in items.parts:
        of_saes = by_condition.get(condition, ())
        if of_saes and place >= len(of_saes):
            raise ValueError(
                f"{name} must be one for each SAE of {condition}, got {len(of_saes)} for SAE "
                f"number {place}"
            )
        its = of_saes[place] if of_saes else {}
        if not isinstance(its, Mapping):
            if len(its) != latents.sae.m:
                raise ValueError(
                    f"{name}[{place}] must be one for each of the {latents.sae.m} latents, got "
                    f"{len(its)}"
                )
            its = dict(enumerate(its))
        found += [its.get(number) for number in latents.numbers.tolist()]
    return found


def partners_of(
    matches: Mapping[tuple[int, int], Matches] | None, items: Items, trained: Sequence[SAE]
) -> list[list[Member]]:
    """Return the matches of each item in the other trained SAEs.

    A match with the opposite decoder row, which latents of both signs may have, fires with the
    opposite sign.

    Args:
        matches: {(SAE, other SAE): matches of the first SAE's latents}.
        items: latents to steer with.
        trained: trained SAEs.
    """
    found: list[list[Member]] = []
    for condition, place, latents in items.parts:
        others = [
            (trained[other], pair.partner.cpu())
            for (one, other), pair in (matches or {}).items()
            if one == place and condition == TRAINED
        ]
        found += [
            [
                Member(sae, int(partner[number]), _sign(latents.sae, number, sae, partner[number]))
                for sae, partner in others
                if partner[number] >= 0
            ]
            for number in latents.numbers.tolist()
        ]
    return found


def _sign(sae: SAE, latent: int, other: SAE, partner: Tensor) -> int:
    """Return -1 if the decoder rows of two latents point in opposite directions, otherwise 1."""
    row = sae.W_dec[latent].detach().to(other.W_dec)
    return -1 if float(row @ other.W_dec[int(partner)].detach()) < 0 else 1


def primary_outcome(wanted: str | None, outcomes: Mapping[str, Outcome]) -> str:
    """Return the wanted outcome, or the first of rule, other seed, judge and self.

    Args:
        wanted: name of an outcome; None: the first defined one.
        outcomes: defined outcomes by name.
    """
    if wanted is None:
        return next(name for name in _PREFERRED if name in outcomes)
    if wanted not in outcomes:
        raise ValueError(
            f"outcome must be a defined outcome, {', '.join(outcomes)}, got {wanted!r}; 'rule' "
            f"needs rules, 'other seed' needs matches, 'judge' and 'embedding' need explanations"
        )
    return wanted


def comparisons(openers: int, strengths: int, controls: int) -> int:
    """Return the number of texts that `steer` compares with the unsteered one, for each latent.

    Args:
        openers: number of prompts.
        strengths: number of strengths.
        controls: number of other directions.
    """
    choosing = (openers + 1) // 2 if strengths > 1 else 0
    # The second unsteered text of each opener is compared as well.
    return choosing * strengths + (openers - choosing) * (1 + controls) + openers
