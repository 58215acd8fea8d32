"""Built-in text as a store, and latents that fire on it by predicates of known truth."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saefast.activations import StoreWriter
from saefast.evaluation.firings import Firings
from saefast.lm import builtin_corpus
from saefast.lm.packing import Packing


class WordTokenizer:
    """A tokenizer whose tokens are words with the blank before them, marks and white space."""

    bos_token_id = None

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        pieces = re.findall(r" ?\w+| ?[^\w\s]+|\s+?(?= ?\S)|\s", text)
        return {
            "input_ids": [self._numbers.setdefault(piece, len(self._numbers)) for piece in pieces]
        }

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        strings = list(self._numbers)
        return [strings[number] for number in ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)


def write_text(folder: Path, contexts: int, length: int = 96) -> WordTokenizer:
    """Write the tokens of built-in text beside activations of width 1 that are zero."""
    tokenizer = WordTokenizer()
    batch = next(Packing(context=length, batch_size=contexts).batches(builtin_corpus(), tokenizer))
    kept = batch.kept
    with StoreWriter(folder, 1, dtype=torch.float32) as writer:
        writer.append(
            torch.zeros(int(kept.sum()), 1),
            tokens=batch.ids[kept].to(torch.int32),
            positions=kept.nonzero()[:, 1].to(torch.int32),
        )
    return tokenizer


def planted(truth: Sequence[NDArray[np.bool_]]) -> Firings:
    """Latents that fire, each with strength 1 to 2, where [n] bool arrays say so."""
    latent, row = np.stack(truth).nonzero()
    strength = np.random.default_rng(3).uniform(1, 2, len(row)).astype(np.float32)
    starts = np.searchsorted(latent, np.arange(len(truth) + 1))
    return Firings(
        m=len(truth), rows=len(truth[0]), starts=starts, row=row.astype(np.int32), value=strength
    )
