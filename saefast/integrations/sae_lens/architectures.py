"""Training and inference classes beside SAELens's own architectures."""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from sae_lens import register_sae_training_class
from sae_lens.saes.abstopk_sae import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
)
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor

from saefast.integrations.pre_activations import PreActivations
from saefast.integrations.sae_lens import codes
from saefast.integrations.sae_lens.fused import Fused, FusedTraining
from saefast.integrations.sae_lens.thresholds import (
    SaefastJumpReLUTrainingSAE,
    SaefastJumpReLUTrainingSAEConfig,
    SaefastStandardTrainingSAE,
    SaefastStandardTrainingSAEConfig,
)
from saefast.ops.encode_cached import CachedEncoder

Some = TypeVar("Some")


class _FusedTopK(FusedTraining):
    """Mixin for TopK and the architectures that SAELens derives from it."""

    def calculate_topk_aux_loss(
        self: Any,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """See SAELens; only the dead latents that are active on a row are decoded."""
        arguments = (sae_in, sae_out, hidden_pre, dead_neuron_mask)
        loss = _aux_loss(self, *arguments)
        return super().calculate_topk_aux_loss(*arguments) if loss is None else loss  # type: ignore[misc]


class _FusedAbsTopK(FusedTraining):
    """Mixin for AbsTopK."""

    def _code(self, inputs: Tensor, norms: Tensor | None) -> codes.Code:
        return codes.topk_code(self, inputs, norms, absolute=True)

    def calculate_abstopk_aux_loss(
        self: Any,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """See SAELens; only the dead latents that are active on a row are decoded."""
        arguments = (sae_in, sae_out, hidden_pre, dead_neuron_mask)
        loss = _aux_loss(self, *arguments, absolute=True)
        return super().calculate_abstopk_aux_loss(*arguments) if loss is None else loss  # type: ignore[misc]


def _aux_loss(
    sae: Any,
    sae_in: Tensor,
    sae_out: Tensor,
    hidden_pre: Tensor,
    dead: Tensor | None,
    *,
    absolute: bool = False,
) -> Tensor | None:
    """Return the AuxK loss by a sparse code; None if SAELens's own method is to compute it."""
    if (
        not isinstance(hidden_pre, PreActivations)
        or hidden_pre.ndim != 2
        or dead is None
        or (number := int(dead.sum())) == 0
        or sae.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
    ):
        return None
    most = sae_in.shape[-1] // 2
    code = codes.largest_among(hidden_pre, dead, min(most, number), absolute=absolute)
    found = sae.reshape_fn_out(codes.decoded(sae, *code), sae.d_head)
    loss = (found - (sae_in - sae_out).detach()).pow(2).sum(dim=-1).mean()
    weight = sae.cfg.aux_loss_coefficient * min(number / most, 1.0)
    return weight * loss  # type: ignore[no-any-return]


@dataclass
class SaefastTopKTrainingSAEConfig(TopKTrainingSAEConfig):  # type: ignore[misc]
    """Settings of SAELens's TopK."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_topk"

    def get_inference_config_class(self) -> type[TopKSAEConfig]:
        """Return the config of the trained SAE: SAELens's TopK."""
        return TopKSAEConfig  # type: ignore[no-any-return]


class SaefastTopKTrainingSAE(_FusedTopK, TopKTrainingSAE):  # type: ignore[misc]
    """SAELens's TopK with sparse codes."""


@dataclass
class SaefastAbsTopKTrainingSAEConfig(AbsTopKTrainingSAEConfig):  # type: ignore[misc]
    """Settings of SAELens's AbsTopK; `use_sparse_activations` has an effect here, too."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_abstopk"

    def get_inference_config_class(self) -> type[AbsTopKSAEConfig]:
        """Return the config of the trained SAE: SAELens's AbsTopK."""
        return AbsTopKSAEConfig  # type: ignore[no-any-return]


class SaefastAbsTopKTrainingSAE(_FusedAbsTopK, AbsTopKTrainingSAE):  # type: ignore[misc]
    """SAELens's AbsTopK with sparse codes."""


@dataclass
class SaefastBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):  # type: ignore[misc]
    """Settings of SAELens's BatchTopK; `use_sparse_activations` has an effect here, too."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_batchtopk"


class _FusedBatchTopK(_FusedTopK):
    def _code(self: Any, inputs: Tensor, norms: Tensor | None) -> codes.Code:
        guess = self.__dict__.setdefault("_guess", codes.Guess())
        return codes.batch_topk_code(self, inputs, norms, guess)

    def _after(self: Any, output: TrainStepOutput, code: codes.Code) -> None:
        self.update_topk_threshold(code.acts)
        output.metrics["topk_threshold"] = self.topk_threshold


class SaefastBatchTopKTrainingSAE(_FusedBatchTopK, BatchTopKTrainingSAE):  # type: ignore[misc]
    """SAELens's BatchTopK with sparse codes."""


@dataclass
class SaefastMatryoshkaBatchTopKTrainingSAEConfig(
    MatryoshkaBatchTopKTrainingSAEConfig  # type: ignore[misc]
):
    """Settings of SAELens's Matryoshka; `use_sparse_activations` has an effect here, too."""

    @classmethod
    def architecture(cls) -> str:
        """Return the registered name of the architecture."""
        return "saefast_matryoshka_batchtopk"


class SaefastMatryoshkaBatchTopKTrainingSAE(
    _FusedBatchTopK,
    MatryoshkaBatchTopKTrainingSAE,  # type: ignore[misc]
):
    """SAELens's Matryoshka with sparse codes.

    It is faster than SAELens's if `use_matryoshka_aux_loss` is off or no latent is dead.
    """

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """See SAELens, whose own pass would add inner losses to those that `_after` adds."""
        if not codes.fusible(self):
            return MatryoshkaBatchTopKTrainingSAE.training_forward_pass(self, step_input)
        return super().training_forward_pass(step_input)

    def _after(self: Any, output: TrainStepOutput, code: codes.Code) -> None:
        super()._after(output, code)
        begin, inner = 0, self.b_dec
        for end in self.cfg.matryoshka_widths[:-1]:
            member = (code.indices >= begin) & (code.indices < end)
            inner = codes.decoded(self, code.weights * member, code.indices) + inner
            rows = self.run_time_activation_norm_fn_out(inner)
            loss = self.mse_loss_fn(rows, output.sae_in).sum(dim=-1).mean()
            output.losses[f"inner_mse_loss_{end}"] = loss
            output.loss = output.loss + loss
            begin = end


class _FusedInference(Fused):
    """Passes of a trained SAE by sparse codes, with an encoder that stays packed."""

    _encoder: CachedEncoder

    def _fuses(self, x: Tensor) -> bool:
        return super()._fuses(x) and codes.worthwhile(self, x)


class FastTopKSAE(_FusedInference, TopKSAE):  # type: ignore[misc]
    """TopK SAE after `accelerate`."""

    def _code(self, inputs: Tensor, norms: Tensor | None) -> codes.Code:
        encode = partial(self._encoder.topk, scale_source=None if norms is None else self.W_dec)
        return codes.topk_code(self, inputs, norms, encode)


class FastAbsTopKSAE(_FusedInference, AbsTopKSAE):  # type: ignore[misc]
    """AbsTopK SAE after `accelerate`."""

    def _code(self, inputs: Tensor, norms: Tensor | None) -> codes.Code:
        encode = partial(self._encoder.topk, scale_source=None if norms is None else self.W_dec)
        return codes.topk_code(self, inputs, norms, encode, absolute=True)


class FastJumpReLUSAE(_FusedInference, JumpReLUSAE):  # type: ignore[misc]
    """JumpReLU SAE after `accelerate`."""

    def _code(self, inputs: Tensor, norms: Tensor | None) -> codes.Code:
        return codes.threshold_code(self, inputs, self._encoder.above)


_FAST = {TopKSAE: FastTopKSAE, AbsTopKSAE: FastAbsTopKSAE, JumpReLUSAE: FastJumpReLUSAE}


@torch.no_grad()
def accelerate(sae: Some) -> Some:
    """Make an inference SAE of SAELens encode and reconstruct with saefast, in place.

    On a CPU, small SAEs (d_in * d_sae below 2**17) keep SAELens's own computation, bit for bit,
    since that is faster there. The encoder stays packed between calls, see `SAE.encode`: that takes
    half of its memory again where bfloat16 is multiplied by the processor or GPU, else as much
    again.

    Args:
        sae: a `TopKSAE`, an `AbsTopKSAE` or a `JumpReLUSAE` (the inference class of BatchTopK,
            too).

    Returns:
        The same object, still an instance of its class, with the same parameters and files.
    """
    if isinstance(sae, Fused):
        return sae
    own: Any = sae
    fast: Any = _FAST.get(type(sae))
    if fast is None:
        known = ", ".join(kind.__name__ for kind in _FAST)
        raise TypeError(f"sae must be one of SAELens's {known}, got {type(sae).__name__}")
    own.__class__ = fast
    codes.lay_out(own)
    own._encoder = CachedEncoder()
    return sae


for _class, _config in (
    (SaefastTopKTrainingSAE, SaefastTopKTrainingSAEConfig),
    (SaefastAbsTopKTrainingSAE, SaefastAbsTopKTrainingSAEConfig),
    (SaefastBatchTopKTrainingSAE, SaefastBatchTopKTrainingSAEConfig),
    (SaefastMatryoshkaBatchTopKTrainingSAE, SaefastMatryoshkaBatchTopKTrainingSAEConfig),
    (SaefastStandardTrainingSAE, SaefastStandardTrainingSAEConfig),
    (SaefastJumpReLUTrainingSAE, SaefastJumpReLUTrainingSAEConfig),
):
    register_sae_training_class(_config.architecture(), _class, _config)
