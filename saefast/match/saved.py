"""The matches of two dictionaries on disk: a Parquet table, and a file to go on from before it."""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.disk.atomic import write_tensors
from saefast.disk.tables import write_table
from saefast.match.result import Matches, Proof

Both = tuple[Matches, Matches]
"""Of the first's features among the second's, and the other way round"""

_KEY = b"saefast"
_ALWAYS = ("partner", "similarity", "mutual")
_FACTS = ("value", "upper_bound", "certified", "rounds")

_EVERY = 30.0  # seconds between two writings of what is unfinished
_ABOUT = "about"


def write_pair(file: Path, both: Both, names: tuple[int, int], about: dict[str, Any]) -> None:
    """`names` are the numbers of the two dictionaries; `about` says what was matched, and how."""
    sizes = [len(matches.partner) for matches in both]
    columns = {
        "dictionary": np.repeat(names, sizes),
        "feature": np.concatenate([np.arange(size) for size in sizes]),
    }
    for name in _ALWAYS:
        columns[name] = np.concatenate([getattr(matches, name).cpu().numpy() for matches in both])
    there, back = both
    facts: dict[str, float] = {}
    if there.proof is not None and back.proof is not None:
        # The price of a feature as a row, and as a column: both of the first dictionary's first.
        rows = there.proof.row_price, back.proof.row_price
        others = back.proof.column_price, there.proof.column_price
        columns["row_price"] = torch.cat(rows).cpu().numpy()
        columns["column_price"] = torch.cat(others).cpu().numpy()
        facts = {name: getattr(there.proof, name) for name in _FACTS}
    notes = {"about": about, "sizes": sizes, "facts": facts}
    write_table(file, columns, {_KEY: json.dumps(notes).encode()})


def read_pair(file: Path, about: dict[str, Any] | None = None) -> Both | None:
    """What `write_pair` wrote; None where there is nothing, or something about other matches.

    `about` None takes whatever there is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
        notes = json.loads(table.schema.metadata[_KEY])
        first, _ = notes["sizes"]
        columns = {
            name: torch.tensor_split(torch.from_numpy(table[name].to_numpy().copy()), (first,))
            for name in table.column_names
        }
        facts = notes["facts"]
        partner, similarity, mutual = (columns[name] for name in _ALWAYS)
        there, back = (
            Matches(partner=partner[i], similarity=similarity[i], mutual=mutual[i]) for i in (0, 1)
        )
        if facts:
            own, others = columns["row_price"], columns["column_price"]
            there, back = (
                replace(matches, proof=Proof(**facts, row_price=own[i], column_price=others[1 - i]))
                for i, matches in enumerate((there, back))
            )
        same = about is None or notes["about"] == about
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is truncated or holds no matches: {error}; remove it") from error
    return (there, back) if same else None


class Unfinished:
    """What is known of a matching that is not finished: an interrupted one goes on from it.

    Tensors by name, written whole every half minute; without a file only remembered.
    """

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
        """Remove what was kept."""
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
