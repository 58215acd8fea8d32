"""Which implementation a caller asks for with `impl=`, and what he is told if it cannot run."""

from torch import Tensor

from saefast.ops import checks

IMPLEMENTATIONS = ("auto", "reference", "cpp", "triton", "cuda")


def use_reference(impl: str, tensor: Tensor) -> bool:
    """True for the reference, False for the dispatcher; raises if `impl` cannot serve `tensor`."""
    checks.one_of("impl", impl, IMPLEMENTATIONS)
    if impl == "cpp" and tensor.device.type != "cpu":
        raise ValueError(f"impl='cpp' runs on CPU tensors, got {tensor.device}; use impl='auto'")
    if impl in ("triton", "cuda"):
        raise ValueError(
            f"impl={impl!r} is not available: {why_not_live(impl)}; use impl='auto' or 'cpp'"
        )
    return impl == "reference"


def why_not_live(impl: str) -> str:
    """The reason why a backend cannot be asked for."""
    return {
        "triton": "this version has no Triton kernels yet",
        "cuda": "this version has no CUDA C++ kernels yet",
    }[impl]
