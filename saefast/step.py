"""One training step of an SAE on the fused ops: forward, loss, gradient, Adam, constraints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import reference
from saefast.auxk import AuxGradients, AuxK, auxk_gradients, dead_latents
from saefast.objectives import Forward, Objective, objective_of
from saefast.ops import checks, gpu
from saefast.ops.latent_sum import column_sum
from saefast.ops.latent_update import gradient_squares, latent_update
from saefast.ops.topk_encode import PRECISIONS
from saefast.packed_encoder import PackedEncoder
from saefast.rules import Rules, tethered
from saefast.sae import SAE
from saefast.types import SparseCode

_TRAINED = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class StepResult:
    """What one step saw, before it changed the weights."""

    loss: Tensor
    """float64 [], without the loss of dead latents and without penalties"""
    squares: Tensor
    """the squared error, summed over the batch; float64 []"""
    code: SparseCode
    fired: Tensor
    """[m] on how many rows each latent's value was positive"""
    auxk: Tensor | None
    """the loss of the dead latents, if one was asked for"""


class FusedStep:
    """Trains an SAE in place, a batch at a time.

    No weight gradient is stored: one pass over the latents sums it, removes its part along the
    decoder row, applies Adam, restores norm one and refreshes the packed encoder that the next
    step screens with. Results are the same bits for any number of threads. On a GPU nothing in a
    TopK step waits for the device, so a whole step can be captured in a CUDA graph: see `capture`.

    Args:
        sae: a float32 or float64 SAE.
        lr: the learning rate of Adam; `step.lr = value` changes it.
        rules: how weights may move.
        objective: what is trained for; None: what is usual for the SAE's variant.
        precision: "exact" or "bf16", as in `topk_encode`.
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
        checks.one_of("precision", precision, PRECISIONS)
        checks.at_least_float32("sae", sae.W_enc)
        self.sae, self.precision, self.auxk = sae, precision, auxk
        self.rules = rules or Rules()
        self.objective = objective or objective_of(sae)
        self.k = sae.k
        # On the device, where a captured step finds what has become of them.
        self._lr = torch.tensor(lr, dtype=torch.float64, device=sae.W_enc.device)
        self._steps = torch.zeros_like(self._lr)
        self.idle = torch.zeros(sae.m, dtype=torch.int64, device=sae.W_enc.device)
        state = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
        for name, parameter in zip(_TRAINED, state, strict=True):
            checks.writable(name, parameter)
        self.moments = [
            torch.zeros_like(parameter) for parameter in state for _ in ("first", "second")
        ]
        if self.rules.unit_norm:
            with torch.no_grad():
                reference.normalise_rows(sae.W_dec)
        self._anchors = None if self.rules.tether is None else sae.W_dec.detach().clone()
        self._encoder = PackedEncoder(sae, precision)

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

    @property
    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the settings; the tensors themselves."""
        named = dict(self.sae.named_parameters())
        state = {name: parameter.detach() for name, parameter in named.items()}
        for i, name in enumerate(_TRAINED):
            state[f"{name}.first"], state[f"{name}.second"] = self.moments[2 * i : 2 * i + 2]
        state |= {"idle": self.idle, "steps": self._steps}
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

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor | None = None) -> StepResult:
        """Train on x [n, d]; `target`, if something else than x is to be reconstructed."""
        sae, rules, n = self.sae, self.rules, x.shape[0]
        self._check(x)
        target = x if target is None else target
        inputs = x - sae.b_dec
        forward = self.objective.forward(self._encoder, inputs, target, self.k)
        extra = self._auxk(inputs, target, forward)
        self._steps += 1
        rates = reference.adam_rates(self._lr, self._steps, *rules.betas)
        gradient_sum = column_sum(_of_all(forward))
        arguments = self._arguments(forward, inputs, extra, rates)
        switches = self._switches(forward)
        if rules.clip is not None:
            input_grad_sum, squares = gradient_squares(*arguments, **switches)
            factor = _factor(squares, gradient_sum - input_grad_sum, rules.clip)
            switches["factor"] = factor
        input_grad_sum, fired = latent_update(*arguments, **switches)
        self._encoder.refreshed()
        bias_gradient = gradient_sum - input_grad_sum
        if rules.clip is not None:
            bias_gradient *= factor
        self._adam(sae.b_dec, self.moments[6:], bias_gradient, rates)
        if rules.tether is not None and rules.frozen != "decoder":
            assert self._anchors is not None
            sae.W_dec.copy_(tethered(sae.W_dec, self._anchors, rules.tether))
        self.idle += n
        self.idle.masked_fill_(fired > 0, 0)
        auxk = extra.loss if extra else None
        return StepResult(forward.loss, forward.squares, forward.code, fired, auxk)

    def capture(self, x: Tensor) -> Callable[[Tensor], StepResult]:
        """A step on batches shaped like x, recorded once and replayed without the host.

        Take a step with such a batch first: it compiles the kernels and allocates what they need.
        The result's tensors are overwritten by the next replay. Weights must change only through
        steps; the learning rate may change at any time.
        """
        self._check(x)
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

    def _check(self, x: Tensor) -> None:
        checks.floating("x", x, "[n, d]")
        checks.same_kind("the SAE", self.sae.W_enc, "x", x)
        checks.size("x", x, 1, self.sae.d, "the width of the SAE")
        if x.shape[0] == 0:
            raise ValueError("x must have at least one row, got shape (0, ...)")

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
            *self.moments[:6],
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
            **rules.decay_of(self.sae)._asdict(),
            "group_ends": forward.group_ends,
        }

    def _adam(
        self, parameter: Tensor, moments: list[Tensor], gradient: Tensor, rates: Tensor
    ) -> None:
        first, second = moments
        beta1, beta2 = self.rules.betas
        reference.adam(
            parameter,
            first,
            second,
            gradient,
            rates,
            beta1=beta1,
            beta2=beta2,
            eps=self.rules.eps,
        )

    def _auxk(self, inputs: Tensor, target: Tensor, forward: Forward) -> AuxGradients | None:
        if self.auxk is None:
            return None
        sae, n = self.sae, target.shape[0]
        last = forward.residual if forward.group_ends is None else forward.residual[-1]
        groups = 1 if forward.group_ends is None else len(forward.group_ends)
        return auxk_gradients(
            inputs,
            last * (-n * groups / 2.0),
            sae.W_enc,
            sae.b_enc,
            sae.W_dec,
            dead_latents(self.idle, self.auxk),
            self.auxk,
            rounded=self.precision == "bf16",
        )


def _of_all(forward: Forward) -> Tensor:
    """The gradient by what every reconstruction adds: the first group's, which is part of all."""
    return forward.residual if forward.group_ends is None else forward.residual[0]


def _factor(squares: Tensor, bias_gradient: Tensor, clip: float) -> Tensor:
    """What a gradient is multiplied by so that it is not longer than `clip`; float64 []."""
    square = column_sum(squares[:, None]).squeeze(0) + bias_gradient.double().square().sum()
    return (clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
