"""How well logits predict the next token, context by context, and how sure the means are."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.lm.packing import TokenBatch


class Estimate(NamedTuple):
    """A number and its standard error, from leaving out one context at a time."""

    value: float
    error: float


class Losses(NamedTuple):
    """Sums over the predictions of each context, [contexts] in float64."""

    ce: Tensor
    kl: Tensor

    @staticmethod
    def joined(parts: "list[Losses]") -> "Losses":
        """Those of several batches."""
        ce, kl = zip(*parts, strict=True)
        return Losses(torch.cat(ce), torch.cat(kl))


def counted(batch: TokenBatch) -> Tensor:
    """[contexts, length - 1]: whose prediction of the next token counts.

    Only that of a token whose activation does, too: before it nothing was replaced.
    """
    return batch.kept[:, :-1] & batch.real[:, 1:]


def log_probabilities(logits: Tensor) -> Tensor:
    """In float32 at least: of the undisturbed model they are taken once, for many losses."""
    logits = logits.detach()
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def losses(logits: Tensor, truth: Tensor, batch: TokenBatch) -> Losses:
    """Cross entropy, and the divergence KL(truth || logits), of those predictions that count.

    `truth` [contexts, length, vocabulary] are log probabilities.
    """
    ce, kl = [], []
    for ids, predicted, true in _by_context(logits, truth, batch):
        ce.append(-predicted.gather(1, ids[:, None]).sum(dtype=torch.float64))
        kl.append((true.exp() * (true - predicted)).sum(-1).sum(dtype=torch.float64))
    return Losses(torch.stack(ce).cpu(), torch.stack(kl).cpu())


def gradients(logits: Tensor, truth: Tensor, batch: TokenBatch) -> Losses:
    """The derivatives of the sums of both losses by the logits [contexts, length, vocabulary]."""
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
    """The tokens that came, and the log probabilities of both, where predictions count.

    One context after the other: log probabilities of a whole batch can fill the memory.
    """
    for context, chosen in enumerate(counted(batch).to(logits.device)):
        ids = batch.ids[context, 1:].to(logits.device)[chosen]
        predicted = log_probabilities(logits[context, :-1][chosen])
        yield ids, predicted, truth[context, :-1][chosen]


def left_out(values: Tensor) -> Tensor:
    """[contexts + 1, ...]: the sum over all contexts, then those with one of them left out."""
    total = values.sum(0, keepdim=True)
    return torch.cat([total, total - values])


def with_error(of_all_and_left_out: Tensor) -> tuple[Tensor, Tensor]:
    """A statistic [contexts + 1, ...] of the sums that `left_out` gives, and its standard error."""
    value, others = of_all_and_left_out[0], of_all_and_left_out[1:]
    n = len(others)
    if n < 2:
        return value, torch.full_like(value, torch.nan)
    return value, ((others - others.mean(0)).square().sum(0) * (n - 1) / n).sqrt()


def estimate(of_all_and_left_out: Tensor) -> Estimate:
    """The same of one number."""
    value, error = with_error(of_all_and_left_out)
    return Estimate(float(value), float(error))
