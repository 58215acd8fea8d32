"""The tokens around rows: what a feature's largest activations are read in."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saefast.activations.opening import open_activations
from saefast.activations.store import StoreActivations
from saefast.ops import checks


def token_contexts(
    activations: Any,
    rows: Tensor,
    *,
    tokens: Tensor | None = None,
    positions: Tensor | None = None,
    before: int = 12,
    after: int = 6,
) -> Tensor:
    """The tokens from `before` a row to `after` it, as far as they are in its sequence.

    Args:
        activations: those whose rows are meant; read only if they are a store.
        rows: int64 of any shape, such as `FeatureStatistics.top_rows`; -1 is none.
        tokens: [rows of the activations] None: "tokens" of the store.
        positions: [rows of the activations] where in its sequence each row is. None: "positions"
            of the store; where there are none, a context ends with the activations only.
        before, after: how far to look.

    Returns:
        int64 [*rows.shape, before + 1 + after], -1 where there is no token.
    """
    checks.whole("before", before)
    checks.whole("after", after)
    checks.at_least("before", before, 0)
    checks.at_least("after", after, 0)
    read_tokens = _reader("tokens", tokens, activations)
    if read_tokens is None:
        raise ValueError("tokens must be given, since the activations are no store that keeps them")
    count, read = read_tokens
    placed = _reader("positions", positions, activations)
    out = torch.full((rows.numel(), before + 1 + after), -1, dtype=torch.int64)
    offsets = torch.arange(-before, after + 1)
    for number, row in enumerate(rows.flatten().tolist()):
        if row < 0:
            continue
        checks.between("rows", row, 0, count - 1, "the rows of the activations")
        first, end = max(0, row - before), min(count, row + after + 1)
        there = slice(first - row + before, end - row + before)
        found = read(first, end)
        if placed is not None:
            position = placed[1](first, end)
            # Within a sequence, and nowhere else, positions count on from row to row.
            same = position - offsets[there] == position[row - first]
            found = found.where(same, -1)
        out[number, there] = found
    return out.view(*rows.shape, -1)


def _reader(
    name: str, given: Tensor | None, activations: Any
) -> tuple[int, Callable[[int, int], Tensor]] | None:
    """How many there are, and how to read a span of them."""
    if given is not None:
        return len(given), lambda first, end: given[first:end].long()
    source = open_activations(activations)
    if not isinstance(source, StoreActivations) or name not in source.index.extras:
        return None
    return source.rows, lambda first, end: source.read(name, first, end).long()
