"""Held-out text in two halves, cut into windows that cross neither contexts nor documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.activations import StoreActivations
from saefast.types import brief

WINDOW = 32
"""Number of tokens in a window"""

_STRETCHES = 8  # even, so that as many are for explaining as for scoring
_WORD_START = "\u2581"  # SentencePiece's blank before a word

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """Tokens in the order of a text, cut into contexts and windows.

    Explanations are found in one half of the documents and scored in the other half.
    """

    token: Integers
    """[n] index of each row's token in `strings`"""
    strings: tuple[str, ...]
    """texts of the distinct tokens, with their blanks"""
    context: Integers
    """[n] index of each row's context, ascending; no context crosses a document"""
    after_gap: Booleans
    """[n] whether the token before the row is unknown: at the start of a context, or after BOS"""
    explaining: Booleans
    """[n] whether the row's document is in the explaining half"""
    size: int = WINDOW
    """number of tokens in a full window"""

    __repr__ = brief

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return len(self.token)

    @cached_property
    def offset(self) -> Integers:
        """Position of each row in its context, [n]."""
        return np.arange(self.rows) - self.context_starts[self.context]

    @cached_property
    def context_starts(self) -> Integers:
        """First row of each context, then the number of rows, [contexts + 1]."""
        return np.searchsorted(self.context, np.arange(int(self.context[-1]) + 2))

    @cached_property
    def window(self) -> Integers:
        """Index of each row's window, ascending, [n]."""
        begins = (self.offset % self.size == 0).astype(np.int64)
        return np.cumsum(begins) - 1

    @cached_property
    def window_starts(self) -> Integers:
        """First row of each window, then the number of rows, [windows + 1]."""
        return np.searchsorted(self.window, np.arange(int(self.window[-1]) + 2))

    @cached_property
    def full(self) -> Booleans:
        """Mask of the windows that are long enough to show, at least half of `size`, [windows]."""
        return np.diff(self.window_starts) * 2 >= self.size

    def pieces(self, first: int, end: int) -> list[str]:
        """Return the texts of the tokens of rows [first, end)."""
        return [self.strings[number] for number in self.token[first:end]]


def token_text(
    store: StoreActivations | str | Path,
    tokenizer: Any,
    *,
    rows: int | None = None,
    documents: Tensor | None = None,
    window: int = WINDOW,
) -> TokenText:
    """Read the text of a harvested store.

    Documents are split evenly between explaining and scoring. Where the documents of the rows are
    not known, contexts are split into eight runs of neighbours, so that a document which spans
    several contexts lies in both halves only if it crosses one of seven borders.

    Args:
        store: store written by `saefast.lm.harvest`.
        tokenizer: tokenizer of the harvested model.
        rows: number of rows to read, from the first; None: all.
        documents: [rows] index of each row's document; None: unknown.
        window: number of tokens in a window.

    Returns:
        The text of the rows that were read.
    """
    if not isinstance(store, StoreActivations):
        store = StoreActivations(store)
    missing = {"tokens", "positions"} - set(store.index.extras)
    if missing:
        raise ValueError(
            f"activations must be a store with tokens and positions of its rows, but it lacks "
            f"{' and '.join(sorted(missing))}; saefast.lm.harvest writes them"
        )
    checks.whole("window", window, 2)
    end = store.rows
    if rows is not None:
        checks.whole("rows", rows)
        checks.between("rows", rows, 1, store.rows, "the rows of the store")
        end = rows
    ids = store.read("tokens", 0, end).long().numpy()
    positions = store.read("positions", 0, end).long().numpy()
    steps = np.diff(positions)
    begins = np.concatenate([[True], steps <= 0])
    document: Integers | None = None
    if documents is not None:
        checks.indices("documents", documents, "[rows]")
        if len(documents) < end:
            raise ValueError(
                f"documents must have one entry for each row, {end}, got {len(documents)}"
            )
        document = documents[:end].numpy()
        begins[1:] |= np.diff(document) != 0
    context = np.cumsum(begins) - 1
    after_gap = begins | np.concatenate([[True], steps != 1])
    explaining = _explaining(context, document)
    distinct, token = np.unique(ids, return_inverse=True)
    return TokenText(
        token=token,
        strings=tuple(token_strings(tokenizer, distinct.tolist())),
        context=context,
        after_gap=after_gap,
        explaining=explaining,
        size=window,
    )


def text_of_sequences(sequences: Sequence[Sequence[int]], tokenizer: Any) -> TokenText:
    """Build a text whose contexts are given sequences of tokens, such as generated texts.

    All rows are in the scoring half.

    Args:
        sequences: token ids of each text; no sequence may be empty.
        tokenizer: tokenizer of the ids.

    Returns:
        The text, with a context for each sequence.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError("sequences must be one or more lists of tokens, none of them empty")
    distinct, token = np.unique(np.concatenate(sequences), return_inverse=True)
    strings = token_strings(tokenizer, distinct.tolist())
    return _text_of_contexts(token, strings, [len(each) for each in sequences])


def text_of_pieces(texts: Sequence[Sequence[str]]) -> TokenText:
    """Build a text whose contexts are given texts, with their pieces as tokens.

    Args:
        texts: pieces of each text; no text may be empty.

    Returns:
        The text, with a context for each of `texts`.
    """
    numbers: dict[str, int] = {}
    token = [numbers.setdefault(piece, len(numbers)) for text in texts for piece in text]
    return _text_of_contexts(np.array(token), list(numbers), [len(each) for each in texts])


def _text_of_contexts(token: Integers, strings: Sequence[str], lengths: Sequence[int]) -> TokenText:
    """Build a text from contexts of given lengths, with all rows in the scoring half."""
    context = np.repeat(np.arange(len(lengths)), lengths)
    return TokenText(
        token=token,
        strings=tuple(strings),
        context=context,
        after_gap=np.diff(context, prepend=-1) != 0,
        explaining=np.zeros(len(token), dtype=bool),
        size=WINDOW,
    )


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token on its own, with the blank before a word."""
    strings = []
    for raw in tokenizer.convert_ids_to_tokens(list(ids)):
        if raw is None:
            raise ValueError(
                "tokens of the store must be tokens of the model's tokenizer, but one is outside "
                "its vocabulary; pass the model whose activations were harvested"
            )
        if _WORD_START in raw:
            strings.append(raw.replace(_WORD_START, " "))
        else:
            strings.append(str(tokenizer.convert_tokens_to_string([raw])))
    return strings


def _explaining(context: Integers, document: Integers | None) -> Booleans:
    """Return whether each row's document is in the explaining half, [n]."""
    if document is not None:
        _, number = np.unique(document, return_inverse=True)
        count, stretches = int(number.max()) + 1, int(number.max()) + 1
    else:
        number = context
        count = int(context[-1]) + 1
        stretches = min(_STRETCHES, count)
    if count < 2:
        raise ValueError(
            "activations must hold at least two documents or contexts, one to explain features in "
            "and one to score the explanations in, got 1; harvest more text"
        )
    explaining: Booleans = number * stretches // count % 2 == 0
    return explaining
