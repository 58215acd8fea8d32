"""An encode whose weight is kept in the form that the device screens with, from step to step."""

from typing import NamedTuple

from torch import Tensor

from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu
from saefast.ops.encode_gpu import GpuScreen, encode_rounded, screen_for
from saefast.ops.screens import best_screen
from saefast.ops.topk_encode import topk_encode_op
from saefast.types import SparseCode


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
    screen = best_screen() if exact else Screen("native", "bfloat16")
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
        assert isinstance(packed.screen, GpuScreen)
        left = gpu.launch("round_rows.rounded_rows", x, packed.product)
        right = gpu.kernels("round_rows").RoundedRows(packed.product, *packed.arrays)
        return encode_rounded(x, weight, bias, None, k, exact, packed.screen, left, right)
    if x.device.type == "cpu":
        screen = packed.screen if packed else best_screen()
        assert isinstance(screen, Screen)
        panels = PackedWeight(screen, packed.level, *packed.arrays) if packed else None
        return encode_on_cpu(x, weight, bias, None, k, precision, screen, panels)
    return SparseCode(*topk_encode_op(x, weight, bias, None, k, precision))
