"""Workers in the process of a test, and the files that they write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saefast.sweep import pool
from saefast.sweep.attempts import attempt
from saefast.sweep.workers import Answer


class Inline:
    """Workers that perform each task in this process, after an optional refusal."""

    def __init__(self, refuse: Callable[[int], str | None] = lambda _: None) -> None:
        self.groups, self.memory = 2, None
        self.records: list[dict[str, Any]] = []
        self._waiting: list[Any] = []
        self._refuse = refuse

    def free(self) -> bool:
        return len(self._waiting) < 2

    def start(self, task: Any) -> None:
        self._waiting.append(task)

    def wait(self) -> Answer[Any]:
        task = self._waiting.pop()  # the last one first: tasks end in any order
        self.records.append(task.to_dict())
        return Answer(
            task,
            self._refuse(len(self.records)) or attempt(json.loads(json.dumps(self.records[-1]))),
        )

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def use(monkeypatch: pytest.MonkeyPatch, hands: Inline) -> Inline:
    """Let every pool of this machine have these workers."""
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: hands)
    return hands


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
