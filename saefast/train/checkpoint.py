"""Files of a training run: run.json, and the state for a bitwise identical resume."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.disk.atomic import write_tensors
from saefast.disk.tables import write_json

RUN = "run.json"
TRAINING = "training"


@dataclass
class RunFile:
    """Contents of RUN/run.json: configs, data, and the number of the last complete checkpoint."""

    out: Path
    facts: dict[str, Any]

    @classmethod
    def read(cls, out: Path) -> "RunFile | None":
        """Read the run file of a folder; return None if the folder holds no run."""
        path = out / RUN
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_bytes())
            facts["checkpoint"], facts["configs"], facts["data"], facts["finished"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the file of a training run: {error!r}") from error
        return cls(out, facts)

    @property
    def step(self) -> int:
        """Number of steps taken before the last checkpoint."""
        return int(self.facts["checkpoint"])

    @property
    def finished(self) -> bool:
        """Whether the training is finished."""
        return bool(self.facts["finished"])

    def write(self) -> None:
        """Write run.json atomically."""
        write_json(self.out / RUN, self.facts)

    def save(self, step: int, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint of all SAEs after `step` steps; it is valid once run.json names it."""
        for label, state in states.items():
            path = self._state_file(label, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, state)
        before, self.facts["checkpoint"] = self.step, step
        try:
            self.write()
        except OSError:
            self.facts["checkpoint"] = before
            raise
        for label in states:
            for old in (self.out / label / TRAINING).iterdir():
                if old.is_dir():  # left by a process that was killed while writing
                    shutil.rmtree(old, ignore_errors=True)
                elif old != self._state_file(label, step):
                    old.unlink()

    def load(self, label: str) -> dict[str, Tensor]:
        """Load the state of one SAE at the last checkpoint."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._state_file(label, self.step)
        try:
            return load_file(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} does not exist, although {RUN} refers to this checkpoint; without it the "
                f"run cannot be resumed"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error

    def forget(self, labels: Iterable[str]) -> None:
        """Remove the state that only a resume needs."""
        for label in labels:
            shutil.rmtree(self.out / label / TRAINING, ignore_errors=True)

    def _state_file(self, label: str, step: int) -> Path:
        return self.out / label / TRAINING / f"step-{step}.safetensors"


def differences(then: object, now: object, name: str = "") -> list[str]:
    """Describe the differences between two nested settings, one string for each."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            difference
            for key in keys
            for difference in differences(
                then.get(key), now.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            difference
            for i, (a, b) in enumerate(zip(then, now, strict=True))
            for difference in differences(a, b, f"{name}[{i}]")
        ]
    return [] if then == now else [f"{name} was {then!r} and is now {now!r}"]
