"""From documents to batches of tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.lm.corpus import Corpus


class TokenBatch(NamedTuple):
    """Contexts for one forward pass; short ones are filled up on the right.

    Nobody masks what fills them up: in a causal model no token looks to its right.
    """

    ids: Tensor
    """[contexts, length] int64"""
    real: Tensor
    """[contexts, length] bool: not a filling"""
    kept: Tensor
    """[contexts, length] bool: those whose activations count"""


@dataclass(frozen=True)
class Packing:
    """How documents become contexts.

    Args:
        context: tokens in each.
        batch_size: contexts in a forward pass.
        drop_bos: leave out the activations of first positions, and of BOS wherever it stands.
            Models park what they do not need at the first token, BOS or not: its activation can be
            a hundred times as long as others.
        packed: documents follow each other, parted by an empty line, and are cut into full
            contexts; otherwise each document begins a context of its own.
        prepend_bos: begin every context with BOS; None: where the tokenizer by itself would.
    """

    context: int = 256
    batch_size: int = 16
    drop_bos: bool = True
    packed: bool = True
    prepend_bos: bool | None = None

    def __post_init__(self) -> None:
        checks.whole("context", self.context, 2)
        checks.whole("batch_size", self.batch_size, 1)

    @property
    def description(self) -> dict[str, Any]:
        """All of it, in words JSON can say."""
        return asdict(self)

    def batches(self, corpus: Corpus, tokenizer: Any) -> Iterator[TokenBatch]:
        """All of the corpus; only the last batch can be smaller."""
        contexts: list[list[int]] = []
        for tokens in self._contexts(corpus, tokenizer):
            contexts.append(tokens)
            if len(contexts) == self.batch_size:
                yield token_batch(contexts, tokenizer, self.drop_bos)
                contexts = []
        if contexts:
            yield token_batch(contexts, tokenizer, self.drop_bos)

    def _contexts(self, corpus: Corpus, tokenizer: Any) -> Iterator[list[int]]:
        begin = beginning(tokenizer, self.prepend_bos)
        room = self.context - len(begin)
        encode: Callable[[str], list[int]] = _encoder(tokenizer)
        between = encode("\n\n") if self.packed else []
        left: list[int] = []
        for document in corpus:
            left += encode(document.text) + between
            taken = 0
            while len(left) - taken >= room:
                yield begin + left[taken : taken + room]
                taken += room
            left = left[taken:]
            if not self.packed:
                # A lone token has nobody to predict, and only the next document would follow it.
                if len(begin) + len(left) > 1:
                    yield begin + left
                left = []
        if len(begin) + len(left) > 1:
            yield begin + left


def beginning(tokenizer: Any, prepend_bos: bool | None = None) -> list[int]:
    """Return the tokens that begin every context: BOS or none.

    Args:
        tokenizer: the tokenizer.
        prepend_bos: whether BOS does; None: where the tokenizer by itself puts it.
    """
    bos = tokenizer.bos_token_id
    if prepend_bos is None:
        usual = tokenizer("")["input_ids"]
        return [bos] if bos is not None and usual[:1] == [bos] else []
    if prepend_bos and bos is None:
        raise ValueError(
            "prepend_bos needs a tokenizer with a BOS token, and this one has none; leave "
            "prepend_bos out"
        )
    return [bos] if prepend_bos else []


def token_batch(contexts: Sequence[Sequence[int]], tokenizer: Any, drop_bos: bool) -> TokenBatch:
    """Fill up contexts on the right to the length of the longest.

    Args:
        contexts: tokens of each.
        tokenizer: the tokenizer.
        drop_bos: whether first positions and BOS are left out of `kept`.
    """
    length = max(len(tokens) for tokens in contexts)
    ids = torch.zeros(len(contexts), length, dtype=torch.int64)
    real = torch.zeros(len(contexts), length, dtype=torch.bool)
    for row, tokens in enumerate(contexts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        real[row, : len(tokens)] = True
    kept = real.clone()
    if drop_bos:
        kept[:, 0] = False
        if tokenizer.bos_token_id is not None:
            kept &= ids != tokenizer.bos_token_id
    return TokenBatch(ids, real, kept)


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        # verbose: a document may be longer than the model reads, since it is cut afterwards.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return encode
