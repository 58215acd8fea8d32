"""The stages from training to subspaces, each from files to files."""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from saefast.activations.covariance import activation_covariance
from saefast.disk.tables import write_json, write_rows, write_table
from saefast.evaluation.contributions import contribution_r2
from saefast.evaluation.statistics import feature_statistics
from saefast.evaluation.token_ties import folded_tokens
from saefast.pipeline.job import Job
from saefast.pipeline.texts import token_texts, write_contexts
from saefast.run_folder import (
    CONTRIBUTIONS,
    MEMBERSHIP,
    OVERLAP,
    SKIPPED,
    STABILITY,
    SUBSPACE_TABLES,
    SUBSPACES,
)
from saefast.stability.membership import fit_power_law, membership_counts, subset_curve
from saefast.stability.overlap import Key, measure_overlap
from saefast.stability.result import Stability
from saefast.stability.score import stability_curve
from saefast.storage import load_dictionaries
from saefast.subspace.fit import fit_subspaces
from saefast.train.initial import Sample, Scales, begin
from saefast.train.train import train_saes

_TOP = 100
_SIDES = ("decoder", "encoder")


def train(job: Job) -> None:
    """The SAEs."""
    if not job.knows_rows:
        return  # they are what the run began with
    how = job.settings.trainer
    train_saes(
        str(job.train_rows),
        job.settings.train,
        initial=job.initial,
        out=job.run,
        resume=True,
        progress=job.progress,
        device=how.device,
        checkpoint_minutes=how.checkpoint_minutes,
        log_every=how.log_every,
        log_to=how.log_to,
        keep_training=how.keep_training,
    )


def statistics(job: Job) -> None:
    """What every feature does on the training rows: begins features.parquet."""
    if not job.knows_rows:
        job.add_features(_known_of(job))
        return
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
    columns = _seeds(job) | {
        name: [table[name].to_numpy() for table in tables]
        for name in tables[0].column_names
        if not name.startswith("top_") and name != "density"
    }
    columns["encoder_decoder_cosine"] = [each.encoder_decoder_cosine for each in found]
    if model is not None and found[0].token is not None:
        columns["token_text"] = [token_texts(model.tokenizer, each) for each in found]
        write_contexts(job, found)
    job.add_features(columns)


def _seeds(job: Job) -> dict[str, Any]:
    seeds = [torch.full((sae.m,), seed) for seed, sae in zip(job.seeds, job.saes, strict=True)]
    return {"seed": seeds}


def _known_of(job: Job) -> dict[str, Any]:
    """What the files of the SAEs say themselves."""
    return _seeds(job) | {
        "feature": [torch.arange(sae.m) for sae in job.saes],
        "firing_rate": [
            torch.ones(its.m) if its.firing_rate is None else its.firing_rate
            for its in load_dictionaries(*job.folders)
        ],
    }


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
        rows += [{"a": a, "b": b, **vars(measure)} for measure in found.measures]
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
    curve = stability_curve(found, stable=rule.stable, unstable=rule.unstable)
    write_json(
        job.run / STABILITY,
        {
            "rule": vars(found.rule),
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
            "curve": [vars(point) for point in curve],
        },
    )
    write_json(job.run / MEMBERSHIP, _membership(found))


def _membership(found: Stability) -> dict[str, Any]:
    """In how many SAEs features are, and how that goes on."""
    told: dict[str, Any] = {"counts": membership_counts(found).tolist()}
    curve = subset_curve(found)
    told["curve"] = [vars(point) for point in curve]
    if len(curve) > 3:  # three points are met by any power law
        law = fit_power_law([p.dictionaries for p in curve], [p.alone for p in curve])
        told["power_law"] = vars(law)
    return told


def subspace(job: Job) -> None:
    """The planes of stable and unstable features and what they add to tokens, beside nulls."""
    how = job.settings.subspace
    covariance = None
    if job.knows_rows:
        covariance = activation_covariance(str(job.train_rows), progress=job.progress)
    found = fit_subspaces(
        job.dictionaries,
        job.stability,
        stable=job.settings.stability.stable,
        unstable=job.settings.stability.unstable,
        rank=how.rank,
        covariance=covariance,
        initial=_untrained(job),
        draws=how.draws,
        seed=how.seed,
        progress=job.progress,
    )
    for name in SUBSPACE_TABLES:
        write_table(job.run / SUBSPACES / f"{name}.parquet", found.to_table(name))
    if not job.knows_rows:
        lacking = "what groups add to tokens, since the run names no activations"
        write_json(job.run / SUBSPACES / SKIPPED, [*found.skipped, lacking])
        return
    added = contribution_r2(
        job.saes,
        str(job.held_out_rows),
        job.stability,
        stable=job.settings.stability.stable,
        unstable=job.settings.stability.unstable,
        mass=job.column("mass"),
        draws=how.draws,
        seed=how.seed,
        progress=job.progress,
    )
    write_table(job.run / SUBSPACES / CONTRIBUTIONS, added.to_table())
    write_json(job.run / SUBSPACES / SKIPPED, [*found.skipped, *added.skipped])


def _untrained(job: Job) -> list[Tensor] | None:
    """The decoders that training began with; None where they hang on the first rows."""
    config, given = job.settings.train, job.initial
    if given is not None:
        return [sae.W_dec.detach() for sae in given]
    if config.directions != "iso":
        return None
    row = Sample(torch.ones(1, job.saes[0].d), None)
    return [begin(config, seed, row, Scales(1.0, 1.0)).W_dec.detach() for seed in job.seeds]
