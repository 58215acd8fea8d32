"""One training step of an SAE on the fused ops: forward, loss, gradient, Adam, constraints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import reference, stored_gradients
from saefast.adam import Adam
from saefast.auxk import AuxGradients, AuxK, auxk_gradients, dead_latents
from saefast.objectives import (
    ALWAYS,
    NEVER,
    WHEN_SPARSE,
    Current,
    Forward,
    Objective,
    usual_objective,
)
from saefast.ops import checks, gpu
from saefast.ops.latent_sum import column_sum
from saefast.ops.latent_update import gradient_squares, latent_update
from saefast.ops.topk_encode import PRECISIONS
from saefast.packed_encoder import PackedEncoder
from saefast.rules import Rules, clip_factor, tethered
from saefast.sae import SAE
from saefast.types import Decay, SparseCode

STEP_PRECISIONS = (*PRECISIONS, "bf16_weights")
_TOO_DENSE, _SPARSE_ENOUGH = 1 / 5, 1 / 6
"""Shares of the latents that are active on a row: above the first, dense products and stored
gradients are faster than the fused path; below the second the fused path is taken again."""


@dataclass(frozen=True)
class StepResult:
    """What one step saw, before it changed the weights."""

    loss: Tensor
    """float64 [], without the loss of dead latents and without penalties on weights"""
    squares: Tensor
    """the squared error, summed over the batch; float64 []"""
    fired: Tensor
    """[m] on how many rows each latent's value was positive"""
    auxk: Tensor | None
    """the loss of the dead latents, if one was asked for"""
    path: str
    """fused or autograd"""
    code: SparseCode | None = None
    """what was active, on the fused path"""


class FusedStep:
    """Trains an SAE in place, a batch at a time.

    On the fused path no weight gradient is stored: one pass over the latents sums it, removes its
    part along the decoder row, applies Adam, restores norm one and refreshes the packed encoder
    that the next step screens with. Results are the same bits for any number of threads. On a GPU
    nothing in a TopK step waits for the device, so a whole step can be captured in a CUDA graph:
    see `capture`. Objectives that need it, or whose codes are dense, take the path of autograd.

    On a GPU Triton kernels serve every rule, objective and precision of the fused path. Plain torch
    computes what remains: all of an SAE in float64, encodes of k > 1024, and the products of Gated
    SAEs and of losses of one's own, which have no fused path.

    Args:
        sae: a float32 or float64 SAE.
        lr: the learning rate of Adam; `step.lr = value` changes it.
        rules: how weights may move.
        objective: what is trained for; None: what is usual for the SAE's variant.
        precision: "exact" or "bf16", as in `topk_encode`; "bf16_weights": besides, the decoder is
            rounded to bfloat16 where it is multiplied. What learns are the float32 weights.
        auxk: settings of the loss that revives dead latents; None leaves them dead.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        lr: float = 1e-4,
        rules: Rules | None = None,
        objective: Objective | None = None,
        precision: str = "exact",
        auxk: AuxK | None = None,
    ) -> None:
        checks.one_of("precision", precision, STEP_PRECISIONS)
        checks.at_least_float32("sae", sae.W_enc)
        checks.at_least("lr", lr, 0)
        if sae.skip or sae.by_norm or sae.normalise != "none":
            raise ValueError(
                "sae must not normalise rows, choose by norm or have a skip connection to train"
            )
        self.sae, self.precision, self.auxk = sae, precision, auxk
        self.rules = rules or Rules()
        self.objective = objective or usual_objective(sae)
        self.now = Current(sae.k)
        sae.firing_rate = None  # it is about to change
        self.idle = torch.zeros(sae.m, dtype=torch.int64, device=sae.W_enc.device)
        # Nothing is known of the first codes, and dense ones cost the fused path most.
        self._dense = torch.tensor(self.objective.fused != ALWAYS)
        for name, parameter in sae.named_parameters():
            checks.writable(name, parameter)
        self.adam = Adam(sae, lr, self.rules)
        if self.rules.unit_norm:
            with torch.no_grad():
                reference.normalise_rows(sae.W_dec)
        self._anchors = None if self.rules.tether is None else sae.W_dec.detach().clone()
        self._rounded = precision == "bf16_weights"
        if self._rounded and self.objective.fused != ALWAYS:
            raise ValueError(
                f"precision='bf16_weights' is for topk, batchtopk and matryoshka, got {sae.variant}"
            )
        self._encoder = PackedEncoder(
            sae, "bf16" if self._rounded else precision, rounded_decoder=self._rounded
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.adam.lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self.adam.lr.fill_(value)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self.adam.steps)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the settings; the tensors themselves."""
        state = {name: tensor.detach() for name, tensor in self.sae.state_dict().items()}
        state |= self.adam.state | {"idle": self.idle, "dense": self._dense}
        state |= {f"objective.{name}": value for name, value in self.objective.state.items()}
        if self._anchors is not None:
            state["anchors"] = self._anchors
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the step was whose `state` this is."""
        mine = self.state
        if mine.keys() != state.keys():
            raise ValueError(
                f"state must hold {', '.join(sorted(mine))}, got {', '.join(sorted(state))}"
            )
        for name, value in state.items():
            checks.shape(name, value, tuple(mine[name].shape))
            checks.same_dtype(name, value, mine[name])
            mine[name].copy_(value)
        self._encoder.forget()

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor | None = None) -> StepResult:
        """Train on x [n, d]; `target` [n, d_out], if something else is to be reconstructed."""
        target = self._check(x, target)
        if self.objective.fused == NEVER or bool(self._dense):
            result = self._by_autograd(x, target)
        else:
            result = self._fused(x, target)
        if "jump_threshold" in self.adam.moments:
            self.sae.jump_threshold.clamp_(min=0)  # activations are not negative
        if self.rules.tether is not None and self.rules.frozen != "decoder":
            assert self._anchors is not None
            self.sae.W_dec.copy_(tethered(self.sae.W_dec, self._anchors, self.rules.tether))
        self.idle += len(x)
        self.idle.masked_fill_(result.fired > 0, 0)
        if self.objective.fused == WHEN_SPARSE:
            share = float(result.fired.sum()) / (len(x) * self.sae.m)
            self._dense.fill_(share > (_SPARSE_ENOUGH if bool(self._dense) else _TOO_DENSE))
        return result

    def _fused(self, x: Tensor, target: Tensor) -> StepResult:
        sae, rules = self.sae, self.rules
        inputs = sae.inputs(x)
        forward = self.objective.forward(self._encoder, inputs, target, self.now)
        several = forward.group_ends is not None
        # That of the group that is part of every reconstruction, and of the whole one.
        every, whole = (
            (forward.residual[0], forward.residual[-1]) if several else (forward.residual,) * 2
        )
        groups = len(forward.residual) if several else 1
        extra = self._auxk(inputs, whole * (-len(x) * groups / 2.0))
        rates = self.adam.next_rates()
        arguments = self._arguments(forward, inputs, extra, rates)
        switches = self._switches(forward)
        others = {"b_dec": column_sum(every)}
        if forward.threshold_gradient is not None:
            others["jump_threshold"] = forward.threshold_gradient
        if rules.clip is not None:
            input_grad_sum, squares = gradient_squares(*arguments, **switches)
            measured = {**others, "b_dec": self._through_inputs(others["b_dec"], input_grad_sum)}
            factor = clip_factor(rules.clip, measured.values(), squares)
            switches["factor"] = factor
        input_grad_sum, fired = latent_update(*arguments, **switches)
        self._encoder.refreshed()
        others["b_dec"] = self._through_inputs(others["b_dec"], input_grad_sum)
        for name, gradient in others.items():
            self.adam.update(name, gradient if rules.clip is None else gradient * factor, rates)
        auxk = extra.loss if extra else None
        return StepResult(forward.loss, forward.squares, fired, auxk, "fused", forward.code)

    def _by_autograd(self, x: Tensor, target: Tensor) -> StepResult:
        sae, rules = self.sae, self.rules
        with torch.enable_grad():
            loss = self.objective.loss(sae, x, target, self.now)
            gradients = stored_gradients.by_autograd(loss.value, sae)
        extra = self._auxk(sae.inputs(x), loss.error)
        if extra is not None:
            stored_gradients.add_auxk(gradients, extra, sae)
        rates = self.adam.next_rates()
        for name, gradient in stored_gradients.shaped(gradients, sae, rules).items():
            self.adam.update(name, gradient, rates)
        if rules.unit_norm and rules.frozen != "decoder":
            reference.normalise_rows(sae.W_dec)
        auxk = extra.loss if extra else None
        squares = loss.squares.double()
        return StepResult(loss.value.detach().double(), squares, loss.fired, auxk, "autograd")

    def capture(self, x: Tensor) -> Callable[[Tensor], StepResult]:
        """A step on batches shaped like x, recorded once and replayed without the host.

        Take a step with such a batch first: it compiles the kernels and allocates what they need.
        The result's tensors are overwritten by the next replay. Weights must change only through
        steps; the learning rate may change at any time.
        """
        self._check(x, x)
        if not gpu.has(x):
            raise ValueError(f"capture needs an SAE on a CUDA device, got {x.device}")
        if self._encoder.packed is None or not self._encoder.fresh:
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

    def _check(self, x: Tensor, target: Tensor | None) -> Tensor:
        """What is to be reconstructed."""
        checks.floating("x", x, "[n, d]")
        checks.same_kind("the SAE", self.sae.W_enc, "x", x)
        checks.size("x", x, 1, self.sae.d, "the width of the SAE")
        if x.shape[0] == 0:
            raise ValueError("x must have at least one row, got shape (0, ...)")
        if target is None:
            if self.sae.transcodes:
                raise TypeError(
                    "target is what a transcoder learns to reconstruct: step(x, target)"
                )
            return x
        checks.same_kind("the SAE", self.sae.W_dec, "target", target)
        checks.shape("target", target, (len(x), self.sae.d_out))
        return target

    def _through_inputs(self, gradient: Tensor, input_grad_sum: Tensor) -> Tensor:
        """b_dec's gradient, which is taken from what is encoded, too."""
        return gradient - input_grad_sum if self.sae.centred else gradient

    def _arguments(
        self, forward: Forward, inputs: Tensor, extra: AuxGradients | None, rates: Tensor
    ) -> tuple[object, ...]:
        """What `latent_update` takes, up to its switches."""
        sae, packed = self.sae, self._encoder.packed
        return (
            forward.code.indices,
            forward.code.values,
            forward.value_grads,
            forward.residual,
            inputs,
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            *(part for name in ("W_enc", "b_enc", "W_dec") for part in self.adam.moments[name]),
            *(packed.arrays if packed else (None, None, None)),
            packed.product if packed else "float32",
            *(extra[1:] if extra else (None, None, None, None)),
            rates,
            *self.rules.betas,
            self.rules.eps,
            self.rules.unit_norm,
        )

    def _switches(self, forward: Forward) -> dict[str, object]:
        rules = self.rules
        return {
            "remove_parallel": rules.remove_parallel,
            "update_encoder": rules.frozen != "encoder",
            "update_decoder": rules.frozen != "decoder",
            **self._decay(forward)._asdict(),
            "group_ends": forward.group_ends,
        }

    def _decay(self, forward: Forward) -> Decay:
        """That of the rules, and what the objective adds."""
        decay, more = self.rules.decay_of(self.sae), forward.shrink_dec
        if more is None and self._rounded:
            # A decay, even of zero, makes the update measure the part of the gradient along a row:
            # gradients of values, from which it would infer it, belong to the rounded rows.
            more = self.sae.b_enc.new_zeros(self.sae.m)
        if more is None:
            return decay
        return decay._replace(
            shrink_dec=more if decay.shrink_dec is None else decay.shrink_dec + more
        )

    def _auxk(self, inputs: Tensor, error: Tensor) -> AuxGradients | None:
        """The loss of dead latents, which explain `error` = target - reconstruction."""
        if self.auxk is None:
            return None
        sae = self.sae
        return auxk_gradients(
            inputs,
            error,
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            dead_latents(self.idle, self.auxk),
            self.auxk,
            rounded=self.precision != "exact",
        )
