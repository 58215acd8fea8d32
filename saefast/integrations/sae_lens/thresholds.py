"""SAELens's standard and JumpReLU training, from the latents above or near a threshold.

A pre-activation far below its threshold contributes to no loss and gets no gradient. So sparse
codes of the values that are above it, or within the bandwidth of a JumpReLU, are sufficient. Early
in training that is about every other latent: while a row holds more than one in eight, steps are
SAELens's own, and they are always on a GPU, where no faster way is known.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.jumprelu_sae import (
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.standard_sae import (
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from torch import Tensor

from saefast.integrations.pre_activations import PreActivations
from saefast.integrations.sae_lens import codes
from saefast.integrations.sae_lens.fused import FusedTraining

_DENSEST = 1 / 8
"""Share of latents in the fullest row above which SAELens's dense step is faster."""
_MARGIN = 1e-3  # share of the bandwidth added to its edge, to allow for rounding


class _FusedThresholds(FusedTraining):
    """Mixin for codes of the latents above `_bar`."""

    def _bar(self) -> Tensor:
        """Return the values [m] that pre-activations must exceed to have an effect."""
        raise NotImplementedError

    def _active(self, values: Tensor, indices: Tensor, counts: Tensor) -> codes.Code:
        """Return the code of pre-activations [n, k], of which `counts` [n] are above the bar."""
        raise NotImplementedError

    @property
    def _room(self: Any) -> codes.Room:
        room: codes.Room = self.__dict__.setdefault("_rows", codes.Room(self.cfg.d_sae))
        return room

    @property
    def _most(self: Any) -> float:
        return _DENSEST * self.cfg.d_sae  # type: ignore[no-any-return]

    def _fuses(self: Any, x: Tensor) -> bool:
        # With weights of lower precision, SAELens keeps thresholds in float32 and rounds them.
        known = self.W_enc.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
        own = type(self).calculate_aux_loss is _FusedThresholds.calculate_aux_loss
        return known and own and self._room.fullest <= self._most and super()._fuses(x)

    def _code(self: Any, inputs: Tensor, norms: Tensor | None) -> codes.Code | None:
        with torch.no_grad():
            bar = self._bar().to(self.W_enc.dtype)
        found = codes.above(self, inputs, bar, self._room, self._most)
        return None if found is None else self._active(*found)

    def calculate_aux_loss(
        self: Any,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """See SAELens, whose autograd functions need the dense matrix."""
        if isinstance(hidden_pre, PreActivations):
            hidden_pre = hidden_pre.dense()
        return super().calculate_aux_loss(  # type: ignore[misc,no-any-return]
            step_input=step_input,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            sae_out=sae_out,
        )

    def training_forward_pass(self: Any, step_input: TrainStepInput) -> TrainStepOutput:
        """See SAELens."""
        output = super().training_forward_pass(step_input)
        if not isinstance(output.hidden_pre, PreActivations):
            with torch.no_grad():
                near = output.hidden_pre > self._bar()
                self._room.fullest = int(near.sum(-1).amax()) if near.numel() else 0
        return output


@dataclass
class SaefastStandardTrainingSAEConfig(StandardTrainingSAEConfig):  # type: ignore[misc]
    """Settings of SAELens's standard SAE."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_standard"

    def get_inference_config_class(self) -> type[StandardSAEConfig]:
        """Return the config of the trained SAE: SAELens's standard SAE."""
        return StandardSAEConfig  # type: ignore[no-any-return]


class SaefastStandardTrainingSAE(_FusedThresholds, StandardTrainingSAE):  # type: ignore[misc]
    """SAELens's standard SAE, ReLU with a penalty, with sparse codes once it is sparse."""

    def _bar(self: Any) -> Tensor:
        return torch.zeros_like(self.b_enc)

    def _active(self, values: Tensor, indices: Tensor, counts: Tensor) -> codes.Code:
        return codes.Code(values, values, indices)

    def _other_losses(
        self: Any, step_input: TrainStepInput, code: codes.Code, hidden_pre: PreActivations
    ) -> dict[str, Tensor]:
        weighted = code.acts * _at(self.W_dec.norm(dim=1), code.indices)
        sparsity = weighted.norm(p=self.cfg.lp_norm, dim=-1)
        return {"l1_loss": (step_input.coefficients["l1"] * sparsity).mean()}


@dataclass
class SaefastJumpReLUTrainingSAEConfig(JumpReLUTrainingSAEConfig):  # type: ignore[misc]
    """Settings of SAELens's JumpReLU."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_jumprelu"

    def get_inference_config_class(self) -> type[JumpReLUSAEConfig]:
        """Return the config of the trained SAE: SAELens's JumpReLU."""
        return JumpReLUSAEConfig  # type: ignore[no-any-return]


class SaefastJumpReLUTrainingSAE(_FusedThresholds, JumpReLUTrainingSAE):  # type: ignore[misc]
    """SAELens's JumpReLU with sparse codes once it is sparse."""

    def _bar(self: Any) -> Tensor:
        return self.threshold - (0.5 + _MARGIN) * self.bandwidth  # type: ignore[no-any-return]

    def training_forward_pass(self: Any, step_input: TrainStepInput) -> TrainStepOutput:
        """See SAELens, which clamps thresholds to zero here."""
        with torch.no_grad():
            self.threshold.data.clamp_(min=0.0)
        return super().training_forward_pass(step_input)

    def _active(self: Any, values: Tensor, indices: Tensor, counts: Tensor) -> codes.Code:
        limit = _at(self.threshold.to(values.dtype), indices)
        there = torch.arange(values.shape[1], device=values.device) < counts[:, None]
        active = there & (values > limit)
        above = (values if self.cfg.jumprelu_ste_to_input else values.detach()) - limit
        above = above / self.bandwidth
        near = there & (above.detach().abs() < 0.5)
        # Zero, with the gradient of a step that rises over the bandwidth.
        smeared = torch.where(near, above, 0.0)
        smeared = smeared - smeared.detach()
        acts = torch.where(active, values, 0.0) + limit.detach() * smeared
        return codes.Code(acts, acts, indices, steps=active.to(values.dtype) + smeared)

    def _other_losses(
        self: Any, step_input: TrainStepInput, code: codes.Code, hidden_pre: PreActivations
    ) -> dict[str, Tensor]:
        config, norms = self.cfg, self.W_dec.norm(dim=1)
        if config.jumprelu_sparsity_loss_mode == "tanh":
            scaled = config.jumprelu_tanh_scale * code.acts * _at(norms, code.indices)
            of_rows = torch.tanh(scaled).sum(dim=-1)
        else:
            assert code.steps is not None
            of_rows = code.steps.sum(dim=-1)
            if config.jumprelu_sparsity_loss_mode == "quadratic":
                of_rows = 2 / config.target_l0 * (of_rows - config.target_l0) ** 2
        losses = {"l0_loss": (step_input.coefficients["l0"] * of_rows).mean()}
        if config.pre_act_loss_coefficient is not None:
            below = self._dead_below_threshold(step_input.dead_neuron_mask, hidden_pre, norms)
            losses["pre_act_loss"] = config.pre_act_loss_coefficient * below
        return losses

    def _dead_below_threshold(
        self: Any, dead: Tensor | None, hidden_pre: PreActivations, norms: Tensor
    ) -> Tensor:
        """Return the mean over rows of how far dead latents are below their thresholds."""
        if dead is None or not dead.any():
            return norms.new_zeros(())
        x, weight, bias, _ = hidden_pre.operands
        assert bias is not None
        scores = torch.nn.functional.linear(x, weight[dead], bias[dead])
        missing = (self.threshold.to(scores.dtype)[dead] - scores).relu()
        below: Tensor = (missing * norms[dead]).sum(dim=-1).mean()
        return below


def _at(values: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of `values` [m] at indices [n, k]."""
    return values.index_select(0, indices.flatten()).view_as(indices)
