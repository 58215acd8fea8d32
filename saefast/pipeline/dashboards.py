"""Dashboards of the features of a run's SAEs, as JSON for Neuronpedia and sae_dashboard."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saefast import checks
from saefast.disk.atomic import make_folder, write_whole
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings
from saefast.progress import ProgressBar
from saefast.report.neuronpedia import EXTRA, Corpus, dashboard_feature, extra_facts
from saefast.report.run_data import RunData


def check_dashboards(job: Job, features: int | None) -> HarvestSettings:
    """Return the settings of the harvest of a run; raise a ValueError if it has no dashboards.

    Args:
        job: run, before any of its stages.
        features: number of features of each SAE, or None.
    """
    data = job.settings.data
    if not isinstance(data, HarvestSettings):
        raise ValueError(
            f"{job.run} must be a run with a language model, whose text dashboards show: begin it "
            f"with [harvest]"
        )
    if features is not None:
        checks.whole("features", features)
    return data


def write_dashboards(
    job: Job,
    out: str | Path,
    *,
    name: str | None = None,
    features: int | None = None,
    batch: int = 128,
    strict: bool = False,
) -> list[Path]:
    """Write the features of a run in the JSON of sae_dashboard, which Neuronpedia imports.

    Each feature alive is shown on the held-out rows of the run: text around its largest activations
    and around some of each fifth of their range, histograms, and the tokens of the greatest and
    least logits of its decoder row after the model's last norm. Under the key "saefast" it has its
    stability, its explanation and its partners in the other SAEs, as far as the run knows them.

    Args:
        job: run with a language model, from harvest to statistics at least.
        out: folder, to which SEED/batch-N.json is written for each SAE.
        name: name of the set of SAEs; None: the name of the run's folder.
        features: number of features of each SAE, those that fire most; None: all that fire.
        batch: number of features in a file.
        strict: leave out the key "saefast", which sae_dashboard's own classes refuse.

    Returns:
        The files written.
    """
    from saefast.evaluation.explaining.contexts import token_text
    from saefast.evaluation.explaining.firings import firings
    from saefast.lm.unembedding import unembed

    data = check_dashboards(job, features)
    checks.whole("batch", batch)
    model = job.language_model
    text = token_text(job.held_out_rows, model.tokenizer)
    shown = Corpus(
        text=text,
        contexts=len(text.context_starts) - 1,
        context=data.context,
        name=data.dataset or data.text or "saefast built-in corpus",
    )
    columns = RunData(job.run).features
    strings_of = _strings_of(model.tokenizer)
    vocabulary = max(model.tokenizer.get_vocab().values()) + 1  # some unembeddings are padded
    written = []
    fired = firings(job.saes, str(job.held_out_rows), progress=job.progress)
    begin = 0
    for sae, its, seed, folder in zip(job.saes, fired, job.seeds, job.folders, strict=True):
        alive = np.flatnonzero(its.fired)
        if features is not None:
            alive = np.sort(alive[np.argsort(-its.fired[alive], kind="stable")[:features]])
        with ProgressBar(
            f"dashboards {folder.name}", total=len(alive), unit="features", progress=job.progress
        ) as bar:
            for number, first in enumerate(range(0, len(alive), batch)):
                latents = alive[first : first + batch].tolist()
                rows = sae.W_dec.detach()[latents].float().cpu()
                logits = unembed(model, rows)[:, :vocabulary].float().cpu()
                found = []
                for latent, row, its_logits in zip(latents, rows, logits, strict=True):
                    feature = dashboard_feature(latent, row, its_logits, strings_of, its, shown)
                    if not strict:
                        facts = extra_facts(begin + latent, columns, list(job.seeds), seed)
                        feature[EXTRA] = facts
                    found.append(feature)
                path = Path(out) / folder.name / f"batch-{number}.json"
                _write(path, _batch(data, name or job.run.resolve().name, folder.name, found))
                written.append(path)
                bar.update(len(latents))
        begin += sae.m
    return written


def _batch(
    data: HarvestSettings, name: str, suffix: str, features: list[dict[str, Any]]
) -> dict[str, Any]:
    layer = re.search(r"\d+", data.site)
    return {
        "model_id": Path(data.model).name,
        "layer": int(layer.group()) if layer else 0,
        "sae_set": name,
        "sae_id_suffix": suffix,
        "features": features,
    }


def _strings_of(tokenizer: Any) -> Callable[[list[int]], list[str]]:
    """Return a function that returns the texts of tokens; some numbers are of no token."""
    from saefast.evaluation.explaining.contexts import token_strings

    def strings(ids: list[int]) -> list[str]:
        raw = tokenizer.convert_ids_to_tokens(ids)
        return [
            f"<unused {number}>" if its is None else token_strings(tokenizer, [number])[0]
            for number, its in zip(ids, raw, strict=True)
        ]

    return strings


def _write(path: Path, content: dict[str, Any]) -> None:
    make_folder(path.parent)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_whole(path, text.encode("utf-8", "surrogatepass"))
