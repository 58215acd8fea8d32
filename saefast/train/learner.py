"""Update weights from the loss of a batch, by the fused pass over the latents or by autograd."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saefast import reference
from saefast.ops.latent_pass import LatentPass, latent_pass
from saefast.sae import SAE
from saefast.train import optimizer
from saefast.train.auxk import AuxGradients, revive
from saefast.train.auxk_products import AuxProducts, WholeProducts
from saefast.train.objectives import Forward, Loss
from saefast.train.optimizer import Adam, Gradients, Vector
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.settings import AuxK, Rules
from saefast.train.step_result import StepResult
from saefast.types import Decay, Update


class Learner:
    """Updates the weights of an SAE according to the rules.

    Both paths update `idle` [m], the number of tokens since each latent fired, in place.

    Args:
        sae: the SAE, updated in place.
        rules: rules of the weight updates.
        lr: learning rate of Adam.
        encoder: packed encoder of the SAE, which an update refreshes.
        precision: one of `STEP_PRECISIONS`.
    """

    def __init__(
        self, sae: SAE, rules: Rules, lr: float, encoder: PackedEncoder, precision: str
    ) -> None:
        self.sae, self.rules, self.adam = sae, rules, Adam(sae, lr, rules)
        self._encoder, self._precision = encoder, precision
        self.anchors = None if rules.tether is None else sae.W_dec.detach().clone()

    def fused(
        self, forward: Forward, inputs: Tensor, idle: Tensor, auxk: AuxK | None
    ) -> StepResult:
        """Learn from a forward pass over `inputs` [n, d] without storing gradients of matrices.

        Does not wait for a GPU.

        Returns:
            Loss, code and statistics of the step.
        """
        rules, n = self.rules, len(inputs)
        several = forward.group_ends is not None
        # The residuals of the group that is part of every prefix, and of the whole reconstruction.
        every, whole = (
            (forward.residual[0], forward.residual[-1]) if several else (forward.residual,) * 2
        )
        groups = len(forward.residual) if several else 1
        scale = -n * groups / 2.0
        extra = self._revive(
            self.sae, inputs, whole, idle, auxk, scale=scale, products=self._auxk_products
        )
        rates = self.adam.next_rates()
        latents = self._latent_pass(self._update(forward, inputs, extra, rates))
        gradients = {"b_dec": self._encoder.column_sum(every)}
        if forward.threshold_gradient is not None:
            gradients["jump_threshold"] = forward.threshold_gradient
        factor = None
        if rules.clip is not None:
            input_grad_sum, squares = latents.squares()
            vectors = self._vectors(gradients, input_grad_sum)
            factor = self.adam.clip_factor(rules.clip, vectors, squares)
        input_grad_sum, fired = latents.update(factor)
        self._encoder.refreshed()
        vectors = self._vectors(gradients, input_grad_sum)
        self.adam.finish(vectors, factor, rates, idle, fired, n)
        self._constrain()
        loss = extra.loss if extra else None
        return StepResult(forward.loss, forward.squares, fired, loss, "fused", forward.code)

    def by_autograd(
        self, loss_of: Callable[[SAE], Loss], x: Tensor, idle: Tensor, auxk: AuxK | None
    ) -> StepResult:
        """Learn by autograd from the loss `loss_of` an SAE on x [n, d]."""
        rules = self.rules
        loss, gradients, extra = self._gradients(loss_of, x, idle, auxk)
        rates = self.adam.next_rates()
        for name, gradient in gradients.items():
            self.adam.update(name, gradient, rates)
        if rules.unit_norm and rules.frozen != "decoder":
            self._normalise_decoder()
        reference.count_idle(idle, loss.fired, len(x))
        self._constrain()
        revived = extra.loss if extra else None
        squares = loss.squares.double()
        return StepResult(loss.value.detach().double(), squares, loss.fired, revived, "autograd")

    def _gradients(
        self, loss_of: Callable[[SAE], Loss], x: Tensor, idle: Tensor, auxk: AuxK | None
    ) -> tuple[Loss, Gradients, AuxGradients | None]:
        """Return the loss, the gradients under the rules, and the auxiliary loss."""
        return self._gradients_of(self.sae, loss_of, x, idle, auxk)

    def _gradients_of(
        self,
        sae: SAE,
        loss_of: Callable[[SAE], Loss],
        x: Tensor,
        idle: Tensor,
        auxk: AuxK | None,
    ) -> tuple[Loss, Gradients, AuxGradients | None]:
        """Compute the result of `_gradients` for an SAE that is whole."""
        with torch.enable_grad():
            loss = loss_of(sae)
        gradients = optimizer.by_autograd(loss.value, sae)
        extra = self._revive(sae, sae.inputs(x), loss.error, idle, auxk)
        if extra is not None:
            optimizer.add_auxk(gradients, extra, sae)
        return loss, optimizer.shaped(gradients, sae, self.rules), extra

    def _normalise_decoder(self) -> None:
        """Give the rows of W_dec norm one."""
        reference.normalise_rows(self.sae.W_dec)

    def _constrain(self) -> None:
        """Project the weights onto the constraints."""
        if "jump_threshold" in self.adam.moments:
            self.sae.jump_threshold.clamp_(min=0)  # activations are not negative
        if self.rules.tether is not None and self.rules.frozen != "decoder":
            assert self.anchors is not None
            tethered = optimizer.tethered(self.sae.W_dec, self.anchors, self.rules.tether)
            self.sae.W_dec.copy_(tethered)

    def _revive(
        self,
        sae: SAE,
        inputs: Tensor,
        residual: Tensor,
        idle: Tensor,
        auxk: AuxK | None,
        *,
        scale: float = 1.0,
        products: Callable[[Tensor], AuxProducts] | None = None,
    ) -> AuxGradients | None:
        """Return the auxiliary loss, by which dead latents explain `scale` times `residual`."""
        rounded = self._precision != "exact"
        return revive(
            sae,
            idle,
            inputs,
            residual,
            auxk,
            scale=scale,
            rounded=rounded,
            products=products,
        )

    def _auxk_products(self, dead: Tensor) -> AuxProducts:
        """Return the products of the auxiliary loss for a list of dead latents."""
        return WholeProducts(self.sae.d_out)

    def _latent_pass(self, update: Update) -> LatentPass:
        """Prepare the update of the latents."""
        return latent_pass(update)

    def _square_of(self, side: str) -> Tensor:
        """Return the sum of squares [] of the weights of a side."""
        return optimizer.square_of_weights(self.sae, side)

    def _vectors(self, gradients: Mapping[str, Tensor], input_grad_sum: Tensor) -> list[Vector]:
        """Pair vectors with gradients; a centred b_dec's gradient includes the encoder's inputs."""
        return self.adam.vectors(gradients, input_grad_sum if self.sae.centred else None)

    def _update(
        self, forward: Forward, inputs: Tensor, extra: AuxGradients | None, rates: Tensor
    ) -> Update:
        """Build the update of the latents; its `factor` is set later."""
        sae, rules, packed, moments = self.sae, self.rules, self._encoder.packed, self.adam.moments
        units, norm, lost = packed.arrays if packed else (None, None, None)
        decay = self._decay(forward)
        return Update(
            indices=forward.code.indices,
            values=forward.code.values,
            value_grads=forward.value_grads,
            residual=forward.residual,
            inputs=inputs,
            w_enc=sae.W_enc,
            b_enc=sae.b_enc,
            w_dec=sae.W_dec,
            w_enc_first=moments["W_enc"].first,
            w_enc_second=moments["W_enc"].second,
            b_enc_first=moments["b_enc"].first,
            b_enc_second=moments["b_enc"].second,
            w_dec_first=moments["W_dec"].first,
            w_dec_second=moments["W_dec"].second,
            units=units,
            norm=norm,
            lost=lost,
            product=packed.product if packed else "float32",
            extra_latents=extra.latents if extra else None,
            extra_w_enc=extra.w_enc if extra else None,
            extra_b_enc=extra.b_enc if extra else None,
            extra_w_dec=extra.w_dec if extra else None,
            rates=rates,
            beta1=rules.betas[0],
            beta2=rules.betas[1],
            eps=rules.eps,
            unit_norm=rules.unit_norm,
            remove_parallel=rules.remove_parallel,
            update_encoder=rules.frozen != "encoder",
            update_decoder=rules.frozen != "decoder",
            shrink_enc=decay.shrink_enc,
            shrink_dec=decay.shrink_dec,
            sign=decay.sign,
            group_ends=forward.group_ends,
            multiplier=packed.multiplier if packed else None,
        )

    def _decay(self, forward: Forward) -> Decay:
        """Return the penalty terms of the rules and of the objective."""
        decay = optimizer.decay_of(self.rules, self.sae, self._square_of)
        more = forward.shrink_dec
        if more is None and self._precision == "bf16_weights":
            # A decay, even of zero, makes the update compute the component of the gradient along a
            # row. It must not infer it from the value gradients, which belong to the rounded rows.
            more = self.sae.b_enc.new_zeros(self.sae.m)
        if more is None:
            return decay
        return decay._replace(
            shrink_dec=more if decay.shrink_dec is None else decay.shrink_dec + more
        )
