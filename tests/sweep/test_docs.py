"""The example of docs/guides/sweeps.md runs, with the output in the guide."""

import re
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT
from helpers.small_sweep import InlineWorkers

from saefast.cli import main
from saefast.disk.tables import read_table
from saefast.sweep import pool, read_sweep

GUIDE = (CHECKOUT / "docs" / "guides" / "sweeps.md").read_text()


def test_the_example_of_the_guide_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    light: None,
) -> None:
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text(re.search(r"```toml\n(.*?)```", GUIDE, re.S)[1])
    commands = re.search(r"```\n(saefast sweep.*?)```", GUIDE, re.S)[1].splitlines()
    assert len(read_sweep(Path("sweep.toml")).cells) == 6
    for line in commands:
        arguments = line.partition("#")[0].split()[1:]
        if "--plan" not in arguments:
            arguments += ["--until", "stability"]
        assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "6 cells, 0 of them finished; 12 SAEs to train on 1 stream of rows from 1 store" in printed
    )
    assert "6 of 6 cells are finished" in printed
    assert Path("sweeps/first/cells/latents-64_variant-topk_k-2/run.json").is_file()
    code = re.search(r"```python\n(.*?)```", GUIDE, re.S)[1]
    names = re.findall(r'"([a-z_.]+)"', code[code.index("shown =") :])
    columns = read_table(Path("sweeps/first/results.parquet")).column_names
    assert len(names) == 5
    assert set(names) <= set(columns)


def test_the_sets_of_the_guide_are_read(tmp_path: Path) -> None:
    printed = re.findall(r"  ```toml\n(.*?)  ```", GUIDE, re.S)[0]
    path = tmp_path / "sweep.toml"
    path.write_text(re.sub(r"^  ", "", printed, flags=re.M))
    assert [cell.name for cell in read_sweep(path).cells] == ["size-small", "size-large"]
