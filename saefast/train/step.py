"""One training step of an SAE on the fused ops: forward, loss, gradient, Adam, constraints."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.latent_pass import latent_pass
from saefast.ops.latent_sum import column_sum
from saefast.ops.topk_encode import PRECISIONS
from saefast.sae import SAE
from saefast.train import stored_gradients
from saefast.train.adam import Adam, Vector
from saefast.train.auxk import AuxGradients, AuxK, auxk_gradients, dead_latents
from saefast.train.captured_step import CapturedStep, CudaGraph, Graph, Phases
from saefast.train.objectives import (
    ALWAYS,
    NEVER,
    WHEN_SPARSE,
    Current,
    Encoded,
    Forward,
    Objective,
    usual_objective,
)
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.rules import Rules, tethered
from saefast.types import Decay, SparseCode, Update

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


class _Started(NamedTuple):
    """A step on the fused path after its encode."""

    inputs: Tensor
    """[n, d] what the encoder multiplied"""
    encoded: Encoded
    report: Tensor | None
    """int64 [r + 1] that of the encode, and whether codes were dense in the step before"""


class FusedStep:
    """Trains an SAE in place, a batch at a time.

    On the fused path no weight gradient is stored: one pass over the latents sums it, removes its
    part along the decoder row, applies Adam, restores norm one and refreshes the packed encoder
    that the next step screens with. Results are the same bits for any number of threads.

    On a GPU nothing in a TopK step waits for the device. A step of BatchTopK, Matryoshka, ReLU or
    JumpReLU waits once, after its encode: a row's number of active latents has no bound but all of
    them, so the host must read whether the encode had places for every one before the code is
    used. Both kinds can be captured in CUDA graphs: see `capture`. Objectives that need it, or
    whose codes are dense, take the path of autograd.

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
        if sae.skip or sae.normalise != "none":
            raise ValueError("sae must not normalise rows or have a skip connection to train")
        self.sae, self.precision, self.auxk = sae, precision, auxk
        self.rules = rules or Rules()
        self.objective = objective or usual_objective(sae)
        self.now = Current(sae.k)
        sae.firing_rate = None  # it is about to change
        self.idle = torch.zeros(sae.m, dtype=torch.int64, device=sae.W_enc.device)
        # Nothing is known of the first codes, and dense ones cost the fused path most.
        dense = self.objective.fused != ALWAYS
        self._dense = torch.full((), dense, device=sae.W_enc.device)
        self._was_dense = dense  # what the host has last read of it
        self._pressure = torch.ones((), dtype=torch.float64, device=sae.W_enc.device)
        self._written_pressure = 1.0
        # The settings of the last step, if it was fused and its encode had all places it needed.
        self._compiled: tuple[object, ...] | None = None
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
        self._was_dense = self.objective.fused == WHEN_SPARSE  # until it is read

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor | None = None) -> StepResult:
        """Train on x [n, d]; `target` [n, d_out], if something else is to be reconstructed."""
        target = self._check(x, target)
        self._prepare()
        self._compiled = None
        if self._is_dense(x):
            return self._finish(self._by_autograd(x, target), len(x))
        settings, started = self._settings(len(x)), self._encode(x)
        complete = self._complete(started)
        if complete is None:
            return self._finish(self._by_autograd(x, target), len(x))
        if complete is started and (started.report is None) == (self.objective.room is None):
            self._compiled = settings
        return self._train(x, target, complete)

    def _is_dense(self, x: Tensor) -> bool:
        """Whether the path of autograd is to be taken, as far as is known before the encode."""
        if self.objective.fused != WHEN_SPARSE:
            return self.objective.fused == NEVER
        # On a GPU, after a sparse step, it is read together with the report of the encode.
        if self._was_dense or not gpu.has(x):
            self._was_dense = bool(self._dense)
        return self._was_dense

    def _prepare(self) -> None:
        """Write to the device what schedules have changed, where a replay finds it."""
        if self._written_pressure != self.now.pressure:
            self._written_pressure = float(self.now.pressure)
            self._pressure.fill_(self._written_pressure)

    def _current(self, x: Tensor) -> Current:
        """The settings of this step; on a GPU the pressure is read when kernels run."""
        return self.now._replace(pressure=self._pressure) if gpu.has(x) else self.now

    @torch.no_grad()
    def _encode(self, x: Tensor) -> _Started:
        """The first phase of a fused step; does not wait for a GPU."""
        inputs = self.sae.inputs(x)
        encoded = self.objective.encode(self._encoder, inputs, self._current(x))
        if encoded.report is None:
            return _Started(inputs, encoded, None)
        return _Started(inputs, encoded, torch.cat([encoded.report, self._dense.long()[None]]))

    def _complete(self, started: _Started) -> _Started | None:
        """The encode with all it lacked; None if the path of autograd is to be taken instead."""
        # The only wait of a step: see `Room` for why the host must know.
        if started.report is None or self._fits(started.report.tolist()):
            return started
        if self._was_dense:
            return None
        now = self._current(started.inputs)
        encoded = self.objective.encode_all(self._encoder, started.inputs, now)
        return started._replace(encoded=encoded)

    def _fits(self, report: Sequence[int]) -> bool:
        """Whether the code with this report can be used."""
        *found, dense = report
        self._was_dense = bool(dense)
        return self.objective.fits(found) and not self._was_dense

    @torch.no_grad()
    def _train(self, x: Tensor, target: Tensor, started: _Started) -> StepResult:
        """The second phase of a fused step; does not wait for a GPU."""
        return self._finish(self._fused(x, target, started), len(x))

    def _finish(self, result: StepResult, n: int) -> StepResult:
        """What follows the update, on both paths."""
        if "jump_threshold" in self.adam.moments:
            self.sae.jump_threshold.clamp_(min=0)  # activations are not negative
        if self.rules.tether is not None and self.rules.frozen != "decoder":
            assert self._anchors is not None
            self.sae.W_dec.copy_(tethered(self.sae.W_dec, self._anchors, self.rules.tether))
        if self.objective.fused == WHEN_SPARSE:
            share = result.fired.sum().double() / (n * self.sae.m)
            self._dense.copy_((share > _TOO_DENSE) | (self._dense & (share > _SPARSE_ENOUGH)))
        return result

    def _fused(self, x: Tensor, target: Tensor, started: _Started) -> StepResult:
        rules, inputs = self.rules, started.inputs
        forward = self.objective.forward(self._encoder, started.encoded, target, self._current(x))
        several = forward.group_ends is not None
        # That of the group that is part of every reconstruction, and of the whole one.
        every, whole = (
            (forward.residual[0], forward.residual[-1]) if several else (forward.residual,) * 2
        )
        groups = len(forward.residual) if several else 1
        extra = self._auxk(inputs, whole, -len(x) * groups / 2.0)
        rates = self.adam.next_rates()
        latents = latent_pass(self._update(forward, inputs, extra, rates))
        gradients = {"b_dec": column_sum(every)}
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
        self.adam.finish(vectors, factor, rates, self.idle, fired, len(x))
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
        reference.count_idle(self.idle, loss.fired, len(x))
        auxk = extra.loss if extra else None
        squares = loss.squares.double()
        return StepResult(loss.value.detach().double(), squares, loss.fired, auxk, "autograd")

    def capture(
        self,
        x: Tensor,
        target: Tensor | None = None,
        *,
        graph: Callable[[Any], Graph] = CudaGraph,
    ) -> CapturedStep[_Started, StepResult]:
        """Make a step on batches shaped like x that is recorded once and then replayed.

        Replays leave the host little to do. TopK is one graph, and nothing waits for it; the other
        variants are two graphs with one read between, see `FusedStep`. `lr`, `now` and the weights
        may change at any time. Steps are taken as usual until one like them has compiled the
        kernels, where k has changed, where an encode lacked places, and while codes are dense.

        Args:
            x: [n, d] a batch, for its shape.
            target: [n, d_out] what is to be reconstructed, if it is not x.
            graph: makes what records and replays: see `captured_step.Graph`.

        Returns:
            what takes a step on (x) or (x, target), as the step itself does. The tensors of its
            result are overwritten by the next step.
        """
        self._check(x, target)
        if not gpu.has(x):
            raise ValueError(f"capture needs an SAE on a CUDA device, got {x.device}")
        if self.objective.fused == NEVER:
            raise ValueError(
                f"capture records fused steps, and {type(self.objective).__name__} is trained by "
                "autograd: call the step itself"
            )
        if not self._served():
            raise ValueError(
                f"capture needs the GPU kernels, which serve float32 and k up to "
                f"{gpu.kernels('topk_encode').MOST_KEPT}, got {self.sae.W_enc.dtype} and "
                f"{self.now.k}: call the step itself"
            )
        n = len(x)
        phases = Phases(
            lambda: self._kind(n),
            self._prepare,
            self._encode,
            self._fits,
            self._train,
            self.__call__,
        )
        return CapturedStep(phases, x, target, graph)

    def _served(self) -> bool:
        """Whether the kernels of a GPU serve all of a fused step."""
        most: int = gpu.kernels("topk_encode").MOST_KEPT
        return gpu.serves(self.sae.W_enc) and self.now.k <= most

    def _settings(self, n: int) -> tuple[object, ...]:
        """What decides on the kernels of a fused step on n rows."""
        return n, self.now.k, self.objective.room, self.auxk

    def _kind(self, n: int) -> Hashable:
        """What a recording of a step on n rows holds fixed; None while there can be none."""
        settings, packed = self._settings(n), self._encoder.packed
        if self._was_dense or self._compiled != settings or not self._served():
            return None
        if packed is None:
            return settings
        # Where the packed weights are not fresh, the next step packs them anew.
        where = tuple(array.data_ptr() for array in packed.arrays)
        return (*settings, where) if self._encoder.fresh else None

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

    def _vectors(self, gradients: Mapping[str, Tensor], input_grad_sum: Tensor) -> list[Vector]:
        """Pair vectors with gradients; b_dec's reaches it through the encoder's inputs, too."""
        return self.adam.vectors(gradients, input_grad_sum if self.sae.centred else None)

    def _update(
        self, forward: Forward, inputs: Tensor, extra: AuxGradients | None, rates: Tensor
    ) -> Update:
        """The update of the latents, whose `factor` is not known yet."""
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
        )

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

    def _auxk(self, inputs: Tensor, residual: Tensor, scale: float = 1.0) -> AuxGradients | None:
        """Return the loss of dead latents, which explain target - reconstruction.

        That is `scale` times `residual`.
        """
        if self.auxk is None:
            return None
        sae = self.sae
        return auxk_gradients(
            inputs,
            residual,
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            dead_latents(self.idle, self.auxk),
            self.auxk,
            scale=scale,
            rounded=self.precision != "exact",
        )
