"""BatchTopK (Bussmann et al. 2024) and its nested form: n * k latents are shared by n rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.objectives.dense import fired_of, scores_of, squared_error
from saefast.objectives.forward import Current, Forward, Loss
from saefast.objectives.topk import of_code
from saefast.ops.latent_sum import column_sum
from saefast.packed_encoder import PackedEncoder
from saefast.sae import SAE
from saefast.types import SparseCode

_FORGETTING = 0.001  # of the running mean of thresholds in the end, as in the authors' code
_YOUNG = 10.0  # at first the mean runs over a tenth of the steps so far: thresholds fall quickly
_SLACK = 0.9  # the guess of the next threshold, a little too low; decides on the time alone


class BatchTopK:
    """Squared error of the n * k largest positive pre-activations of the batch.

    The smallest one kept, averaged over steps, becomes the SAE's threshold.
    """

    fused = "always"

    def __init__(self, sae: SAE) -> None:
        self._seen = torch.zeros((), dtype=torch.float64, device=sae.W_enc.device)
        self._last: float | None = None
        self._width: int | None = None

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        return of_code(encoder, self.code(encoder, inputs, now), target)

    def code(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> SparseCode:
        """The batch's code; the SAE's threshold learns from it."""
        guess = None if self._last is None else _SLACK * self._last
        code, threshold, counts = encoder.largest_of_batch(inputs, now.k, guess, self._width)
        self._last, self._width = float(threshold), 2 * max(1, int(counts.amax()))
        self._follow(encoder.sae, threshold)
        return code

    def _follow(self, sae: SAE, threshold: Tensor) -> None:
        self._seen += 1
        share = (_YOUNG / self._seen).clamp(_FORGETTING, 1.0)
        sae.batch_threshold.lerp_(threshold.to(sae.batch_threshold.dtype), share.to(threshold))

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        return squared_error(sae, largest_of_batch(scores_of(sae, x), now.k), target)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {"thresholds_seen": self._seen}


class Matryoshka(BatchTopK):
    """The mean of the squared errors of nested prefixes of the latents (Bussmann et al. 2025)."""

    def __init__(self, sae: SAE, shares: Sequence[float]) -> None:
        super().__init__(sae)
        self._ends = group_ends(sae.m, shares).to(sae.W_enc.device)

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae, ops = encoder.sae, torch.ops.saefast
        values, indices = self.code(encoder, inputs, now)
        n, groups = len(target), len(self._ends)
        group = torch.searchsorted(self._ends, indices, right=True)
        active, decoder = values > 0, encoder.decoder
        members = [(group == g) & active for g in range(groups)]
        errors, error = [], sae.b_dec - target
        for member in members:
            error = error + ops.sparse_decode(values * member, indices, decoder, None)
            errors.append(error)
        squares = torch.stack([_total(error.square()) for error in errors])
        # What a group's latents see is the sum of the errors of all prefixes that hold the group.
        residual = torch.stack(errors).mul_(2.0 / (n * groups))
        for g in range(groups - 2, -1, -1):
            residual[g] += residual[g + 1]
        value_grads = torch.zeros_like(values)
        for rows, member in zip(residual, members, strict=True):
            # Places of other groups read the first row, again and again, which costs little.
            dots = ops.gather_dots(rows, decoder, torch.where(member, indices, 0))
            value_grads = torch.where(member, dots, value_grads)
        code = SparseCode(values, indices)
        loss = squares.sum() / (n * groups)
        return Forward(code, residual, value_grads, squares[-1], loss, group_ends=self._ends)

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        acts = largest_of_batch(scores_of(sae, x), now.k)
        errors = [
            target - (acts[:, :end] @ sae.W_dec[:end] + sae.b_dec) for end in self._ends.tolist()
        ]
        squares = torch.stack([error.square().sum() for error in errors])
        value = squares.sum() / (len(target) * len(errors))
        return Loss(value, squares[-1].detach(), errors[-1].detach(), fired_of(acts))


def group_ends(m: int, shares: Sequence[float]) -> Tensor:
    """Where the groups of m latents end that have these shares of them, the last one the rest."""
    ends = [0]
    for share in shares:
        ends.append(min(m, ends[-1] + max(1, round(share * m))))
    ends = sorted({*ends[1:], m})
    return torch.tensor(ends)


def largest_of_batch(scores: Tensor, k: int) -> Tensor:
    """The n * k largest positive scores, the rest zero; of equal ones the first in memory."""
    positive = scores.relu()
    flat = positive.flatten()
    order = flat.sort(descending=True, stable=True).indices[: len(scores) * k]
    kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True)
    return positive * kept.view_as(positive)


def _total(rows: Tensor) -> Tensor:
    """The sum of all, the same for any number of threads, float64 []."""
    return column_sum(rows).double().sum()
