"""How closely the firings of features are tied to single tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FEATURES_AT_ONCE = 1 << 14
_SPACES = " \t\n\r\u0120\u010a\u2581"  # the last three: how tokenizers write space and newline


class TokenTies(NamedTuple):
    """Of a sample of each feature's firings."""

    entropy: Tensor
    """[m] float64 in bits, of their tokens"""
    token: Tensor
    """[m] int64 which token alone tells best whether the feature fires, -1 if there is none"""
    auroc: Tensor
    """[m] float64 how well it tells"""


def folded_tokens(strings: Sequence[str]) -> Tensor:
    """[vocabulary] one number for all tokens that differ in case and surrounding space only.

    The number is that of the first of them.
    """
    first: dict[str, int] = {}
    folded = [
        # Tokens of nothing but space stay apart: a newline is not a blank.
        first.setdefault(string.strip(_SPACES).casefold() or string, number)
        for number, string in enumerate(strings)
    ]
    return torch.tensor(folded, dtype=torch.int64)


def modal_share(tokens: Tensor) -> Tensor:
    """[m] float64: the share of the most frequent among `tokens` [m, r], where -1 is none.

    NaN for a feature without tokens.
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
    """How well single tokens tell whether features fire.

    The receiver operating characteristic of "the token is t" has one corner, and the area under it
    is (1 + P(t | fires) - P(t | silent)) / 2. The first probability is the share of t in the
    sample; the second follows from it and from how often t occurs. So the area is exact where the
    sample holds all firings, and an estimate otherwise.

    Args:
        sample: [m, r] tokens of firings drawn evenly from all, -1 where there are fewer.
        fired: [m] int64 on how many rows each feature fires.
        rows: how many rows there are.
        token_counts: [vocabulary] int64 how many of them have each token.
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
    # The least of the tokens that reach it.
    reaches = area == best[feature]
    none = torch.iinfo(torch.int64).max
    chosen = torch.full((len(sample),), none).scatter_reduce(
        0, feature[reaches], token[reaches], "amin"
    )
    known = (chosen != none) & (silent > 0)
    return TokenTies(entropy, chosen.where(known, -1), best.where(known, torch.nan))


def _counted(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The feature, token and count of every pair in `tokens` [m, r]; -1 is none."""
    feature = torch.arange(len(tokens))[:, None].expand_as(tokens)
    there = tokens >= 0
    pair = ((feature[there] << 32) | tokens[there].long()).sort().values
    first = (pair.diff(prepend=pair.new_tensor([-1])) != 0).nonzero()[:, 0]
    count = first.diff(append=first.new_tensor([len(pair)]))
    return pair[first] >> 32, pair[first] & 0xFFFFFFFF, count
