"""What people read of a feature: the token that foretells it, the text around its firings."""

from typing import Any

import torch

from saefast.activations import StoreActivations, open_activations
from saefast.disk.tables import write_table
from saefast.evaluation.statistics import FeatureStatistics
from saefast.pipeline.job import Job
from saefast.progress import ProgressBar
from saefast.run_folder import CONTEXTS


def token_texts(tokenizer: Any, each: FeatureStatistics) -> list[str | None]:
    """The token that tells best whether a feature fires."""
    assert each.token is not None
    return [tokenizer.decode([token]) if token >= 0 else None for token in each.token.tolist()]


def write_contexts(job: Job, found: list[FeatureStatistics]) -> None:
    """The text around each feature's largest activations."""
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
