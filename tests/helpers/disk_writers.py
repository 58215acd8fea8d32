"""Everything that writes files, on folders in which there is earlier work that must survive."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from helpers.faulty_disk import note
from helpers.sae_files import HOLDS, some_sae
from helpers.small_sweep import InlineWorkers, base_settings, small_sweep
from helpers.training_runs import ROWS, checkpoint_of, config, metrics_of
from helpers.training_runs import train as train_small

import saefast
from saefast.activations import StoreWriter
from saefast.activations.store import read_index
from saefast.match import saved
from saefast.pipeline import run_pipeline, runner, together
from saefast.pipeline.settings_file import settings_from
from saefast.sae import VARIANTS
from saefast.sweep import driver
from saefast.train.checkpoint import RunFile
from saefast.train.seed_trainer import SeedTrainer


class _Stopped(Exception):
    """End of a training after some steps."""


class Writer(NamedTuple):
    """Work on a folder, which can be begun again after any interruption."""

    before: Callable[[Path], object]
    """function that does earlier work in the empty folder"""
    write: Callable[[Path], object]
    """function that adds to it, or replaces it"""
    promised: Callable[[Path], int] = lambda folder: 0
    """function that measures how much work a folder holds, for comparison with the notes"""


def warm(folder: Path) -> None:
    """Do once what every child would do again: imports, and choices by measured speed."""
    for name in ("train topk", "match_all", "evaluate"):
        (folder / name).mkdir()
        WRITERS[name].before(folder / name)
        WRITERS[name].write(folder / name)


def before(name: str, folder: Path) -> None:
    """Do the work that a writer finds."""
    folder.mkdir(exist_ok=True)
    WRITERS[name].before(folder)


def write(name: str, folder: Path) -> None:
    """Do the work of a writer."""
    WRITERS[name].write(folder)


def _sae(format: str, seed: int, folder: Path, suffix: str = "") -> None:
    variant = HOLDS[format][-1]
    sae = some_sae(variant)
    with torch.no_grad():
        sae.W_enc.mul_(1 + seed)
    sae.firing_rate = torch.full((sae.m,), 1 / (2 + seed))
    saefast.save_sae(sae, folder / f"sae{suffix}", format)


def _of_format(format: str, suffix: str = "") -> Writer:
    return Writer(
        lambda folder: _sae(format, 0, folder, suffix),
        lambda folder: _sae(format, 1, folder, suffix),
    )


def _both(folder: Path) -> None:
    for number, name in enumerate(("source", "target")):
        (folder / name).mkdir()
        _sae("sae_lens", number, folder / name)


def _convert(folder: Path) -> None:
    saefast.convert(folder / "source/sae", folder / "target/sae", "sae_lens")


def _append(folder: Path, rows: int) -> None:
    """Continue the store `folder`/store up to a number of rows."""
    with StoreWriter(
        folder / "store", 16, dtype=torch.float32, rows_per_shard=100, resume=True
    ) as writer:
        while writer.rows < rows:
            writer.append(ROWS[writer.rows : min(rows, writer.rows + 70)])
            note(str(writer.rows // 100 * 100))


def _rows(folder: Path) -> int:
    return read_index(folder / "store").rows


def _train(folder: Path, variant: str, tokens: int = 128 * 6, stop: int | None = None) -> None:
    """Train, with a checkpoint after every step, up to step `stop`."""
    step, save = SeedTrainer.train, RunFile.save

    def stepping(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if number == stop:
            raise _Stopped
        step(trainer, number, batch)

    def saving(run: RunFile, number: int, states: Mapping[str, Any]) -> None:
        save(run, number, states)
        note(str(number))

    chosen = config(variant=variant, seeds=(0, 1), tokens=tokens, latents=32, sparsity=1.0)
    with (
        contextlib.suppress(_Stopped),
        patch.object(SeedTrainer, "train", stepping),
        patch.object(RunFile, "save", saving),
    ):
        train_small(chosen, out=folder / "run", resume=True, checkpoint_minutes=0, log_every=2)


def _training(variant: str) -> Writer:
    return Writer(
        lambda folder: _train(folder, variant, stop=3),
        lambda folder: _train(folder, variant),
        _step,
    )


def _step(folder: Path) -> int:
    return max(checkpoint_of(folder / "run"), 0)


def train_longer(variant: str, folder: Path) -> None:
    """Train for so long that many kills fall on different steps."""
    _train(folder, variant, 128 * 40)


def _match(folder: Path, count: int) -> None:
    """Match dictionaries, with a file of unfinished work after each round."""
    saes = [saefast.SAE(6, 40, k=3, seed=seed) for seed in range(count)]
    with patch.object(saved, "_EVERY", 0.0):
        saefast.match_all(
            saes, out=folder / "matches", resume=True, one_to_one=True, progress=False
        )


_STOPPED = SimpleNamespace(perf_counter=lambda: 0.0)
"""Clock by which all stages take equally long, so that files with times are comparable"""


def _run(folder: Path, until: str, changes: Mapping[str, Any] = {}) -> None:
    settings = base_settings()
    settings["train"] |= {"tokens": 384, "latents": 24, "k": 2}
    settings["pool"] |= {"tokens": 256}
    for name, value in changes.items():
        table, _, key = name.partition(".")
        settings.setdefault(table, {})[key] = value
    with patch.object(runner, "time", _STOPPED):
        run_pipeline(
            settings_from(settings), folder / "run", until=until, resume=True, progress=False
        )


def _stage(name: str, *earlier: str) -> Writer:
    def begin(folder: Path) -> None:
        for stage in ("stability", *earlier):
            _run(folder, stage)

    return Writer(begin, lambda folder: _run(folder, name))


GRID = """
base = "base.toml"
[grid]
"train.latents" = [24, 32]
"""


def _sweep(folder: Path, until: str) -> None:
    """Run a sweep in this process."""
    sweep = small_sweep(
        folder.parent / f"{folder.name}.settings", GRID, train={"tokens": 384, "seeds": [0, 1]}
    )
    with (
        patch.object(runner, "time", _STOPPED),
        patch.object(together, "time", _STOPPED),
        patch.object(driver, "open_workers", lambda *_: InlineWorkers()),
    ):
        outcome = driver.run_sweep(sweep, folder / "sweep", until=until)
    if outcome.failed:  # as the command does
        raise OSError(f"{len(outcome.failed)} cells failed: {outcome.failed}")


WRITERS = {
    **{f"save_sae {format}": _of_format(format) for format in HOLDS},
    "save_sae openai file": _of_format("openai", ".pt"),
    "save_sae gemma_scope file": _of_format("gemma_scope", ".npz"),
    "convert": Writer(_both, _convert),
    "store": Writer(
        lambda folder: _append(folder, 210), lambda folder: _append(folder, 430), _rows
    ),
    "train anew": Writer(
        lambda folder: None, lambda folder: _train(folder, "topk", 128 * 2), _step
    ),
    **{f"train {variant}": _training(variant) for variant in VARIANTS},
    "match_all": Writer(lambda folder: _match(folder, 2), lambda folder: _match(folder, 3)),
    "subspace": _stage("subspace"),
    "pool": _stage("pool"),
    "evaluate": _stage("evaluate"),
    "report": _stage("report", "subspace", "pool", "evaluate"),
    "sweep": Writer(lambda folder: _sweep(folder, "train"), lambda folder: _sweep(folder, "match")),
}


NAMES = [name for name in WRITERS if name.removeprefix("train ") not in VARIANTS[1:]]
"""Names of writers; how a training writes does not depend on its variant"""


def pipeline(name: str, folder: Path) -> None:
    """Run all stages."""
    _run(folder, "report")


def stages(asked: str, folder: Path) -> None:
    """Run stages: `asked` is JSON of the last stage and of changed settings, by table.key."""
    _run(folder, *json.loads(asked))


def contents(folder: Path) -> dict[str, Any]:
    """Return the contents of all files, without times and the number of tables written."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(folder))
        if path.name == ".tables.json":
            continue
        if path.name == "metrics.jsonl":
            times = ("seconds", "tokens_per_second", "input_wait")
            lines = metrics_of(path.parent)
            found[name] = [{k: v for k, v in line.items() if k not in times} for line in lines]
        else:
            found[name] = path.read_bytes()
    return found
