"""SAELens's passes by sparse codes, as mixins that precede SAELens's classes among the bases."""

from typing import Any

from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saefast.integrations.pre_activations import PreActivations
from saefast.integrations.sae_lens import codes


class Fused:
    """Mixin that encodes and reconstructs by sparse codes."""

    def _code(self, inputs: Tensor, norms: Tensor | None) -> codes.Code | None:
        """Return the code, or None if too many latents are active for sparse codes to be faster."""
        return codes.topk_code(self, inputs, norms)

    def _fuses(self, x: Tensor) -> bool:
        return codes.fusible(self)

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return the reconstruction of rows.

        Args:
            x: [..., d] rows.
        """
        if not self._fuses(x) or self.use_error_term:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        inputs = self.process_sae_in(x)
        code = self._code(inputs.reshape(-1, inputs.shape[-1]), codes.norms_of(self))
        if code is None:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        out = codes.reconstruction(self, code, inputs.shape[:-1])
        return self.hook_sae_output(out)  # type: ignore[no-any-return]

    def encode(self: Any, x: Tensor) -> Tensor:
        """Return the values of all latents, dense [..., m].

        Args:
            x: [..., d] rows.
        """
        if not self._fuses(x):
            return super().encode(x)  # type: ignore[misc,no-any-return]
        inputs = self.process_sae_in(x)
        code = self._code(inputs.reshape(-1, inputs.shape[-1]), codes.norms_of(self))
        if code is None:
            return super().encode(x)  # type: ignore[misc,no-any-return]
        m = self.cfg.d_sae
        return code.dense(m).view(*inputs.shape[:-1], m)  # type: ignore[no-any-return]


class FusedTraining(Fused):
    """Mixin for training."""

    def encode_with_hidden_pre(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and pre-activations [..., m]; the latter are computed when they are read.

        Args:
            x: [..., d] rows.
        """
        if not self._fuses(x) or (self._sparse and x.ndim != 2):
            return super().encode_with_hidden_pre(x)  # type: ignore[misc,no-any-return]
        inputs, norms = self.process_sae_in(x), codes.norms_of(self)
        code = self._code(inputs.reshape(-1, inputs.shape[-1]), norms)
        if code is None:
            return super().encode_with_hidden_pre(x)  # type: ignore[misc,no-any-return]
        acts = self._as_promised(code).view(*inputs.shape[:-1], self.cfg.d_sae)
        return acts, codes.pre_activations(self, inputs, norms)

    def encode(self: Any, x: Tensor) -> Tensor:
        """Return the values of all latents, [..., m].

        Args:
            x: [..., d] rows.
        """
        return self.encode_with_hidden_pre(x)[0]  # type: ignore[no-any-return]

    def training_forward_pass(self: Any, step_input: TrainStepInput) -> TrainStepOutput:
        """See SAELens."""
        x = step_input.sae_in
        if not self._fuses(x) or x.ndim != 2:
            return super().training_forward_pass(step_input)  # type: ignore[misc]
        # Only now: seeded draws like W_enc depend on its layout, and loading may change it.
        codes.lay_out(self)
        inputs, norms = self.process_sae_in(x), codes.norms_of(self)
        code = self._code(inputs, norms)
        if code is None:
            return super().training_forward_pass(step_input)  # type: ignore[misc]
        out = codes.reconstruction(self, code, inputs.shape[:-1])
        acts, hidden_pre = self._as_promised(code), codes.pre_activations(self, inputs, norms)
        losses = {"mse_loss": self.mse_loss_fn(out, x).sum(dim=-1).mean()}
        more = self._other_losses(step_input, code, hidden_pre)
        if more is None:
            more = self.calculate_aux_loss(
                step_input=step_input, feature_acts=acts, hidden_pre=hidden_pre, sae_out=out
            )
        total = losses["mse_loss"]
        for name, loss in more.items() if isinstance(more, dict) else [(None, more)]:
            total = total + loss
            losses |= {} if name is None else {name: loss}
        output = TrainStepOutput(x, out, acts, hidden_pre, total, losses)
        self._after(output, code)
        return output

    @property
    def _sparse(self: Any) -> bool:
        return getattr(self.cfg, "use_sparse_activations", False)

    def _as_promised(self: Any, code: codes.Code) -> Tensor:
        m = self.cfg.d_sae
        return code.coo(m) if self._sparse else code.dense(m)

    def _other_losses(
        self, step_input: TrainStepInput, code: codes.Code, hidden_pre: PreActivations
    ) -> dict[str, Tensor] | None:
        """Return the losses besides the reconstruction's; None: SAELens's method computes them."""
        return None

    def _after(self: Any, output: TrainStepOutput, code: codes.Code) -> None:
        """Add the variant's further losses and metrics to the output."""
