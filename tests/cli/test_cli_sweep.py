"""saefast sweep: output and exit code."""

import json
from pathlib import Path

import pytest
from helpers.small_sweep import InlineWorkers, sweep_file

from saefast.cli import main
from saefast.sweep import pool
from saefast.sweep.tasks import Task

pytestmark = pytest.mark.usefixtures("light")

TWO = 'base = "base.toml"\n[grid]\n"train.k" = [2, 3]\n'


class OneBad(InlineWorkers):
    def work(self, task: Task) -> None:
        if task.kind == "train" and "k-3" in task.cells:
            raise ValueError("rows hold NaN")
        super().work(task)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    file = sweep_file(tmp_path / "file", TWO)
    return ["sweep", str(file), "--out", str(tmp_path / "out"), "--until", "train"]


def test_the_output_lists_the_steps_taken(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    printed = capsys.readouterr()
    results, report = (str(Path(command[3]) / name) for name in ("results.parquet", "report.html"))
    assert printed.out == f"2 of 2 cells are finished\nwrote {results}\nwrote {report}\n"
    assert printed.err.splitlines() == ["harvest: k-2 and 1 more", "train: k-2 and 1 more"]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "cells": 2,
        "skipped": 2,
        "failed": {},
        "leftover": [],
        "results": results,
        "report": report,
        "written": [results, report],
    }


def test_report_makes_table_and_page_again(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    out = Path(command[3])
    before = {name: (out / name).read_bytes() for name in ("report.html", "results.parquet")}
    for name in before:
        (out / name).unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"report of {out}", *(f"wrote {out / name}" for name in before)]
    assert {name: (out / name).read_bytes() for name in before} == before
    assert main(["report", str(out), "--figures", str(out / "figures")]) == 1
    assert "figures must be left out for a sweep" in capsys.readouterr().err


def test_failed_cells_are_named_and_the_exit_code_is_1(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: OneBad())
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "1 of 2 cells are finished\nk-3 failed: ValueError: rows hold NaN\n" in printed.out
    assert printed.err.splitlines()[-1].startswith("saefast: 1 of 2 cells failed; ")
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == {"k-3": "ValueError: rows hold NaN"}


def test_a_share_and_a_plan(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--share", "2/2", "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["cells"], planned["written"]) == (1, [])
    assert not Path(command[3]).exists()
    assert main([*command, "--share", "2/2", "--on", "local"]) == 0
    assert "1 of 1 cells of share 2/2 are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--share", "3"], "share must be I/N with I from 1 to N, such as 3/16, got '3'"),
        (["--share", "3/2"], "share must be I/N with I from 1 to N, such as 3/16, got 3/2"),
        (["--processes", "0"], "processes must be at least 1, got 0"),
        (["--on", "slurm"], "on must be local, ray or ray://HOST, got 'slurm'"),
        (["--on", "ray", "--plan"], "on must be local for a plan, which measures this machine"),
    ],
)
def test_bad_options_raise_one_line(
    command: list[str], options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not Path(command[3]).exists()
