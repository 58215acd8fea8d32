"""An encode whose weight is kept in the form that the device screens with, from step to step."""

from typing import NamedTuple

from torch import Tensor

from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu, threshold_on_cpu
from saefast.ops.encode_gpu import GpuScreen, encode_rounded, screen_for, threshold_rounded
from saefast.ops.screens import screen_at
from saefast.ops.threshold_encode import threshold_encode_op
from saefast.ops.topk_encode import topk_encode_op
from saefast.types import SparseCode, ThresholdCode


class Packed(NamedTuple):
    """A weight for one screen: C++'s panels, or the rounded rows of a GPU."""

    screen: Screen | GpuScreen
    level: str
    """the instruction set of a CPU's panels"""
    arrays: tuple[Tensor, Tensor, Tensor]
    """units, norm and lost, which `latent_update` refreshes"""

    @property
    def product(self) -> str:
        """What the screen multiplies in."""
        return self.screen.product


def repacked(
    packed: Packed | None, fresh: bool, x: Tensor, weight: Tensor, k: int, precision: str
) -> Packed | None:
    """`packed` if it is `fresh` and for the right screen, or a new one; None where none is used."""
    exact = precision == "exact"
    if gpu.has(x):
        if not gpu.serves(x) or k > gpu.kernels("topk_encode").MOST_KEPT:
            return None
        screen = packed.screen if packed else screen_for(x, weight, k, exact=exact)
        if packed is None or not fresh:
            rounded = gpu.launch("round_rows.rounded_rows", weight, screen.product)
            packed = Packed(screen, "", (rounded.units, rounded.norm, rounded.lost))
        return packed
    screen = screen_at(precision)
    if screen.engine == "torch":
        return None
    level = native.level()
    if packed is None or not fresh or (packed.screen, packed.level) != (screen, level):
        panels = PackedWeight.of(contiguous(weight), screen)
        packed = Packed(screen, level, (panels.units, panels.norm, panels.lost))
    return packed


def encode_packed(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, precision: str, packed: Packed | None
) -> SparseCode:
    """`topk_encode` of checked input, on a GPU without a look at whether all of it is finite."""
    exact = precision == "exact"
    if gpu.has(x) and packed is not None:
        return encode_rounded(x, weight, bias, None, k, exact, *_on_gpu(x, packed))
    if not gpu.has(x):
        screen, panels = _screen_and_panels(packed, precision)
        return encode_on_cpu(x, weight, bias, None, k, precision, screen, panels)
    return SparseCode(*topk_encode_op(x, weight, bias, None, k, precision))


def encode_scaled(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, k: int, precision: str
) -> SparseCode:
    """`topk_encode` of checked input with a scale, which changes too often to keep a packed weight.

    On a GPU without a look at whether all of it is finite.
    """
    if not gpu.has(x) or not gpu.serves(x) or k > gpu.kernels("topk_encode").MOST_KEPT:
        return SparseCode(*topk_encode_op(x, weight, bias, scale, k, precision))
    exact = precision == "exact"
    screen = screen_for(x, weight, k, exact=exact)
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_rows", weight, screen.product, scale)
    return encode_rounded(x, weight, bias, scale, k, exact, screen, left, right)


def threshold_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor,
    width: int,
    precision: str,
    packed: Packed | None,
) -> ThresholdCode:
    """`threshold_encode` of checked input, `threshold` [m] or [] in the dtype of scores."""
    if gpu.has(x) and packed is not None:
        return threshold_rounded(
            x, weight, bias, None, threshold, width, precision, *_on_gpu(x, packed)
        )
    if not gpu.has(x):
        screen, panels = _screen_and_panels(packed, precision)
        return threshold_on_cpu(x, weight, bias, None, threshold, width, precision, screen, panels)
    return ThresholdCode(*threshold_encode_op(x, weight, bias, None, threshold, width, precision))


def _on_gpu(x: Tensor, packed: Packed) -> tuple[GpuScreen, object, object]:
    """A screen, and the operands of its product."""
    assert isinstance(packed.screen, GpuScreen)
    left = gpu.launch("round_rows.rounded_rows", x, packed.product)
    right = gpu.kernels("round_rows").RoundedRows(packed.product, *packed.arrays)
    return packed.screen, left, right


def _screen_and_panels(packed: Packed | None, precision: str) -> tuple[Screen, PackedWeight | None]:
    """What a CPU screens with; nothing is packed where the screen is one of torch's tiles."""
    if packed is None:
        return screen_at(precision), None
    assert isinstance(packed.screen, Screen)
    return packed.screen, PackedWeight(packed.screen, packed.level, *packed.arrays)
