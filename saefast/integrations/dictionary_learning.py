"""Trainers for dictionary_learning's `trainer_configs`, and a `Dictionary`, with saefast inside.

    from saefast.integrations.dictionary_learning import SaefastTopKTrainer as TopKTrainer

Settings, schedules, logged values and saved files are those of the trainer that is replaced, whose
`loss` is still used for logging. An update is one `saefast.FusedStep` on the memory of the
trainer's own autoencoder. Adam's moments are in `trainer.fused.state_dict()`, not in
`trainer.optimizer`, which keeps the learning rate. A latent fires where its activation is positive:
dictionary_learning's TopK also counts latents that were selected to fill up a row with fewer than k
positive ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer, geometric_median
from torch import Tensor, nn

from saefast import checks
from saefast.integrations.autoencoder import check_autoencoder
from saefast.integrations.pre_activations import precision_at
from saefast.sae import SAE
from saefast.storage import load_sae
from saefast.train.objectives import Current, Encoded, Forward, Loss, Objective, usual_objective
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.settings import AuxK, Rules
from saefast.train.step import FusedStep
from saefast.train.step_result import StepResult

_RULES = Rules(clip=1.0)


class _FusedTrainer:
    """Mixin that updates by a fused step; it must precede the trainer among the bases."""

    _variant: str
    _dictionary: type[nn.Module]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused: FusedStep | None = None
        if not isinstance(self.ae, self._dictionary):
            raise TypeError(
                f"dict_class must be a {self._dictionary.__name__}, got {type(self.ae).__name__}; "
                "for another architecture use dictionary_learning's own trainer"
            )

    def update(self: Any, step: int, x: Tensor) -> float:
        """Train on a batch.

        Args:
            step: number of the step, from 0.
            x: [n, d] rows.

        Returns:
            Loss of the batch.
        """
        if step == 0:
            self.ae.b_dec.data.copy_(geometric_median(x))
        if self.fused is None:
            self._begin()
        self._check_weights()
        fused = self.fused
        fused.lr = self.optimizer.param_groups[0]["lr"]
        fused.auxk = self._auxk()
        with torch.autocast(self.ae.b_dec.device.type, enabled=False):
            result = fused(x.to(self.ae.b_dec))
        fused.idle.sub_(len(x)).clamp_(min=0)  # the objective has counted these rows already
        self.optimizer.step()  # has no gradients to apply; the scheduler needs it to count the step
        self.scheduler.step()
        self._note(step, result)
        return float(result.loss if result.auxk is None else result.loss + result.auxk)

    def _begin(self: Any) -> None:
        """Create an SAE that shares the autoencoder's weights, and a fused step that trains it."""
        ae = self.ae
        sae = SAE(
            ae.activation_dim,
            ae.dict_size,
            variant=self._variant,
            k=int(ae.k),
            seed=0,
            dtype=ae.b_dec.dtype,
            device=ae.b_dec.device,
        )
        ae.encoder.weight.data = ae.encoder.weight.data.contiguous()
        sae.W_enc, sae.b_enc, sae.b_dec = ae.encoder.weight, ae.encoder.bias, ae.b_dec
        with torch.no_grad():
            sae.W_dec.copy_(ae.decoder.weight.T)
        ae.decoder.weight.data = sae.W_dec.data.T
        idle = self.num_tokens_since_fired = self.num_tokens_since_fired.to(ae.b_dec.device)
        objective = _CountingFirst(usual_objective(sae), idle)
        self.fused = FusedStep(
            sae, rules=_RULES, objective=objective, precision=precision_at(ae.b_dec)
        )
        self.fused.idle = idle

    def _check_weights(self: Any) -> None:
        sae, ae = self.fused.sae, self.ae
        if sae.W_enc is not ae.encoder.weight or not _same_memory(sae.W_dec, ae.decoder.weight):
            raise RuntimeError(
                "the weights of trainer.ae were replaced or moved after the first update; copy new "
                "values into them, as load_state_dict does, or make a new trainer"
            )

    def _auxk(self: Any) -> AuxK | None:
        if self.auxk_alpha <= 0:
            return None
        return AuxK(
            k=self.top_k_aux,
            coefficient=self.auxk_alpha,
            dead_after=self.dead_feature_threshold,
            capacity=self.ae.dict_size,
        )

    @torch.no_grad()
    def _note(self: Any, step: int, result: StepResult) -> None:
        """Update the values that the trainer logs, and the threshold of its autoencoder."""
        forward = self.fused.objective.last
        if step > self.threshold_start_step:
            self.update_threshold(forward.code.values)
        self.effective_l0 = self.k
        self.dead_features = int((self.fused.idle >= self.dead_feature_threshold).sum())
        self.pre_norm_auxk_loss = -1
        if self.dead_features > 0 and result.auxk is not None:
            error = forward.residual * (len(forward.residual) / 2)
            spread = (error - error.mean(0)).square().sum(1).mean()
            self.pre_norm_auxk_loss = result.auxk / self.auxk_alpha * spread

    @property
    def config(self: Any) -> dict[str, Any]:
        """Settings saved beside the weights; loaders go by `dict_class`."""
        return super().config | {"trainer_class": type(self).__name__}  # type: ignore[misc,no-any-return]


class SaefastTopKTrainer(_FusedTrainer, TopKTrainer):  # type: ignore[misc]
    """TopKTrainer with updates by saefast."""

    _variant, _dictionary = "topk", AutoEncoderTopK


class SaefastBatchTopKTrainer(_FusedTrainer, BatchTopKTrainer):  # type: ignore[misc]
    """BatchTopKTrainer with updates by saefast."""

    _variant, _dictionary = "batchtopk", BatchTopKSAE


class _CountingFirst:
    """Objective that counts firing before dead latents are determined; the step counts it later."""

    def __init__(self, objective: Objective, idle: Tensor) -> None:
        self._objective, self._idle = objective, idle
        self.fused = objective.fused
        self.last: Forward | None = None

    @property
    def room(self) -> int | None:
        """See `Objective`."""
        return self._objective.room

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        return self._objective.encode(encoder, inputs, now)

    def fits(self, report: Sequence[int]) -> bool:
        """See `Objective`."""
        return self._objective.fits(report)

    def encode_all(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        return self._objective.encode_all(encoder, inputs, now)

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        self.last = self._objective.forward(encoder, encoded, target, now)
        values, indices = self.last.code
        self._idle += len(values)
        self._idle[indices[values > 0]] = 0
        return self.last

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        return self._objective.loss(sae, x, target, now)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return self._objective.state


def _same_memory(rows: Tensor, columns: Tensor) -> bool:
    return rows.data_ptr() == columns.data_ptr() and rows.device == columns.device


class SaefastDictionary(Dictionary):  # type: ignore[misc]
    """`saefast.SAE` with the interface that dictionary_learning's evaluations expect.

    Args:
        sae: any SAE that reconstructs its input and does not normalise rows.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        check_autoencoder(sae)
        self.sae = sae
        self.activation_dim, self.dict_size = sae.d, sae.m

    def encode(self, x: Tensor) -> Tensor:
        """Return the values of all latents, dense [..., m].

        Args:
            x: [..., d] rows.
        """
        code = self.sae.encode(x.reshape(-1, x.shape[-1]))
        return code.to_dense(self.sae.m).view(*x.shape[:-1], self.sae.m)

    def decode(self, f: Tensor) -> Tensor:
        """Return the reconstruction [..., d] of dense values.

        Args:
            f: [..., m] values of all latents.
        """
        return f @ self.sae.W_dec + self.sae.b_dec

    def forward(self, x: Tensor, output_features: bool = False) -> Any:
        """Return the reconstruction of rows, and the values of latents too if requested.

        Args:
            x: [..., d] rows.
            output_features: whether to return the values [..., m] as well.
        """
        if not output_features:
            return self.sae(x)
        code = self.sae.encode(x.reshape(-1, x.shape[-1]))
        features = code.to_dense(self.sae.m).view(*x.shape[:-1], self.sae.m)
        return self.sae.decode(code).view(x.shape), features

    @torch.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Adapt the SAE to activations that are multiplied by a factor.

        Args:
            scale: the factor, not negative.
        """
        checks.at_least("scale", scale, 0)
        threshold = self.sae.threshold
        magnitudes = [self.sae.b_mag] if self.sae.variant == "gated" else []
        for bias in (self.sae.b_enc, self.sae.b_dec, *magnitudes):
            bias.mul_(scale)
        if threshold is not None:
            threshold.mul_(scale)

    @classmethod
    def from_pretrained(
        cls, path: Any, device: torch.device | str | None = None, **_: Any
    ) -> "SaefastDictionary":
        """Load an SAE from any path that `saefast.load_sae` reads.

        Args:
            path: file or folder of the SAE.
            device: device of the weights; None: the CPU.
            **_: further arguments of dictionary_learning's loaders, which have no effect.

        Returns:
            The SAE with dictionary_learning's interface.
        """
        return cls(load_sae(path).to("cpu" if device is None else device))
