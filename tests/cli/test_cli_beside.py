"""`saefast evaluate --beside`: SAEs of another run or folder as a further condition."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import saefast
from saefast.cli import main
from saefast.disk.tables import read_json, read_table, write_json
from saefast.pipeline.beside import conditions_beside
from saefast.run_folder import SCORES, SETTINGS


@pytest.fixture
def penalised(place: Path, tmp_path: Path) -> Path:
    """Return a folder with the SAEs of the run with smaller weights."""
    for seed in (0, 1, 2):
        sae = saefast.load_sae(place / "run" / f"seed-{seed}")
        with torch.no_grad():
            sae.W_enc.mul_(0.9)
            sae.b_enc.mul_(0.9)
        saefast.save_sae(sae, tmp_path / "penalised" / f"seed-{seed}")
    return tmp_path / "penalised"


def overall(run: Path, evaluation: str, measure: str) -> dict[str, Any]:
    """Return the scores of a measure over all latents, tasks and SAEs, by condition."""
    return {
        row["condition"]: row
        for row in read_table(run / SCORES).to_pylist()
        if (row["evaluation"], row["measure"]) == (evaluation, measure)
        and not (row["task"] or row["group"])
        and row["seed"] is None
    }


def test_steering_compares_runs(place: Path, penalised: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    beside = ["--beside", str(penalised)]
    assert main(["evaluate", str(run), "steer", *beside]) == 0
    for measure in ("success by rule", "success by self"):
        found = overall(run, "steer", measure)
        # A quick budget steers without rivals, but with the SAEs beside.
        assert found.keys() == {"trained", "penalised", "trained - penalised"}
        assert found["penalised"]["n"] > 0
        assert 0 <= found["penalised"]["value"] <= 1
        difference = found["trained"]["value"] - found["penalised"]["value"]
        assert found["trained - penalised"]["value"] == pytest.approx(difference)
    assert read_json(run / SETTINGS)["evaluate"]["beside"] == [str(penalised)]
    assert "penalised" in (run / "report.html").read_text()


def test_changed_weights_beside_are_evaluated_again(
    place: Path, penalised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    table = ["--tasks", str(place / "labelled.csv")]
    command = ["evaluate", str(run), "probe", *table, "--beside", str(penalised), "--json"]

    def was_finished() -> bool:
        assert main(command) == 0
        return bool(json.loads(capsys.readouterr().out)["stages"]["probe"]["was_finished"])

    assert not was_finished()
    assert {"penalised", "trained - penalised", "untrained"} <= overall(
        run, "probe", "auroc at 1"
    ).keys()
    assert was_finished()
    sae = saefast.load_sae(penalised / "seed-1")
    with torch.no_grad():
        sae.b_dec.add_(0.1)
    saefast.save_sae(sae, penalised / "seed-1")
    assert not was_finished()
    config = read_json(penalised / "seed-1" / "cfg.json")
    write_json(penalised / "seed-1" / "cfg.json", config | {"k": config["k"] + 1})
    assert not was_finished()  # equal weights with another k


def test_saes_without_a_run_are_compared(place: Path, penalised: Path, tmp_path: Path) -> None:
    sae, out = place / "run" / "seed-0", tmp_path / "out"
    where = ["--model", str(place / "model"), "--site", "resid.1", "--out", str(out)]
    beside = ["--beside", str(penalised / "seed-0"), str(penalised)]
    command = ["evaluate", str(sae), "probe", "--tasks", str(place / "labelled.csv")]
    assert main([*command, *where, *beside]) == 0
    rows = read_table(out / "scores.parquet").to_pylist()
    assert {"seed-0", "penalised"} <= {row["condition"] for row in rows}


def test_conditions_have_the_saes_of_a_run_in_order(place: Path) -> None:
    where = (str(place / "model"), "resid.1")
    (condition,) = conditions_beside([place / "run"], 32, where)
    assert condition.name == "run"
    assert len(condition.saes) == 3
    for seed, sae in enumerate(condition.saes):
        assert sae.W_dec.equal(saefast.load_sae(place / "run" / f"seed-{seed}").W_dec)


def test_unusable_folders_raise_one_sentence(place: Path, penalised: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        conditions_beside([tmp_path / "nothing"], 32)
    taken = shutil.copytree(penalised, tmp_path / "untrained")
    with pytest.raises(ValueError, match=r"names differ .* other conditions, trained, untrained"):
        conditions_beside([taken], 32)
    for names in ([penalised, penalised], [shutil.copytree(penalised, tmp_path / "diffmean")]):
        with pytest.raises(ValueError, match="names differ"):
            conditions_beside(names, 32)
    with pytest.raises(ValueError, match=r"activations of width 30, but .* has d=32"):
        conditions_beside([penalised], 30)
    with pytest.raises(ValueError, match=r"beside must be SAEs of m at resid.1, but .* at resid.1"):
        conditions_beside([place / "run"], 32, ("m", "resid.1"))
    other = shutil.copytree(place / "run", tmp_path / "other")
    write_json(other / "run.json", read_json(other / "run.json") | {"finished": False})
    with pytest.raises(ValueError, match="other is not finished"):
        conditions_beside([other], 32)
