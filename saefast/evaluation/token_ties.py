"""Measures of how well single tokens predict the firings of features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FEATURES_AT_ONCE = 1 << 14
_SPACES = " \t\n\r\u0120\u010a\u2581"  # the last three are tokenizers' space and newline


class TokenTies(NamedTuple):
    """Relation of single tokens to each feature's firings, from a sample of them."""

    entropy: Tensor
    """[m] float64 entropy in bits of the tokens of the firings"""
    token: Tensor
    """[m] int64 token that alone best predicts whether the feature fires, -1 if there is none"""
    auroc: Tensor
    """[m] float64 AUROC of that prediction"""


def folded_tokens(strings: Sequence[str]) -> Tensor:
    """Give one number to all tokens that differ only in case and surrounding white space.

    Args:
        strings: text of each token of the vocabulary.

    Returns:
        [vocabulary] int64, for each token the number of the first token that counts as the same.
    """
    first: dict[str, int] = {}
    folded = [
        # Keep tokens that are only white space apart: a newline is not a blank.
        first.setdefault(string.strip(_SPACES).casefold() or string, number)
        for number, string in enumerate(strings)
    ]
    return torch.tensor(folded, dtype=torch.int64)


def modal_share(tokens: Tensor) -> Tensor:
    """Return the share of the most frequent of each feature's tokens.

    Args:
        tokens: [m, r] tokens, padded with -1.

    Returns:
        [m] float64; NaN for a feature without tokens.
    """
    parts = []
    for first in range(0, len(tokens), _FEATURES_AT_ONCE):
        block = tokens[first : first + _FEATURES_AT_ONCE]
        feature, _, count = _counted(block)
        most = torch.zeros(len(block), dtype=torch.int64)
        most = most.scatter_reduce(0, feature, count, "amax")
        parts.append(most.double() / (block >= 0).sum(1))
    return torch.cat(parts)


def token_ties(sample: Tensor, fired: Tensor, rows: int, token_counts: Tensor) -> TokenTies:
    """Measure how well single tokens predict whether features fire.

    The receiver operating characteristic of "the token is t" has one corner, and the area under it
    is (1 + P(t | fires) - P(t | silent)) / 2. The first probability is the share of t in the
    sample; the second follows from it and from how often t occurs. So the area is exact where the
    sample holds all firings, and an estimate otherwise.

    Args:
        sample: [m, r] tokens of firings drawn uniformly from all, padded with -1.
        fired: [m] int64 number of rows on which each feature fires.
        rows: number of rows.
        token_counts: [vocabulary] int64 number of rows with each token.

    Returns:
        Entropy, best token and its AUROC for each feature.
    """
    blocks = [slice(i, i + _FEATURES_AT_ONCE) for i in range(0, len(sample), _FEATURES_AT_ONCE)]
    parts = [
        _ties(sample[block], fired[block].double(), rows, token_counts.double()) for block in blocks
    ]
    return TokenTies(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _ties(sample: Tensor, fired: Tensor, rows: int, token_counts: Tensor) -> TokenTies:
    feature, token, count = _counted(sample)
    share = count.double() / (sample >= 0).sum(1)[feature]
    nothing = torch.zeros(len(sample), dtype=torch.float64)
    entropy = nothing.scatter_add(0, feature, -share * share.log2())
    entropy = entropy.clamp(min=0).where(fired > 0, torch.nan)
    silent = rows - fired
    among_silent = (token_counts[token] - share * fired[feature]).clamp(min=0)
    area = (1 + share - among_silent / silent[feature]) / 2
    best = (nothing - 1).scatter_reduce(0, feature, area, "amax")
    # Among tokens that reach the maximum, the smallest is taken.
    reaches = area == best[feature]
    none = torch.iinfo(torch.int64).max
    chosen = torch.full((len(sample),), none).scatter_reduce(
        0, feature[reaches], token[reaches], "amin"
    )
    known = (chosen != none) & (silent > 0)
    return TokenTies(entropy, chosen.where(known, -1), best.where(known, torch.nan))


def _counted(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the feature, token and count of every distinct pair in `tokens` [m, r], without -1."""
    feature = torch.arange(len(tokens))[:, None].expand_as(tokens)
    there = tokens >= 0
    pair = ((feature[there] << 32) | tokens[there].long()).sort().values
    first = (pair.diff(prepend=pair.new_tensor([-1])) != 0).nonzero()[:, 0]
    count = first.diff(append=first.new_tensor([len(pair)]))
    return pair[first] >> 32, pair[first] & 0xFFFFFFFF, count
