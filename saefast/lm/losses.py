"""Losses of predicting the next token for each context, and standard errors of their means."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.lm.packing import TokenBatch


class Estimate(NamedTuple):
    """Number and its standard error, by the jackknife over contexts."""

    value: float
    """the number"""
    error: float
    """its standard error"""


class Losses(NamedTuple):
    """Sums over the predictions of each context, [contexts] float64: cross entropy and KL."""

    ce: Tensor
    kl: Tensor

    @staticmethod
    def joined(parts: "list[Losses]") -> "Losses":
        """Concatenate the losses of several batches."""
        ce, kl = zip(*parts, strict=True)
        return Losses(torch.cat(ce), torch.cat(kl))


def counted(batch: TokenBatch) -> Tensor:
    """Return where the prediction of the next token counts, [contexts, length - 1] bool.

    It does if the activation of the token counts, too: earlier ones were not replaced.
    """
    return batch.kept[:, :-1] & batch.real[:, 1:]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log probabilities, in float32 at least, without gradient.

    Those of the unmodified model are computed once, for many losses.
    """
    logits = logits.detach()
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def losses(logits: Tensor, truth: Tensor, batch: TokenBatch) -> Losses:
    """Return the cross entropy and KL(truth || logits) of the predictions that count.

    `truth` [contexts, length, vocabulary] are log probabilities.
    """
    ce, kl = [], []
    for ids, predicted, true in _by_context(logits, truth, batch):
        ce.append(-predicted.gather(1, ids[:, None]).sum(dtype=torch.float64))
        kl.append((true.exp() * (true - predicted)).sum(-1).sum(dtype=torch.float64))
    return Losses(torch.stack(ce).cpu(), torch.stack(kl).cpu())


def gradients(logits: Tensor, truth: Tensor, batch: TokenBatch) -> Losses:
    """Return gradients of the summed losses by the logits [contexts, length, vocabulary]."""
    counts = counted(batch).to(logits.device)
    ce, kl = torch.zeros_like(logits), torch.zeros_like(logits)
    for context, (ids, predicted, true) in enumerate(_by_context(logits, truth, batch)):
        chosen = counts[context].nonzero()[:, 0]
        slope = predicted.exp()
        kl[context, chosen] = (slope - true.exp()).to(kl.dtype)
        slope[torch.arange(len(ids)), ids] -= 1
        ce[context, chosen] = slope.to(ce.dtype)
    return Losses(ce, kl)


def _by_context(
    logits: Tensor, truth: Tensor, batch: TokenBatch
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield next tokens and the log probabilities of both, at predictions that count.

    One context at a time: log probabilities of a whole batch can exhaust the memory.
    """
    for context, chosen in enumerate(counted(batch).to(logits.device)):
        ids = batch.ids[context, 1:].to(logits.device)[chosen]
        predicted = log_probabilities(logits[context, :-1][chosen])
        yield ids, predicted, truth[context, :-1][chosen]


def left_out(values: Tensor) -> Tensor:
    """Return the sum over all contexts, then the sums without one of them, [contexts + 1, ...]."""
    total = values.sum(0, keepdim=True)
    return torch.cat([total, total - values])


def with_error(of_all_and_left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return a statistic [contexts + 1, ...] of the sums of `left_out` with its standard error."""
    value, others = of_all_and_left_out[0], of_all_and_left_out[1:]
    n = len(others)
    if n < 2:
        return value, torch.full_like(value, torch.nan)
    return value, ((others - others.mean(0)).square().sum(0) * (n - 1) / n).sqrt()


def estimate(of_all_and_left_out: Tensor) -> Estimate:
    """Return `with_error` of a single number as an estimate."""
    value, error = with_error(of_all_and_left_out)
    return Estimate(float(value), float(error))
