"""Encodes with a weight that stays packed for the screening product between calls."""

from typing import Any

import torch
from torch import Tensor

from saefast.ops.derived import Derived
from saefast.ops.encode_gradients import encode_gradients, of_active
from saefast.ops.encode_packed import Packed, encode_packed, repacked, threshold_packed
from saefast.ops.threshold_encode import check_threshold_encode, threshold_encode
from saefast.ops.topk_encode import check_topk_encode, topk_encode
from saefast.types import SparseCode, ThresholdCode

_PRECISION = "exact"


class CachedEncoder:
    """Encoder that packs its weight again only when it has changed.

    Packing reads the whole weight and writes it in the format of the screening product, which takes
    longer than encoding a few rows. The packed weight takes 2 bytes for each entry of the weight if
    the screen multiplies bfloat16 or 16-bit integers, 4 if it multiplies float32, and up to 12
    bytes for each latent. `forget` frees it. See `Derived` for the detection of changes.
    """

    def __init__(self) -> None:
        self._packed: Derived[Packed | None] = Derived()

    def forget(self) -> None:
        """Free the packed weight; the next encode packs it again."""
        self._packed.forget()

    def topk(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        k: int,
        scale: Tensor | None = None,
        scale_source: Tensor | None = None,
        precision: str = _PRECISION,
        absolute: bool = False,
    ) -> SparseCode:
        """Compute `topk_encode`, with the same bits and gradients.

        The weight stays packed for exact encodes only.

        If `scale` is recomputed for each call, `scale_source` is the tensor from which it is
        computed: the weight times `scale` is packed again when the source has changed.

        Returns:
            Code [n, k].
        """
        if precision != _PRECISION or not Derived.tracks(x, weight, bias, scale, scale_source):
            return topk_encode(
                x, weight, bias, k=k, scale=scale, precision=precision, absolute=absolute
            )
        check_topk_encode(x, weight, bias, scale, k, _PRECISION)
        packed = self._pack(x, weight, scale, scale_source, k)
        operands = (x, weight, bias, scale)
        if not _differentiates(*operands):
            return _encode(*operands, k, packed, absolute)
        values, indices = _TopK.apply(*operands, k, packed, absolute)  # type: ignore[no-untyped-call]
        return SparseCode(values, indices)

    def above(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        threshold: Tensor,
        width: int,
        precision: str = _PRECISION,
    ) -> ThresholdCode:
        """Compute `threshold_encode`, with the same bits and gradients, see `topk`."""
        if precision != _PRECISION or not Derived.tracks(x, weight, bias, threshold):
            return threshold_encode(
                x, weight, bias, threshold=threshold, width=width, precision=precision
            )
        check_threshold_encode(x, weight, bias, None, threshold, width, _PRECISION)
        threshold = threshold.detach().to(torch.promote_types(weight.dtype, torch.float32))
        packed = self._pack(x, weight, None, None, width)
        if not _differentiates(x, weight, bias):
            return _threshold(x, weight, bias, threshold, width, packed)
        values, indices, counts = _Above.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, threshold, width, packed
        )
        return ThresholdCode(values, indices, counts)

    def _pack(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        scale_source: Tensor | None,
        k: int,
    ) -> Packed | None:
        source = scale if scale is None or scale_source is None else scale_source
        sources = [weight] if source is None else [weight, source]

        def pack() -> Packed | None:
            with torch.no_grad():
                return repacked(None, False, x, weight, k, _PRECISION, scale)

        return self._packed.get(sources, pack)


def _differentiates(*operands: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        operand is not None and operand.requires_grad for operand in operands
    )


def _encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    packed: Packed | None,
    absolute: bool,
) -> SparseCode:
    return encode_packed(
        x, weight, bias, k, _PRECISION, packed, scale, absolute=absolute, check_finite=True
    )


def _threshold(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    width: int,
    packed: Packed | None,
) -> ThresholdCode:
    return threshold_packed(
        x, weight, bias, threshold, width, _PRECISION, packed, check_finite=True
    )


class _TopK(torch.autograd.Function):
    """`topk_encode` with a packed weight."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        k: int,
        packed: Packed | None,
        absolute: bool,
    ) -> tuple[Tensor, Tensor]:
        code = _encode(x, weight, bias, scale, k, packed, absolute)
        return code.values, code.indices

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:4], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, indices = ctx.saved_tensors
        needed = ctx.needs_input_grad
        gradients = encode_gradients(grads[0], indices, x, weight, bias, scale, needed)
        return (*gradients, None, None, None)


class _Above(torch.autograd.Function):
    """`threshold_encode` with a packed weight."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        threshold: Tensor,
        width: int,
        packed: Packed | None,
    ) -> ThresholdCode:
        return _threshold(x, weight, bias, threshold, width, packed)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:3], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, indices, counts = ctx.saved_tensors
        grad = of_active(grads[0], counts)
        needed = (*ctx.needs_input_grad[:3], False)
        gradients = encode_gradients(grad, indices, x, weight, bias, None, needed)
        return (*gradients[:3], None, None, None)
