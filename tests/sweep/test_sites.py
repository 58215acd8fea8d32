"""Sites of a language model: one pass for all, with the rows of separate harvests."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_sweep import InlineWorkers, assert_same_cells, one_after_another
from helpers.tiny_lm import saved
from helpers.tiny_run import as_toml

from saefast import lm
from saefast.sweep import pool, read_sweep, run_sweep

pytestmark = pytest.mark.usefixtures("light")


def test_sites_are_harvested_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Text number {number}. " * 9)
    base = {
        "harvest": {
            "model": str(saved(tmp_path / "model")),
            "text": str(tmp_path / "text"),
            "tokens": 400,
            "held_out": 50,
            "context": 16,
        },
        "train": {"latents": 40, "k": 3, "tokens": 800, "batch_size": 64, "seeds": [0]},
    }
    (tmp_path / "base.toml").write_text(as_toml(base))
    file = tmp_path / "sweep.toml"
    file.write_text(
        'base = "base.toml"\n[grid]\n"harvest.site" = ["resid.1", "mlp.2"]\n"train.k" = [2, 3]\n'
    )
    sweep = read_sweep(file)
    alone = one_after_another(sweep, tmp_path / "alone", until="train")
    passes: list[Any] = []
    harvest = lm.harvest

    def counted(model: Any, sites: Any, **options: Any) -> list[Path]:
        passes.append(sites)
        return harvest(model, sites, **options)

    monkeypatch.setattr(lm, "harvest", counted)
    hands = InlineWorkers()
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: hands)
    outcome = run_sweep(sweep, tmp_path / "out", until="train")
    assert outcome.failed == {}
    assert passes == [["resid.1", "mlp.2"]] * 2  # rows to train on, and held-out rows
    assert hands.kinds == [("harvest", 4), ("train", 2), ("train", 2)]
    assert_same_cells(sweep, tmp_path / "out", alone)
    assert len(list((tmp_path / "out" / "stores").iterdir())) == 1
