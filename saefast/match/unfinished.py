"""What is known of a matching that is not finished, on disk: an interrupted one goes on from it."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.disk.atomic import write_tensors

_EVERY = 30.0  # seconds between two writings
_ABOUT = "about"


class Unfinished:
    """Tensors by name, written whole now and then; without a file only remembered."""

    def __init__(self, file: Path | None = None, about: Mapping[str, Any] | None = None) -> None:
        """`about` says what is matched, and how: what a file holds of anything else is not used."""
        self._file, self._about = file, json.dumps(about)
        self._written = time.monotonic()
        self.tensors: dict[str, Tensor] = {} if file is None else _read(file, self._about)

    def keep(self, **tensors: Tensor) -> None:
        """Remember these, beside what is known or in place of it."""
        self.tensors |= tensors
        if self._file is not None and time.monotonic() - self._written >= _EVERY:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self._file, self.tensors, {_ABOUT: self._about})
            self._written = time.monotonic()

    def finish(self) -> None:
        """Nobody will go on from here."""
        self.tensors = {}
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _read(file: Path, about: str) -> dict[str, Tensor]:
    """Nothing where there is no such file, or nothing of use in it."""
    from safetensors import SafetensorError, safe_open

    with contextlib.suppress(OSError, SafetensorError), safe_open(file, "pt") as content:
        if (content.metadata() or {}).get(_ABOUT) == about:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return {}
