"""Adam's memory of an SAE, and its step where gradients are stored."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.sae import SAE
from saefast.train.rules import Rules, clip_factor


class Vector(NamedTuple):
    """A parameter that has no rows, its moments and its gradient; each of one size."""

    parameter: Tensor
    first: Tensor
    second: Tensor
    gradient: Tensor
    minus: Tensor | None
    """what is subtracted from the gradient"""

    @property
    def whole_gradient(self) -> Tensor:
        """The gradient less what is subtracted from it."""
        return self.gradient if self.minus is None else self.gradient - self.minus


class Moments(NamedTuple):
    """Running means of a gradient and of its square."""

    first: Tensor
    second: Tensor


class Adam:
    """Moments of every parameter; the learning rate and the number of steps lie on the device.

    There a captured step finds what has become of them.
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
        """What corrections make of the learning rate at the next step, which is counted."""
        if self._on_gpu:
            logarithms = (math.log(beta) if beta else -math.inf for beta in self._rules.betas)
            rates: Tensor = gpu.launch("step_scalars.next_rates", self.lr, self.steps, *logarithms)
            return rates
        self.steps += 1
        return reference.adam_rates(self.lr, self.steps, *self._rules.betas)

    def vectors(self, gradients: Mapping[str, Tensor], b_dec_minus: Tensor | None) -> list[Vector]:
        """Pair parameters with their gradients; `b_dec_minus` is subtracted from that of b_dec.

        b_dec comes first.
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
        """Compute what a gradient is multiplied by so that it is not longer than `clip`.

        `row_squares` [m] are the squared lengths of the parts that belong to latents, `vectors` one
        or two with the other parts. Returns float64 [].
        """
        if self._on_gpu:
            factor: Tensor = gpu.launch("step_scalars.clip_factor", clip, row_squares, *vectors)
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
        """Move one or two vectors and count the tokens since latents fired; in place.

        Args:
            vectors: what moves, by `factor` [] times its gradient where there is one.
            factor: float64 [].
            rates: those of `next_rates`.
            idle: [m], the tokens since each latent fired.
            fired: [m], on how many of the step's tokens each latent fired.
            tokens: the number of these.
        """
        beta1, beta2 = self._rules.betas
        if self._on_gpu:
            first, *others = vectors
            gpu.launch(
                "step_scalars.finish_step",
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
        """Whether kernels serve the SAE."""
        weight = self._sae.W_enc
        return gpu.has(weight) and gpu.serves(weight)

    def update(self, name: str, gradient: Tensor, rates: Tensor) -> None:
        """Move one parameter."""
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
