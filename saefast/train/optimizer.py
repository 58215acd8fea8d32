"""Weight updates: Adam, penalties, clipping and tethers, and gradients by autograd."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.ops.latent_sum import vector_sum
from saefast.ops.row_norms import row_norms
from saefast.sae import SAE
from saefast.train.auxk import AuxGradients
from saefast.train.settings import SIDES, Rules
from saefast.types import NO_DECAY, Decay

Gradients = dict[str, Tensor]
"""Gradients by name of the parameter."""

_OF_LATENTS = ("W_enc", "b_enc", "W_dec")


class Vector(NamedTuple):
    """A parameter without rows, with its moments and gradient, all of one size."""

    parameter: Tensor
    first: Tensor
    second: Tensor
    gradient: Tensor
    minus: Tensor | None
    """term subtracted from the gradient; None: zero"""

    @property
    def whole_gradient(self) -> Tensor:
        """The gradient minus the subtracted term."""
        return self.gradient if self.minus is None else self.gradient - self.minus


class Moments(NamedTuple):
    """Running means of a gradient and of its square."""

    first: Tensor
    second: Tensor


class Adam:
    """Adam's moments of every parameter, with learning rate and number of steps on the device.

    A captured step reads their current values from the device.
    """

    def __init__(self, sae: SAE, lr: float, rules: Rules) -> None:
        self._sae, self._rules = sae, rules
        self.lr = torch.tensor(lr, dtype=torch.float64, device=sae.W_enc.device)
        self.steps = torch.zeros_like(self.lr)
        self.moments = {
            name: Moments(torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in sae.named_parameters()
        }

    @property
    def state(self) -> dict[str, Tensor]:
        """The moments and the number of steps; the tensors themselves."""
        state = {"steps": self.steps}
        for name, (first, second) in self.moments.items():
            state[f"{name}.first"], state[f"{name}.second"] = first, second
        return state

    def next_rates(self) -> Tensor:
        """Count the next step and return its rates [2], see `reference.adam_rates`."""
        if self._on_gpu:
            logarithms = (math.log(beta) if beta else -math.inf for beta in self._rules.betas)
            rates: Tensor = gpu.launch(
                "update.step_scalars.next_rates", self.lr, self.steps, *logarithms
            )
            return rates
        self.steps += 1
        return reference.adam_rates(self.lr, self.steps, *self._rules.betas)

    def vectors(self, gradients: Mapping[str, Tensor], b_dec_minus: Tensor | None) -> list[Vector]:
        """Pair parameters with their gradients; `b_dec_minus` is subtracted from b_dec's gradient.

        b_dec comes first.

        Returns:
            Parameters with gradient and moments.
        """
        return [
            Vector(
                getattr(self._sae, name).detach(),
                *self.moments[name],
                gradient,
                b_dec_minus if name == "b_dec" else None,
            )
            for name, gradient in gradients.items()
        ]

    def clip_factor(self, clip: float, vectors: Sequence[Vector], row_squares: Tensor) -> Tensor:
        """Compute the factor [] float64 that limits the norm of the gradient to `clip`.

        `row_squares` [m] are the squared norms of the gradients of latents; `vectors` are one or
        two vectors with the remaining gradients.

        Returns:
            [] float64, factor from 0 to 1.
        """
        if self._on_gpu:
            factor: Tensor = gpu.launch(
                "update.step_scalars.clip_factor", clip, row_squares, *vectors
            )
            return factor
        return clip_factor(clip, [vector.whole_gradient for vector in vectors], row_squares)

    def finish(
        self,
        vectors: Sequence[Vector],
        factor: Tensor | None,
        rates: Tensor,
        idle: Tensor,
        fired: Tensor,
        tokens: int,
    ) -> None:
        """Update one or two vectors and the tokens since each latent fired, in place.

        Args:
            vectors: vectors to update.
            factor: [] float64 factor of their gradients; None: one.
            rates: [2] float64, from `next_rates`.
            idle: [m] int64, number of tokens since each latent fired; updated.
            fired: [m] number of the step's tokens on which each latent fired.
            tokens: number of tokens of the step.
        """
        beta1, beta2 = self._rules.betas
        if self._on_gpu:
            first, *others = vectors
            gpu.launch(
                "update.step_scalars.finish_step",
                first,
                others[0] if others else None,
                factor,
                rates,
                (beta1, beta2),
                self._rules.eps,
                idle,
                fired,
                tokens,
            )
            torch.autograd.graph.increment_version([vector.parameter for vector in vectors])
            return
        for vector in vectors:
            gradient = vector.whole_gradient
            reference.adam(
                *vector[:3],
                gradient if factor is None else gradient * factor,
                rates,
                beta1=beta1,
                beta2=beta2,
                eps=self._rules.eps,
            )
        reference.count_idle(idle, fired, tokens)

    @property
    def _on_gpu(self) -> bool:
        """Whether the GPU kernels support the SAE."""
        weight = self._sae.W_enc
        return gpu.has(weight) and gpu.serves(weight)

    def update(self, name: str, gradient: Tensor, rates: Tensor) -> None:
        """Update one parameter."""
        first, second = self.moments[name]
        beta1, beta2 = self._rules.betas
        reference.adam(
            getattr(self._sae, name),
            first,
            second,
            gradient,
            rates,
            beta1=beta1,
            beta2=beta2,
            eps=self._rules.eps,
        )


def by_autograd(loss: Tensor, sae: SAE) -> Gradients:
    """Return the gradients of all parameters; zero if the loss does not depend on one."""
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient.clone()
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def add_auxk(gradients: Gradients, extra: AuxGradients, sae: SAE) -> None:
    """Add the gradients of the auxiliary loss, in place, without a wait for the device.

    Unused entries of the list add zero, each to a different row.
    """
    real = extra.latents < sae.m
    rows = torch.where(real, extra.latents, torch.arange(len(real), device=real.device))
    w_enc, w_dec = (torch.where(real[:, None], g, 0.0) for g in (extra.w_enc, extra.w_dec))
    b_enc = torch.where(real, extra.b_enc, 0.0)
    for name, more in zip(_OF_LATENTS, (w_enc, b_enc, w_dec), strict=True):
        gradients[name].index_add_(0, rows, more)
    if sae.centred:
        gradients["b_dec"] -= b_enc @ sae.W_enc[rows]


def shaped(gradients: Gradients, sae: SAE, rules: Rules) -> Gradients:
    """Apply the rules to `gradients`, which are overwritten, and drop those of a frozen side."""
    reference.shape_gradients(
        [gradients[name] for name in _OF_LATENTS],
        [getattr(sae, name) for name in _OF_LATENTS],
        project=rules.unit_norm and rules.remove_parallel,
        decay=decay_of(rules, sae, lambda side: square_of_weights(sae, side)),
    )
    if rules.frozen is not None:
        del gradients["W_enc" if rules.frozen == "encoder" else "W_dec"]
    if rules.clip is None:
        return gradients
    factor = clip_factor(rules.clip, gradients.values())
    return {name: gradient * factor for name, gradient in gradients.items()}


def decay_of(rules: Rules, sae: SAE, square_of_side: Callable[[str], Tensor]) -> Decay:
    """Return the penalty terms of the gradients.

    `square_of_side` returns the sum of squares [] of the weights of a side.
    """
    if not rules.penalties:
        return NO_DECAY
    shrink: dict[str, float | Tensor] = dict.fromkeys(SIDES, 0.0)
    sign = dict.fromkeys(SIDES, 0.0)
    for penalty in rules.penalties:
        if penalty.norm == "mean_abs":
            width = sae.d if penalty.side == "encoder" else sae.d_out
            sign[penalty.side] += penalty.weight / (sae.m * width)
        elif penalty.norm == "fro_squared":
            shrink[penalty.side] += 2 * penalty.weight
        else:
            length = square_of_side(penalty.side).sqrt()
            shrink[penalty.side] += torch.where(length > 0, penalty.weight / length, 0.0)
    encoder, decoder = (
        sae.b_enc.new_ones(sae.m) * shrink[side] if _is_set(shrink[side]) else None
        for side in SIDES
    )
    signs = None
    if any(sign.values()):  # filled on the device, so that a captured step can compute them
        ones = sae.b_enc.new_ones((), dtype=torch.float64)
        signs = torch.stack([ones * sign[side] for side in SIDES])
    return Decay(encoder, decoder, signs)


def clip_factor(
    clip: float, gradients: Iterable[Tensor], row_squares: Tensor | None = None
) -> Tensor:
    """Compute the factor [] float64 that limits the norm of the gradient to `clip`.

    `row_squares` [m] are the squared norms of some parts of it, `gradients` the other parts.

    Returns:
        [] float64, factor from 0 to 1.
    """
    squares = [] if row_squares is None else [vector_sum(row_squares)]
    squares += [square_of(_norms_of(part)) for part in gradients]
    return (clip / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)


def tethered(directions: Tensor, anchors: Tensor, cosine: float) -> Tensor:
    """Rotate unit rows towards `anchors` [m, d] as far as needed to reach a minimum cosine."""
    along = (directions * anchors).sum(1, keepdim=True)
    across = directions - along * anchors
    length = across.norm(dim=1, keepdim=True)
    # A row opposite to its anchor has no orthogonal component to keep: it is set to the anchor.
    across = torch.where(length > 0, across / length, 0.0)
    turned = cosine * anchors + (1 - cosine**2) ** 0.5 * across
    turned = torch.where(length > 0, turned, anchors)
    return torch.where(along < cosine, turned, directions)


def _norms_of(gradient: Tensor) -> Tensor:
    """Return numbers whose squares add to the square of the gradient's norm."""
    return torch.linalg.vector_norm(gradient, dim=1) if gradient.ndim == 2 else gradient


def _is_set(multiple: float | Tensor) -> bool:
    return isinstance(multiple, Tensor) or multiple != 0


def square_of_weights(sae: SAE, side: str) -> Tensor:
    """Return the sum of squares [] float64 of W_enc or W_dec."""
    return square_of(row_norms(sae.W_enc if side == "encoder" else sae.W_dec))


def square_of(entries: Tensor) -> Tensor:
    """Return the sum of squares [] float64 of entries [n]; bits do not depend on threads."""
    return vector_sum(entries.double().square())
