"""Encode the latents of each row above a threshold, without the matrix of all pre-activations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.backends import use_reference
from saefast.ops.encode_cpu import threshold_on_cpu
from saefast.ops.encode_gpu import threshold_on_gpu
from saefast.ops.encode_gradients import encode_gradients, of_active
from saefast.ops.immediate import immediate, refuse_transforms
from saefast.ops.screens import screen_at
from saefast.ops.topk_encode import PRECISIONS
from saefast.types import ThresholdCode


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: Tensor | float,
    width: int,
    scale: Tensor | None = None,
    precision: str = "exact",
    impl: str = "auto",
) -> ThresholdCode:
    """Select the scores (x @ weight.T + bias) * scale above a threshold in every row.

    Their number depends on the row. At most `width` of them are returned; if `counts.max() >
    width`, call again with a larger width to get all of them.

    Args:
        x: [n, d] rows to encode; must be finite.
        weight: [m, d] one row per latent; must be finite.
        bias: [m]; -infinity masks a latent. None adds nothing.
        threshold: [m], or one number for all latents: 0 for ReLU, the smallest value kept in
            training for BatchTopK. A latent is active if its score is strictly above its threshold,
            and never if the threshold is infinity. A tensor must have the dtype of scores: weight's
            own, or float32 for a bfloat16 weight; a Python number is rounded to it.
        width: maximum number of latents per row, from 1 to m; the largest scores are returned.
        scale: [m] factors of the scores, such as the norms of decoder rows. None: ones.
        precision: "exact" compares scores in the dtype of x (float32 for bfloat16). "bf16" rounds
            x and weight to bfloat16 and compares the resulting scores, which is faster.
        impl: "auto" chooses by device; "reference", "cpp" and "triton" select an implementation.

    Returns:
        Values [n, width] and int64 indices [n, width], by descending value, equal values by
        ascending index, padded with zeros; and counts [n] int64, the number of scores of each row
        above their threshold. Differentiable in `x`, `weight`, `bias` and `scale`.
    """
    checks.encode_operands(x, weight, bias, scale)
    if not isinstance(threshold, Tensor):
        threshold = _of_number(threshold, weight)
    check_threshold_encode(x, weight, bias, scale, threshold, width, precision)
    if use_reference(impl, weight):
        _check_finite(x, weight, bias, scale, threshold)
        return reference.threshold_encode(
            x, weight, bias, threshold=threshold, width=width, scale=scale, precision=precision
        )
    if immediate(x, weight, bias, scale, threshold):
        return _encode(x, weight, bias, scale, threshold, width, precision)
    refuse_transforms(x, weight, bias, scale)
    return ThresholdCode(*threshold_encode_op(x, weight, bias, scale, threshold, width, precision))


def _of_number(threshold: float, weight: Tensor) -> Tensor:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(
            f"threshold must be a torch.Tensor [m] or a number, got {type(threshold).__name__}"
        )
    return torch.tensor(threshold, dtype=_dtype_of_scores(weight), device=weight.device)


def _dtype_of_scores(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def all_above(
    encode: Callable[[int], ThresholdCode], width: int, latents: int, most: float = math.inf
) -> ThresholdCode:
    """Encode with increasing width until all active latents of every row fit.

    Args:
        encode: function that returns the code of a given width, such as a `threshold_encode`.
        width: width of the first call.
        latents: number of latents, which is the largest possible width.
        most: stop as soon as a row has more active latents than this; the code is then truncated.

    Returns:
        The last code, as wide as its longest row.
    """
    width = min(width, latents)
    while True:
        found = encode(width)
        fullest = int(found.counts.amax()) if len(found.counts) else 0
        if fullest <= width or fullest > most:
            used = max(fullest, 1)
            return ThresholdCode(found.values[:, :used], found.indices[:, :used], found.counts)
        width = min(2 * fullest, latents)


def check_threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> None:
    """Raise TypeError or ValueError if the arguments of `threshold_encode` are incompatible."""
    checks.encode_operands(x, weight, bias, scale)
    for_each = threshold.expand(weight.shape[0]) if threshold.ndim == 0 else threshold
    checks.floating("threshold", for_each, "[m] or a number")
    checks.same_device("weight", weight, "threshold", threshold)
    if threshold.dtype != _dtype_of_scores(weight):
        checks.same_kind("weight", weight, "threshold", threshold)
    checks.size("threshold", for_each, 0, weight.shape[0], "one entry per row of weight")
    checks.whole("width", width)
    checks.between("width", width, 1, weight.shape[0], "the rows of weight")
    checks.one_of("precision", precision, PRECISIONS)


def _check_finite(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, threshold: Tensor
) -> None:
    checks.finite_operands(x, weight, bias, scale)
    checks.finite("threshold", threshold.reshape(-1), masking=torch.inf)


@torch.library.custom_op("saefast::threshold_encode", mutates_args=())
def threshold_encode_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `threshold_encode` of arguments with checked shapes."""
    _check_finite(x, weight, bias, scale, threshold)
    return reference.threshold_encode(
        x, weight, bias, threshold=threshold, width=width, scale=scale, precision=precision
    )


@threshold_encode_op.register_kernel(("cpu", "cuda"))
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check_threshold_encode(x, weight, bias, scale, threshold, width, precision)
    return _encode(x, weight, bias, scale, threshold, width, precision)


def _encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> ThresholdCode:
    if gpu.has(weight):
        return threshold_on_gpu(x, weight, bias, scale, threshold, width, precision)
    threshold = threshold.to(_dtype_of_scores(weight))
    screen = screen_at(precision)
    return threshold_on_cpu(x, weight, bias, scale, threshold, width, precision, screen)


@threshold_encode_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[0]
    return (
        x.new_empty(n, width),
        x.new_empty(n, width, dtype=torch.int64),
        x.new_empty(n, dtype=torch.int64),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, indices, counts = ctx.saved_tensors
    needed = ctx.needs_input_grad
    gradients = encode_gradients(of_active(grad, counts), indices, x, weight, bias, scale, needed)
    return (*gradients, None, None, None)


threshold_encode_op.register_autograd(_backward, setup_context=_setup)
