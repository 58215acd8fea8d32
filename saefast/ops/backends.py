"""Resolve the argument `impl`, and explain why a backend is unavailable."""

from torch import Tensor

from saefast import checks
from saefast.ops import gpu

IMPLEMENTATIONS = ("auto", "reference", "cpp", "triton", "cuda")


def use_reference(impl: str, tensor: Tensor, *, in_cuda: bool = False) -> bool:
    """Return whether to call the reference instead of the dispatcher.

    Args:
        impl: one of `IMPLEMENTATIONS`.
        tensor: an operand, for device and dtype.
        in_cuda: whether the op has a CUDA C++ kernel.

    Raises:
        ValueError: the implementation is unknown, unavailable or for another device.
        TypeError: the implementation does not support the dtype.
    """
    checks.one_of("impl", impl, IMPLEMENTATIONS)
    if impl == "cpp" and tensor.device.type != "cpu":
        raise ValueError(f"impl='cpp' runs on CPU tensors, got {tensor.device}; use impl='auto'")
    if impl in ("triton", "cuda"):
        reason = why_not_live(impl)
        if impl == "cuda" and not in_cuda:
            reason = "this op has no CUDA C++ kernel, only a Triton kernel"
        if reason is not None:
            raise ValueError(f"impl={impl!r} is not available: {reason}; use impl='auto'")
        if not tensor.is_cuda:
            raise ValueError(
                f"impl={impl!r} runs on CUDA tensors, got {tensor.device}; use impl='auto'"
            )
        if tensor.dtype not in gpu.DTYPES:
            raise TypeError(
                f"impl={impl!r} supports float32 and bfloat16, got {tensor.dtype}; use impl='auto'"
            )
    return impl == "reference"


def why_not_live(impl: str) -> str | None:
    """Return the reason why a GPU backend is unavailable, or None if it is available."""
    if impl == "cuda" and not gpu.has_cuda():
        return "saefast was built without CUDA C++; build it with -C cmake.define.SAEFAST_CUDA=ON"
    return gpu.why_not_live()
