"""Evaluation of pooling: comparison of two pools of disjoint seeds with controls."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import ActivationSource
from saefast.dictionary import Dictionary, sae_from
from saefast.disk.resume import refuse_existing
from saefast.evaluation.reconstruction import Reconstruction, reconstruction
from saefast.match.features import match_features
from saefast.pool.results import MethodResult, Outcome, PoolingStudy
from saefast.sae import SAE, UP_TO_SIGN
from saefast.train.checkpoint import RUN
from saefast.train.config import TrainConfig
from saefast.train.train import train_saes


def evaluate_pooling(
    saes: Sequence[Sequence[SAE]],
    pools: Sequence[Dictionary],
    activations: ActivationSource,
    held_out: ActivationSource,
    *,
    fine_tune: TrainConfig,
    scratch: TrainConfig,
    scratch_tokens: int | None = None,
    threshold: float = 0.7,
    margin: float = 0.01,
    rows: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> PoolingStudy:
    """Fine-tune two pools of disjoint seeds and compare them with each other, and with controls.

    Pools of common seeds would agree because they share features; pools of disjoint seeds agree
    only as far as different seeds do. Every control is a pair from disjoint seeds as well.

    Args:
        saes: two lists of SAEs without a common seed.
        pools: results of `pool_features` for each list, of equal width.
        activations: activations [n, d] for training.
        held_out: other activations [n, d] for the measurements, and for the firing rates by which
            SAEs are cut.
        fine_tune: settings of the fine-tuning of pools and pruned SAEs; `latents`, `k`, `variant`,
            `seeds` and `name` are overridden.
        scratch: settings with which the SAEs of the lists were trained, for `tokens` each. Its
            first two seeds are those of the SAEs trained from scratch at the width of the pools.
        scratch_tokens: number of tokens for the SAEs trained from scratch. None: the tokens of all
            training that went into a pool, that is, of its seeds and of the fine-tuning.
        threshold: minimum cosine of a match.
        margin: differences of explained variance, match share and PW-MCC up to this are ignored; so
            are differences of the last two up to two standard errors.
        rows: number of rows of `held_out` to use; None: all.
        out: folder for the trained SAEs. None: nothing is written.
        resume: whether to continue interrupted trainings in `out`, with the same arguments.
        progress: whether to show progress bars on stderr.
        device: device to train on; None: a CUDA device if there is one.

    Returns:
        The results of all methods; `verdict` states whether pooling beats every control.
    """
    width = _check(saes, pools, scratch, margin)
    tuning, anew_in = (_kept_in(out, name, resume) for name in ("fine-tuned", "scratch"))
    singles = [each[0] for each in saes]
    measure: dict[str, Any] = {"rows": rows, "progress": progress}
    rates = [its.firing_rate for its in reconstruction(singles, held_out, **measure)]
    k, variant, by_norm = singles[0].k, singles[0].variant, singles[0].by_norm
    pruned = [cut(sae, rate, width) for sae, rate in zip(singles, rates, strict=True)]
    pooled = [sae_from(pool, k=min(k, width), variant=variant, by_norm=by_norm) for pool in pools]
    seeds = scratch.seeds[:2]
    settings = replace(fine_tune, k=min(k, width), variant=variant, seeds=seeds)
    tuned = train_saes(
        activations,
        [
            replace(settings, name=name, latents=pair[0].m)
            for name, pair in (("pooled", pooled), ("pruned", pruned))
        ],
        initial=[*pooled, *pruned],
        **tuning,
        progress=progress,
        device=device,
    )
    all_tokens = len(saes[0]) * scratch.tokens + fine_tune.tokens
    anew = replace(
        scratch, latents=width, k=min(k, width), seeds=seeds, tokens=scratch_tokens or all_tokens
    )
    from_scratch = train_saes(activations, anew, **anew_in, progress=progress, device=device)
    methods = {
        "pooled": (tuned[:2], all_tokens),
        "pruned": (tuned[2:], scratch.tokens + fine_tune.tokens),
        "scratch": (from_scratch, anew.tokens),
        "single": (singles, scratch.tokens),
    }
    trained = [sae for pair, _ in methods.values() for sae in pair]
    found = reconstruction(trained, held_out, **measure)
    least = min(int((its.firing_rate > 0).sum()) for its in found)
    equal = [cut(sae, its.firing_rate, least) for sae, its in zip(trained, found, strict=True)]
    again = reconstruction(equal, held_out, **measure)
    results = tuple(
        MethodResult(
            method=method,
            latents=pair[0].m,
            tokens=tokens,
            whole=_outcome(pair, found[2 * i : 2 * i + 2], threshold),
            equal=_outcome(equal[2 * i : 2 * i + 2], again[2 * i : 2 * i + 2], threshold),
        )
        for i, (method, (pair, tokens)) in enumerate(methods.items())
    )
    return PoolingStudy(results=results, threshold=threshold, margin=margin)


def _kept_in(out: str | Path | None, name: str, resume: bool) -> dict[str, Any]:
    """Return the arguments of `train_saes` that keep a training in its own folder."""
    if out is None:
        return {}
    folder = Path(out) / name
    refuse_existing(folder / RUN, resume)
    return {"out": folder, "resume": resume, "keep_training": False}


def cut(sae: SAE, firing_rate: Tensor, width: int) -> SAE:
    """Return an SAE reduced to its most frequent latents.

    Args:
        sae: the SAE.
        firing_rate: [m] firing rates of its latents.
        width: number of latents to keep; all are kept if there are fewer.

    Returns:
        A new SAE with the kept latents in their order.
    """
    kept = firing_rate.argsort(descending=True, stable=True)[:width].sort().values
    out = SAE(
        *(sae.d, len(kept)),
        variant=sae.variant,
        k=min(sae.k, len(kept)),
        seed=0,
        d_out=sae.d_out if sae.transcodes else None,
        centred=sae.centred,
        skip=sae.skip,
        normalise=sae.normalise,
        dtype=sae.W_enc.dtype,
        device=sae.W_enc.device,
        by_norm=sae.by_norm,
    )
    of_latents = {"W_enc", "b_enc", "W_dec", "jump_threshold", "r_mag", "b_mag"}
    with torch.no_grad():
        state = out.state_dict()
        for name, values in sae.state_dict().items():
            state[name].copy_(values[kept.to(values.device)] if name in of_latents else values)
    return out


def _outcome(saes: Sequence[SAE], found: Sequence[Reconstruction], threshold: float) -> Outcome:
    a, b = (
        Dictionary(sae.W_dec.detach().cpu(), firing_rate=its.firing_rate)
        for sae, its in zip(saes, found, strict=True)
    )
    absolute = saes[0].variant in UP_TO_SIGN
    forward = match_features(a, b, one_to_one=True, absolute=absolute)
    shares = []
    for its, other in ((a, b), (b, a)):
        similarity = match_features(its, other, absolute=absolute).similarity[its.alive]
        shares.append(float((similarity >= threshold).double().mean()))
    alive = [int(its.alive.sum()) for its in (a, b)]
    assert forward.value is not None
    share, pairs = sum(shares) / 2, forward.similarity[forward.partner >= 0].double()
    return Outcome(
        explained_variance=sum(its.explained_variance for its in found) / 2,
        match_share=share,
        pw_mcc=forward.value / max(min(alive), 1),
        alive=sum(alive) / 2,
        match_share_error=(share * (1 - share) / max(min(alive), 1)) ** 0.5,
        pw_mcc_error=float(pairs.std(correction=0)) / max(len(pairs), 1) ** 0.5
        if len(pairs)
        else 0.0,
    )


def _check(
    saes: Sequence[Sequence[SAE]],
    pools: Sequence[Dictionary],
    scratch: TrainConfig,
    margin: float,
) -> int:
    """Check the arguments of `evaluate_pooling` and return the width of the pools."""
    for name, values in (("saes", saes), ("pools", pools), ("scratch.seeds", scratch.seeds)):
        if len(values) < 2 or (name != "scratch.seeds" and len(values) > 2):
            raise ValueError(f"{name} must have two entries, of disjoint seeds, got {len(values)}")
    if len(saes[0]) != len(saes[1]):
        raise ValueError(
            f"saes must be two lists of equal length, got {len(saes[0])} and {len(saes[1])}"
        )
    if {id(sae) for sae in saes[0]} & {id(sae) for sae in saes[1]}:
        raise ValueError(
            "saes must be two lists without a common SAE, since pools of the same seeds agree "
            "trivially"
        )
    if pools[0].m != pools[1].m:
        raise ValueError(
            f"pools must have equal width, got {pools[0].m} and {pools[1].m}; call pool_features "
            f"with the same width"
        )
    checks.at_least("margin", margin, 0)
    return pools[0].m
