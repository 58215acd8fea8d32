"""Masks of the latents that carry an attribute: by attribution, by training, or at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.evaluation.editing.annealing import anneal, schedule_of
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.pairs import Pair, prompts_of
from saefast.nulls.permutations import generator_of
from saefast.progress import ProgressBar
from saefast.types import SparseCode


def attribution(
    swap: Swap, pairs: Sequence[Pair], gradients: Tensor, *, penalty: float = 1.0
) -> Tensor:
    """Score latents [m] by the first-order effect of their interchange on the answers.

    The effect of latent j on a pair is (z_s - z_b) <d_j, g>, with the gradient g of
    logit(source's value) - logit(base's value) by h. The score is its mean over cause pairs, minus
    the mean of its absolute value over isolation pairs.

    Args:
        swap: interchange with the SAE.
        pairs: pairs for training.
        gradients: [pairs, d] from `Interchange.gradients`.
        penalty: weight of isolation pairs.

    Returns:
        [m] float64, scores.
    """
    base, source = prompts_of(pairs)
    joint = swap.joint(base, source)
    # The slope of <reconstruction, g> along each active latent is exact for normalising SAEs too.
    values = joint.values.detach().requires_grad_()
    decoded = swap.decode(SparseCode(values, joint.indices), base)
    (slope,) = torch.autograd.grad(decoded, values, gradients.to(decoded))
    effect = (slope * joint.values).detach().double().cpu()
    latents = swap.sae.m
    row = torch.arange(len(pairs))[:, None]
    # The effect of a latent that is active in base and source is the sum of both.
    keys, place = torch.unique(row * latents + joint.indices.cpu(), return_inverse=True)
    summed = torch.zeros(len(keys), dtype=torch.float64)
    summed.index_add_(0, place.flatten(), effect.flatten())
    cause = torch.tensor([pair.cause for pair in pairs])
    of_cause = cause[keys // latents]
    weighted = torch.where(
        of_cause,
        summed / max(int(cause.sum()), 1),
        -penalty * summed.abs() / max(int((~cause).sum()), 1),
    )
    scores = torch.zeros(latents, dtype=torch.float64)
    return scores.index_add_(0, keys % latents, weighted)


def best(scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
    """Return a mask [m] of the n latents with the largest scores, of positive ones only."""
    known = scores if allowed is None else torch.where(allowed.cpu(), scores, 0.0)
    chosen = known.argsort(descending=True, stable=True)[:n]
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[chosen[known[chosen] > 0]] = True
    return mask


def active(swap: Swap, pairs: Sequence[Pair]) -> Tensor:
    """Return the mask [m] of latents that are active in a prompt of the pairs."""
    code = swap.of(torch.cat(prompts_of(pairs)))
    mask = torch.zeros(swap.sae.m, dtype=torch.bool)
    mask[code.indices[code.values != 0].cpu()] = True
    return mask


def random_mask(among: Tensor, n: int, seed: int, draw: int) -> Tensor:
    """Return a mask [m] of n random latents of another mask."""
    places = among.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator_of(seed, "random mask", draw))
    mask = torch.zeros_like(among)
    mask[places[order[:n]]] = True
    return mask


def trained_mask(
    runs: Interchange,
    swap: Swap,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    seed: int,
    bar: ProgressBar,
    allowed: Tensor | None = None,
) -> Tensor:
    """Train a mask as SAEBench does for RAVEL, and return the latents [m] that it selects.

    Latent j is interchanged by the share sigmoid(w_j / T), with a temperature T that falls; latents
    with w_j > 0 are selected. The reconstruction replaces h, without the error.

    Args:
        runs: model with its prompts.
        swap: interchange with the SAE.
        pairs: pairs for training.
        batch_size: number of pairs in a step.
        seed: seed of the order of pairs.
        bar: progress bar that counts pairs.
        allowed: [m] latents that may be interchanged; None: all.

    Returns:
        [m] bool, selected latents.
    """
    device = swap.code.values.device
    logit = torch.zeros(swap.sae.m, device=device, requires_grad=True)
    may = torch.ones(swap.sae.m, device=device) if allowed is None else allowed.to(device).float()

    def replaced(base: Tensor, source: Tensor, temperature: float) -> Tensor:
        weights = torch.sigmoid(logit / temperature) * may
        return swap.decode(swap.of(base), base) + swap.added(base, source, weights)

    schedule = schedule_of(pairs, batch_size, generator_of(seed, "trained mask"))
    anneal(runs, schedule, [logit], replaced, bar=bar)
    return (logit > 0).cpu() & (may > 0).cpu()
