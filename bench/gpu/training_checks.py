"""Checks of training on the GPU: gradients, updates and whole steps, against float64.

The float64 reference is computed for the active latents that the kernels chose, so a near-tie,
which two correct sums decide differently, makes no difference here. Choices are checked separately.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights
from bench.gpu.contest import lowered, model
from bench.gpu.encode_checks import apart_from
from bench.gpu.finding import Finding, near
from saefast import SAE, AuxK, FusedStep, SparseCode, TrainConfig, reference
from saefast.ops.decode_residual import decode_residual
from saefast.train.objectives import Current, TopK, objective_of
from saefast.train.objectives.forward import Encoded
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.step_result import StepResult

VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu")


def gradients(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check an encode, a decode and all their gradients."""
    scale = 0.5 + weights.w_enc.norm(dim=1)
    leaves = [x, weights.w_enc, weights.b_enc, scale, weights.w_dec, weights.b_dec]

    def results(
        encode: Callable[..., SparseCode], decode: Callable[..., Tensor], wide: bool
    ) -> Any:
        wanted = [(t.double() if wide else t.clone()).requires_grad_() for t in leaves]
        rows, w_enc, b_enc, factors, w_dec, b_dec = wanted
        code = encode(rows, w_enc, b_enc, k=shape.k, scale=factors)
        out = decode(code.values.relu(), code.indices, w_dec, b_dec)
        found = torch.autograd.grad((out - rows.detach()).square().sum(), wanted)
        return code.indices, [out.detach(), *found]

    (chosen, ours), (_, again) = (
        results(saefast.topk_encode, saefast.sparse_decode, False) for _ in range(2)
    )

    def given(x: Tensor, weight: Tensor, bias: Tensor, *, k: int, scale: Tensor) -> SparseCode:
        scores = reference.scores(x, weight, bias, scale)
        return SparseCode(scores.gather(1, chosen), chosen)

    _, truth = results(given, reference.sparse_decode, True)
    names = ("decode", "x", "w_enc", "b_enc", "scale", "w_dec", "b_dec")
    yield near("decode and gradients", shape, names, ours, again, truth)


def residuals(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check the decode of a step, with its loss and the gradients of values."""

    def results(by: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> tuple[Tensor, ...]:
        values, weight, bias, target = (
            t.to(dtype) for t in (code.values, weights.w_dec, weights.b_dec, x)
        )
        return by(values, code.indices, weight, bias, target, 0.5)

    code = reference.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k)
    ours, again = (results(decode_residual, torch.float32) for _ in range(2))
    truth = results(reference.decode_residual, torch.float64)
    names = ("residual", "value_grads", "square")
    terms = {"value_grads": _terms_of_value_grads(code, x, weights)}
    yield near("decode_residual", shape, names, ours, again, truth, terms)


def _terms_of_value_grads(code: SparseCode, x: Tensor, weights: Weights) -> Tensor:
    """Return [n, k] sums of |terms| of half the products of errors and active decoder rows.

    An encoder equal to the decoder makes these products small beside their terms: they cancel.
    """
    w_dec, b_dec = weights.w_dec.double().abs(), weights.b_dec.double().abs()
    values = code.values.double().abs()
    errors = reference.sparse_decode(values, code.indices, w_dec, b_dec) + x.double().abs()
    return 0.5 * reference.gather_dots(errors, w_dec, code.indices)


@dataclass
class _Given(TopK):
    """TopK objective with given active latents."""

    chosen: list[Tensor] = field(default_factory=list)
    """[n, k] for each coming step"""
    rounded: bool = False
    """whether scores are computed from operands rounded to bfloat16"""

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        sae, indices = encoder.sae, self.chosen.pop(0)
        weight: Tensor = sae.W_enc
        if self.rounded:
            inputs, weight = (t.bfloat16().to(t.dtype) for t in (inputs, weight))
        values = reference.scores(inputs, weight, sae.b_enc, None).gather(1, indices)
        return Encoded(SparseCode(values.relu(), indices))


def trainings(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check steps in both precisions, without and with AuxK."""
    for precision, auxk in product(("exact", "bf16"), (False, True)):
        yield training(shape, x, weights, precision, auxk=auxk)


def training(shape: Shape, x: Tensor, weights: Weights, precision: str, *, auxk: bool) -> Finding:
    """Check three steps against float64, and that two runs have the same bits.

    Adam's steps are as large for the smallest gradient as for any: where a gradient is nearly zero,
    two correct sums may differ in sign. Weights that differ by that much are counted, not bounded.
    All dead latents take part in AuxK, so that it selects nothing.

    Returns:
        The finding, with the errors of weights and losses.
    """
    lr = 1e-3
    settings = AuxK(shape.m, dead_after=2 * shape.n, capacity=shape.m) if auxk else None
    batches = [x.roll(i, 0) * (1 + i / 8) for i in range(3)]
    rounded = precision == "bf16"
    choices: list[Tensor] = []
    apart = [0.0]

    def watched(step: FusedStep, x: Tensor) -> Any:
        """Take a step, and compare its code with the weights before it."""
        sae = step.sae
        inputs, w_enc, b_enc = (
            sae.inputs(x).detach(),
            sae.W_enc.detach().clone(),
            sae.b_enc.detach().clone(),
        )
        if rounded:
            inputs, w_enc = inputs.bfloat16().float(), w_enc.bfloat16().float()
        result = step(x)
        assert result.code is not None
        choices.append(result.code.indices.clone())
        bounds = (torch.ones_like(b_enc), 2.5 if rounded else 1.0)
        apart.append(apart_from(result.code, inputs, w_enc, b_enc, *bounds, rectified=True))
        return result

    def trained(
        dtype: torch.dtype, objective: TopK, take: Callable[[FusedStep, Tensor], Any]
    ) -> Trained:
        step = FusedStep(
            model(shape, weights, dtype),
            lr=lr,
            precision=precision,
            auxk=settings,
            objective=objective,
        )
        return _outcome([take(step, x.to(dtype)) for x in batches], step.sae)

    ours = trained(torch.float32, TopK(), watched)
    again = trained(torch.float32, TopK(), FusedStep.__call__)
    truth = trained(torch.float64, _Given(chosen=choices, rounded=rounded), FusedStep.__call__)
    figures = _compared(ours, again, truth, lr) | {"apart": max(apart)}
    # In float64 AuxK multiplies unrounded operands; its products in bfloat16 are off by 2^-9.
    close = Close(5e-3, 5e-3, 1e-2) if auxk and rounded else Close()
    holds = _holds(figures, close) and max(apart) <= 1.0
    return Finding(f"three steps {precision}{' auxk' if auxk else ''}", shape, holds, figures)


class Close(NamedTuple):
    """Tolerances of a training against float64."""

    loss: float = 1e-5
    """relative difference of the losses of a step, without AuxK's"""
    auxk: float = 1e-5
    """relative difference of AuxK's losses"""
    weights: float = 1e-3
    """share of the weights that differ by more than a tenth of a step of Adam"""


class Trained(NamedTuple):
    """Results of several steps."""

    losses: list[float]
    auxk: list[float]
    """losses of AuxK in the same steps, if it takes part"""
    weights: list[Tensor]


def _outcome(results: Sequence[StepResult], sae: SAE) -> Trained:
    return Trained(
        [float(result.loss) for result in results],
        [float(result.auxk) for result in results if result.auxk is not None],
        [parameter.detach() for parameter in sae.parameters()],
    )


def _compared(ours: Trained, again: Trained, truth: Trained, lr: float) -> dict[str, float]:
    moved = [(a - e).abs() > 0.1 * lr for a, e in zip(ours.weights, truth.weights, strict=True)]
    same = ours[:2] == again[:2] and all(map(torch.equal, ours.weights, again.weights))
    return {
        "loss_apart": _apart(ours.losses, truth.losses),
        "auxk_apart": _apart(ours.auxk, truth.auxk),
        "weights_apart": float(torch.cat([m.flatten() for m in moved]).double().mean()),
        "same_bits": float(same),
    }


def _apart(ours: list[float], truth: list[float]) -> float:
    """Return the largest relative difference; infinite if any is not a number."""
    pairs = zip(ours, truth, strict=True)
    apart = [abs(a - e) / max(abs(e), 1e-3) for a, e in pairs]
    return max(apart, default=0.0) if all(map(math.isfinite, apart)) else math.inf


def _holds(figures: dict[str, float], close: Close) -> bool:
    names = ("loss_apart", "auxk_apart", "weights_apart")
    near_enough = all(figures[name] <= most for name, most in zip(names, close, strict=True))
    return near_enough and bool(figures["same_bits"])


def defaults(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check a default step of every variant, clipped, with dead latents.

    Only at sizes where no choice of these numbers is a near-tie, which
    tests/bench/test_gpu_training_checks.py checks.

    Yields:
        A finding for each variant.
    """
    rows = DEFAULTS_AT.get(shape)
    if rows is not None:
        for variant in VARIANTS:
            yield default(shape._replace(n=rows), x[:rows], weights, variant)


DEFAULTS_AT = {Shape(40, 127, 5, 33): 33, Shape(100, 1025, 32, 70): 4}
"""Shapes, and the number of their rows that are used."""
_DEAD = 8
"""Period of dead latents: all of them take part in AuxK, so that it selects nothing."""


def default(shape: Shape, x: Tensor, weights: Weights, variant: str) -> Finding:
    """Check one step against float64, and that two runs have the same bits."""
    lr = 1e-3
    if variant in ("relu", "jumprelu"):
        weights = lowered(weights, x - weights.b_dec, shape.k)

    def trained(dtype: torch.dtype) -> Trained:
        sae = model(shape, weights, dtype, variant)
        config = TrainConfig(latents=shape.m, k=shape.k, variant=variant)
        step = FusedStep(
            sae, lr=lr, rules=config.rules, objective=objective_of(config, sae), auxk=config.auxk
        )
        assert config.auxk is not None
        step.idle[::_DEAD] = config.auxk.idle_limit()
        step._dense.fill_(False)  # codes are sparse, which a first step cannot know
        result = step(x.to(dtype))
        assert result.path == "fused"
        return _outcome([result], sae)

    ours, again, truth = (trained(dtype) for dtype in (torch.float32,) * 2 + (torch.float64,))
    figures = _compared(ours, again, truth, lr)
    return Finding(f"default step of {variant}", shape, _holds(figures, Close()), figures)
