"""One rule for folders with results: functions refuse them, commands resume."""

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_run import SETTINGS, as_toml

import saefast
from saefast import SAE, Dictionary, TrainConfig
from saefast.activations import StoreWriter
from saefast.cli import main
from saefast.lm import harvest
from saefast.pipeline import run_pipeline
from saefast.pipeline.settings_file import settings_from

ROWS = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(latents=12, k=2, tokens=256, batch_size=64, seeds=(0, 1))
SAES = [SAE(8, 12, k=2, seed=seed) for seed in range(4)]
SMALL = SETTINGS | {"planted": SETTINGS["planted"] | {"rows": 600, "held_out": 300}}


def trained(out: Path, **resume: bool) -> Any:
    saes = saefast.train_saes(ROWS, CONFIG, out=out, progress=False, **resume)
    return [sae.W_dec.detach() for sae in saes]


def stored(out: Path, **resume: bool) -> Any:
    with StoreWriter(out, 8, dtype=torch.float32, **resume) as writer:
        writer.append(ROWS[writer.rows :])
        return writer.rows


def matched(out: Path, **resume: bool) -> Any:
    found = saefast.match_all([sae.W_dec.detach() for sae in SAES], out=out, **resume)
    return [matches.partner for matches in found.values()]


def pooled(out: Path, **resume: bool) -> Any:
    pools = [Dictionary(sae.W_dec.detach(), W_enc=sae.W_enc.detach()) for sae in SAES[::2]]
    found = saefast.evaluate_pooling(
        [SAES[:2], SAES[2:]],
        pools,
        ROWS,
        ROWS,
        fine_tune=CONFIG,
        scratch=replace(CONFIG, seeds=(7, 8)),
        scratch_tokens=256,
        out=out,
        progress=False,
        **resume,
    )
    return found.to_table()


def run(out: Path, **resume: bool) -> Any:
    settings = settings_from(SMALL)
    return [each.written for each in run_pipeline(settings, out, until="harvest", **resume)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "train_saes": trained,
    "StoreWriter": stored,
    "match_all": matched,
    "evaluate_pooling": pooled,
    "run_pipeline": run,
}


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return all(map(same, a, b))
    return a.equal(b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_refuse_existing_results_without_resume(name: str, tmp_path: Path) -> None:
    work = FUNCTIONS[name]
    first = work(tmp_path / "out", resume=True)  # without results, it starts
    before = content(tmp_path)
    assert before
    with pytest.raises(FileExistsError, match="already exists; continue with resume=True"):
        work(tmp_path / "out")
    assert content(tmp_path) == before
    assert same(work(tmp_path / "out", resume=True), first)
    assert content(tmp_path) == before
    shutil.rmtree(tmp_path / "out")
    assert same(work(tmp_path / "out"), first)


def test_files_of_an_interrupted_pair_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0-1.unfinished").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"0-1\.unfinished already exists"):
        matched(tmp_path)


@pytest.mark.parametrize(
    "function",
    [
        saefast.train_saes,
        harvest,
        StoreWriter,
        saefast.match_all,
        saefast.evaluate_pooling,
        run_pipeline,
    ],
)
def test_the_default_is_not_to_resume(function: Callable[..., Any]) -> None:
    assert inspect.signature(function).parameters["resume"].default is False


def test_commands_resume(tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.npy", tmp_path / "small.toml"
    np.save(rows, ROWS.numpy())
    file.write_text(as_toml(SMALL))
    sizes = ["--latents", "12", "--k", "2", "--tokens", "256", "--batch-size", "64"]
    train = ["train", str(rows), "--out", str(tmp_path / "run"), *sizes, "--seeds", "0", "1"]
    saes = [str(tmp_path / "run" / f"seed-{seed}") for seed in (0, 1)]
    commands = [
        train,
        ["match", *saes, "--out", str(tmp_path / "matches")],
        ["run", str(file), "--until", "harvest", "--out", str(tmp_path / "harvested")],
        ["stability", str(tmp_path / "run")],
    ]
    for command in commands:
        assert main(command) == 0
        before = content(tmp_path)
        assert main(command) == 0
        assert content(tmp_path) == before
