"""The command line."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny_run import SETTINGS, as_toml

import saefast
from saefast.activations import StoreWriter
from saefast.cli import COMMANDS, INTERRUPTED, main
from saefast.pipeline import settings_of
from saefast.synthetic import PlantedWorld


def tiny_settings(tokens: int) -> str:
    return as_toml(SETTINGS | {"train": SETTINGS["train"] | {"tokens": tokens}})


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "tiny.toml"
    file.write_text(tiny_settings(30_000))
    return file


@pytest.fixture(scope="module")
def run(settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole run made by the command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["run", str(settings_file), "--out", str(out)]) == 0
    return out


def test_a_run_writes_a_report_and_prints_its_findings(
    run: Path, settings_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """A second call repeats nothing and prints the same."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    assert main(["run", str(settings_file), "--out", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["run", str(settings_file), "--out", str(run)]) == 0
    assert capsys.readouterr().err == (
        f"all stages were finished before; nothing in {run} has changed\n"
    )
    assert all(stage["was_finished"] for stage in printed["stages"].values())
    assert list(printed["stages"])[-1] == "report"
    assert any(each["topic"] == "Explained variance" for each in printed["findings"])
    assert printed["written"] == [str(run / "report.html")]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == before


def test_a_new_threshold_is_scored_without_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    assert main(["stability", str(run), "--threshold", "0.95", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [name for name, its in printed["stages"].items() if not its["was_finished"]] == [
        "stability"
    ]
    at = json.loads((run / "stability.json").read_text())
    assert at["rule"]["threshold"] == 0.95
    assert main(["stability", str(run), "--threshold", "0.7"]) == 0
    assert "Stability: " in capsys.readouterr().out
    assert json.loads((run / "stability.json").read_text())["mean"] > at["mean"]


def test_figures_are_written_on_request(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--figures", str(tmp_path / "figures")]) == 0
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"stability-histogram", "keep-drop", "overlap-unstable", "pooling-frontier"} <= names


def test_pictures_need_an_extra_and_a_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    figures = tmp_path / "figures"
    assert main(["report", str(run), "--figures", str(figures), "--png"]) == 1
    printed = capsys.readouterr().err
    assert "pip install 'saefast[figures]'" in printed
    assert printed.count("\n") == 1
    assert not figures.exists()
    assert main(["report", str(run), "--png"]) == 1
    assert "png needs figures" in capsys.readouterr().err


def test_saes_are_matched_without_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saes = [str(run / "seed-0"), str(run / "seed-1")]
    out = tmp_path / "matches"
    assert main(["match", *saes, "--out", str(out), "--one-to-one", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    a, b = (saefast.load_sae(path).W_dec.detach() for path in saes)
    found = saefast.match_features(a, b, one_to_one=True)
    share = float((found.similarity >= 0.7).double().mean())
    assert printed["shared_at_0.7"] == {"0-1": pytest.approx(share)}
    assert printed["written"] == [str(out / "0-1.parquet")]
    # All of a run's, too, in addition to the tables of the run.
    assert main(["match", str(run), "--out", str(tmp_path / "all"), "--one-to-one", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert len(every["written"]) == 6
    assert every["shared_at_0.7"]["0-1"] == printed["shared_at_0.7"]["0-1"]
    assert main(["match", str(run), "--one-to-one"]) == 1
    assert "one_to_one, absolute and side need out" in capsys.readouterr().err


def test_train_reads_activations_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "rows.pt"
    torch.save(torch.randn(600, 12, generator=torch.Generator().manual_seed(0)), file)
    out = tmp_path / "run"
    sizes = ["--latents", "24", "--k", "2", "--tokens", "1200", "--batch-size", "100"]
    assert main(["train", str(file), "--out", str(out), *sizes, "--seeds", "3", "5"]) == 0
    assert (
        "trained 2 SAEs on 1,200 rows each: 2 times the 600 of width 12" in capsys.readouterr().out
    )
    assert saefast.load_sae(out / "seed-5").m == 24
    assert main(["match", str(out)]) == 0
    assert main(["train", str(file), "--out", str(out), *sizes, "--seeds", "3", "6"]) == 1
    assert "cannot be resumed" in capsys.readouterr().err


def test_a_run_from_a_file_resumes_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Paths in the file are relative to the folder in which the run is started."""
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
    torch.save(rows, "rows.pt")
    saefast.save_sae(saefast.SAE(12, 24, k=2, seed=7), "start")
    tables = {
        "store": {"train": "rows.pt"},
        "train": {"latents": 24, "k": 2, "seeds": [0], "tokens": 600, "batch_size": 100},
        "trainer": {"initial": ["start"]},
        "evaluate": {"beside": ["start", "organisation/name"]},
    }
    Path("a.toml").write_text(as_toml(tables))
    assert main(["run", "a.toml", "--out", "run", "--until", "train"]) == 0
    settings = settings_of("run")
    assert settings.evaluate.beside == (str(tmp_path / "start"), "organisation/name")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", "../run", "--until", "statistics"]) == 0, capsys.readouterr().err


def test_saes_trained_in_python_are_matched_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """`train_saes(out=...)` writes SAEs without settings, which is enough without activations."""
    rows = PlantedWorld.create(24, 16, active=2).sample(3000, 0)
    config = saefast.TrainConfig(
        latents=32, k=2, seeds=(3, 4, 7), tokens=30_000, batch_size=128, lr=5e-3
    )
    out = tmp_path / "run"
    saes = saefast.train_saes(rows, config, out=out, progress=False)
    assert main(["stability", str(out), "--threshold", "0.8", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rates = [its.firing_rate for its in saefast.load_dictionaries(out)]
    alive = [rate > 0 for rate in rates]
    found = saefast.score_stability(saes, threshold=0.8, alive=alive, progress=False)
    table = pq.read_table(out / "features.parquet").to_pydict()
    assert table["seed"] == [seed for seed in (3, 4, 7) for _ in range(32)]
    assert table["firing_rate"] == torch.cat(rates).tolist()
    assert table["score"] == torch.cat(found.score).tolist()
    assert any(each["topic"] == "Stability" for each in printed["findings"])
    assert main(["match", str(out)]) == 0
    assert main(["subspace", str(out), "--draws", "3"]) == 0
    assert "does not record its activations" in (out / "subspaces" / "skipped.json").read_text()
    assert main(["report", str(out)]) == 0
    capsys.readouterr()
    for stage in ("pool", "evaluate"):
        assert main([stage, str(out)]) == 1
        printed = capsys.readouterr().err
        assert "does not record its activations" in printed
        assert printed.splitlines()[-1].startswith("saefast: ")
    two = [config, dataclasses.replace(config, name="b")]
    saefast.train_saes(rows, two, out=tmp_path / "two", progress=False)
    assert main(["stability", str(tmp_path / "two")]) == 1
    assert "has 2 configs" in capsys.readouterr().err


def test_yaml_without_its_package_names_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "my.yaml").write_text("planted: {}\ntrain: {latents: 64}\n")
    assert main(["run", str(tmp_path / "my.yaml")]) == 1
    printed = capsys.readouterr().err
    assert "pip install pyyaml" in printed
    assert printed.count("\n") == 1


def test_a_converted_sae_computes_the_same(run: Path, tmp_path: Path) -> None:
    assert main(["convert", str(run / "seed-0"), str(tmp_path / "s"), "--to", "sparsify"]) == 0
    before, after = saefast.load_sae(run / "seed-0"), saefast.load_sae(tmp_path / "s")
    assert torch.equal(before.W_dec, after.W_dec)


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Ctrl-C during training; the resumed run equals an uninterrupted one."""
    file = tmp_path / "long.toml"
    file.write_text(tiny_settings(60_000))
    command = [sys.executable, "-m", "saefast", "run", str(file), "--until", "train", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(tmp_path / "a")],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "a" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "again to resume" in printed
    assert "Traceback" not in printed
    step = json.loads((tmp_path / "a" / "run.json").read_text())["checkpoint"]
    assert 0 < step < 60_000 // 128
    assert main(["run", str(file), "--until", "train", "--out", str(tmp_path / "a")]) == 0
    assert main(["run", str(file), "--until", "train", "--out", str(tmp_path / "b")]) == 0
    a, b = (saefast.load_sae(tmp_path / name / "seed-2") for name in "ab")
    assert torch.equal(a.W_dec, b.W_dec)
    assert torch.equal(a.W_enc, b.W_enc)


def test_info_names_the_screen(capsys: pytest.CaptureFixture) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["screen"]["chosen"] in facts["screen"]["measured_ms"]
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "active" in printed
    assert "  cpp: live\n" in printed
    assert "{" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nothing-there"], "neither a file nor a folder"),
        (["stability", "nothing-there"], "start a run with"),
        (["report", "nothing-there"], "holds no run"),
        (["match"], "at least two SAEs"),
        (["match", "sae", "wide"], "wide must have the width of sae, 2, got 3"),
        (["evaluate", "sae", "probe"], "model and site must both be given for SAEs without a run"),
        (["sweep", "none.toml", "--out", "sweeps"], "none.toml is not a file; give a sweep file"),
        (["bench", "encode"], "in a checkout"),
        (["demo", "--out", "one.json"], "saefast: one.json: could not be created: File exists; a"),
        (
            ["run", "one.json"],
            "seeds must be two or more for their features to be matched, got (3,)",
        ),
        (
            ["demo", "--out", "store"],
            "out must be the folder of a run, but store holds activations",
        ),
    ],
)
def test_errors_are_printed_in_one_line(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text('{"planted": {}, "train": {"latents": 64, "seeds": [3]}}')
    with StoreWriter("store", 2) as store:
        store.append(torch.ones(1, 2))
    for name, width in (("sae", 2), ("wide", 3)):
        saefast.save_sae(saefast.SAE(width, 4, k=1, seed=0), name)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 1
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("saefast: ")
    assert printed.count("\n") == 1


def test_a_pool_without_controls_states_its_size(
    planted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    assert main(["pool", str(run), "--compare", "False"]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"pooled [\d,]+ of [\d,]+ unique features; no comparison with ", printed)
    assert "the comparison was not requested" in printed


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError, match="neither a file"):
        main(["run", "nothing-there", "--debug"])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_every_option_and_its_default(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--json" in printed
    assert not re.search(r"--\S+, --", printed)  # one option for a flag, off or on by default
    assert not re.search(r"^. (STR|PATH) ", printed, re.MULTILINE)  # given arguments are named
    assert "(default:" in printed


def test_help_wraps_lines_at_the_terminal_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The line ends of the docstring do not matter."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["harvest", "--help"])
    printed = capsys.readouterr().out
    assert "a folder, a GGUF file, or a name on the Hugging Face hub." in printed
    assert "For example: saefast harvest" in printed


def test_the_list_of_commands_has_a_sentence_for_each(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"• {name} " in printed for name in COMMANDS)
    assert "For example" not in printed
    with pytest.raises(SystemExit):  # the whole text is left where one command is asked for
        main(["train", "--help"])
    assert "For example" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"saefast {saefast.__version__}\n"


def test_shells_complete_commands(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "saefast", "--tyro-print-completion", "bash"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stability" in result.stdout


@pytest.mark.alone
def test_the_quick_demo_finds_planted_features_within_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "demo"
    begun = time.process_time()
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    assert time.process_time() - begun < 60
    printed = capsys.readouterr()
    assert "[9/9] report" in printed.err
    assert "- Stability: " in printed.out
    counts = json.loads((out / "stability.json").read_text())["seeds"]
    # The 64 directions of their own recur; the 512 rare ones in the subspace do not.
    assert all(each["stable"] > 50 and each["unstable"] > 25 for each in counts)
    worth = json.loads((out / "evaluation.json").read_text())["seeds"]
    for each in worth:
        keep = {its["group"]: its["keep"] for its in each["groups"] if its["control"] == ""}
        assert keep["stable"] > 5 * keep["unstable"]


def test_results_are_printed_in_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saefast.save_sae(saefast.SAE(8, 16, k=2, seed=0), tmp_path / "sae")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["convert", str(tmp_path / "sae"), str(tmp_path / "übung")]) == 0
    sys.stdout.flush()
    assert printed.getvalue().endswith(rb"\xfcbung" + b"\n")


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_a_reader_that_closes_the_pipe_causes_no_traceback(arguments: list[str]) -> None:
    """`saefast --help | head` ends without a message."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "saefast", *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert ended.stderr == ""
