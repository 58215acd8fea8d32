"""The README's numbers are those of the committed rows, and its example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT

from saefast import TrainConfig, train_saes
from saefast.activations import StoreWriter
from saefast.synthetic import PlantedWorld

README = (CHECKOUT / "README.md").read_text()
STUDIES = ("lowrank", "recovery", "digits")
TABLES = ("speed", "gpu", "gpu_predictions", "quality", "matching", "inside", "demo", *STUDIES)
FINDINGS = (CHECKOUT / "docs" / "findings.md").read_text()
CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text()
PLACES = {**dict.fromkeys(STUDIES, FINDINGS), "gpu_predictions": CONTRIBUTING}
"""Where tables are that the README does not have"""


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_made_of_committed_rows(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench.table", name],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() in PLACES.get(name, README)


def example_of(section: str) -> str:
    """The first lines of Python below a heading."""
    found = re.search(rf"## {section}\n.*?```python\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


def test_the_examples_of_stability_and_matching_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = PlantedWorld.create(64, 16, active=3).sample(2000, 0)
    with StoreWriter("activations", 16) as writer:
        writer.append(rows)
    config = TrainConfig(latents=96, k=3, seeds=(0, 1, 2), tokens=20_000, batch_size=256, lr=2e-3)
    saes = train_saes(rows, config, progress=False)
    names = {"saes": saes, "sae_a": saes[0], "sae_b": saes[1]}
    for section in ("Which features to trust", "Which feature is which"):
        code = f"import saefast\n{example_of(section)}"
        exec(compile(code, "README.md", "exec"), names)
    assert names["best"].certified
    assert 0 < names["pool"].m <= 288
    assert (tmp_path / "run" / "matches" / "0-1.parquet").exists()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    exec(compile(example.group(1), "README.md", "exec"), {})
    assert (tmp_path / "my-sae" / "cfg.json").exists()
