"""Stage harvest: activations to train on, and held-out activations to evaluate on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from saefast.activations import StoreWriter
from saefast.activations.store import INDEX, read_index
from saefast.activations.writer import check_not_more
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings, PlantedSettings
from saefast.progress import ProgressBar


def harvest(job: Job) -> None:
    """Write both stores; existing rows are kept."""
    data = job.settings.data
    if isinstance(data, HarvestSettings):
        harvest_sites(data, data.site, job.train_rows, job.held_out_rows, job.progress)
    elif isinstance(data, PlantedSettings):
        plant(data, job.train_rows, job.held_out_rows, job.progress)


def corpus_of(data: HarvestSettings) -> Any:
    """Return the text of a run as a `saefast.lm.Corpus`."""
    from saefast.lm import builtin_corpus, hugging_face, text_files

    if not data.dataset:
        return text_files(data.text) if data.text else builtin_corpus()
    config = {"name": data.dataset_config} if data.dataset_config else {}
    return hugging_face(data.dataset, data.field, split=data.split, streaming=True, **config)


def harvest_sites(
    data: HarvestSettings,
    sites: str | Sequence[str],
    train: Path,
    held_out: Path,
    progress: bool,
    write: Callable[..., list[Path]] | None = None,
) -> list[tuple[Path, Path]]:
    """Write the rows of one or several sites, in one pass of the model for each of two parts.

    Args:
        data: settings of the harvest; its site is ignored.
        sites: one site, whose stores are `train` and `held_out`, or several, whose stores are
            folders in these.
        train: path of the rows to train on.
        held_out: path of the rows to evaluate on.
        progress: show progress bars on stderr.
        write: function with the arguments of `saefast.lm.harvest` that writes stores of one part;
            None: that function.

    Returns:
        For each site its stores to train and to evaluate on.
    """
    from saefast.lm import harvest as harvest_store
    from saefast.lm import load_model

    write = write or harvest_store
    model = load_model(data.model, dtype=data.model_dtype, device=data.device, progress=progress)
    corpus = corpus_of(data)
    parts = (
        (corpus.train(), data.tokens, train),
        (corpus.held_out(), data.held_out, held_out),
    )
    written = [
        write(
            model,
            sites,
            out=path,
            tokens=tokens,
            corpus=part,
            context=data.context,
            resume=True,
            progress=progress,
        )
        for part, tokens, path in parts
    ]
    return list(zip(*written, strict=True))


def plant(data: PlantedSettings, train: Path, held_out: Path, progress: bool) -> None:
    """Write rows of planted features to train on and to evaluate on."""
    _planted(data, data.rows, 0, train, progress)
    _planted(data, data.held_out, 1, held_out, progress)


def _planted(data: PlantedSettings, rows: int, stream: int, path: Path, progress: bool) -> None:
    from saefast.synthetic.low_rank import LowRankWorld

    world = LowRankWorld.create(
        d=data.d,
        stable=data.stable,
        stable_rate=data.stable_rate,
        rank=data.rank,
        rare=data.rare,
        rare_rate=data.rare_rate,
        seed=data.seed,
    )
    about = {"world": world.fingerprint, "stream": stream}
    if (path / INDEX).is_file() and read_index(path).metadata != about:
        raise ValueError(
            f"{path} holds rows of other [planted] settings; choose another folder for the run"
        )
    writer = StoreWriter(path, data.d, dtype=torch.float32, metadata=about, resume=True)
    with (
        writer,
        ProgressBar("planting", total=rows, unit="rows", progress=progress) as bar,
    ):
        check_not_more(path, writer.rows, rows)
        done = 0
        for block in world.blocks(rows, seed=stream):
            missing = block.x[max(writer.rows - done, 0) :]
            done += len(block.x)
            if len(missing):
                writer.append(missing)
            bar.update(len(block.x))
