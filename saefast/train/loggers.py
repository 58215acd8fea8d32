"""Loggers of a training run: JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from saefast.disk.atomic import append, explained, flush_file, write_whole
from saefast.disk.tables import plain

LOGGERS = ("tensorboard", "wandb")


def check_installed(log_to: Sequence[str]) -> None:
    """Raise an ImportError unless the packages of these loggers are installed."""
    for name in log_to:
        if importlib.util.find_spec(name) is None:
            raise _lacking(name)


def _lacking(name: str) -> ImportError:
    return ImportError(f"log_to {name!r} needs the package {name}; run: pip install {name}")


class Logger(Protocol):
    """A destination of reports."""

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the values of one SAE at one step."""
        ...

    def flush(self) -> None:
        """Flush written values to the disk, before a checkpoint."""
        ...

    def close(self) -> None:
        """Close the logger after the last report."""
        ...


class JsonLines:
    """Logger to RUN/metrics.jsonl: a line for every SAE and interval.

    Numbers that are not finite, such as the share of a variance of zero, are null.
    """

    def __init__(self, path: Path, after: int) -> None:
        """Open the file and remove lines of steps after `after`, which will be taken again."""
        kept = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # incomplete last line of a killed process
                if row["step"] <= after:
                    kept.append(line)
        write_whole(path, "".join(line + "\n" for line in kept).encode())
        self._path = path

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        record = plain({"step": step, "sae": label, **values})
        line = json.dumps(record, allow_nan=False) + "\n"
        append(self._path, line.encode())

    def flush(self) -> None:
        """See `Logger`."""
        with explained(self._path):
            flush_file(self._path)

    def close(self) -> None:
        """See `Logger`."""


class TensorBoard:
    """Logger to TensorBoard, with one tag for each SAE and value."""

    def __init__(self, folder: Path, after: int) -> None:
        """Open the folder and hide values of steps after `after`, which will be taken again."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _lacking("tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(f"{label}/{name}", value, step)
        self._writer.flush()  # with TensorFlow installed, files are not written without it

    def flush(self) -> None:
        """See `Logger`; only the checkpoints' own lines have to survive."""

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


class Wandb:
    """Logger to one run of Weights & Biases for all SAEs: the active run, or a new one."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _lacking("wandb") from error
        self._theirs = wandb.run is not None
        self._run = wandb.run or wandb.init()
        self._run.config.update(dict(settings), allow_val_change=True)
        self._labels: set[str] = set()

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        # wandb's own step cannot decrease, and the caller's run may be ahead: the step is logged as
        # a separate metric, and wandb plots the others over it.
        if label not in self._labels:
            self._labels.add(label)
            self._run.define_metric(f"{label}/*", step_metric="step")
        self._run.log({f"{label}/{name}": value for name, value in values.items()} | {"step": step})

    def flush(self) -> None:
        """See `Logger`; wandb sends its values to a server."""

    def close(self) -> None:
        """See `Logger`."""
        if not self._theirs:
            self._run.finish()


def loggers(
    out: Path | None, after: int, log_to: Sequence[str], settings: Mapping[str, Any]
) -> list[Logger]:
    """Open the requested loggers, and the JSON lines if there is a folder."""
    found: list[Logger] = []
    with contextlib.ExitStack() as opened:

        def add(logger: Logger) -> None:
            opened.callback(logger.close)
            found.append(logger)

        if "tensorboard" in log_to:
            if out is None:
                raise ValueError(
                    "log_to 'tensorboard' writes to the folder of the run; give out=FOLDER"
                )
            add(TensorBoard(out / "tensorboard", after))
        if "wandb" in log_to:
            add(Wandb(settings))
        if out is not None:
            add(JsonLines(out / "metrics.jsonl", after))
        opened.pop_all()
    return found
