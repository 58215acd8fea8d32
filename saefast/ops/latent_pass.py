"""Pass over the latents of a training step: measure gradients, then apply them."""

from typing import Any, Protocol

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.ops.cpu import native, threads
from saefast.ops.update_operands import (
    MUTATED,
    check,
    check_packed,
    check_scalars,
    contiguous,
)
from saefast.types import Update

MOST_STORED = 2**28
"""Bytes of gradients up to which the CPU stores them between measuring and applying them: the size
up to which csrc/buffer.h keeps memory for the next step."""


class LatentPass(Protocol):
    """Measures the gradients of an update (optional), then applies them.

    On a GPU both share the sort of the code by latent and the sums over long runs.
    """

    def squares(self) -> tuple[Tensor, Tensor]:
        """Compute `gradient_squares`."""
        ...

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply `latent_update` with this `factor`; the pass cannot be used afterwards."""
        ...


def latent_pass(update: Update) -> LatentPass:
    """Prepare an update by the kernels of its device, or by the reference without kernels."""
    if not gpu.has(update.w_enc):
        return _OnCpu(contiguous(update))
    return _OnGpu(update) if gpu.serves(update.w_enc) else _ByReference(update)


class _OnCpu:
    """Pass on the CPU: a run of the C++ kernel, which checks operands, for each method.

    The gradients are stored between the two runs unless they are large, which saves the second run
    the sums over tokens.
    """

    def __init__(self, operands: Update) -> None:
        self._operands = operands
        self._measured: tuple[native.StoredGradients, Tensor, Tensor] | None = None
        """gradients of the latents, and the results of `update`, once `squares` knows them"""

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        squares = torch.zeros(len(self._operands.b_enc), dtype=torch.float64, device="cpu")
        weight = self._operands.w_enc
        width = weight.shape[1] + self._operands.w_dec.shape[1] + 1
        stored = None
        if len(weight) * width * weight.itemsize <= MOST_STORED:
            stored = native.StoredGradients(len(weight), width, weight.itemsize)
        results = self._run(self._operands, squares, stored)
        if stored is not None:
            self._measured = (stored, *results)
        return results[0], squares

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        operands = self._operands._replace(factor=factor)
        if self._measured is None:
            results = self._run(operands, None, None)
        else:
            stored, *measured = self._measured
            native.latent_update(operands, None, None, None, None, stored, threads())
            results = (measured[0], measured[1])
        _changed(operands)
        return results

    def _run(
        self, operands: Update, squares: Tensor | None, stored: native.StoredGradients | None
    ) -> tuple[Tensor, Tensor]:
        """Add to `squares` [m] if it is given, otherwise apply the update."""
        m, d = operands.w_enc.shape
        input_grad_sum = operands.w_enc.new_empty(d)
        fired = torch.empty(m, dtype=torch.int64, device="cpu")
        native.latent_update(operands, input_grad_sum, None, fired, squares, stored, threads())
        return input_grad_sum, fired


class _OnGpu:
    """Pass on a GPU: one pass of the Triton kernels."""

    def __init__(self, operands: Update) -> None:
        check(operands)
        m, d = operands.w_enc.shape
        check_packed(operands, (m, gpu.kernels("round_rows").padded_width(d)))
        self._operands = operands
        self._kernels: Any = gpu.kernels("update.latent_update").LatentPass(contiguous(operands))

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        with gpu.device_of(self._operands.w_enc):
            measured: tuple[Tensor, Tensor] = self._kernels.squares()
        return measured

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        check_scalars("factor", factor, (), self._operands.w_enc)
        with gpu.device_of(self._operands.w_enc):
            updated: tuple[Tensor, Tensor] = self._kernels.update(factor)
        _changed(self._operands)
        return updated


class _ByReference:
    """Pass in plain torch, which shares no intermediate results."""

    def __init__(self, operands: Update) -> None:
        check(operands)
        self._operands = operands

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        return reference.gradient_squares(self._operands)

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        check_scalars("factor", factor, (), self._operands.w_enc)
        return reference.latent_update(self._operands._replace(factor=factor))


def _changed(operands: Update) -> None:
    """Increase the version counters of tensors changed in place, which caches compare."""
    changed = (getattr(operands, name) for name in MUTATED)
    torch.autograd.graph.increment_version([tensor for tensor in changed if tensor is not None])
