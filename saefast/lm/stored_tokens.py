"""Tokens of a harvest on disk, so that several processes tokenise no text."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from saefast.disk.atomic import write_whole
from saefast.lm.packing import TokenBatch, token_batch

_IDS, _CONTEXTS, _BATCHES, _ROWS = "ids", "contexts", "batches", "rows"


def write_tokens(path: Path, batches: Iterable[TokenBatch], rows: int | None) -> str:
    """Write the batches that hold the first `rows` rows, and return a hash of them.

    Args:
        path: the file.
        batches: batches of tokens from the first row on.
        rows: number of rows; None: all batches.

    Returns:
        Hash of the content.
    """
    from safetensors.torch import save

    ids = [torch.empty(0, dtype=torch.int32)]
    lengths, contexts, kept, done = [0], [0], [0], 0
    for batch in batches:
        ids.append(batch.ids[batch.real].to(torch.int32))
        lengths += batch.real.sum(1).tolist()
        contexts.append(contexts[-1] + len(batch.ids))
        done += int(batch.kept.sum())
        kept.append(done)
        if rows is not None and done >= rows:
            break
    content = save(
        {
            _IDS: torch.cat(ids),
            _CONTEXTS: torch.tensor(lengths).cumsum(0),
            _BATCHES: torch.tensor(contexts),
            _ROWS: torch.tensor(kept),
        }
    )
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


class StoredTokens:
    """Batches of tokens in a file of `write_tokens`; only requested ones are read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        opened: Any = safe_open  # without types for its methods
        self._file = opened(path, "pt")
        self._contexts, self._batches, rows = (
            self._file.get_tensor(name).tolist() for name in (_CONTEXTS, _BATCHES, _ROWS)
        )
        self.ends: list[int] = rows
        """Number after the last row of each batch, after a 0"""

    @property
    def rows(self) -> int:
        """Number of rows in all batches."""
        return self.ends[-1]

    def numbers(self, first: int, end: int) -> range:
        """Return the numbers of the batches that hold the rows [first, end)."""
        return range(bisect_right(self.ends, first) - 1, bisect_right(self.ends, end - 1))

    def batch(self, number: int, tokenizer: Any, drop_bos: bool) -> TokenBatch:
        """Return a batch, as `Packing.batches` yielded it.

        Args:
            number: number of the batch, from 0.
            tokenizer: the tokenizer of the model.
            drop_bos: as in the `Packing`.
        """
        first, end = self._batches[number], self._batches[number + 1]
        borders = self._contexts[first : end + 1]
        ids = self._file.get_slice(_IDS)[borders[0] : borders[-1]].tolist()
        contexts = [ids[a - borders[0] : b - borders[0]] for a, b in pairwise(borders)]
        return token_batch(contexts, tokenizer, drop_bos)
