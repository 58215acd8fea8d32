"""Where reports of a training run go: lines of JSON, TensorBoard, Weights & Biases."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from saefast.disk.atomic import write_whole

LOGGERS = ("tensorboard", "wandb")


class Logger(Protocol):
    """Where reports go."""

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """The values of one SAE at one step."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


class JsonLines:
    """RUN/metrics.jsonl: a line for every SAE and interval."""

    def __init__(self, path: Path, after: int) -> None:
        """Lines of steps beyond `after`, which are about to be taken again, are removed."""
        kept = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a process that was killed
                if row["step"] <= after:
                    kept.append(line)
        write_whole(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a")

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        self._file.write(json.dumps({"step": step, "sae": label, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `Logger`."""
        self._file.close()


class TensorBoard:
    """One tag for each SAE and value."""

    def __init__(self, folder: Path, after: int) -> None:
        """What steps beyond `after` have left, which are about to be taken again, is not shown."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "log_to 'tensorboard' needs its package: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(f"{label}/{name}", value, step)
        self._writer.flush()  # where TensorFlow is installed, its files wait for it

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


class Wandb:
    """One run of Weights & Biases for all SAEs: the caller's if one is active, or a new one."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("log_to 'wandb' needs its package: pip install wandb") from error
        self._theirs = wandb.run is not None
        self._run = wandb.run or wandb.init()
        self._run.config.update(dict(settings), allow_val_change=True)
        self._labels: set[str] = set()

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Logger`."""
        # wandb's own step cannot go back, and a caller's run may be ahead: ours is a value of its
        # own, over which wandb is told to draw the others.
        if label not in self._labels:
            self._labels.add(label)
            self._run.define_metric(f"{label}/*", step_metric="step")
        self._run.log({f"{label}/{name}": value for name, value in values.items()} | {"step": step})

    def close(self) -> None:
        """See `Logger`."""
        if not self._theirs:
            self._run.finish()


def loggers(
    out: Path | None, after: int, log_to: Sequence[str], settings: Mapping[str, Any]
) -> list[Logger]:
    """The lines of JSON, where there is a folder, and what else was asked for."""
    found: list[Logger] = []
    if "tensorboard" in log_to:
        if out is None:
            raise ValueError("log_to 'tensorboard' writes into the run: give out=FOLDER")
        found.append(TensorBoard(out / "tensorboard", after))
    if "wandb" in log_to:
        found.append(Wandb(settings))
    if out is not None:
        found.append(JsonLines(out / "metrics.jsonl", after))
    return found
