"""Loggers other than the lines of JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from saefast import TrainConfig, train_saes
from saefast.train.loggers import JsonLines

SMALL = TrainConfig(latents=20, k=2, tokens=256, batch_size=64, seeds=(0, 1))
ROWS = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))


def stands_in(monkeypatch: pytest.MonkeyPatch, module: str) -> MagicMock:
    """Replace a package that may be missing; tests/peers/test_loggers.py uses the real ones."""
    made = MagicMock(run=None)
    monkeypatch.setitem(sys.modules, module, made)
    return made


def test_tensorboard_has_a_tag_for_each_sae_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = stands_in(monkeypatch, "torch.utils.tensorboard")
    arguments: dict[str, Any] = {"progress": False, "log_every": 2, "log_to": ["tensorboard"]}
    train_saes(ROWS, SMALL, out=tmp_path / "run", **arguments)
    tensorboard.SummaryWriter.assert_called_once_with(
        str(tmp_path / "run/tensorboard"), purge_step=1
    )
    writer = tensorboard.SummaryWriter.return_value
    seen = {(call.args[0], call.args[2]) for call in writer.add_scalar.call_args_list}
    assert seen >= {
        (f"seed-{seed}/{name}", step)
        for seed in (0, 1)
        for name in ("loss", "explained_variance", "l0", "dead_share", "tokens_per_second")
        for step in (2, 4)
    }
    assert writer.flush.call_count == 4
    writer.close.assert_called_once_with()
    with pytest.raises(ValueError, match="give out=FOLDER"):
        train_saes(ROWS, SMALL, **arguments)


def test_wandb_has_a_line_for_each_report(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = stands_in(monkeypatch, "wandb")
    train_saes(ROWS, SMALL, progress=False, log_every=4, log_to=("wandb",))
    run = wandb.init.return_value
    assert run.config.update.call_args.args[0]["configs"][0]["latents"] == 20
    first, second = (call.args[0] for call in run.log.call_args_list)
    assert (first["step"], second["step"]) == (4, 4)
    assert {"seed-0/loss", "seed-0/fvu"} <= first.keys()
    assert "seed-1/loss" in second
    run.finish.assert_called_once_with()


def test_a_logger_is_closed_if_another_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard, wandb = (
        stands_in(monkeypatch, "torch.utils.tensorboard"),
        stands_in(monkeypatch, "wandb"),
    )

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(JsonLines, "__init__", full)
    with pytest.raises(OSError, match="No space left"):
        train_saes(ROWS, SMALL, out=tmp_path, progress=False, log_to=("tensorboard", "wandb"))
    tensorboard.SummaryWriter.return_value.close.assert_called_once_with()
    wandb.init.return_value.finish.assert_called_once_with()


def test_an_active_run_of_wandb_is_used_and_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = stands_in(monkeypatch, "wandb")
    wandb.run = MagicMock()
    train_saes(ROWS, SMALL, progress=False, log_every=4, log_to=("wandb",))
    wandb.init.assert_not_called()
    assert wandb.run.log.call_count == 2
    wandb.run.finish.assert_not_called()


@pytest.mark.parametrize(
    ("name", "missing"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_errors_name_missing_packages(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        train_saes(ROWS, SMALL, out=tmp_path / "run", progress=False, log_to=[name])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="log_to must be one of tensorboard, wandb"):
        train_saes(ROWS, SMALL, progress=False, log_to=["file"])
    with pytest.raises(TypeError, match=r"log_to must be a sequence .* \('wandb',\), got a str"):
        train_saes(ROWS, SMALL, progress=False, log_to="wandb")


def test_lines_of_later_steps_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    lines = JsonLines(path, after=2)
    lines.write("seed-0", 3, {"loss": 1.0})
    lines.close()
    whole = '{"step": 1}\n{"step": 2}\n{"step": 3, "sae": "seed-0", "loss": 1.0}\n'
    assert path.read_text() == whole
    path.write_text(whole + '{"step": 3, "lo')
    JsonLines(path, after=3).close()
    assert path.read_text() == whole


def test_measures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """A batch of one row has no variance, and NaN is not valid JSON."""
    settings = replace(SMALL, tokens=8, batch_size=1, seeds=(0, 1))
    train_saes(ROWS, settings, out=tmp_path, progress=False)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    for line in map(json.loads, text.splitlines()):
        assert line["explained_variance"] is None
        assert line["loss"] > 0
