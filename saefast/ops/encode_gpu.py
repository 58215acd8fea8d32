"""Encode on a GPU by the Triton and CUDA kernels, or by plain torch where they cannot run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.gpu_screens import GpuScreen, asked_for, candidates_for, fastest, untimed
from saefast.ops.index_range import remember
from saefast.types import SparseCode, ThresholdCode

_measured: dict[tuple[object, ...], GpuScreen] = {}


def encode_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
    *,
    absolute: bool = False,
) -> SparseCode:
    """Compute `topk_encode` of input with checked shapes; checks that the input is finite."""
    if not selects(x, k):
        checks.finite_operands(x, weight, bias, scale)
        return SparseCode(
            *_in_slices(
                x,
                weight.shape[0],
                lambda part: reference.topk_encode(
                    part, weight, bias, k=k, scale=scale, precision=precision, absolute=absolute
                ),
            )
        )
    exact = precision == "exact"
    if x.shape[0] == 0:
        return SparseCode(x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=x.device))
    screen = screen_for(x, weight, k, exact=exact)
    left, right = _rounded(x, weight, bias, scale, screen)
    return encode_rounded(
        x, weight, bias, scale, k, exact, screen, left, right, impl, absolute=absolute
    )


def selects(x: Tensor, k: int) -> bool:
    """Return whether the kernels support an encode of x; warn if Triton cannot run on its GPU.

    They keep at most `MOST_KEPT` latents per row.
    """
    if not gpu.serves(x):
        return False
    most: int = gpu.kernels("encode.topk_encode").MOST_KEPT
    return k <= most


def threshold_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
) -> ThresholdCode:
    """Compute `threshold_encode` of input with checked shapes; checks that the input is finite."""
    checks.finite("threshold", threshold.reshape(-1), masking=torch.inf)
    if not gpu.serves(x):
        checks.finite_operands(x, weight, bias, scale)
        return ThresholdCode(
            *_in_slices(
                x,
                weight.shape[0],
                lambda part: reference.threshold_encode(
                    part,
                    weight,
                    bias,
                    threshold=threshold,
                    width=width,
                    scale=scale,
                    precision=precision,
                ),
            )
        )
    if x.shape[0] == 0:
        room, counts = (torch.empty(s, dtype=torch.int64, device=x.device) for s in ((0, width), 0))
        return ThresholdCode(x.new_empty(0, width), room, counts)
    # The result does not depend on the screen, so the candidates need not be timed first.
    screen = untimed(exact=precision == "exact")
    left, right = _rounded(x, weight, bias, scale, screen)
    return threshold_rounded(
        x, weight, bias, scale, threshold, width, precision, screen, left, right
    )


def threshold_rounded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
    screen: GpuScreen,
    left: object,
    right: object,
    wanted: int | None = None,
) -> ThresholdCode:
    """Compute `threshold_encode` from the operands' `RoundedRows`; does not wait for the GPU.

    See `threshold_packed` for `wanted`.

    Returns:
        Code [n, width].
    """
    code = gpu.launch(
        "encode.threshold_encode.encode",
        x,
        weight,
        bias,
        scale,
        threshold.expand(weight.shape[0]).float(),
        width,
        exact=precision == "exact",
        engine=screen.engine,
        left=left,
        right=right,
        wanted=wanted,
    )
    found = ThresholdCode(*code)
    remember(found.indices, weight.shape[0])
    return found


def encode_rounded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    exact: bool,
    screen: GpuScreen,
    left: object,
    right: object,
    impl: str = "auto",
    *,
    absolute: bool = False,
) -> SparseCode:
    """Compute `topk_encode` from the operands' `RoundedRows`; does not wait for the GPU."""
    values, indices = gpu.launch(
        "encode.absolute.encode" if absolute else "encode.topk_encode.encode",
        x,
        weight,
        bias,
        scale,
        k,
        exact=exact,
        engine=screen.engine,
        left=left,
        right=right,
        select=gpu.select(impl),
    )
    remember(indices, weight.shape[0])
    return SparseCode(values, indices)


def screen_for(x: Tensor, weight: Tensor, k: int, *, exact: bool) -> GpuScreen:
    """Return the screen chosen by the environment, or else the fastest measured for the shape.

    Nothing is measured for an encode that is not exact.
    """
    (n, d), m = x.shape, weight.shape[0]
    if not exact or asked_for() is not None:
        return untimed(exact=exact)
    candidates = candidates_for(
        lambda product: gpu.kernels("encode.list_length").fits(m, d, k, product)
    )
    if not x.is_cuda:
        return candidates[0]
    # Batches of similar size share a measurement.
    key = (x.get_device(), x.dtype, n.bit_length(), d, m, k)
    if key not in _measured:
        if gpu.capturing(x):
            return candidates[0]
        _measured[key] = _fastest(x, weight, k, candidates)
    return _measured[key]


def _fastest(x: Tensor, weight: Tensor, k: int, candidates: tuple[GpuScreen, ...]) -> GpuScreen:
    """Time the candidates on this batch."""

    def milliseconds(screen: GpuScreen) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        left = gpu.launch("round_rows.rounded_rows", x, screen.product)
        right = gpu.launch("round_rows.rounded_columns", weight, screen.product)
        encode_rounded(x, weight, None, None, k, True, screen, left, right)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    where = f"rows {tuple(x.shape)}, weight {tuple(weight.shape)} and k={k}"
    with gpu.device_of(x):
        return fastest(milliseconds, candidates, where)


def _rounded(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, screen: GpuScreen
) -> tuple[Any, Any]:
    """Round x and weight * scale for the screen; raise if an operand is not finite."""
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", weight, screen.product, scale)
    check_rounded(x, weight, bias, scale, left, right)
    return left, right


def check_rounded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    left: Any,
    right: Any,
) -> None:
    """Raise ValueError if an operand is not finite; `left` and `right` are their `RoundedRows`.

    The host waits once for one number, and inspects the operands only if it is not finite. Nothing
    is checked while a CUDA graph is recorded.
    """
    if gpu.capturing(x):
        return
    total = left.norm.sum() + right.norm.sum()
    if bias is not None:
        total = total + bias.masked_fill(bias == -torch.inf, 0.0).sum()
    if scale is not None:
        total = total + scale.sum()
    if not bool(total.isfinite()):
        checks.finite_operands(x, weight, bias, scale)


def _in_slices(
    x: Tensor, latents: int, encode: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Call the reference on slices of rows, for operands that no kernel supports.

    The memory of a row is six numbers of up to eight bytes for each latent: scores, masked scores,
    sorted scores and their indices, and as much again as the last two for the sort.

    Returns:
        Results of the calls, concatenated by rows.
    """
    with gpu.full_precision():
        return gpu.in_slices(encode, 6 * 8 * latents, x)
