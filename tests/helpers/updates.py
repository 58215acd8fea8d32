"""Problems for `latent_update`, and its operands from lists of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from helpers.codes import draw_indices
from helpers.strategies import Shape, generator, normal
from torch import Tensor

from saefast import reference
from saefast.ops.latent_update import latent_update
from saefast.ops.update_operands import LEARNED
from saefast.types import Update


def update_of(
    batch: Sequence[Tensor],
    parameters: Sequence[Tensor],
    moments: Sequence[Tensor],
    *,
    packed: Sequence[Tensor | None] = (None, None, None),
    product: str = "float32",
    extra: Sequence[Tensor | None] | None = None,
    **settings: Any,
) -> Update:
    """Make an update.

    Args:
        batch: indices, values, value gradients, residual and inputs.
        parameters: w_enc, b_enc and w_dec.
        moments: the first and the second of each parameter.
        packed: units, norm and lost.
        product: screening product that they are packed for.
        extra: latents, and gradients for their rows of w_enc, b_enc and w_dec.
        settings: the other fields.

    Returns:
        The update.
    """
    indices, values, value_grads, residual, inputs = batch
    units, norm, lost = packed
    extra_latents, extra_w_enc, extra_b_enc, extra_w_dec = extra or (None,) * 4
    return Update(
        indices=indices,
        values=values,
        value_grads=value_grads,
        residual=residual,
        inputs=inputs,
        **dict(zip(LEARNED, (*parameters, *moments), strict=True)),
        units=units,
        norm=norm,
        lost=lost,
        product=product,
        extra_latents=extra_latents,
        extra_w_enc=extra_w_enc,
        extra_b_enc=extra_b_enc,
        extra_w_dec=extra_w_dec,
        **settings,
    )


LR = 3e-3


ADAM = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}


def rates(number: int, lr: float = LR) -> Tensor:
    """Return Adam's rates at a step."""
    wide = [torch.tensor(float(value), dtype=torch.float64) for value in (lr, number)]
    return reference.adam_rates(*wide, ADAM["beta1"], ADAM["beta2"])


class Problem:
    """Weights, moments and a stream of batches in which some latents are idle."""

    def __init__(self, shape: Shape, seed: int, dtype: torch.dtype) -> None:
        self.shape, self.seed, self.dtype = shape, seed, dtype
        _, d, m, _ = shape
        self.w_enc, self.b_enc = normal((m, d), seed, dtype), normal((m,), seed + 1, dtype)
        self.w_dec = normal((m, d), seed + 2, dtype)
        self.w_dec /= self.w_dec.norm(dim=1, keepdim=True)
        self.parameters = [self.w_enc, self.b_enc, self.w_dec]
        self.moments = [torch.zeros_like(p) for p in self.parameters for _ in range(2)]

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draw indices, values, value gradients, residual and inputs."""
        n, d, _, k = self.shape
        seed = self.seed + 10 * number
        drawn = normal((n, k), seed, self.dtype)
        values = torch.where(drawn.abs() > 0.5, drawn, 0.0)  # of both signs, and zeros
        residual = normal((n, d), seed + 1, self.dtype) / max(n, 1)
        indices = draw_indices(self.shape, seed)
        grads = torch.where(
            values != 0, reference.gather_dots(residual, self.w_dec, indices), 0.0
        ).to(self.dtype)
        return indices, values, grads, residual, normal((n, d), seed + 2, self.dtype)

    def gradients_of(
        self, number: int, d_out: int, groups: int | None, group_ends: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Draw a batch with one or several reconstructions of width `d_out`."""
        n = self.shape.n
        indices, values, _, _, inputs = self.batch(number)
        seed = self.seed + 10 * number
        residual = normal((groups or 1, n, d_out), seed + 1, self.dtype)
        group = torch.zeros_like(indices)
        if group_ends is not None:
            group = torch.searchsorted(group_ends, indices.contiguous(), right=True)
        rows = residual[group, torch.arange(n)[:, None]]
        grads = (rows * self.parameters[2][indices]).sum(2) * (values != 0)
        return indices, values, grads, residual if groups else residual[0], inputs

    def extra(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw additional gradients for half the latents, and places without a latent."""
        _, d, m, _ = self.shape
        seed = self.seed + 10 * number + 5
        latents = torch.randperm(m, generator=generator(seed))[: m // 2 + 1]
        latents = torch.cat([latents, torch.tensor([m, m])])
        c = len(latents)
        rows = (normal((c, d), seed + i, self.dtype) for i in range(2))
        return latents, next(rows), normal((c,), seed, self.dtype), next(rows)

    def update(self, number: int, *, extra: bool = False, lr: float = LR, **others: Any) -> Update:
        """Return the operands of one step."""
        given: dict[str, Any] = {"rates": rates(number, lr), **ADAM, "unit_norm": True, **others}
        more = self.extra(number) if extra else None
        return update_of(self.batch(number), self.parameters, self.moments, extra=more, **given)

    def fused(self, number: int, **asked: Any) -> tuple[Tensor, Tensor]:
        """Take one step of the op; see `update`."""
        outputs: tuple[Tensor, Tensor] = latent_update(*self.update(number, **asked))
        return outputs

    def plain(self, number: int, **asked: Any) -> tuple[Tensor, Tensor]:
        """Take one step of the reference; see `update`."""
        return reference.latent_update(self.update(number, **asked))
