"""Encode with a weight packed for the screening product of the device."""

from typing import Any, NamedTuple

from torch import Tensor

from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu, threshold_on_cpu
from saefast.ops.encode_gpu import (
    check_rounded,
    encode_rounded,
    screen_for,
    selects,
    threshold_rounded,
)
from saefast.ops.gpu_screens import GpuScreen
from saefast.ops.screens import screen_at
from saefast.ops.threshold_encode import threshold_encode_op
from saefast.ops.topk_encode import topk_encode_op
from saefast.types import SparseCode, ThresholdCode


class Packed(NamedTuple):
    """A weight packed for one screen: panels of the CPU, or rounded rows of a GPU."""

    screen: Screen | GpuScreen
    level: str
    """instruction set of the panels of a CPU; "" on a GPU"""
    arrays: tuple[Tensor, Tensor, Tensor]
    """units, norm and lost, which `latent_update` refreshes"""
    multiplier: Tensor | None = None
    """[1] power of two by which rows were multiplied on a GPU, if units are float16"""

    @property
    def product(self) -> str:
        """Number format of the screening product."""
        return self.screen.product


def repacked(
    packed: Packed | None,
    fresh: bool,
    x: Tensor,
    weight: Tensor,
    k: int,
    precision: str,
    scale: Tensor | None = None,
) -> Packed | None:
    """Return `packed` if it is `fresh` and for the right screen, or else a new packed weight.

    Rows of `weight` [m, d] are multiplied by `scale` [m] first. Returns None for encodes that do
    not use a packed weight: those of the torch engine on a CPU and of the reference.
    """
    exact = precision == "exact"
    if gpu.has(x):
        if not selects(x, k):
            return None
        screen = packed.screen if packed else screen_for(x, weight, k, exact=exact)
        if packed is None or not fresh:
            rounded = gpu.launch("round_rows.rounded_columns", weight, screen.product, scale)
            arrays = (rounded.units, rounded.norm, rounded.lost)
            packed = Packed(screen, "", arrays, rounded.multiplier)
        return packed
    screen = screen_at(precision)
    if screen.engine == "torch":
        return None
    level = native.level()
    if packed is None or not fresh or (packed.screen, packed.level) != (screen, level):
        scale = None if scale is None else contiguous(scale)
        panels = PackedWeight.of(contiguous(weight), screen, scale)
        packed = Packed(screen, level, (panels.units, panels.norm, panels.lost))
    return packed


def encode_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    precision: str,
    packed: Packed | None,
    scale: Tensor | None = None,
    *,
    absolute: bool = False,
    check_finite: bool = False,
) -> SparseCode:
    """Compute `topk_encode` of checked input; `packed` is the packed weight times `scale`.

    On a GPU, the host waits for a check that all input is finite only with `check_finite`; on a CPU
    the check is free and always made.

    Returns:
        Code [n, k].
    """
    exact = precision == "exact"
    if gpu.has(x) and packed is not None:
        rounded = _on_gpu(x, packed)
        if check_finite:
            check_rounded(x, weight, bias, scale, *rounded[1:])
        return encode_rounded(x, weight, bias, scale, k, exact, *rounded, absolute=absolute)
    if not gpu.has(x):
        screen, panels = _screen_and_panels(packed, precision)
        return encode_on_cpu(
            x, weight, bias, scale, k, precision, screen, panels, absolute=absolute
        )
    return SparseCode(*topk_encode_op(x, weight, bias, scale, k, precision, absolute=absolute))


def encode_scaled(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    k: int,
    precision: str,
    *,
    absolute: bool = False,
) -> SparseCode:
    """Compute `topk_encode` of checked input with a scale that changes in every step.

    The weight is not kept packed. On a GPU the input is not checked to be finite.

    Returns:
        Code [n, k].
    """
    if not gpu.has(x) or not selects(x, k):
        return SparseCode(*topk_encode_op(x, weight, bias, scale, k, precision, absolute=absolute))
    exact = precision == "exact"
    screen = screen_for(x, weight, k, exact=exact)
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", weight, screen.product, scale)
    return encode_rounded(x, weight, bias, scale, k, exact, screen, left, right, absolute=absolute)


def threshold_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    width: int,
    precision: str,
    packed: Packed | None,
    *,
    check_finite: bool = False,
    wanted: int | None = None,
) -> ThresholdCode:
    """Compute `threshold_encode` of checked input, `threshold` [m] or [] in the dtype of scores.

    See `encode_packed` for `check_finite`. With `wanted`, only the `wanted` largest scores of all
    rows matter: if at least as many are above the threshold, which must be one number and not
    negative, a GPU may leave out others, also from `counts`.

    Returns:
        Code [n, width].
    """
    if gpu.has(x) and packed is not None:
        rounded = _on_gpu(x, packed)
        if check_finite:
            check_rounded(x, weight, bias, None, *rounded[1:])
        return threshold_rounded(
            x, weight, bias, None, threshold, width, precision, *rounded, wanted
        )
    if not gpu.has(x):
        screen, panels = _screen_and_panels(packed, precision)
        return threshold_on_cpu(x, weight, bias, None, threshold, width, precision, screen, panels)
    return ThresholdCode(*threshold_encode_op(x, weight, bias, None, threshold, width, precision))


def _on_gpu(x: Tensor, packed: Packed) -> tuple[GpuScreen, Any, Any]:
    """Return the screen of a GPU and the rounded operands of its product."""
    assert isinstance(packed.screen, GpuScreen)
    left = gpu.launch("round_rows.rounded_rows", x, packed.product)
    rounded_rows = gpu.kernels("round_rows").RoundedRows
    right = rounded_rows(packed.product, *packed.arrays, packed.multiplier)
    return packed.screen, left, right


def _screen_and_panels(packed: Packed | None, precision: str) -> tuple[Screen, PackedWeight | None]:
    """Return the screen of a CPU and the packed weight, None for the torch engine."""
    if packed is None:
        return screen_at(precision), None
    assert isinstance(packed.screen, Screen)
    return packed.screen, PackedWeight(packed.screen, packed.level, *packed.arrays)
