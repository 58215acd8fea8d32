"""Store of an endpoint's answers, each written at once, so that no call is paid for twice."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from saefast.disk.atomic import append, make_folder

ANSWERS = "judgements.jsonl"
"""Name of the file of answers in the folder of an evaluation"""


class Answers:
    """Answers by the hash of their request.

    Args:
        path: file with a line of JSON for each answer, which is read first if it exists; None:
            answers are kept in memory only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._known: dict[str, Any] = {}
        self._lock = Lock()
        self._torn = False
        if self._path is not None and self._path.is_file():
            self._read(self._path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Any:
        """Return the answer under a key, or None."""
        return self._known.get(key)

    def add(self, key: str, answer: Any, **beside: Any) -> None:
        """Store an answer and append it to the file.

        Args:
            key: key from `key_of`.
            answer: value that `get` returns for the key.
            beside: further entries of its line.
        """
        line = json.dumps({"key": key, **beside, "answer": answer}, ensure_ascii=False)
        with self._lock:
            self._known[key] = answer
            if self._path is None:
                return
            make_folder(self._path.parent)
            begin = "\n" if self._torn else ""
            self._torn = True  # until the line is whole: a torn line is skipped by readers
            append(self._path, f"{begin}{line}\n".encode("utf-8", "surrogatepass"))
            self._torn = False

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue  # the torn end of a line


def key_of(asked: Mapping[str, Any]) -> str:
    """Return the hash of a model, messages and settings."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
