"""Built-in text as a store, and latents that fire on it by known predicates."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saefast.activations import StoreWriter
from saefast.evaluation.explaining.contexts import TokenText
from saefast.evaluation.explaining.firings import Firings
from saefast.lm import builtin_corpus
from saefast.lm.packing import Packing


class WordTokenizer:
    """A tokenizer whose tokens are words with the preceding blank, punctuation and white space."""

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


def write_text(
    folder: Path,
    contexts: int,
    length: int = 96,
    activations: torch.Tensor | None = None,
    **metadata: Any,
) -> WordTokenizer:
    """Write the tokens of built-in code with activations, by default zeros [n, 1]."""
    tokenizer = WordTokenizer()
    packing = Packing(context=length, batch_size=contexts)
    batch = next(packing.batches(builtin_corpus(("code",)), tokenizer))
    kept = batch.kept
    if activations is None:
        activations = torch.zeros(int(kept.sum()), 1)
    with StoreWriter(
        folder, activations.shape[1], dtype=torch.float32, metadata=metadata
    ) as writer:
        writer.append(
            activations,
            tokens=batch.ids[kept].to(torch.int32),
            positions=kept.nonzero()[:, 1].to(torch.int32),
        )
    return tokenizer


def planted(truth: Sequence[NDArray[np.bool_]]) -> Firings:
    """Make latents that fire, with strength 1 to 2, where [n] bool arrays are true."""
    latent, row = np.stack(truth).nonzero()
    strength = np.random.default_rng(3).uniform(1, 2, len(row)).astype(np.float32)
    starts = np.searchsorted(latent, np.arange(len(truth) + 1))
    return Firings(
        m=len(truth), rows=len(truth[0]), starts=starts, row=row.astype(np.int32), value=strength
    )


def planted_truth(text: TokenText) -> dict[str, NDArray[np.bool_]]:
    """Return firings by the words of their rule, without the module's predicates."""
    here = text.pieces(0, text.rows)
    bare = [piece.strip().casefold() or piece for piece in here]
    context = text.context.tolist()
    before = [None] + [
        bare[i - 1] if context[i] == context[i - 1] else None for i in range(1, len(bare))
    ]

    def where(*holds: bool) -> NDArray[np.bool_]:
        return np.array(holds)

    seen: set[tuple[int, str]] = set()
    repeated = []
    for window, piece in zip(text.window.tolist(), bare, strict=True):
        repeated.append((window, piece) in seen)
        seen.add((window, piece))
    topic = {w for w, piece in zip(text.window.tolist(), bare, strict=True) if piece == "return"}
    return {
        'the token "the"': where(*[piece == "the" for piece in bare]),
        'the token "a" or "in"': where(*[piece in ("a", "in") for piece in bare]),
        'a token that ends with "ed"': where(
            *[len(p) > 2 and p.isalpha() and p.endswith("ed") for p in bare]
        ),
        "a number": where(*[p.strip("_").isdigit() for p in bare]),
        "white space": where(*[not p.strip() for p in here]),
        'the token after "the"': where(*[p == "the" for p in before]),
        'the token "the" after "of"': where(
            *[p == "the" and q == "of" for p, q in zip(bare, before, strict=True)]
        ),
        "a token that occurred before in the same passage": where(*repeated),
        'text that mentions "return"': np.isin(text.window, list(topic)),
    }
