"""Activations token by token, each at most once: what is measured on them, unlike trained."""

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from saefast import checks
from saefast.activations import Activations


def count_tokens(source: Activations, tokens: int | None) -> int:
    """How many there will be: `tokens`, or all there are."""
    if tokens is None:
        if source.rows is None:
            raise ValueError("tokens must be given: activations do not say how many there are")
        tokens = source.rows
    checks.whole("tokens", tokens)
    checks.at_least("tokens", tokens, 2)
    return tokens if source.rows is None else min(tokens, source.rows)


def token_stream(
    source: Activations, tokens: int, batch_size: int, seed: int, name: str, progress: bool
) -> Iterator[Tensor]:
    """Batches [n, d] of so many tokens, in the order that `seed` says; the last may be smaller."""
    checks.whole("batch_size", batch_size)
    checks.at_least("batch_size", batch_size, 1)
    left = tokens
    with tqdm(total=tokens, desc=name, unit="token", disable=not progress) as bar:
        for batch in source.batches(min(batch_size, tokens), seed=seed):
            x = batch.x[:left]
            yield x
            bar.update(len(x))
            left -= len(x)
            if not left:
                return
