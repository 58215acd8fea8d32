"""BatchTopK (Bussmann et al. 2024) and Matryoshka: n rows share n * k active latents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.ops import gpu
from saefast.ops.batch_topk import SLACK
from saefast.ops.keep_of_batch import keep_of_batch
from saefast.sae import SAE
from saefast.train.objectives.dense import fired_of, scores_of, squared_error
from saefast.train.objectives.forward import Current, Encoded, Forward, FusedPath, Loss
from saefast.train.objectives.room import Room
from saefast.train.objectives.topk import of_listed
from saefast.train.packed_encoder import PackedEncoder
from saefast.types import SparseCode

_FORGETTING = 0.001  # final weight of the running mean of thresholds, as in the authors' code
_YOUNG = 10.0  # initially the mean covers a tenth of the steps so far: thresholds fall quickly
_ROOM_PER_K = 4  # initial capacity of a row, in multiples of k


class BatchTopK:
    """Squared error of the reconstruction by the batch's n * k largest positive pre-activations.

    The smallest value kept, averaged over steps, becomes the SAE's threshold.

    Args:
        sae: the SAE to train.
    """

    fused = FusedPath.ALWAYS

    def __init__(self, sae: SAE) -> None:
        self._seen = torch.zeros((), dtype=torch.float64, device=sae.W_enc.device)
        self._places = Room(_ROOM_PER_K * sae.k)
        # On the device, so that no step waits for the threshold of the previous step.
        self._guess: Tensor | None = None

    @property
    def room(self) -> int:
        """See `Objective`."""
        return self._places.places

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        if self._guess is None or not gpu.has(inputs):
            return self.encode_all(encoder, inputs, now)
        wanted = len(inputs) * now.k
        found = encoder.above_in(self.room, inputs, self._guess, wanted)
        values, indices, kept, smallest = keep_of_batch(found.values, found.indices, wanted)
        complete = (found.counts.sum() >= wanted) | (self._guess <= 0)
        report = torch.stack([found.counts.amax(), complete.long()])
        return Encoded(SparseCode(values, indices), kept, smallest, report)

    def fits(self, report: Sequence[int]) -> bool:
        """See `Objective`."""
        longest, complete = report
        return self._places.fits(longest) and bool(complete)

    def encode_all(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        # On a GPU the guess has been tried already: it was too high, or room was lacking.
        guess = None if gpu.has(inputs) else self._guess
        found = encoder.largest_of_batch(inputs, now.k, guess, self.room)
        # Leave a margin: a guess that is slightly too low finds more latents than are kept.
        self._places.fits(int(found.counts.amax()) * 4 // 3)
        return Encoded(found.code, found.counts, found.threshold)

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        self._learn(encoder.sae, encoded, now)
        return of_listed(encoder, encoded.code, target)

    def _learn(self, sae: SAE, encoded: Encoded, now: Current) -> None:
        """Update the SAE's threshold by the batch's threshold, and guess the next one."""
        threshold, counts = encoded.threshold, encoded.counts
        assert threshold is not None
        assert counts is not None
        self._follow(sae, threshold)
        # With fewer positive latents than wanted, the next batch is encoded with threshold zero.
        guess = torch.where(counts.sum() >= len(counts) * now.k, SLACK * threshold, 0.0)
        if self._guess is None:
            self._guess = guess
        else:  # in place, so that a captured step reads it
            self._guess.copy_(guess)

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
    """Mean of the squared errors of nested prefixes of the latents (Bussmann et al. 2025).

    Args:
        sae: the SAE to train.
        shares: share of the latents in each nested group; the last group has the rest.
    """

    def __init__(self, sae: SAE, shares: Sequence[float]) -> None:
        super().__init__(sae)
        self._ends = group_ends(sae.m, shares).to(sae.W_enc.device)

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        self._learn(encoder.sae, encoded, now)
        rows = len(target) * len(self._ends)
        residual, value_grads, squares = encoder.prefixes(
            encoded.code, target, self._ends, 2.0 / rows
        )
        loss = squares.sum() / rows
        return Forward(
            encoded.code, residual, value_grads, squares[-1], loss, group_ends=self._ends
        )

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
    """Return the ends of groups with these shares of m latents; the last group has the rest."""
    ends = [0]
    for share in shares:
        ends.append(min(m, ends[-1] + max(1, round(share * m))))
    ends = sorted({*ends[1:], m})
    return torch.tensor(ends, device="cpu")


def largest_of_batch(scores: Tensor, k: int) -> Tensor:
    """Keep the n * k largest positive scores [n, m], set others to zero; ties by memory order."""
    positive = scores.relu()
    flat = positive.flatten()
    order = flat.sort(descending=True, stable=True).indices[: len(scores) * k]
    kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True)
    return positive * kept.view_as(positive)
