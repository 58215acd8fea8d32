"""Choice of latents to steer with, and of others that fire as often."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_NEAR = 0.05  # share of the latents, in order of firing rate, that count as equally frequent


def sampled(
    fired: Tensor, label: Tensor, wanted: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose alive latents, equally many of each set, at equal distances in firing rate.

    Args:
        fired: [m] number of firings of each latent.
        label: [m] int64 index of its set.
        wanted: number of latents.
        generator: generator of the starting places.

    Returns:
        Indices of the latents, their strata, and the numbers of latents that each represents, [f]
        each.
    """
    labels = torch.unique(label[fired > 0]).tolist()
    members = [((fired > 0) & (label == one)).nonzero()[:, 0] for one in labels]
    shares = _shares([len(each) for each in members], wanted)
    chosen, strata, weights = [], [], []
    for stratum, (each, share) in enumerate(zip(members, shares, strict=True)):
        if not share:
            continue
        ordered = each[fired[each].argsort(stable=True)]
        steps = (np.arange(share) + generator.random()) * len(each) / share
        chosen.append(ordered[torch.from_numpy(steps.astype(np.int64))])
        strata.append(torch.full((share,), stratum))
        weights.append(torch.full((share,), len(each) / share, dtype=torch.float64))
    numbers = torch.cat(chosen)
    order = numbers.argsort()
    return numbers[order], torch.cat(strata)[order], torch.cat(weights)[order]


def _shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """Divide a sample equally over sets; the share that small sets lack goes to larger ones."""
    shares = [0] * len(sizes)
    left = min(wanted, sum(sizes))
    for done, place in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[place] = min(sizes[place], left // (len(sizes) - done))
        left -= shares[place]
    return shares


def as_frequent(fired: Tensor, numbers: Tensor, generator: np.random.Generator) -> Tensor:
    """Return for each of given latents another one that fires about as often, [f] int64.

    Args:
        fired: [m] number of firings of each latent.
        numbers: [f] indices of the latents.
        generator: generator of the choice.
    """
    alive = (fired > 0).nonzero()[:, 0]
    ordered = alive[fired[alive].argsort(stable=True)]
    rank = torch.empty(len(fired), dtype=torch.int64)
    rank[ordered] = torch.arange(len(ordered))
    reach = max(1, int(_NEAR * len(ordered)))
    away = torch.from_numpy(generator.integers(1, reach + 1, len(numbers)))
    away *= torch.from_numpy(generator.choice([-1, 1], len(numbers)))
    place = rank[numbers] + away
    outside = (place < 0) | (place >= len(ordered))
    return ordered[torch.where(outside, rank[numbers] - away, place)]
