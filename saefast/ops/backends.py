"""Which implementation a caller asks for with `impl=`, and what he is told if it cannot run."""

from torch import Tensor

from saefast import checks
from saefast.ops import gpu

IMPLEMENTATIONS = ("auto", "reference", "cpp", "triton", "cuda")


def use_reference(impl: str, tensor: Tensor, *, in_cuda: bool = False) -> bool:
    """True for the reference, False for the dispatcher; raises if `impl` cannot serve `tensor`.

    `in_cuda` says whether the op has such a kernel.
    """
    checks.one_of("impl", impl, IMPLEMENTATIONS)
    if impl == "cpp" and tensor.device.type != "cpu":
        raise ValueError(f"impl='cpp' runs on CPU tensors, got {tensor.device}; use impl='auto'")
    if impl in ("triton", "cuda"):
        reason = why_not_live(impl)
        if impl == "cuda" and not in_cuda:
            reason = "this op has no CUDA C++ kernel, Triton serves it"
        if reason is not None:
            raise ValueError(f"impl={impl!r} is not available: {reason}; use impl='auto'")
        if not tensor.is_cuda:
            raise ValueError(f"impl={impl!r} runs on CUDA tensors, got {tensor.device}")
        if tensor.dtype not in gpu.DTYPES:
            raise TypeError(f"impl={impl!r} computes float32 and bfloat16, got {tensor.dtype}")
    return impl == "reference"


def why_not_live(impl: str) -> str | None:
    """The reason why a backend of the GPU cannot be asked for, or None."""
    if impl == "cuda" and not gpu.has_cuda():
        return "saefast was built without CUDA C++ (-C cmake.define.SAEFAST_CUDA=ON)"
    return gpu.why_not_live()
