"""All stages on a language model by the command line, harvest to report, through kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny_lm import saved
from helpers.tiny_run import SETTINGS, as_toml

import saefast
from saefast.cli import INTERRUPTED, main
from saefast.disk.tables import read_json, read_table
from saefast.lm import evaluate_patched, load_model, text_files
from saefast.report import findings_of

CONTEXT, TOKENS = 32, 3000


def settings_for(model: Path, texts: Path) -> dict[str, dict[str, Any]]:
    return {
        "harvest": {
            "model": str(model),
            "site": "resid.1",
            "text": str(texts),
            "tokens": TOKENS,
            "held_out": 300,
            "context": CONTEXT,
        },
        "train": SETTINGS["train"]
        | {"latents": 24, "tokens": 15_000, "auxk": {"dead_after": 3000}},
        "subspace": SETTINGS["subspace"],
        "pool": SETTINGS["pool"] | {"scratch_tokens": 3000},
        "evaluate": {"tokens": 200, "contexts": 2, "draws": 2},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, texts, and a file of settings."""
    folder = tmp_path_factory.mktemp("story")
    saved(folder / "model")
    (folder / "texts").mkdir()
    drawn = random.Random(0)
    words = ["".join(drawn.choices("etaoinshrdlu", k=drawn.randint(1, 7))) for _ in range(40)]
    for number in range(70):
        (folder / "texts" / f"{number:02}.txt").write_text(" ".join(drawn.choices(words, k=20)))
    settings = settings_for(folder / "model", folder / "texts")
    (folder / "tiny.toml").write_text(as_toml(settings))
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[Path]:
    """Return the run of an uninterrupted command."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["run", str(place / "tiny.toml"), "--out", str(place / "run")]) == 0
    yield place / "run"
    torch.set_num_threads(before)


def content(run: Path) -> dict[str, Any]:
    """Return all files of a run, without times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path)
        elif path.name == "stages.json":
            found[name] = {stage: its["digest"] for stage, its in read_json(path).items()}
        elif path.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix != ".html":
            found[name] = path.read_bytes()
    return found


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "input_wait")}


def test_the_report_shows_the_model_and_the_text(run: Path, place: Path) -> None:
    assert any(each.topic == "Language model" for each in findings_of(run))
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Loss of the language model by group" in report
    contexts = read_table(run / "contexts.parquet").to_pydict()
    assert len(contexts["token"]) > 4 * 24
    texts = "\n\n".join(file.read_text() for file in sorted((place / "texts").iterdir()))
    for parts in zip(contexts["before"], contexts["token"], contexts["after"], strict=True):
        # A context may cross the end of a document into an unrelated one.
        joined = "".join(parts)
        assert all(piece in texts for piece in joined.split("\n\n"))
    group = read_table(run / "features.parquet")["group"].to_pylist()
    assert group.count("stable") > 4


def test_losses_match_patching_by_hand(run: Path, place: Path) -> None:
    printed = read_json(run / "evaluation.json")["language_model"]
    table = read_table(run / "features.parquet").to_pydict()
    first = [g for g, seed in zip(table["group"], table["seed"], strict=True) if seed == 0]
    found = evaluate_patched(
        load_model(place / "model", progress=False),
        "resid.1",
        saefast.load_sae(run / "seed-0"),
        {"stable": torch.tensor([g == "stable" for g in first])},
        corpus=text_files(place / "texts").held_out(),
        tokens=200,
        context=CONTEXT,
        progress=False,
    )
    for name, mine in (("clean", found.clean), ("full", found.full), ("zero", found.zero)):
        assert printed[name]["ce"]["value"] == mine.ce.value
    assert printed["keep"]["stable"]["kl"]["value"] == found.keep["stable"].kl.value
    assert printed["clean"]["ce"]["value"] != printed["zero"]["ce"]["value"]


def test_harvest_alone_writes_the_store_of_a_run(
    run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    how = ["--text", str(place / "texts"), "--context", str(CONTEXT), "--site", "resid.1"]
    for part, tokens, more in (("train", TOKENS, []), ("held-out", 300, ["--held-out"])):
        out = tmp_path / part
        size = ["--tokens", str(tokens), "--out", str(out)]
        assert main(["harvest", str(place / "model"), *how, *size, *more, "--json"]) == 0
        printed, complaints = capsys.readouterr()
        assert json.loads(printed)["written"] == [str(out)]
        assert complaints == ""
        its = content(run / "store" / part)
        assert content(out) == its
        assert any(name.endswith(".safetensors") for name in its)
    size = ["--latents", "8", "--k", "2", "--tokens", "500", "--batch-size", "100", "--seeds", "4"]
    assert main(["train", str(tmp_path / "train"), "--out", str(tmp_path / "x"), *size]) == 0
    assert saefast.load_sae(tmp_path / "x" / "seed-4").d == saefast.load_sae(run / "seed-0").d


DRIVER = """
import os, signal, sys
import torch
import saefast.disk.atomic, saefast.pipeline.runner as runner
from saefast.cli import main
from saefast.train.seed_trainer import SeedTrainer

torch.set_num_threads(1)
os.fsync = lambda descriptor: None
# A shell that starts the tests in the background makes them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

def die_at_write(number, sign):
    replace, left = saefast.disk.atomic._replace, [int(number)]
    def replacing(path, part, write):
        left[0] -= 1
        if left[0] == 0:
            write(part)  # the file is there under another name, and never gets its own
            os.kill(os.getpid(), sign)
        replace(path, part, write)
    saefast.disk.atomic._replace = replacing

def die_at_end(stage, sign):
    finish = runner.finish_stage
    def finishing(job, its, seconds):
        if its == stage:
            os.kill(os.getpid(), sign)  # all its files are written, and it does not count yet
        finish(job, its, seconds)
    runner.finish_stage = finishing

def die_at_step(number, sign):
    train, left = SeedTrainer.train, [int(number)]
    def training(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), sign)
        train(self, *arguments)
    SeedTrainer.train = training

arm, when, sign, *command = sys.argv[1:]
if arm:
    globals()[arm](when, int(sign))
sys.exit(main(command))
"""
DEATHS = [
    ("harvest", "die_at_write", 1, signal.SIGKILL),
    ("train", "die_at_step", 250, signal.SIGINT),
    ("match", "die_at_write", 8, signal.SIGKILL),
    ("pool", "die_at_step", 20, signal.SIGINT),
    ("evaluate", "die_at_write", 3, signal.SIGKILL),
    ("report", "die_at_write", 5, signal.SIGINT),
]


def test_a_run_killed_anywhere_has_the_same_results(run: Path, place: Path, tmp_path: Path) -> None:
    """During writing and training and between stages, by SIGKILL and Ctrl-C."""
    out = tmp_path / "killed"
    command = ["run", str(place / "tiny.toml"), "--out", str(out)]
    ends, printed = [], ""

    def once(arm: str, when: object = "", sign: int = 0) -> None:
        """Run the command in a separate process."""
        nonlocal printed
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, arm, str(when), str(int(sign)), *command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        ends.append(done.returncode)
        printed += done.stderr

    for stage, arm, number, sign in DEATHS:
        once(arm, number, sign)
        once("die_at_end", stage, signal.SIGKILL)
    once("")
    assert ends[-1] == 0, printed
    assert ends.count(-signal.SIGKILL) == 9, printed
    assert ends.count(INTERRUPTED) == 3
    assert printed.count("interrupted; run the same command again to resume") == 3
    assert "Traceback" not in printed
    mine, whole = content(out), content(run)
    assert sorted(mine) == sorted(whole)
    different = [name for name, its in whole.items() if its != mine[name]]
    assert not different
    shutil.rmtree(out)
