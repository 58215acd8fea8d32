"""Logits of a language model at some positions, also after text that is read once."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.requirements import needed


def logits_at(
    model: nn.Module, ids: Tensor, positions: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Return the logits [contexts, p, vocabulary] at some positions of all contexts.

    Models of transformers skip the product with the unembedding elsewhere.

    Args:
        model: a causal language model of transformers.
        ids: [contexts, length] int64, on the device of the model.
        positions: [p] int64; None: all.
        cache: keys and values of the preceding text, from `for_contexts`; they are consumed.
    """
    named = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    return _run(model, ids, positions, **named)[0]


def logits_and_cache(
    model: nn.Module, ids: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Return the logits of `logits_at`, and keys and values, or None for other kinds of caches."""
    logits, output = _run(model, ids, positions, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    return logits, cache if type(cache) is needed("transformers").DynamicCache else None


def _run(
    model: nn.Module, ids: Tensor, positions: Tensor | None, **named: Any
) -> tuple[Tensor, Any]:
    if positions is not None:
        positions = positions.to(ids.device)
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            named["logits_to_keep"], positions = positions, None
    output = model(input_ids=ids, **named)
    return output.logits if positions is None else output.logits[:, positions], output


def for_contexts(cache: Any, contexts: Tensor) -> Any:
    """Return the part of a cache for some contexts [n], which a forward pass may consume."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    new.batch_select_indices(contexts)
    return new


def shared_length(texts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix of all texts, which leaves at least one token of each.

    Args:
        texts: tokens of each text; none is empty.
    """
    fewest = min(len(text) for text in texts) - 1
    return next(
        (place for place in range(fewest) if len({text[place] for text in texts}) > 1), fewest
    )


class Continuations:
    """Texts that begin with the same tokens, which the model reads once.

    If the model's cache is of another kind than keys and values, it reads them every time.

    Args:
        model: a causal language model of transformers.
        prefix: the tokens, possibly none.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, prefix: Sequence[int]) -> None:
        self._model = model
        device = next(model.parameters()).device
        self._prefix = torch.tensor([list(prefix)], dtype=torch.int64, device=device)
        self._cache = logits_and_cache(model, self._prefix)[1] if prefix else None

    @torch.no_grad()
    def logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the logits [contexts, p, vocabulary] at positions [p] of the given tokens.

        `ids` [contexts, length] are the tokens after the prefix; shorter contexts are padded on the
        right.
        """
        ids = ids.to(self._prefix.device)
        if self._cache is None:
            whole = torch.cat([self._prefix.expand(len(ids), -1), ids], 1)
            return logits_at(self._model, whole, positions + self._prefix.shape[1])
        contexts = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        return logits_at(self._model, ids, positions, for_contexts(self._cache, contexts))
