"""Where reports go besides the lines of JSON."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from saefast import TrainConfig, train_saes
from saefast.metrics import JsonLines

SMALL = TrainConfig(latents=20, k=2, tokens=256, batch_size=64, seeds=(0, 1))
ROWS = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))


class Recorder:
    """Stands in for TensorBoard's writer and for a run of wandb."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.made = (arguments, settings)
        self.seen: list[Any] = []
        self.closed = False

    def add_scalar(self, *what: Any) -> None:
        self.seen.append(what)

    def log(self, values: dict[str, Any]) -> None:
        self.seen.append(values)

    def close(self) -> None:
        self.closed = True

    finish = close


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    made = ModuleType(name)
    for key, value in names.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)


def test_tensorboard_gets_a_tag_for_each_sae_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorder] = []

    def writer(folder: str) -> Recorder:
        made.append(Recorder(folder))
        return made[0]

    module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=writer)
    arguments: dict[str, Any] = {"progress": False, "log_every": 2, "log_to": ["tensorboard"]}
    train_saes(ROWS, SMALL, out=tmp_path / "run", **arguments)
    assert made[0].made[0] == (str(tmp_path / "run/tensorboard"),)
    assert {(tag, step) for tag, _, step in made[0].seen} >= {
        (f"seed-{seed}/{name}", step)
        for seed in (0, 1)
        for name in ("loss", "explained_variance", "l0", "dead_share", "tokens_per_second")
        for step in (2, 4)
    }
    assert made[0].closed
    with pytest.raises(ValueError, match="give out=FOLDER"):
        train_saes(ROWS, SMALL, **arguments)


def test_wandb_gets_a_line_for_each_report(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []

    def init(**settings: Any) -> Recorder:
        made.append(Recorder(**settings))
        return made[0]

    module(monkeypatch, "wandb", init=init)
    train_saes(ROWS, SMALL, progress=False, log_every=4, log_to=("wandb",))
    assert made[0].made[1]["config"]["configs"][0]["latents"] == 20
    assert [line["at"] for line in made[0].seen] == [4, 4]
    assert {"seed-0/loss", "seed-0/fvu"} <= made[0].seen[0].keys()
    assert "seed-1/loss" in made[0].seen[1]
    assert made[0].closed


@pytest.mark.parametrize(
    ("name", "missing"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_what_is_not_installed_is_named(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        train_saes(ROWS, SMALL, out=tmp_path / "run", progress=False, log_to=[name])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="log_to must be one of tensorboard, wandb"):
        train_saes(ROWS, SMALL, progress=False, log_to=["file"])


def test_lines_of_steps_to_come_are_removed(tmp_path: Path) -> None:
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
