"""Activations at single tokens that all follow the same text, which is read once."""

import copy
from typing import Any

import torch
from torch import Tensor

from saefast.lm.model import LanguageModel
from saefast.lm.requirements import needed
from saefast.lm.sites import Site, capture
from saefast.progress import ProgressBar

_TRIED = 4
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 5e-2
"""Allowed relative distance of a row between two computations in half precision."""


def capture_after(
    model: LanguageModel,
    site: Site,
    prefix: Tensor,
    tokens: Tensor,
    *,
    batch_size: int = 512,
    progress: bool = True,
) -> Tensor:
    """Capture the activation at each of several tokens, each right after the same prefix.

    In a causal model no token depends on later ones, and keys and values of the prefix are the same
    for all tokens: they are computed once, up to the site. The tokens of a batch lie side by side
    in one context, in which each sees the prefix and itself. If that does not give the activations
    of separate contexts for the first few tokens, all contexts are run whole.

    Args:
        model: model with causal attention.
        site: site from `find_site`.
        prefix: [length] int64 tokens, at least one.
        tokens: [n] int64.
        batch_size: tokens in a forward pass.
        progress: show a progress bar on stderr.

    Returns:
        [n, d] float32, or float64 if the model computes in it, on the model's device.
    """
    prefix, tokens = prefix.to(model.device), tokens.to(model.device)
    whole = _Whole(model, site, prefix)
    after: _SideBySide | _Whole = whole
    shared = _SideBySide.of(model, site, prefix)
    if shared is not None and shared.agrees(whole, tokens[:_TRIED]):
        after = shared
    else:
        batch_size = max(1, batch_size // len(prefix))
    found = []
    with ProgressBar("words", total=len(tokens), unit="tokens", progress=progress) as bar:
        for some in torch.split(tokens, batch_size):
            rows = after.rows(some)
            found.append(rows if rows.dtype == torch.float64 else rows.float())
            bar.update(len(some))
    return torch.cat(found)


class _Whole:
    """Each token with the prefix in its own context."""

    def __init__(self, model: LanguageModel, site: Site, prefix: Tensor) -> None:
        self._model, self._site, self._prefix = model, site, prefix

    def rows(self, tokens: Tensor) -> Tensor:
        ids = torch.cat([self._prefix.expand(len(tokens), -1), tokens[:, None]], 1)
        (seen,) = capture(self._model.model, [self._site], ids)
        return seen[:, -1]


class _SideBySide:
    """All tokens in one context after the prefix, hidden from each other."""

    def __init__(self, model: LanguageModel, site: Site, cache: Any, length: int) -> None:
        self._model, self._site, self._cache, self._length = model, site, cache, length

    @classmethod
    def of(cls, model: LanguageModel, site: Site, prefix: Tensor) -> "_SideBySide | None":
        """Read the prefix; return None if the model keeps no keys and values."""
        cache = needed("transformers").DynamicCache()
        try:
            capture(model.model, [site], prefix[None], past_key_values=cache, use_cache=True)
        except (TypeError, AttributeError, ValueError):
            return None
        return cls(model, site, cache, len(prefix)) if cache.get_seq_length() else None

    def agrees(self, other: _Whole, tokens: Tensor) -> bool:
        """Return whether the rows of a few tokens agree with those of another way."""
        expected = other.rows(tokens)
        try:
            rows = self.rows(tokens)
        except (TypeError, AttributeError, ValueError, RuntimeError):
            return False
        distance = torch.linalg.vector_norm((rows - expected).float(), dim=1)
        length = torch.linalg.vector_norm(expected.float(), dim=1)
        allowed = _TOLERANCE.get(expected.dtype, _COARSE)
        return bool((distance <= allowed * length).all())

    def rows(self, tokens: Tensor) -> Tensor:
        n, dtype = len(tokens), next(self._model.model.parameters()).dtype
        hidden = torch.full((n, n), torch.finfo(dtype).min, dtype=dtype, device=tokens.device)
        hidden.fill_diagonal_(0)
        seen_by = torch.cat([hidden.new_zeros(n, self._length), hidden], 1)
        (seen,) = capture(
            self._model.model,
            [self._site],
            tokens[None],
            attention_mask=seen_by[None, None],
            position_ids=torch.full_like(tokens, self._length)[None],
            past_key_values=copy.deepcopy(self._cache),
            use_cache=True,
        )
        return seen[0]
