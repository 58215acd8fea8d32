"""The stages of a run after its activations are there, each from files to files."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from saefast.activations import StoreActivations, open_activations
from saefast.activations.one_pass import OnePass
from saefast.config import TrainConfig
from saefast.dictionary import sae_from
from saefast.function import feature_function
from saefast.membership import fit_power_law, membership_counts, subset_curve
from saefast.overlap import Key, measure_overlap
from saefast.pipeline.job import Job
from saefast.pool import pool_features
from saefast.pooling_study import evaluate_pooling
from saefast.regression import regress_effect
from saefast.run_files import (
    CONTEXTS,
    EVALUATION,
    MEMBERSHIP,
    OVERLAP,
    POOLED,
    POOLING,
    SKIPPED,
    STABILITY,
    SUBSPACE_TABLES,
    SUBSPACES,
    write_json,
    write_rows,
    write_table,
)
from saefast.stability import stability_curve
from saefast.statistics import FeatureStatistics, feature_statistics
from saefast.storage import save_sae
from saefast.subspace import fit_subspaces
from saefast.token_ties import folded_tokens
from saefast.train import train_saes
from saefast.types import Dictionary, Stability

_TOP = 100
_SIDES = ("decoder", "encoder")


def train(job: Job) -> None:
    """The SAEs."""
    train_saes(
        str(job.train_rows), job.settings.train, out=job.run, resume=True, progress=job.progress
    )


def statistics(job: Job) -> None:
    """What every feature does on the training rows: begins features.parquet."""
    model = job.language_model
    folded = None
    if model is not None:
        size = max(model.tokenizer.get_vocab().values()) + 1
        words = [word or "" for word in model.tokenizer.convert_ids_to_tokens(list(range(size)))]
        folded = folded_tokens(words)
    found = feature_statistics(
        job.saes, str(job.train_rows), folded=folded, top=_TOP, progress=job.progress
    )
    tables = [each.to_table() for each in found]
    columns: dict[str, Any] = {
        "seed": [torch.full((sae.m,), seed) for seed, sae in zip(job.seeds, job.saes, strict=True)]
    }
    columns |= {
        name: [table[name] for table in tables]
        for name in tables[0]
        if not name.startswith("top_") and name != "density"
    }
    columns["encoder_decoder_cosine"] = [each.encoder_decoder_cosine for each in found]
    if model is not None and found[0].token is not None:
        columns["token_text"] = [_texts(model.tokenizer, each) for each in found]
        _write_contexts(job, found)
    job.add_features(columns)


def match(job: Job) -> None:
    """Every pair of SAEs, by decoder and by encoder, and what each pair has in common."""
    by_side = {side: job.matches(side) for side in _SIDES}
    rows = []
    for a, b in combinations(range(len(job.seeds)), 2):
        known = {
            Key("nearest", side, "signed", turned): by_side[side][(b, a) if turned else (a, b)]
            for side in _SIDES
            for turned in (False, True)
        }
        found = measure_overlap(
            job.dictionaries[a],
            job.dictionaries[b],
            signs=("signed",),
            matches=known,
            progress=job.progress,
        )
        rows += [{"a": a, "b": b, **row} for row in found.as_rows()]
    write_rows(job.run / OVERLAP, rows)


def stability(job: Job) -> None:
    """The score of every feature, and what all of them make up."""
    found, rule = job.stability, job.settings.stability
    groups = job.groups
    names = []
    for masks, alive in zip(groups, found.alive, strict=True):
        kinds = alive.long() + masks["stable"].long() + 2 * masks["unstable"].long()
        names.append([("dead", "mixed", "stable", "unstable")[kind] for kind in kinds.tolist()])
    columns = ("alive", "score", "support", "low", "high", "soft", "similarity", "partner")
    job.add_features({"group": names, **{name: getattr(found, name) for name in columns}})
    curve = stability_curve(found, stable_cut=rule.stable, unstable_cut=rule.unstable)
    write_json(
        job.run / STABILITY,
        {
            "rule": found.rule._asdict(),
            "stable_cut": rule.stable,
            "unstable_cut": rule.unstable,
            "least_rate": rule.least_rate,
            "thresholds": found.thresholds.tolist(),
            "chance": found.chance.tolist(),
            "mean": found.mean(),
            "seeds": [
                {
                    "seed": seed,
                    "alive": int(alive.sum()),
                    "dead": dead,
                    **{name: int(mask.sum()) for name, mask in masks.items()},
                }
                for seed, alive, dead, masks in zip(
                    job.seeds, found.alive, found.dead, groups, strict=True
                )
            ],
            "curve": [point._asdict() for point in curve],
        },
    )
    write_json(job.run / MEMBERSHIP, _membership(found))


def _membership(found: Stability) -> dict[str, Any]:
    """In how many SAEs features are, and how that goes on."""
    told: dict[str, Any] = {"counts": membership_counts(found).tolist()}
    curve = subset_curve(found)
    told["curve"] = [point._asdict() for point in curve]
    if len(curve) > 3:  # three points are met by any power law
        law = fit_power_law([p.dictionaries for p in curve], [p.alone for p in curve])
        told["power_law"] = law._asdict()
    return told


def subspace(job: Job) -> None:
    """The planes of stable and unstable features, beside their nulls."""
    how = job.settings.subspace
    found = fit_subspaces(
        job.dictionaries,
        job.stability,
        stable=job.settings.stability.stable,
        unstable=job.settings.stability.unstable,
        rank=how.rank,
        covariance=_covariance(job),
        draws=how.draws,
        seed=how.seed,
        progress=job.progress,
    )
    tables = found.tables()
    for name in SUBSPACE_TABLES:
        write_rows(job.run / SUBSPACES / f"{name}.parquet", tables[name])
    write_json(job.run / SUBSPACES / SKIPPED, list(found.skipped))


def pool(job: Job) -> None:
    """One SAE from all, and whether that beats its controls."""
    how, config = job.settings.pool, job.settings.train
    tokens = how.tokens or max(config.tokens // 4, 1)
    fine_tune = replace(config, tokens=tokens, seeds=config.seeds[:1])
    most = how.width or config.latents
    everywhere = pool_features(job.dictionaries, job.stability, progress=job.progress)
    width = min(most, everywhere.m)
    pooled = sae_from(first_features(everywhere, width), k=min(config.k, width))
    (tuned,) = train_saes(
        str(job.train_rows),
        replace(fine_tune, latents=width, k=min(config.k, width)),
        initial=[pooled],
        progress=job.progress,
    )
    save_sae(tuned, job.run / POOLED)
    told: dict[str, Any] = {"width": width, "unique": everywhere.m, "tokens": tokens}
    write_json(job.run / POOLING, told | _compared(job, most, fine_tune))


def _compared(job: Job, most: int, fine_tune: TrainConfig) -> dict[str, Any]:
    """Pools of both halves of the seeds beside their controls."""
    how, half = job.settings.pool, len(job.seeds) // 2
    if not how.compare:
        return {"reason": "a comparison was not asked for"}
    if half < 2:
        return {"reason": "pools of two halves need four seeds or more"}
    pools = []
    for first in (0, half):
        places = range(first, first + half)
        unique = pool_features(
            [job.dictionaries[place] for place in places],
            job.stability_among(places),
            progress=job.progress,
        )
        pools.append(unique)
    width = min(most, *(each.m for each in pools))
    study = evaluate_pooling(
        [job.saes[:half], job.saes[half : 2 * half]],
        [first_features(each, width) for each in pools],
        str(job.train_rows),
        str(job.held_out_rows),
        fine_tune=fine_tune,
        scratch=job.settings.train,
        scratch_tokens=how.scratch_tokens,
        margin=how.margin,
        progress=job.progress,
    )
    table = study.to_table()
    methods = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return {
        "groups": [job.seeds[:half], job.seeds[half : 2 * half]],
        "methods": methods,
        "beaten": study.beaten,
        "verdict": study.verdict,
        "margin": study.margin,
    }


def first_features(pool: Dictionary, width: int) -> Dictionary:
    """The pool cut to the features that were taken first."""
    return replace(
        pool,
        **{
            name: None if values is None else values[:width]
            for name in ("W_dec", "W_enc", "b_enc", "firing_rate")
            for values in (getattr(pool, name),)
        },
    )


def evaluate(job: Job) -> None:
    """What the groups, and single features, are worth on held-out rows."""
    how = job.settings.evaluate
    mass = job.column("mass")
    found = feature_function(
        job.saes,
        str(job.held_out_rows),
        job.groups,
        mass=mass,
        draws=how.draws,
        progress=job.progress,
    )
    job.add_features({"effect": [each.lost_variance for each in found]})
    rates, means = job.column("firing_rate"), job.column("mean")
    unstable = torch.cat([masks["unstable"] for masks in job.groups])
    alive = torch.cat(list(job.stability.alive))
    effects = torch.cat([each.effect for each in found])
    try:
        inputs = (effects, unstable, torch.cat(rates), torch.cat(means))
        regression = vars(regress_effect(*(values[alive] for values in inputs)))
    except ValueError as error:
        regression = {"reason": str(error)}
    write_json(
        job.run / EVALUATION,
        {
            "rows": found[0].rows,
            "held_out": job.held_out_rows != job.train_rows,
            "seeds": [
                {
                    "seed": seed,
                    "explained_variance": each.explained_variance,
                    "groups": [line._asdict() for line in each.summary()],
                }
                for seed, each in zip(job.seeds, found, strict=True)
            ],
            "regression": regression,
            "language_model": _patched(job, mass),
        },
    )


def _patched(job: Job, mass: list[Tensor]) -> dict[str, Any] | None:
    """CE and KL with reconstructions of the first SAE, all of it and groups of features."""
    how, data = job.settings.evaluate, job.settings.data
    if job.language_model is None or how.tokens == 0:
        return None
    from saefast.controls import mass_matched, size_matched
    from saefast.lm import builtin_corpus, evaluate_patched, text_files
    from saefast.pipeline.settings import Harvest

    assert isinstance(data, Harvest)
    masks: dict[str, Tensor] = {}
    for name, mask in job.groups[0].items():
        masks[name] = mask
        masks[f"{name}:size"] = size_matched(mask, mass[0], 0, 0)
        masks[f"{name}:mass"] = mass_matched(mask, mass[0], 0, 0)
    corpus = text_files(data.text) if data.text else builtin_corpus()
    found = evaluate_patched(
        job.language_model,
        data.site,
        job.saes[0],
        masks,
        corpus=corpus.held_out(),
        tokens=how.tokens,
        context=data.context,
        progress=job.progress,
    )

    def told(effect: Any) -> dict[str, Any]:
        return {name: value._asdict() for name, value in vars(effect).items()}

    return {
        "seed": job.seeds[0],
        "contexts": found.contexts,
        "predictions": found.predictions,
        **{name: told(getattr(found, name)) for name in ("clean", "zero", "mean", "full")},
        "keep": {name: told(effect) for name, effect in found.keep.items()},
        "drop": {name: told(effect) for name, effect in found.drop.items()},
    }


def _covariance(job: Job) -> Tensor:
    """[d, d] float64 of the training rows."""
    total, mean, rows = torch.zeros(()), torch.zeros(()), 0
    for part in OnePass(str(job.train_rows), what="covariance", progress=job.progress):
        x = part.x.double()
        total, mean, rows = total + x.T @ x, mean + x.sum(0), rows + len(x)
    mean = mean / rows
    covariance: Tensor = total / rows - mean[:, None] * mean
    return (covariance + covariance.T) / 2


def _texts(tokenizer: Any, each: FeatureStatistics) -> list[str | None]:
    """The token that tells best whether a feature fires."""
    assert each.token is not None
    return [tokenizer.decode([token]) if token >= 0 else None for token in each.token.tolist()]


def _write_contexts(job: Job, found: list[FeatureStatistics]) -> None:
    """The text around each feature's largest activations."""
    from tqdm import tqdm

    from saefast.lm import contexts

    store = open_activations(str(job.train_rows))
    assert isinstance(store, StoreActivations)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("seed", "feature", "value", "before", "token", "after")
    }
    most = job.settings.evaluate.contexts
    total = sum(int((each.top_rows[:, :most] >= 0).sum()) for each in found)
    with tqdm(total=total, desc="contexts", unit="text", disable=not job.progress) as bar:
        for seed, each in zip(job.seeds, found, strict=True):
            rows = each.top_rows[:, :most]
            feature, place = (rows >= 0).nonzero(as_tuple=True)
            for chosen in torch.arange(len(feature)).split(1024):
                at = rows[feature[chosen], place[chosen]]
                for number, text in zip(
                    chosen.tolist(),
                    contexts(store, job.language_model.tokenizer, at),
                    strict=True,
                ):
                    columns["feature"].append(int(feature[number]))
                    columns["before"].append(text.before)
                    columns["token"].append(text.token)
                    columns["after"].append(text.after)
                bar.update(len(chosen))
            columns["seed"] += [seed] * len(feature)
            columns["value"] += each.top_values[feature, place].tolist()
    write_table(job.run / CONTEXTS, columns)
