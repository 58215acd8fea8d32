"""Objectives without a fused path: Gated SAEs and custom losses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saefast.sae import SAE
from saefast.train.objectives.dense import fired_of, scores_of
from saefast.train.objectives.forward import Current, Encoded, Forward, FusedPath, Loss
from saefast.train.packed_encoder import PackedEncoder


class Differentiated:
    """An objective without a fused path."""

    fused = FusedPath.NEVER
    room = None

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`; raises NotImplementedError, since there is no fused path."""
        raise NotImplementedError(f"{type(self).__name__} is trained by autograd alone")

    encode_all = encode

    def fits(self, report: Sequence[int]) -> bool:
        """See `Objective`; there are no reports."""
        return True

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`; raises NotImplementedError, since there is no fused path."""
        raise NotImplementedError(f"{type(self).__name__} is trained by autograd alone")

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


class Gated(Differentiated):
    """Squared error, an L1 penalty on the gates, and the squared error of the gates alone.

    As in Rajamanoharan et al. 2024, the decoder is held fixed in the last term.

    Args:
        sparsity: weight of the L1 penalty.
    """

    def __init__(self, sparsity: float) -> None:
        self._sparsity = sparsity

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        n = len(target)
        gates = scores_of(sae, x)
        magnitudes = ((gates - sae.b_enc) * sae.r_mag.exp() + sae.b_mag).relu()
        acts = torch.where(gates > 0, magnitudes, 0.0)
        error = target - (acts @ sae.W_dec + sae.b_dec)
        opened = gates.relu()
        by_gates = target - (opened @ sae.W_dec.detach() + sae.b_dec.detach())
        squares = error.square().sum()
        penalty = self._sparsity * now.pressure * (opened * sae.W_dec.norm(dim=1)).sum()
        value = (squares + penalty + by_gates.square().sum()) / n
        return Loss(value, squares.detach(), error.detach(), fired_of(acts))


class Custom(Differentiated):
    """Custom loss that autograd can differentiate.

    Args:
        function: loss(sae, x, target) -> [] of rows x [n, d] and target [n, d_out].
    """

    def __init__(self, function: Callable[[SAE, Tensor, Tensor], Tensor]) -> None:
        self._function = function

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`; x is encoded a second time for the reported statistics."""
        last, sae.k = sae.k, now.k  # the function encodes by the SAE, which does not know `now`
        try:
            return self._with_statistics(sae, x, target)
        finally:
            sae.k = last

    def _with_statistics(self, sae: SAE, x: Tensor, target: Tensor) -> Loss:
        value = self._function(sae, x, target)
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor [], got {type(value).__name__}")
        if value.ndim != 0 or not value.requires_grad:
            raise ValueError(
                f"loss must return a tensor [] that depends on the weights, got shape "
                f"{tuple(value.shape)} {'with' if value.requires_grad else 'without'} a gradient"
            )
        with torch.no_grad():
            code = sae.encode(x)
            error = target - sae.decode(code)
            ones = torch.ones_like(code.indices)
            fired = code.indices.new_zeros(sae.m)
            fired.index_add_(0, code.indices.flatten(), (ones * (code.values != 0)).flatten())
        return Loss(value, error.square().sum(), error, fired)
