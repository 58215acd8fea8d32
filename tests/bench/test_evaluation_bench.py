"""SAEs that `bench evaluations` trains beside a run, and the rows that it writes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import evaluations, record
from saefast.pipeline import PRESETS
from saefast.storage import load_sae


def test_penalised_saes_are_compared_with_free_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = PRESETS["quick"]
    small = replace(
        quick,
        data=replace(quick.data, rows=4_000, held_out=1_000),
        train=replace(quick.train, tokens=8_000, seeds=(0, 1)),
        pool=replace(quick.pool, tokens=2_000),
    )
    monkeypatch.setitem(PRESETS, "demo", small)
    monkeypatch.setattr(evaluations, "WEIGHT", 1e-2)
    compared: list[Sequence[Path]] = []

    def evaluated(run: Path, beside: Sequence[Path], budget: str) -> dict[str, Any]:
        assert (run / "report.html").exists()
        compared.append(beside)
        return {"seconds": 1.0, "peak_gb": 1.0, "findings": [], "scores": [budget]}

    monkeypatch.setattr(evaluations, "_evaluated", evaluated)
    file = tmp_path / "evaluations.json"
    evaluations.main(["--run", str(tmp_path / "run"), "--json", str(file)])
    assert len(compared) == 2
    free, penalised = compared[0]
    assert [free.name, penalised.name] == ["free", "l2"]
    for seed in (0, 1):
        norms = [load_sae(at / f"seed-{seed}").W_dec.norm(dim=1) for at in (free, penalised)]
        assert norms[0].std() > 1e-3  # not normalised
        assert (norms[1] < norms[0]).all()
    printed = json.loads(file.read_text())
    assert {name: found["scores"] for name, found in printed["budgets"].items()} == {
        "quick": ["quick"],
        "full": ["full"],
    }
    assert {found["commit"] for found in printed["budgets"].values()} == {record.commit()}
    printed["budgets"]["quick"]["commit"] = "earlier"
    file.write_text(json.dumps(printed))
    evaluations.main(["--run", str(tmp_path / "run"), "--budgets", "full", "--json", str(file)])
    kept = json.loads(file.read_text())["budgets"]
    assert list(kept) == ["quick", "full"]
    assert kept["quick"] == printed["budgets"]["quick"]
    assert kept["full"]["commit"] == record.commit()
