"""Compare the subspaces spanned by groups of features, such as stable ones, between seeds."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary, Features, as_dictionaries, as_dictionary, side_of
from saefast.linalg import side_by_side
from saefast.progress import ProgressBar
from saefast.stability.groups import Groups, Scored, feature_groups
from saefast.subspace.group import Group, Plan, fit_group
from saefast.subspace.nulls import NULLS, Member, drawn_nulls
from saefast.subspace.results import Subspaces
from saefast.subspace.spectra import METHODS


def fit_subspaces(
    dictionaries: Sequence[Features],
    stability: Scored | None = None,
    *,
    groups: Groups | None = None,
    stable: float = 0.8,
    unstable: float = 0.2,
    side: str = "decoder",
    rank: int | None = None,
    energy: float = 0.9,
    nulls: Sequence[str] = NULLS,
    covariance: Tensor | None = None,
    initial: Sequence[Features] | None = None,
    draws: int = 100,
    band: float = 0.95,
    seed: int = 0,
    method: str = "gram",
    progress: bool = True,
) -> Subspaces:
    """Compare the subspaces that groups of features span in different seeds.

    Features count by their direction: rows are scaled to length 1, dead features are left out. The
    computation is in float64 on the CPU, with the same bits for any number of threads. In addition
    to the dictionaries it takes about 16 d^2 bytes per seed, regardless of their sizes. A draw of a
    null costs as much as the dictionaries themselves: use fewer draws if d is in the thousands.

    Six nulls state the overlap expected by chance. For overlaps, "haar", "random" and "rotated"
    have the same distribution: they distinguish directions from noise, but any directions learned
    from the same data overlap through its covariance. "covariance", "subset" and "initial" are
    stricter.

    Args:
        dictionaries: dictionaries of one width and different seeds: tensors [m, d] such as `W_dec`,
            SAEs or `Dictionary` objects.
        stability: result of `score_stability` for them, which defines the groups "stable" and
            "unstable". None: only `groups` are compared.
        groups: further groups: {name: [m] bool} for each dictionary.
        stable: minimum score of a stable feature.
        unstable: maximum score of an unstable feature.
        side: rows to compare: "decoder" or "encoder".
        rank: dimension of the subspaces whose overlap, captures and angles are compared, limited by
            the number of directions of the group. None: the smaller `energy_rank` of both seeds.
            Curves cover every rank.
        energy: share of the energy that `energy_rank` principal directions hold; 0.9 for r90.
        nulls: nulls to compute: "haar", formulas for uniformly distributed subspaces; "random",
            equally many random directions; "covariance", equally many directions drawn from the
            covariance of the activations; "subset", equally many features of the same seed;
            "rotated", the features themselves after a random rotation; "initial", the same latents
            before training. Nulls that cannot be computed are listed in `skipped`.
        covariance: [d, d] covariance of the activations, for the null "covariance".
        initial: the dictionaries before training, tensors [m, d], SAEs or `Dictionary` objects, for
            the null "initial".
        draws: number of draws of nulls without a formula.
        band: share of the draws between `low` and `high`.
        seed: seed of the draws.
        method: "gram" uses eigenvectors of the Gram matrix; "svd", several times slower, resolves
            singular values below 1e-7 of the largest.
        progress: whether to show a progress bar on stderr.

    Returns:
        `Subspaces` with `spectra` for each group and seed, `pairs` for each group and two seeds,
        and `to_table(name)`.
    """
    known = as_dictionaries(dictionaries, 2)
    d = known[0].W_dec.shape[1]
    checks.one_of("side", side, ("decoder", "encoder"))
    _check(rank, energy, nulls, draws, band, seed, method)
    if covariance is not None:
        _check_covariance(covariance, d)
    before = None if initial is None else _initial_rows(initial, known, side)
    masks = feature_groups([each.m for each in known], stability, groups, stable, unstable)
    members = {
        name: _members(known, [each[name] for each in masks], stability, before, side)
        for name in masks[0]
    }
    given = {"covariance": covariance, "initial": before}
    missing = [name for name in nulls if name in given and given[name] is None]
    found: list[Group] = []
    with side_by_side(8 * d * d * (len(known) + 4)) as run:
        names = [name for name in nulls if name not in missing]
        (drawn,) = run(partial(drawn_nulls, names, draws), [covariance])
        plan = Plan("haar" in names, drawn, rank, energy, band, seed, method)
        steps = len(members) * (1 + sum(null.draws for null in drawn))
        with ProgressBar("subspaces", total=steps, unit="draws", progress=progress) as bar:
            for name, several in members.items():
                found.append(fit_group(name, several, plan, run, bar.update))
    return Subspaces(
        d=d,
        spectra=tuple(spectrum for group in found for spectrum in group.spectra),
        pairs=tuple(pair for group in found for pair in group.pairs),
        skipped=(
            *(f"null {name!r}: {name} was not given" for name in missing),
            *(reason for group in found for reason in group.skipped),
        ),
    )


def _members(
    dictionaries: Sequence[Dictionary],
    masks: Sequence[Tensor],
    stability: Scored | None,
    initial: Sequence[Tensor] | None,
    side: str,
) -> list[Member]:
    """Return the features of one group in each seed."""
    members = []
    for s, (dictionary, mask) in enumerate(zip(dictionaries, masks, strict=True)):
        rows = side_of(dictionary, side, f"dictionaries[{s}]")
        alive = dictionary.alive.cpu()
        if stability is not None:
            alive &= stability.alive[s].cpu()
        index = (mask.cpu() & alive).nonzero()[:, 0]
        dead = int(mask.sum()) - len(index)
        before = None if initial is None else initial[s]
        members.append(Member(rows, index, dead, alive.nonzero()[:, 0], before))
    return members


def _initial_rows(
    initial: Sequence[Features], dictionaries: Sequence[Dictionary], side: str
) -> list[Tensor]:
    found = [as_dictionary(each, f"initial[{s}]") for s, each in enumerate(initial)]
    if len(found) != len(dictionaries):
        raise ValueError(
            f"initial must have one dictionary for each of the {len(dictionaries)} dictionaries, "
            f"got {len(found)}"
        )
    rows = [side_of(each, side, f"initial[{s}]") for s, each in enumerate(found)]
    for s, (each, dictionary) in enumerate(zip(rows, dictionaries, strict=True)):
        checks.shape(f"initial[{s}]", each, tuple(dictionary.W_dec.shape))
    return rows


def _check(
    rank: int | None,
    energy: float,
    nulls: Sequence[str],
    draws: int,
    band: float,
    seed: int,
    method: str,
) -> None:
    if rank is not None:
        checks.whole("rank", rank, 1)
    for name, value in (("energy", energy), ("band", band)):
        checks.at_least(name, value, 0, below=1)
    if isinstance(nulls, str):
        raise TypeError(f"nulls must be a sequence of names such as ({nulls!r},), got a str")
    for null in nulls:
        checks.one_of("nulls", null, NULLS)
    for name, number, least in (("draws", draws, 1), ("seed", seed, 0)):
        checks.whole(name, number, least)
    checks.one_of("method", method, METHODS)


def _check_covariance(covariance: Tensor, d: int) -> None:
    checks.floating("covariance", covariance, "[d, d]")
    checks.shape("covariance", covariance, (d, d))
    checks.finite("covariance", covariance)
    scale = float(covariance.abs().amax())
    if not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-4 * scale):
        raise ValueError("covariance must be symmetric; use (covariance + covariance.T) / 2")
    if not float(covariance.trace()) > 0:
        raise ValueError(
            "covariance must have a positive trace; the covariance of constant activations is zero"
        )
