"""Training of interchanges by gradient, with masks that harden as a temperature falls."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saefast.evaluation.editing.interchange import Interchange
from saefast.evaluation.editing.pairs import Pair, prompts_of
from saefast.progress import ProgressBar

COLDEST = 1e-4
"""Temperature at the last step; the first is 1"""
STEP_SIZE = 1e-3
"""Adam's step size"""
EPOCHS = 2

Replaced = Callable[[Tensor, Tensor, float], Tensor]
"""Function of the indices of base and source prompts, [n] each, and the temperature.

It returns the activations [n, d] that replace those of the base.
"""


def anneal(
    runs: Interchange,
    schedule: Sequence[Sequence[Pair]],
    parameters: Sequence[Tensor],
    replaced: Replaced,
    *,
    bar: ProgressBar,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train parameters of an interchange in place, as SAEBench does for RAVEL.

    The loss is the cross entropy of the wanted value's first token. The temperature falls from 1 to
    1e-4 in equal ratios over the steps.

    Args:
        runs: model with its prompts.
        schedule: pairs of each step, from `schedule_of`.
        parameters: leaves that require gradients.
        replaced: function of the parameters.
        bar: progress bar that counts pairs.
        after_step: function that is called after each step of Adam.
    """
    optimizer = torch.optim.Adam(parameters, lr=STEP_SIZE)
    temperatures = torch.logspace(0, math.log10(COLDEST), len(schedule)).tolist()
    for pairs, temperature in zip(schedule, temperatures, strict=True):
        gradients = torch.autograd.grad(loss_of(runs, pairs, replaced, temperature), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        after_step()
        bar.update(len(pairs))


def schedule_of(
    pairs: Sequence[Pair], batch_size: int, generator: torch.Generator, epochs: int = EPOCHS
) -> list[list[Pair]]:
    """Return the pairs of each step: all of them in a new order for every epoch.

    Args:
        pairs: pairs for training.
        batch_size: number of pairs in a step.
        generator: generator of the orders.
        epochs: number of passes over the pairs.
    """
    schedule = []
    for _ in range(epochs):
        order = torch.randperm(len(pairs), generator=generator).tolist()
        schedule += [
            [pairs[number] for number in order[first : first + batch_size]]
            for first in range(0, len(pairs), batch_size)
        ]
    return schedule


def loss_of(
    runs: Interchange, pairs: Sequence[Pair], replaced: Replaced, temperature: float
) -> Tensor:
    """Return the mean cross entropy of the wanted values' first tokens."""
    base, source = prompts_of(pairs)
    context = runs.begin(base.tolist())
    h = replaced(base, source, temperature)
    logits = runs.logits(context, torch.arange(len(pairs)), h.to(context.activations))
    wanted = [runs.questions[pair.source if pair.cause else pair.base].token for pair in pairs]
    target = torch.tensor(wanted, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), target)
