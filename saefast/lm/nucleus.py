"""Draw tokens from the most probable ones of a distribution."""

import torch
from torch import Tensor

from saefast.lm.model import LanguageModel

_CANDIDATES = 64  # most probable tokens that are looked at first


def drawn_tokens(logits: Tensor, noise: Tensor, top_p: float) -> Tensor:
    """Draw one token [b] of each distribution from its most probable tokens.

    Args:
        logits: [b, vocabulary].
        noise: [b] float64 in [0, 1): place among those tokens, with the most probable one at 0.
        top_p: the probability that they have together.

    Returns:
        [b] int64, tokens.
    """
    total = logits.logsumexp(1, keepdim=True)
    drawn = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    candidates = _CANDIDATES
    while len(left):
        candidates = min(candidates, logits.shape[1])
        largest, tokens = logits[left].topk(candidates, dim=1)
        until = (largest - total[left]).double().exp().cumsum(1)
        last = (until < top_p).sum(1).clamp(max=candidates - 1)
        enough = (until[:, -1] >= top_p) | (candidates == logits.shape[1])
        until, last, tokens = until[enough], last[enough, None], tokens[enough]
        place = (until <= noise[left[enough], None] * until.gather(1, last)).sum(1, keepdim=True)
        drawn[left[enough]] = tokens.gather(1, place.minimum(last))[:, 0]
        left, candidates = left[~enough], candidates * 8
    return drawn


def ends_of_text(model: LanguageModel) -> Tensor:
    """Return the tokens that end a text, as the tokenizer and the model's settings name them."""
    named = getattr(getattr(model.model, "generation_config", None), "eos_token_id", None)
    ends = {*(named if isinstance(named, list) else [named]), model.tokenizer.eos_token_id}
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    known = sorted(end for end in ends if end is not None and end < vocabulary)
    return torch.tensor(known, dtype=torch.int64, device=model.device)
