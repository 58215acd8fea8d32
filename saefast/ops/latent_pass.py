"""The pass over the latents of a training step: gradients are measured, then applied."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saefast.ops import gpu
from saefast.ops.latent_update import check_on_gpu, gradient_squares, latent_update, on_gpu
from saefast.ops.update_operands import MUTATED, Update


class LatentPass(Protocol):
    """Measures the gradients of an update, or applies them, or does first one and then the other.

    On a GPU both share the sort of the code by latent and the sums over long runs.
    """

    def squares(self) -> tuple[Tensor, Tensor]:
        """Return what `gradient_squares` does."""
        ...

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Do what `latent_update` does with this `factor`; ends the pass."""
        ...


def latent_pass(*arguments: Any, **switches: Any) -> LatentPass:
    """Prepare `latent_update` with the operands of `Update`, whose `factor` is not given yet."""
    update = Update(*arguments, **switches)
    served = gpu.has(update.w_enc) and gpu.serves(update.w_enc)
    return _OnGpu(update) if served else _ByOps(update)


class _ByOps(NamedTuple):
    """Runs two ops, which share no intermediate result."""

    operands: Update

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        measured: tuple[Tensor, Tensor] = gradient_squares(*self.operands)
        return measured

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        updated: tuple[Tensor, Tensor] = latent_update(*self.operands._replace(factor=factor))
        return updated


class _OnGpu:
    """Runs one pass of the Triton kernels."""

    def __init__(self, operands: Update) -> None:
        check_on_gpu(operands)
        self._kernels = on_gpu(operands)
        self._weight = operands.w_enc
        self._mutated = [
            tensor for name in MUTATED if (tensor := getattr(operands, name)) is not None
        ]

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        with gpu.device_of(self._weight):
            measured: tuple[Tensor, Tensor] = self._kernels.squares()
        return measured

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        with gpu.device_of(self._weight):
            updated: tuple[Tensor, Tensor] = self._kernels.update(factor)
        # As an op does that is known to change them: a packed encoder compares versions.
        torch.autograd.graph.increment_version(self._mutated)
        return updated
