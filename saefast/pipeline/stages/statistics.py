"""Stage statistics: firing statistics of every feature, and the text around its firings."""

from typing import Any

import torch

from saefast.activations import StoreActivations, open_activations
from saefast.activations.one_pass import count_rows
from saefast.disk.tables import write_table
from saefast.evaluation.statistics import FeatureStatistics, feature_statistics
from saefast.evaluation.token_ties import folded_tokens
from saefast.pipeline.job import Job
from saefast.progress import ProgressBar
from saefast.run_folder import CONTEXTS
from saefast.storage import load_dictionaries

_TOP = 100


def statistics(job: Job) -> None:
    """Measure the firings of every feature on training rows, and create features.parquet."""
    if not job.knows_rows:
        job.add_features(_known_of(job))
        return
    model = job.language_model
    folded = None
    if model is not None:
        size = max(model.tokenizer.get_vocab().values()) + 1
        words = [word or "" for word in model.tokenizer.convert_ids_to_tokens(list(range(size)))]
        folded = folded_tokens(words)
    rows = open_activations(str(job.train_rows))
    found = feature_statistics(
        job.saes,
        rows,
        folded=folded,
        top=_TOP,
        rows=count_rows(rows, job.settings.evaluate.statistics_rows, 1),
        progress=job.progress,
    )
    tables = [each.to_table() for each in found]
    columns = _seeds(job) | {
        name: [table[name].to_numpy() for table in tables]
        for name in tables[0].column_names
        if not name.startswith("top_") and name != "density"
    }
    columns["encoder_decoder_cosine"] = [each.encoder_decoder_cosine for each in found]
    if model is not None and found[0].token is not None:
        columns["token_text"] = [_token_texts(model.tokenizer, each) for each in found]
        _write_contexts(job, found)
    job.add_features(columns)


def _seeds(job: Job) -> dict[str, Any]:
    seeds = [torch.full((sae.m,), seed) for seed, sae in zip(job.seeds, job.saes, strict=True)]
    return {"seed": seeds}


def _known_of(job: Job) -> dict[str, Any]:
    """Return the columns that are known from the files of the SAEs."""
    return _seeds(job) | {
        "feature": [torch.arange(sae.m) for sae in job.saes],
        "firing_rate": [
            torch.ones(its.m) if its.firing_rate is None else its.firing_rate
            for its in load_dictionaries(*job.folders)
        ],
    }


def _token_texts(tokenizer: Any, each: FeatureStatistics) -> list[str | None]:
    """Return the text of the token that best predicts each feature's firings, or None."""
    assert each.token is not None
    return [tokenizer.decode([token]) if token >= 0 else None for token in each.token.tolist()]


def _write_contexts(job: Job, found: list[FeatureStatistics]) -> None:
    """Write the text around each feature's largest activations."""
    from saefast.lm import contexts

    store = open_activations(str(job.train_rows))
    assert isinstance(store, StoreActivations)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("seed", "feature", "value", "before", "token", "after")
    }
    most = job.settings.evaluate.contexts
    total = sum(int((each.top_rows[:, :most] >= 0).sum()) for each in found)
    with ProgressBar("contexts", total=total, unit="texts", progress=job.progress) as bar:
        for seed, each in zip(job.seeds, found, strict=True):
            rows = each.top_rows[:, :most]
            feature, place = (rows >= 0).nonzero(as_tuple=True)
            for chosen in torch.split(torch.arange(len(feature)), 1024):
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
