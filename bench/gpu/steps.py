"""Contests of training steps with the defaults of `TrainConfig`, and of the update in them."""

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.cases import Weights
from bench.gpu.contest import Contest, lowered, model
from bench.gpu.times import Contestant, Run
from saefast import SAE, FusedStep, Rules, TrainConfig
from saefast.ops.latent_pass import latent_pass
from saefast.train.objectives import objective_of
from saefast.train.step_result import StepResult

LR = 0.0
"""Adam does the same work at any rate, and at zero losses of all steps are comparable."""
VARIANTS = ("topk", "batchtopk", "matryoshka", "jumprelu")
_DEAD_SHARE = 0.1


def default_step(
    contest: Contest, variant: str = "topk", *, bare: bool = False, precision: str = "exact"
) -> FusedStep:
    """Return the default step of `train_saes`; bare: without clipping and AuxK."""
    shape = contest.shape
    config = TrainConfig(latents=shape.m, k=shape.k, variant=variant, precision=precision)
    # Half of the latents of an untrained jumprelu are active, which uses another path.
    weights = (
        lowered(contest.weights, contest.centred, contest.shape.k)
        if variant == "jumprelu"
        else contest.weights
    )
    sae = model(shape, weights, variant=variant)
    return FusedStep(
        sae,
        lr=LR,
        rules=Rules() if bare else config.rules,
        objective=objective_of(config, sae),
        precision=precision,
        auxk=None if bare else config.auxk,
    )


def steps(contest: Contest) -> Iterator[Contestant]:
    """Yield steps of TopK, saefast's and dense ones, which return their squared error."""
    near = partial(is_near, contest, contest.code.values, contest.code.indices)

    def ours(*, graph: bool, dead: bool = False, **settings: Any) -> Run:
        step = default_step(contest, **settings)
        return repeated(step, contest.x, graph=graph, dead=dead)

    def entry(mode: str, **settings: Any) -> Contestant:
        return Contestant("step", "saefast", mode, partial(ours, **settings), near)

    for precision in ("exact", "bf16", "bf16_weights"):
        for graph in (False, True):
            mode = f"{precision}{' graph' if graph else ''}"
            yield entry(mode, precision=precision, graph=graph)
    yield entry("exact, a tenth dead", graph=False, dead=True)
    for precision in ("exact", "bf16"):
        yield entry(
            f"{precision} graph, no clip, no AuxK", precision=precision, bare=True, graph=True
        )
    for rival, compiled in (("torch", False), ("torch.compile", True)):
        build = partial(_dense_step, contest, compiled=compiled)
        yield Contestant("step", rival, "bf16 dense", build, near)


def variants(contest: Contest) -> Iterator[Contestant]:
    """Yield default steps of the other variants, eager and captured, and a dense BatchTopK."""
    for variant in VARIANTS[1:]:
        case = f"step {variant}"
        near = partial(is_near, contest, *_code_of(contest, variant))

        def ours(variant: str, graph: bool) -> Run:
            return repeated(default_step(contest, variant), contest.x, graph=graph)

        for graph in (False, True):
            mode = f"exact{' graph' if graph else ''}"
            yield Contestant(case, "saefast", mode, partial(ours, variant, graph), near)
        if variant == "batchtopk":
            build = partial(_dense_step, contest, compiled=False, of_batch=True)
            yield Contestant(case, "torch", "bf16 dense", build, near)


def repeated(step: FusedStep, x: Tensor, *, graph: bool, dead: bool = False) -> Run:
    """Return a function that takes a step; dead: with a tenth of the latents dead before each."""
    take: Any = step
    if graph:
        # The first step of a variant differs from the next in kind if codes may be dense.
        step(x), step(x)
        take = step.capture(x)
    asleep = int(_DEAD_SHARE * step.sae.m)
    limit = step.auxk.idle_limit() if step.auxk else 0

    def run() -> Tensor:
        if dead:
            step.idle[:asleep] = limit
        result: StepResult = take(x)
        return result.squares

    return run


def _code_of(contest: Contest, variant: str) -> tuple[Tensor, Tensor]:
    """Return torch's values and indices for a batch, padded with zeros."""
    shape, room = contest.shape, min(32 * contest.shape.k, contest.shape.m)
    weights: Weights = (
        lowered(contest.weights, contest.centred, contest.shape.k)
        if variant == "jumprelu"
        else contest.weights
    )
    scores = torch.addmm(weights.b_enc, contest.centred, weights.w_enc.T)
    if variant == "jumprelu":
        limit = SAE(1, 1, k=1, variant=variant).jump_threshold.detach().to(scores)
    else:
        limit = scores.flatten().topk(shape.n * shape.k).values[-1]
    values, indices = scores.topk(room, dim=1)
    return values.masked_fill(values < limit, 0.0), indices


def is_near(contest: Contest, values: Tensor, indices: Tensor, squares: Tensor) -> bool:
    """Return whether the error fits a code; rounded scores may select other latents."""
    weights = contest.weights
    out = torch.nn.functional.embedding_bag(
        indices, weights.w_dec, per_sample_weights=values, mode="sum"
    )
    truth = float((out + weights.b_dec - contest.x).double().square().sum())
    return abs(float(squares) / truth - 1) <= 2e-2


def _dense_step(contest: Contest, *, compiled: bool, of_batch: bool = False) -> Run:
    """Return a step with autocast, selection by scatter and torch's fused Adam, without extras.

    It has no clipping, AuxK or unit norm.
    """
    shape, x = contest.shape, contest.x
    sae = model(shape, contest.weights)
    optimiser = torch.optim.Adam(sae.parameters(), LR, fused=contest.device == "cuda")

    def squares_of(x: Tensor) -> Tensor:
        with torch.autocast(contest.device, torch.bfloat16):
            scores = torch.nn.functional.linear(x - sae.b_dec, sae.W_enc, sae.b_enc)
            if of_batch:
                limit = scores.detach().flatten().topk(shape.n * shape.k).values[-1]
                acts = torch.where(scores >= limit, scores, 0.0).relu()
            else:
                values, indices = scores.topk(shape.k, sorted=False)
                acts = torch.zeros_like(scores).scatter(1, indices, values.relu())
            out = acts @ sae.W_dec + sae.b_dec
        return (out.float() - x).square().sum()

    function = torch.compile(squares_of, dynamic=False) if compiled else squares_of

    def step() -> Tensor:
        optimiser.zero_grad()
        squares = function(x)
        (squares / shape.n).backward()
        optimiser.step()
        return squares.detach()

    return step


def updates(contest: Contest) -> Iterator[Contestant]:
    """Yield the pass over the latents alone, and torch's fused Adam without computing gradients.

    Clipped: the gradients are measured before, as in a default step.
    """
    shape, indices = contest.shape, contest.code.indices
    fired = torch.zeros(shape.m, dtype=torch.int64, device=contest.device)
    active = indices[contest.code.values > 0]
    fired.scatter_add_(0, active, torch.ones_like(active))

    def ours(*, bare: bool) -> Run:
        """Return a function that repeats the pass of a step with the same operands."""
        step = default_step(contest, bare=bare)
        module = importlib.import_module("saefast.train.learner")
        with mock.patch.object(module, "latent_pass", wraps=latent_pass) as spy:
            step(contest.x)
        (update,) = spy.call_args.args
        factor = None if bare else torch.ones((), dtype=torch.float64, device=contest.device)

        def again() -> Tensor:
            latents = latent_pass(update)
            if not bare:
                latents.squares()
            return latents.update(factor)[1]

        return again

    def near(seen: Tensor) -> bool:
        """Return whether latents fired as expected; a near-tie of the code may differ."""
        return int((seen - fired).abs().sum()) <= 1e-4 * len(active)

    for mode, bare in (("clipped", False), ("no clip", True)):
        yield Contestant("update", "saefast", mode, partial(ours, bare=bare), near)

    def adam() -> Run:
        sae = model(shape, contest.weights)
        for parameter in sae.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.optim.Adam(sae.parameters(), LR, fused=contest.device == "cuda").step

    yield Contestant("update", "torch", "fused Adam alone", adam, lambda _: True)
