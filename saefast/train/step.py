"""Training step of an SAE on the fused ops: forward pass, loss, gradients, Adam, constraints."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.encode_gpu import selects
from saefast.sae import SAE
from saefast.train.captured_step import CapturedStep, CudaGraph, Graph, Phases
from saefast.train.objectives import Current, Encoded, FusedPath, Loss, Objective, usual_objective
from saefast.train.optimizer import Adam
from saefast.train.ranks.assemble import assemble
from saefast.train.ranks.group import ALONE, Ranks
from saefast.train.ranks.share import Share
from saefast.train.settings import ROUNDED_VARIANTS, STEP_PRECISIONS, AuxK, Rules
from saefast.train.step_result import StepResult

_TOO_DENSE, _SPARSE_ENOUGH = 1 / 5, 1 / 6
"""Shares of active latents per row: above the first, dense products and stored gradients are faster
than the fused path; below the second, the fused path is used again."""


class _Started(NamedTuple):
    """State of a step on the fused path after its encode."""

    inputs: Tensor
    """[n, d] inputs of the encoder"""
    encoded: Encoded
    report: Tensor | None
    """[r + 1] int64, report of the encode, and whether codes of the previous step were dense"""


class FusedStep:
    """Training step that updates an SAE in place, one batch at a time.

    The fused path does not store weight gradients: one pass over the latents sums the gradient,
    removes its component along the decoder row, applies Adam, restores norm one and refreshes the
    packed encoder with which the next step screens. With clipping, a CPU stores gradients of up to
    256 MB between measuring them and applying them. Results are bitwise identical for any number of
    threads.

    On a GPU, a TopK step never waits for the device. A step of BatchTopK, Matryoshka, ReLU or
    JumpReLU waits once, after its encode: the number of active latents of a row is bounded only by
    the number of latents, so the host must read whether the encode had room for all of them before
    the code is used. Both kinds can be captured in CUDA graphs, see `capture`. Objectives without a
    fused path, and steps with dense codes, use autograd.

    On a GPU, Triton kernels support every rule, objective and precision of the fused path. Plain
    torch computes the rest: SAEs in float64, encodes with k > 1024, and Gated SAEs and custom
    losses, which have no fused path.

    Args:
        sae: a float32 or float64 SAE.
        lr: learning rate of Adam; assign `step.lr` to change it.
        rules: rules of the weight updates; None: `Rules()`.
        objective: training objective; None: the default of the SAE's variant.
        precision: "exact" or "bf16", as in `topk_encode`; "bf16_weights" also rounds the decoder to
            bfloat16 when it is multiplied. The trained weights are float32 in any case.
        auxk: settings of the auxiliary loss that revives dead latents; None disables it.
        ranks: ranks that train the SAE together, each with a step of its own on the same batches.
            `step.sae` then holds this rank's share of the weights, and `sae` is not updated.
        share: the share of this rank, if `sae` is that share, which is then updated; its decoder
            rows have the norms that the rules demand. None: `sae` is whole.
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
        ranks: Ranks = ALONE,
        share: Share | None = None,
    ) -> None:
        checks.one_of("precision", precision, STEP_PRECISIONS)
        checks.at_least_float32("sae", sae.W_enc)
        checks.at_least("lr", lr, 0)
        if sae.skip or sae.normalise != "none":
            raise ValueError("sae must not normalise rows or have a skip connection to train")
        self.precision, self.auxk = precision, auxk
        self.rules = rules or Rules()
        self.objective = objective or usual_objective(sae)
        self.now = Current(sae.k)
        sae.firing_rate = None  # training invalidates it
        self.idle = torch.zeros(sae.m, dtype=torch.int64, device=sae.W_enc.device)
        # The density of the first codes is unknown, and dense codes cost most on the fused path.
        dense = self.objective.fused is not FusedPath.ALWAYS
        self._dense = torch.full((), dense, device=sae.W_enc.device)
        self._was_dense = dense  # last value read by the host
        self._pressure = torch.ones((), dtype=torch.float64, device=sae.W_enc.device)
        self._written_pressure = 1.0
        # Settings of the last step, if it was fused and its encode had room for all latents.
        self._compiled: tuple[object, ...] | None = None
        for name, parameter in sae.named_parameters():
            checks.writable(name, parameter)
        rounded = precision == "bf16_weights"
        if rounded and self.objective.fused is not FusedPath.ALWAYS:
            raise ValueError(
                f"precision='bf16_weights' needs variant {' or '.join(ROUNDED_VARIANTS)} and no "
                f"custom loss, got {sae.variant} with {type(self.objective).__name__}"
            )
        if self.rules.unit_norm and share is None:
            with torch.no_grad():
                reference.normalise_rows(sae.W_dec)
        self.sae, self._encoder, self._learner, self.share = assemble(
            sae, self.objective, self.rules, lr, precision, ranks, share
        )

    @property
    def adam(self) -> Adam:
        """The moments, the learning rate and the number of steps."""
        return self._learner.adam

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self.adam.lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self.adam.lr.fill_(value)

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(self.adam.steps)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state on which the next step depends, apart from settings, without copying."""
        state = {name: tensor.detach() for name, tensor in self.sae.state_dict().items()}
        state |= self.adam.state | {"idle": self.idle, "dense": self._dense}
        state |= {f"objective.{name}": value for name, value in self.objective.state.items()}
        if self._learner.anchors is not None:
            state["anchors"] = self._learner.anchors
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the state of another step.

        Args:
            state_dict: result of `state_dict`: tensors of the same names and shapes.
        """
        mine = self.state_dict()
        if mine.keys() != state_dict.keys():
            raise ValueError(
                f"state_dict must hold {', '.join(sorted(mine))}, got "
                f"{', '.join(sorted(state_dict))}"
            )
        for name, value in state_dict.items():
            checks.shape(name, value, tuple(mine[name].shape))
            checks.dtype(name, value, mine[name].dtype)
            mine[name].copy_(value)
        self._encoder.forget()
        self._was_dense = self.objective.fused is FusedPath.WHEN_SPARSE  # until it is read

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor | None = None) -> StepResult:
        """Train on one batch.

        Args:
            x: [n, d] activations, with the dtype and device of the SAE.
            target: [n, d_out] rows to reconstruct; None: x.

        Returns:
            Loss and statistics of the batch, computed before the update.
        """
        target = self._check(x, target)
        self._prepare()
        self._compiled = None
        if self._is_dense(x):
            return self._by_autograd(x, target)
        settings, started = self._settings(len(x)), self._encode(x)
        complete = self._complete(started)
        if complete is None:
            return self._by_autograd(x, target)
        if complete is started and (started.report is None) == (self.objective.room is None):
            self._compiled = settings
        return self._train(x, target, complete)

    def _is_dense(self, x: Tensor) -> bool:
        """Return whether to use autograd, as far as is known before the encode."""
        if self.objective.fused is not FusedPath.WHEN_SPARSE:
            return self.objective.fused is FusedPath.NEVER
        # On a GPU, after a sparse step, the flag is read together with the report of the encode.
        if self._was_dense or not gpu.has(x):
            self._was_dense = bool(self._dense)
        return self._was_dense

    def _prepare(self) -> None:
        """Write scheduled values to the device memory from which a replay reads them."""
        if self._written_pressure != self.now.pressure:
            self._written_pressure = float(self.now.pressure)
            self._pressure.fill_(self._written_pressure)

    def _current(self, x: Tensor) -> Current:
        """Return the settings of this step; on a GPU kernels read the pressure when they run."""
        return self.now._replace(pressure=self._pressure) if gpu.has(x) else self.now

    @torch.no_grad()
    def _encode(self, x: Tensor) -> _Started:
        """Run the first phase of a fused step; does not wait for a GPU."""
        inputs = self.sae.inputs(x)
        encoded = self.objective.encode(self._encoder, inputs, self._current(x))
        if encoded.report is None:
            return _Started(inputs, encoded, None)
        return _Started(inputs, encoded, torch.cat([encoded.report, self._dense.long()[None]]))

    def _complete(self, started: _Started) -> _Started | None:
        """Repeat the encode if it lacked room; return None if autograd is to be used instead."""
        # The only wait of a step; `Room` explains why the host needs the report.
        if started.report is None or self._fits(started.report.tolist()):
            return started
        if self._was_dense:
            return None
        now = self._current(started.inputs)
        encoded = self.objective.encode_all(self._encoder, started.inputs, now)
        return started._replace(encoded=encoded)

    def _fits(self, report: Sequence[int]) -> bool:
        """Return whether the code with this report can be used."""
        *found, dense = report
        self._was_dense = bool(dense)
        return self.objective.fits(found) and not self._was_dense

    @torch.no_grad()
    def _train(self, x: Tensor, target: Tensor, started: _Started) -> StepResult:
        """Run the second phase of a fused step; does not wait for a GPU."""
        forward = self.objective.forward(self._encoder, started.encoded, target, self._current(x))
        return self._finish(self._learner.fused(forward, started.inputs, self.idle, self.auxk), x)

    def _by_autograd(self, x: Tensor, target: Tensor) -> StepResult:
        """Take the step by autograd."""

        def loss_of(sae: SAE) -> Loss:
            return self.objective.loss(sae, x, target, self.now)

        return self._finish(self._learner.by_autograd(loss_of, x, self.idle, self.auxk), x)

    def _finish(self, result: StepResult, x: Tensor) -> StepResult:
        """Update the flag of dense codes after a step on either path."""
        if self.objective.fused is FusedPath.WHEN_SPARSE:
            share = result.fired.sum().double() / (len(x) * self.sae.m)
            self._dense.copy_((share > _TOO_DENSE) | (self._dense & (share > _SPARSE_ENOUGH)))
        return result

    def capture(
        self,
        x: Tensor,
        target: Tensor | None = None,
        *,
        graph: Callable[[Any], Graph] = CudaGraph,
    ) -> CapturedStep[_Started, StepResult]:
        """Create a step for batches shaped like x that is recorded once and then replayed.

        Replays leave the host little to do. TopK uses one graph without a wait; the other variants
        use two graphs with one read between them, see `FusedStep`. `lr`, `now` and the weights may
        change at any time. Steps are taken without a graph until a step of the same kind has
        compiled the kernels, after a change of k, when an encode lacked room, and while codes are
        dense.

        Args:
            x: [n, d] example batch, for its shape.
            target: [n, d_out] example of the rows to reconstruct; None: x.
            graph: constructor of the object that records and replays, see `captured_step.Graph`.

        Returns:
            A callable that takes a step on (x) or (x, target), like the step itself. The tensors of
            its result are overwritten by the next step.
        """
        self._check(x, target)
        if not gpu.has(x):
            raise ValueError(f"capture needs an SAE on a CUDA device, got {x.device}")
        if self.objective.fused is FusedPath.NEVER:
            raise ValueError(
                f"capture records fused steps, but {type(self.objective).__name__} is trained by "
                "autograd; call the step instead"
            )
        if not self._served():
            most = gpu.kernels("encode.topk_encode").MOST_KEPT
            raise ValueError(
                f"capture needs the GPU kernels, which serve float32 and k up to {most}, got "
                f"{self.sae.W_enc.dtype} and {self.now.k}; call the step instead"
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
        """Return whether the GPU kernels support the whole fused step."""
        return selects(self.sae.W_enc, self.now.k)

    def _settings(self, n: int) -> tuple[object, ...]:
        """Return the settings that determine the kernels of a fused step on n rows."""
        return n, self.now.k, self.objective.room, self.auxk

    def _kind(self, n: int) -> Hashable:
        """Return the key of a recording of a step on n rows; None if it cannot be recorded yet."""
        settings, packed = self._settings(n), self._encoder.packed
        if self._was_dense or self._compiled != settings or not self._served():
            return None
        if packed is None:
            return settings
        # If the packed weights are not fresh, the next step packs them again.
        where = tuple(array.data_ptr() for array in packed.arrays)
        return (*settings, where) if self._encoder.fresh else None

    def _check(self, x: Tensor, target: Tensor | None) -> Tensor:
        """Check a batch and return the rows to reconstruct."""
        checks.floating("x", x, "[n, d]")
        checks.same_kind("the SAE", self.sae.W_enc, "x", x)
        checks.size("x", x, 1, self.sae.d, "the width of the SAE")
        if x.shape[0] == 0:
            raise ValueError("x must have at least one row, got shape (0, ...)")
        if target is None:
            if self.sae.transcodes:
                raise TypeError("target must be given for a transcoder: step(x, target)")
            return x
        checks.same_kind("the SAE", self.sae.W_dec, "target", target)
        checks.shape("target", target, (len(x), self.sae.d_out))
        return target
