"""Batches of tokens from documents."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.lm.corpus import Corpus


class TokenBatch(NamedTuple):
    """Contexts for one forward pass; short ones are padded on the right.

    In a causal model no token depends on later ones, so padding needs no mask; `BatchCapture` masks
    it in others.
    """

    ids: Tensor
    """[contexts, length] int64"""
    real: Tensor
    """[contexts, length] bool, false for padding"""
    kept: Tensor
    """[contexts, length] bool, positions whose activations count"""


@dataclass(frozen=True)
class Packing:
    """Rules by which documents become contexts.

    Args:
        context: number of tokens in a context.
        batch_size: number of contexts in a forward pass.
        drop_bos: leave out the activations of first positions, and of BOS at any position. Models
            use the first token, BOS or not, as an attention sink: its activation can be a hundred
            times as long as others.
        packed: concatenate documents, separated by an empty line, and cut them into full contexts;
            False: each document begins a new context.
        prepend_bos: begin every context with BOS; None: if the tokenizer does by default.
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
        """All settings as JSON values."""
        return asdict(self)

    def batches(self, corpus: Corpus, tokenizer: Any) -> Iterator[TokenBatch]:
        """Yield batches of the whole corpus; only the last one can be smaller."""
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
                # A lone token predicts nothing but the next document, which is unrelated.
                if len(begin) + len(left) > 1:
                    yield begin + left
                left = []
        if len(begin) + len(left) > 1:
            yield begin + left


def beginning(tokenizer: Any, prepend_bos: bool | None = None) -> list[int]:
    """Return the tokens that begin every context: BOS or none.

    Args:
        tokenizer: the tokenizer.
        prepend_bos: whether to begin with BOS; None: if the tokenizer does by default.
    """
    bos = tokenizer.bos_token_id
    if prepend_bos is None:
        usual = tokenizer("")["input_ids"]
        return [bos] if bos is not None and usual[:1] == [bos] else []
    if prepend_bos and bos is None:
        raise ValueError(
            "prepend_bos must not be True for a tokenizer without a BOS token; leave it out"
        )
    return [bos] if prepend_bos else []


def prompt_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that is continued, which begins like the contexts of a harvest.

    An end of text, which some tokenizers append, is left out.

    Args:
        tokenizer: the tokenizer.
        text: the text.
    """
    return beginning(tokenizer) + _encoder(tokenizer)(text)


def token_batch(contexts: Sequence[Sequence[int]], tokenizer: Any, drop_bos: bool) -> TokenBatch:
    """Pad contexts on the right to the length of the longest.

    Args:
        contexts: tokens of each context.
        tokenizer: the tokenizer.
        drop_bos: whether first positions and BOS are left out of `kept`.

    Returns:
        Tokens [contexts, length] with masks of the same shape.
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
        # verbose: no warning about long documents, since they are cut afterwards.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return encode
