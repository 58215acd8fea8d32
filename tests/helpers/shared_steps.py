"""Steps of one process and of several ranks on the same batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE, FusedStep, Penalty
from saefast.train.objectives import Current, JumpReLU, Objective, ReLU, usual_objective
from saefast.train.ranks import Ranks, Simulated
from saefast.train.ranks.group import ALONE
from saefast.train.step_result import StepResult

Batch = Tensor | tuple[Tensor, Tensor]
"""Rows, or rows and their targets."""

SELECTING = ("topk", "abstopk", "batchtopk", "matryoshka")
"""Variants that keep a number of latents, of a row or of a batch."""
PENALTIES = tuple(
    Penalty(side, norm, weight)
    for side in ("encoder", "decoder")
    for norm, weight in (("fro", 0.02), ("fro_squared", 0.01), ("mean_abs", 3.0))
)


def with_thresholds(variant: str, bias: float, d: int, m: int, k: int, dtype: torch.dtype) -> SAE:
    """Return an SAE of which about half of the latents are active at bias 0, else a few."""
    sae = SAE(d, m, k=k, seed=3, dtype=dtype, variant=variant)
    with torch.no_grad():
        sae.b_enc.fill_(bias)
        if variant == "jumprelu":
            sae.jump_threshold.fill_(2.0)
    return sae


def with_gradients_of_thresholds(sae: SAE) -> Objective:
    """Return an objective of relu or jumprelu by which thresholds change, if there are any."""
    return ReLU(0.3) if sae.variant == "relu" else JumpReLU(0.3, 8.0)


def take(
    step: FusedStep, data: Sequence[Batch], ks: Sequence[int]
) -> tuple[dict[str, Tensor], list[StepResult]]:
    """Take a step on each batch, with the number of active latents for it."""
    results = []
    for x, k in zip(data, ks, strict=True):
        step.now = Current(k)
        results.append(step(*x) if isinstance(x, tuple) else step(x))
    return step.state_dict(), results


def assert_ranks_equal_one_process(
    sae: SAE,
    data: Sequence[Batch],
    ks: Sequence[int],
    size: int,
    objective_of: Callable[[SAE], Objective] = usual_objective,
    **settings: Any,
) -> list[StepResult]:
    """Train copies of an SAE by one process and by `size` ranks; state and results must agree.

    Returns:
        The results of one process.
    """

    def step_of(ranks: Ranks) -> FusedStep:
        return FusedStep(copied(sae), objective=objective_of(sae), ranks=ranks, **settings)

    alone = take(step_of(ALONE), data, ks)
    Simulated(size).run(lambda ranks: assert_rank_agrees(step_of(ranks), data, ks, *alone))
    return alone[1]


def assert_rank_agrees(
    step: FusedStep,
    data: Sequence[Batch],
    ks: Sequence[int],
    expected: dict[str, Tensor],
    results: Sequence[StepResult],
) -> None:
    """Take steps on this rank of several; state and results of one process must agree."""
    share = step.share
    assert share is not None
    state, found = take(step, data, ks)
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert_same_bits(value, share.of(name, expected[name]).contiguous())
        assert_same_bits(share.whole(name, value), expected[name])
    for mine, right in zip(found, results, strict=True):
        for name in ("loss", "squares", "fired", "auxk"):
            if getattr(right, name) is not None:
                assert_same_bits(getattr(mine, name), getattr(right, name))
        assert mine.path == right.path
        if mine.code is None or right.code is None:
            assert mine.code is right.code
            continue
        for part, whole in zip(mine.code, right.code, strict=True):
            # The code of one process is as wide as a row may be, the code of ranks as is used.
            assert_same_bits(part, whole[:, : part.shape[1]].contiguous())
            assert not whole[:, part.shape[1] :].any()


def copied(sae: SAE) -> SAE:
    """Return a copy with the same settings and weights."""
    dtype, d_out = sae.W_enc.dtype, sae.d_out if sae.transcodes else None
    copy = SAE(
        sae.d, sae.m, variant=sae.variant, k=sae.k, d_out=d_out, by_norm=sae.by_norm, dtype=dtype
    )
    copy.load_state_dict(sae.state_dict())
    return copy


def rows(count: int, n: int, d: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Return batches whose rows and columns differ in size, so that every order of a sum rounds."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(2 * torch.randn(d, generator=generator, dtype=torch.float64))
    draws = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(count))
    return [(draw * scale).to(dtype) for draw in draws]
