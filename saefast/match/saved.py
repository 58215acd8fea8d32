"""Matches of two dictionaries on disk: a Parquet table, and a file for an unfinished matching."""

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

from saefast.disk import sealed_tensors
from saefast.disk.atomic import make_folder, remove_tensors, write_tensors
from saefast.disk.checksums import verifying
from saefast.disk.tables import read_table, write_table
from saefast.match.result import Matches, Proof

Both = tuple[Matches, Matches]
"""Matches of the first dictionary in the second, and of the second in the first"""

_KEY = b"saefast"
_ALWAYS = ("partner", "similarity", "mutual")
_FACTS = ("value", "upper_bound", "certified", "rounds")

_EVERY = 30.0  # seconds between two writes of an unfinished matching
_ABOUT = "about"


def write_pair(file: Path, both: Both, names: tuple[int, int], about: dict[str, Any]) -> None:
    """Write the matches of two dictionaries.

    Args:
        file: path of the Parquet file.
        both: matches in both directions.
        names: indices of the two dictionaries.
        about: options and checksums that determine the result.
    """
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
        # Prices of each feature as a row and as a column, the first dictionary before the second.
        rows = there.proof.row_price, back.proof.row_price
        others = back.proof.column_price, there.proof.column_price
        columns["row_price"] = torch.cat(rows).cpu().numpy()
        columns["column_price"] = torch.cat(others).cpu().numpy()
        facts = {name: getattr(there.proof, name) for name in _FACTS}
    notes = {"about": about, "sizes": sizes, "facts": facts}
    write_table(file, columns, {_KEY: json.dumps(notes).encode()})


def read_pair(file: Path, about: dict[str, Any] | None = None) -> Both | None:
    """Read matches written by `write_pair`.

    Args:
        file: path of the Parquet file.
        about: expected options and checksums; None: any.

    Returns:
        Matches in both directions; None if there is no file, or one with another `about`.

    Raises:
        ValueError: the file is truncated or damaged, or holds no matches.
    """
    table = read_table(file)
    if table is None:
        return None
    try:
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
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is not a file of matches: {error}; remove it") from error
    return (there, back) if same else None


class Unfinished:
    """State of an unfinished matching, from which an interrupted one resumes.

    The state consists of named tensors. It is written to the file as a whole at most every half
    minute; without a file it is kept in memory only.

    Args:
        file: path of the file; None: no file.
        about: options and checksums that determine the matching; a file with others is ignored.
    """

    def __init__(self, file: Path | None = None, about: Mapping[str, Any] | None = None) -> None:
        self._file, self._about = file, json.dumps(about)
        self._written = time.monotonic()
        self.tensors: dict[str, Tensor] = {} if file is None else _read(file, self._about)

    def keep(self, **tensors: Tensor) -> None:
        """Add or replace tensors, and write the state if it is due."""
        self.tensors |= tensors
        if self._file is not None and time.monotonic() - self._written >= _EVERY:
            make_folder(self._file.parent)
            write_tensors(self._file, self.tensors, {_ABOUT: self._about})
            self._written = time.monotonic()

    def finish(self) -> None:
        """Discard the state and its file."""
        self.tensors = {}
        if self._file is not None:
            remove_tensors(self._file)


def _read(file: Path, about: str) -> dict[str, Tensor]:
    """Read the tensors of a file; none if it is missing, damaged or has another `about`."""
    from safetensors import SafetensorError, safe_open

    unusable = (OSError, SafetensorError, ValueError)
    with contextlib.suppress(*unusable), safe_open(file, "pt") as content:
        if (content.metadata() or {}).get(_ABOUT) == about:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            if verifying():
                sealed_tensors.check(file, tensors)
            return tensors
    return {}
