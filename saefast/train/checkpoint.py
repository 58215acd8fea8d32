"""Files of a training run: run.json, and the state for a bitwise identical resume."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.disk.tables import write_json
from saefast.train.config import is_folder_name, label_of
from saefast.train.ranks.files import parts_folder, read_state, whole_file, write_state, written
from saefast.train.ranks.group import ALONE, Ranks
from saefast.train.ranks.share import Share
from saefast.train.ranks.words import wait_for_all

RUN = "run.json"
TRAINING = "training"


@dataclass
class RunFile:
    """Contents of RUN/run.json: configs, data, and the number of the last complete checkpoint."""

    out: Path
    facts: dict[str, Any]
    ranks: Ranks = ALONE
    """ranks that write the run together"""
    shares: dict[str, Share] = field(default_factory=dict)
    """shares of this rank by the label of the SAE, of SAEs that ranks train together"""

    @classmethod
    def read(cls, out: Path) -> "RunFile | None":
        """Read the run file of a folder; return None if the folder holds no run."""
        path = out / RUN
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_bytes())
            _check(facts)
        except (ValueError, RecursionError, KeyError, TypeError) as error:
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

    @property
    def labels(self) -> list[str]:
        """Names of the folders of the SAEs."""
        configs = self.facts["configs"]
        return [label_of(config["name"], seed) for config in configs for seed in config["seeds"]]

    def write(self) -> None:
        """Write run.json atomically."""
        write_json(self.out / RUN, self.facts)

    def save(self, step: int, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint of all SAEs after `step` steps; it is valid once run.json names it.

        Every rank writes the states that it has. The first one names the step when all are written.
        """
        for label, state in states.items():
            write_state(self._folder(label), step, state, self.shares.get(label))
        wait_for_all(self.ranks)
        before, self.facts["checkpoint"] = self.step, step
        if self.ranks.rank == 0:
            try:
                self.write()
            except OSError:
                self.facts["checkpoint"] = before
                raise
        wait_for_all(self.ranks)
        for label in states:
            share = self.shares.get(label)
            if share is None or self.ranks.rank == 0:
                self._remove_others(self._folder(label), step, share)

    def load(self, label: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Load the state of one SAE at the last checkpoint, or this rank's share of it.

        The result has the shapes of `like`.

        Returns:
            Tensors of the state by name, with the shapes of `like`.
        """
        paths = written(self._folder(label), self.step)
        if not paths:
            raise FileNotFoundError(
                f"{whole_file(self._folder(label), self.step)} does not exist, although {RUN} "
                f"refers to this checkpoint; without it the run cannot be resumed"
            )
        return read_state(paths, like, self.shares.get(label))

    def forget(self, labels: Iterable[str]) -> None:
        """Remove the state that only a resume needs."""
        for label in labels:
            shutil.rmtree(self.out / label / TRAINING, ignore_errors=True)

    def _folder(self, label: str) -> Path:
        return self.out / label / TRAINING

    def _remove_others(self, folder: Path, step: int, share: Share | None) -> None:
        """Remove the states of other steps, and files that killed processes left."""
        kept = whole_file(folder, step) if share is None else parts_folder(folder, step)
        for old in folder.iterdir():
            if old == kept:
                continue
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # the next checkpoint tries again
                    old.unlink()


def _check(facts: dict[str, Any]) -> None:
    """Raise an error unless the content of run.json has the parts that its readers use."""
    for part, kind in (("checkpoint", int), ("configs", list), ("data", dict), ("finished", bool)):
        if not isinstance(facts[part], kind):
            raise TypeError(f"{part} must be {kind.__name__}, got {facts[part]!r:.80}")
    for config in facts["configs"]:
        if not is_folder_name(config["name"]):
            raise ValueError(f"the name {config['name']!r:.80} leads to another folder")
        if not all(type(seed) is int for seed in config["seeds"]):
            raise TypeError(f"seeds must be int, got {config['seeds']!r:.80}")


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
