"""Damaged folders of runs and sweeps, through the commands that read them."""

import json
import sys
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.damaged_runs import small_run, swept
from helpers.limited_process import count_outcomes

from saefast.pipeline import run_pipeline, settings_of
from saefast.report import write_report
from saefast.sweep import SweepFolder, read_sweep, write_table_and_report


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")
@pytest.mark.campaign("damaged runs", 40, 2000)
def test_damaged_folders(tmp_path: Path, campaign: Campaign) -> None:
    """Each command ends, or names a file; see helpers/damaged_runs.py."""
    count_outcomes("helpers.damaged_runs", tmp_path, campaign)


@pytest.mark.parametrize("name", ["../../victim", "/victim", "..", ".", "", "a/b", "a\\b", "\0"])
def test_cells_outside_of_a_sweep(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    swept(folder)
    record = json.loads((folder / "sweep.json").read_text())
    (cell,) = record["cells"]
    place = str(tmp_path / name[1:]) if name == "/victim" else name
    record["cells"] = {place: record["cells"][cell]}
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "cells" / cell).rename(tmp_path / "victim")
    before = sorted((tmp_path / "victim").rglob("*"))
    with pytest.raises(
        ValueError, match=r"sweep\.json names a cell .* that is no name of a folder"
    ):
        write_table_and_report(SweepFolder(folder))
    assert sorted((tmp_path / "victim").rglob("*")) == before


@pytest.mark.parametrize("name", ["/victim", "a/b", "~", "a\\b", "-", " "])
def test_sets_outside_of_a_sweep(name: str, tmp_path: Path) -> None:
    """Names of sets are parts of the names of folders."""
    file, table = tmp_path / "a.toml", json.dumps(name)
    choice = f'[sets.{table}.one]\n"train.k" = 2\n[grid]\n{table} = ["one"]\n'
    file.write_text(f'base = "demo"\n{choice}')
    folder = SweepFolder(tmp_path / "sweep")
    (cell,) = read_sweep(file).cells
    assert folder.cell(cell.name).parent == tmp_path / "sweep" / "cells"
    folder.write(read_sweep(file), "report")
    assert list(folder.read().cells) == [cell.name]


@pytest.mark.parametrize("name", ["../victim", "/victim", "..", ".a"])
def test_saes_outside_of_a_run(name: str, tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["configs"][0]["name"] = name
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"run\.json is not the file of a training run"):
        run_pipeline(settings_of(tmp_path / "run"), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match=r"run\.json is not the file of a training run"):
        write_report(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
