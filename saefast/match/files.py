"""The matches of two dictionaries on disk: one Parquet table, a row for each feature of both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefast.disk.tables import write_table
from saefast.match.result import Matches, Proof

Both = tuple[Matches, Matches]
"""Of the first's features among the second's, and the other way round"""

_KEY = b"saefast"
_ALWAYS = ("partner", "similarity", "mutual")
_FACTS = ("value", "upper_bound", "certified", "rounds")


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
