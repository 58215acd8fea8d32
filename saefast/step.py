"""One training step of a TopK SAE on the fused ops: forward, loss, gradient, Adam, unit norm."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import reference
from saefast.auxk import AuxGradients, AuxK, auxk_gradients, dead_latents
from saefast.ops import checks, gpu
from saefast.ops.decode_residual import decode_residual
from saefast.ops.encode_packed import Packed, encode_packed, repacked
from saefast.ops.latent_sum import column_sum
from saefast.ops.latent_update import latent_update
from saefast.ops.topk_encode import PRECISIONS
from saefast.sae import SAE
from saefast.types import SparseCode


@dataclass(frozen=True)
class StepResult:
    """What one step saw, before it changed the weights."""

    loss: Tensor
    """squared error of a row, summed over its width, averaged over the batch; float64 []"""
    code: SparseCode
    fired: Tensor
    """[m] on how many rows each latent's value was positive"""
    auxk: Tensor | None
    """the loss of the dead latents, if one was asked for"""


class FusedStep:
    """Trains an SAE in place, a batch at a time.

    The loss is the squared error summed over the width and averaged over rows; the optimiser is
    Adam. No weight gradient is stored: one pass over the latents sums it, removes its part along
    the decoder row, applies Adam, restores norm one and refreshes the packed encoder that the next
    step screens with. Results are the same bits for any number of threads. On a GPU nothing in a
    step waits for the device, so a whole step can be captured in a CUDA graph: see `capture`.

    Args:
        sae: a float32 or float64 SAE.
        lr, betas, eps: of Adam, with torch's meaning.
        unit_norm: keep decoder rows at norm one.
        precision: "exact" or "bf16", as in `topk_encode`.
        auxk: settings of the loss that revives dead latents; None leaves them dead.
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
        auxk: AuxK | None = None,
    ) -> None:
        checks.one_of("precision", precision, PRECISIONS)
        checks.at_least_float32("sae", sae.W_enc)
        self.sae, self.betas, self.eps = sae, betas, eps
        self.unit_norm, self.precision, self.auxk = unit_norm, precision, auxk
        # On the device, where a captured step finds what has become of them.
        self._lr = torch.tensor(lr, dtype=torch.float64, device=sae.W_enc.device)
        self._steps = torch.zeros_like(self._lr)
        self.idle = torch.zeros(sae.m, dtype=torch.int64, device=sae.W_enc.device)
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
        self._packed: Packed | None = None
        self._packed_version = -1

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr.fill_(value)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self._steps)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> StepResult:
        """Train on x [n, d]."""
        sae = self.sae
        self._check(x)
        n = x.shape[0]
        inputs = x - sae.b_dec
        code = self._encode(inputs)
        residual, value_grads, squares = decode_residual(
            code.values, code.indices, sae.W_dec, sae.b_dec, x, 2.0 / n
        )
        extra = self._auxk(inputs, residual, n)
        self._steps += 1
        beta1, beta2 = self.betas
        rates = reference.adam_rates(self._lr, self._steps, beta1, beta2)
        input_grad_sum, fired = latent_update(
            code.indices,
            code.values,
            value_grads,
            residual,
            inputs,
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            *self.moments[:6],
            *(self._packed.arrays if self._packed else (None, None, None)),
            self._packed.product if self._packed else "float32",
            *(extra[1:] if extra else (None, None, None, None)),
            rates,
            beta1,
            beta2,
            self.eps,
            self.unit_norm,
        )
        self._packed_version = sae.W_enc._version
        first, second = self.moments[6:]
        reference.adam(
            sae.b_dec,
            first,
            second,
            column_sum(residual) - input_grad_sum,
            rates,
            beta1=beta1,
            beta2=beta2,
            eps=self.eps,
        )
        self.idle += n
        self.idle.masked_fill_(fired > 0, 0)
        return StepResult(squares / n, code, fired, extra.loss if extra else None)

    def capture(self, x: Tensor) -> Callable[[Tensor], StepResult]:
        """A step on batches shaped like x, recorded once and replayed without the host.

        Take a step with such a batch first: it compiles the kernels and allocates what they need.
        The result's tensors are overwritten by the next replay. Weights must change only through
        steps; the learning rate may change at any time.
        """
        self._check(x)
        if not gpu.has(x):
            raise ValueError(f"capture needs an SAE on a CUDA device, got {x.device}")
        if self._packed is None or self._packed_version != self.sae.W_enc._version:
            raise ValueError("capture needs a step of the same kind before it: call step(x) once")
        batch = x.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self(batch)

        def replay(x: Tensor) -> StepResult:
            checks.shape("x", x, tuple(batch.shape))
            batch.copy_(x)
            graph.replay()
            return result

        return replay

    def _check(self, x: Tensor) -> None:
        checks.floating("x", x, "[n, d]")
        checks.same_kind("the SAE", self.sae.W_enc, "x", x)
        checks.size("x", x, 1, self.sae.d, "the width of the SAE")
        if x.shape[0] == 0:
            raise ValueError("x must have at least one row, got shape (0, ...)")

    def _encode(self, inputs: Tensor) -> SparseCode:
        """The code of the inputs; only its positive values are active."""
        sae = self.sae
        self._packed = repacked(
            self._packed,
            self._packed_version == sae.W_enc._version,
            inputs,
            sae.W_enc,
            sae.k,
            self.precision,
        )
        code = encode_packed(inputs, sae.W_enc, sae.b_enc, sae.k, self.precision, self._packed)
        return SparseCode(code.values.relu(), code.indices)

    def _auxk(self, inputs: Tensor, residual: Tensor, n: int) -> AuxGradients | None:
        if self.auxk is None:
            return None
        sae = self.sae
        return auxk_gradients(
            inputs,
            residual * (-n / 2.0),
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            dead_latents(self.idle, self.auxk),
            self.auxk,
            rounded=self.precision == "bf16",
        )
