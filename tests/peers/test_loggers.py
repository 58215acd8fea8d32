"""Values that TensorBoard and Weights & Biases read of a training, compared with lines of JSON."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from wandb.proto import wandb_internal_pb2

from saefast import TrainConfig, train_saes
from saefast.train.loggers import TensorBoard
from saefast.train.seed_trainer import SeedTrainer

CONFIG = TrainConfig(latents=20, k=2, tokens=384, batch_size=64, seeds=(0, 7))
ROWS = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))

Values = dict[str, Any]
Reports = dict[tuple[str, int], Values]
"""By SAE and step."""


def trained(out: Path, *log_to: str, **settings: Any) -> None:
    train_saes(ROWS, CONFIG, out=out, log_to=log_to, progress=False, log_every=2, **settings)


def in_json(out: Path) -> Reports:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {(line.pop("sae"), line.pop("step")): line for line in lines}


def in_tensorboard(folder: Path) -> Reports:
    """Return values as read by TensorBoard's server, one for each SAE and step."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found: Reports = {}
    for tag in events.Tags()["tensors"]:
        label, name = tag.removesuffix("/text_summary").split("/", 1)
        for event in events.Tensors(tag):
            values = found.setdefault((label, event.step), {})
            assert name not in values, (tag, event.step)
            values[name] = make_ndarray(event.tensor_proto).item()
    return found


def as_tensorboard_keeps(reports: Reports) -> Reports:
    """Return values as kept by TensorBoard: numbers in single precision, strings as bytes."""
    return {
        key: {
            name: value.encode() if isinstance(value, str) else float(np.float32(value))
            for name, value in values.items()
        }
        for key, values in reports.items()
    }


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of wandb, with no network and home, and with its state reset."""
    wandb.teardown()
    room = tmp_path / "wandb"
    room.mkdir()
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for kind in ("", "CACHE_", "CONFIG_", "DATA_", "ARTIFACT_"):
        monkeypatch.setenv(f"WANDB_{kind}DIR", str(room))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield room
    assert not (tmp_path / "home").exists()
    wandb.teardown()


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Yield the records of a .wandb file, a log in LevelDB's format in blocks of 32 KiB."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


class Kept:
    """The content of the file of an offline run of wandb."""

    def __init__(self, path: Path) -> None:
        self.lines: list[Values] = []
        self.config: Values = {}
        self.drawn_over: dict[str, str] = {}
        self.exits = 0
        for record in records(path):
            if record.HasField("history"):
                self.lines.append(_items(record.history.item))
            for config in (record.config, record.run.config):
                self.config |= _items(config.update)
            if record.HasField("metric"):
                metric = record.metric
                self.drawn_over[metric.glob_name or metric.name] = metric.step_metric
            self.exits += record.HasField("exit")

    def reports(self) -> Reports:
        found: Reports = {}
        for line in self.lines:
            values = {name: value for name, value in line.items() if "/" in name}
            (label,) = {name.split("/", 1)[0] for name in values}
            assert (label, line["step"]) not in found
            found[label, line["step"]] = {
                name.removeprefix(f"{label}/"): value for name, value in values.items()
            }
        return found


def kept_in(room: Path) -> Kept:
    """Return the content of the only run after the end of wandb's process, which writes it late."""
    wandb.teardown()
    (file,) = room.rglob("*.wandb")
    return Kept(file)


def _items(items: Any) -> Values:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_both_have_the_values_of_the_lines(tmp_path: Path, offline: Path) -> None:
    trained(tmp_path, "tensorboard", "wandb")
    expected = in_json(tmp_path)
    assert expected.keys() == {(f"seed-{seed}", step) for seed in (0, 7) for step in (2, 4, 6)}
    assert expected["seed-0", 6]["loss"] != expected["seed-7", 6]["loss"]
    assert in_tensorboard(tmp_path / "tensorboard") == as_tensorboard_keeps(expected)
    kept = kept_in(offline)
    assert kept.reports() == expected
    assert kept.drawn_over.items() >= {"seed-0/*": "step", "seed-7/*": "step"}.items()
    assert kept.config["configs"] == [json.loads(json.dumps(CONFIG.resolved().to_dict()))]
    assert kept.exits == 1


def test_an_active_run_of_wandb_is_used_and_not_ended(tmp_path: Path, offline: Path) -> None:
    mine = wandb.init(config={"layer": 3})
    for number in range(40):
        mine.log({"mine": number})
    trained(tmp_path, "wandb")
    mine.log({"mine": 40})
    mine.finish()
    kept = kept_in(offline)
    assert [line["mine"] for line in kept.lines if "mine" in line] == list(range(41))
    kept.lines = [line for line in kept.lines if "mine" not in line]
    assert kept.reports() == in_json(tmp_path)
    assert kept.config["layer"] == 3
    assert kept.config["configs"][0]["latents"] == 20


def test_tensorboard_shows_repeated_steps_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = SeedTrainer.train

    def breaks(self: SeedTrainer, number: int, batch: Any) -> None:
        if number == 5:
            raise RuntimeError("the machine is gone")
        takes(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", breaks)
        with pytest.raises(RuntimeError, match="gone"):
            trained(tmp_path, "tensorboard")
    assert {step for _, step in in_tensorboard(tmp_path / "tensorboard")} == {2, 4}
    trained(tmp_path, "tensorboard", resume=True)
    shown = in_tensorboard(tmp_path / "tensorboard")
    assert shown == as_tensorboard_keeps(in_json(tmp_path))
    assert {step for _, step in shown} == {2, 4, 6}


def test_tensorboard_has_every_report_before_the_end(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path, after=0)
    for step in range(1, 4):
        logger.write("seed-0", step, {"loss": 0.5, "path": "fused"})
        shown = in_tensorboard(tmp_path)
        assert len(shown) == step
        assert shown["seed-0", step] == {"loss": 0.5, "path": b"fused"}
    logger.close()
