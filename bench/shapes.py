"""Sizes that are timed, without importing torch."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Width d, number of latents m, of active latents k, and of rows n."""

    d: int
    m: int
    k: int
    n: int

    @property
    def gemm_flops(self) -> float:
        """Floating-point operations of one dense encode."""
        return 2.0 * self.n * self.d * self.m

    @property
    def text(self) -> str:
        """Printed form, (d, m, k, n)."""
        return f"({self.d}, {self.m}, {self.k}, {self.n})"


GPU_SHAPES = {
    "C2": Shape(768, 32768, 32, 8192),
    "C1": Shape(4096, 131072, 64, 8192),
    "mid": Shape(2304, 65536, 64, 8192),
    "decode": Shape(2304, 65536, 32, 8192),
}
"""Shapes that are timed on a GPU, by name.

flexsae publishes 5.58 ms at "decode" for a decode with its gradients, so only decodes are timed
there.
"""


def gpu_shape(text: str) -> Shape:
    """Return the shape of a name in `GPU_SHAPES`, or of four numbers d,m,k,n."""
    if text in GPU_SHAPES:
        return GPU_SHAPES[text]
    try:
        return Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        names = ", ".join(GPU_SHAPES)
        raise ValueError(f"a shape is one of {names}, or d,m,k,n; got {text!r}") from None
