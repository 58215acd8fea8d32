"""The command line as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import saefast
from saefast.cli import main
from saefast.synthetic import PlantedWorld


def test_demo_recovers_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--d", "48", "--features", "96", "--k", "3", "--steps", "1200", "--json"]
    assert main(["demo", "--out", str(tmp_path), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["found"] >= 90
    assert result["found_by_chance"] == 0
    assert result["tokens"] == 1200 * 512
    table = pq.read_table(tmp_path / "features.parquet")
    assert sum(table["found"].to_pylist()) == result["found"]
    sae = saefast.load_sae(tmp_path / "sae")
    best = PlantedWorld.create(96, 48, active=3).best_cosine(sae.W_dec)
    assert int((best >= 0.95).sum()) == result["found"]


def test_info_names_the_screen(capsys: pytest.CaptureFixture) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["screen"]["chosen"] in facts["screen"]["measured_ms"]
    assert main(["info"]) == 0
    assert "active" in capsys.readouterr().out


def test_an_impossible_wish_fails_with_a_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--k", "0"]) == 1
    assert "k must be from 1" in capsys.readouterr().err


def test_help_shows_defaults(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "saefast", "demo", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "default: 2000" in result.stdout


def test_a_world_repeats_its_batches() -> None:
    world = PlantedWorld.create(30, 10, active=4, noise=0.0, seed=2)
    assert torch.equal(world.sample(5, 3), world.sample(5, 3))
    assert not torch.equal(world.sample(5, 3), world.sample(5, 4))
    assert world.best_cosine(world.features).min() > 0.9999
