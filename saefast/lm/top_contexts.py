"""Text around tokens on which features fire, for human readers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saefast import checks
from saefast.activations import StoreActivations
from saefast.lm.harvest_plan import POSITIONS, TOKENS

_BROKEN = "\ufffd"  # decoded part of a character


class TokenInContext(NamedTuple):
    """Token with the text before and after it in its context."""

    before: str
    """text before the token"""
    token: str
    """text of the token"""
    after: str
    """text after the token"""
    row: int
    """number of the activation's row in its source"""
    position: int
    """position of the token in its context, from 0"""


def contexts(
    store: StoreActivations | str | Path,
    tokenizer: Any,
    rows: Sequence[int] | Tensor,
    before: int = 12,
    after: int = 6,
) -> list[TokenInContext]:
    """Return the tokens at some rows of a harvested store, with their neighbours.

    Args:
        store: store written by `harvest`, or its path.
        tokenizer: tokenizer of the model that was harvested.
        rows: [n] numbers of rows in the store.
        before: maximum number of tokens to show before, within the context.
        after: maximum number of tokens to show after, within the context.

    Returns:
        A token with its context for each row, in the same order. If a character is several tokens,
        the whole of it is the token.
    """
    if not isinstance(store, StoreActivations):
        store = StoreActivations(store)
    missing = {TOKENS, POSITIONS} - set(store.index.extras)
    if missing:
        raise ValueError(
            f"store must have tokens and positions of its rows, but it lacks "
            f"{', '.join(sorted(missing))}; saefast.lm.harvest writes them"
        )
    for name, value in (("before", before), ("after", after)):
        checks.whole(name, value, 0)
    numbers = rows.tolist() if isinstance(rows, Tensor) else [int(row) for row in rows]
    return [_in_context(store, tokenizer, row, before, after) for row in numbers]


def _in_context(
    store: StoreActivations, tokenizer: Any, row: int, before: int, after: int
) -> TokenInContext:
    checks.between("rows", row, 0, store.rows - 1, "the rows of the store")
    first, end = max(0, row - before), min(store.rows, row + after + 1)
    ids = store.read(TOKENS, first, end).tolist()
    positions = store.read(POSITIONS, first, end).tolist()
    here = row - first
    # Positions increase within a context; the first row of the next has a smaller or equal one.
    begin = max((i for i in range(1, here + 1) if positions[i] <= positions[i - 1]), default=0)
    stop = next(
        (i for i in range(here + 1, len(ids)) if positions[i] <= positions[i - 1]), len(ids)
    )
    texts = _parts(tokenizer, ids[begin:stop], here - begin)
    return TokenInContext(*texts, row, positions[here])


def _parts(tokenizer: Any, ids: list[int], here: int) -> tuple[str, str, str]:
    """Return the text before, of and after the token at that place.

    Pieces are decoded from the first token on: alone, some would lose a leading space.
    """

    def text(count: int) -> str:
        return str(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False))

    end = here + 1
    while end < len(ids) and text(end).endswith(_BROKEN):
        end += 1
    whole, until = text(len(ids)), text(end)
    before = text(here).rstrip(_BROKEN)
    return before, until[len(before) :], whole[len(until) :]
