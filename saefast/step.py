"""One training step of a TopK SAE on the fused ops: forward, loss, gradient, Adam, unit norm."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks
from saefast.ops import latent_update as _latent_update
from saefast.ops.cpu import contiguous, native
from saefast.ops.decode_residual import decode_residual
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu
from saefast.ops.screens import best_screen
from saefast.ops.topk_encode import PRECISIONS, topk_encode_op
from saefast.sae import SAE
from saefast.types import SparseCode


@dataclass(frozen=True)
class StepResult:
    """What one step saw, before it changed the weights."""

    loss: float
    """squared error of a row, summed over its width, averaged over the batch"""
    code: SparseCode
    fired: Tensor
    """[m] on how many rows each latent's value was positive"""


class FusedStep:
    """Trains an SAE in place, a batch at a time.

    The loss is the squared error summed over the width and averaged over rows; the optimiser is
    Adam. No weight gradient is stored: one pass over the latents sums it, removes its part along
    the decoder row, applies Adam, restores norm one and refreshes the packed encoder that the next
    step screens with. Results are the same bits for any number of threads.

    Args:
        sae: a float32 or float64 SAE.
        lr, betas, eps: of Adam, with torch's meaning.
        unit_norm: keep decoder rows at norm one.
        precision: "exact" or "bf16", as in `topk_encode`.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit_norm: bool = True,
        precision: str = "exact",
    ) -> None:
        checks.one_of("precision", precision, PRECISIONS)
        checks.at_least_float32("sae", sae.W_enc)
        self.sae, self.lr, self.betas, self.eps = sae, lr, betas, eps
        self.unit_norm, self.precision = unit_norm, precision
        self.steps = 0
        state = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
        for name, parameter in zip(("W_enc", "b_enc", "W_dec", "b_dec"), state, strict=True):
            checks.writable(name, parameter)
        self.moments = [
            torch.zeros_like(parameter) for parameter in state for _ in ("first", "second")
        ]
        if unit_norm:
            with torch.no_grad():
                norm = sae.W_dec.norm(dim=1, keepdim=True)
                sae.W_dec.div_(torch.where(norm > 0, norm, 1.0))
        self._packed: PackedWeight | None = None
        self._packed_version = -1

    @torch.no_grad()
    def __call__(self, x: Tensor) -> StepResult:
        """Train on x [n, d]."""
        sae = self.sae
        checks.floating("x", x, "[n, d]")
        checks.same_kind("the SAE", sae.W_enc, "x", x)
        checks.size("x", x, 1, sae.d, "the width of the SAE")
        if x.shape[0] == 0:
            raise ValueError("x must have at least one row, got shape (0, ...)")
        inputs = x - sae.b_dec
        code = self._encode(inputs)
        n = x.shape[0]
        residual, value_grads, squares = decode_residual(
            code.values, code.indices, sae.W_dec, sae.b_dec, x, 2.0 / n
        )
        self.steps += 1
        beta1, beta2 = self.betas
        adam: dict[str, Any] = {
            "lr": self.lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": self.eps,
            "step": self.steps,
        }
        packed = self._packed
        input_grad_sum, fired = _latent_update.latent_update(
            code.indices,
            code.values,
            value_grads,
            residual,
            inputs,
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            *self.moments[:6],
            packed.units if packed else None,
            packed.norm if packed else None,
            packed.lost if packed else None,
            packed.screen.product if packed else "float32",
            unit_norm=self.unit_norm,
            **adam,
        )
        self._packed_version = sae.W_enc._version
        b_dec_grad = _column_sum(residual) - input_grad_sum
        reference.adam(sae.b_dec, self.moments[6], self.moments[7], b_dec_grad, **adam)
        relu = SparseCode(code.values.relu(), code.indices)
        return StepResult(float(squares) / n, relu, fired)

    def _encode(self, inputs: Tensor) -> SparseCode:
        sae = self.sae
        if inputs.device.type != "cpu":
            return SparseCode(
                *topk_encode_op(inputs, sae.W_enc, sae.b_enc, None, sae.k, self.precision)
            )
        exact = self.precision == "exact"
        screen = best_screen() if exact else Screen("native", "bfloat16")
        if screen.engine == "native":
            self._pack(screen)
        return encode_on_cpu(
            inputs, sae.W_enc, sae.b_enc, None, sae.k, self.precision, screen, self._packed
        )

    def _pack(self, screen: Screen) -> None:
        """Pack the encoder, unless the last update did so and nobody wrote to it since."""
        packed = self._packed
        weight = self.sae.W_enc
        if (
            packed is None
            or packed.screen != screen
            or packed.level != native.level()
            or self._packed_version != weight._version
        ):
            self._packed = PackedWeight.of(contiguous(weight), screen)


def _column_sum(rows: Tensor) -> Tensor:
    """The sum over rows, in their order; torch's own order depends on the number of threads."""
    n = rows.shape[0]
    nothing = torch.zeros(n, 1, dtype=torch.int64, device=rows.device)
    total: Tensor = torch.ops.saefast.latent_sum(rows.new_ones(n, 1), nothing, rows, 1)
    return total.squeeze(0)
