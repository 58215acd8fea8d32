"""Query the properties of a GPU that launches of kernels depend on."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}
"""options of every launch; sums of products always use fused multiply-add"""

LAUNCH_FAILURES = (RuntimeError, TritonError)
"""errors after which another implementation may still succeed: those of torch, including lack of
memory, and those of a kernel that does not compile or needs more shared memory than the device
has"""

_REGISTERS = 65536
"""32-bit registers of a multiprocessor"""


def interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors and in float32 only."""
    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def capability(tensor: Tensor) -> tuple[int, int]:
    """Return the compute capability of the tensor's device."""
    return _capability(tensor.get_device())


def has_tma(tensor: Tensor) -> bool:
    """Return whether tiles can be loaded by descriptor: from sm_90 on, and in the interpreter."""
    return not tensor.is_cuda or capability(tensor) >= (9, 0)


@functools.cache
def _shared_bytes(index: int) -> int:
    properties: Any = torch.cuda.get_device_properties(index)  # torch declares half of them
    return int(properties.shared_memory_per_block_optin)


def shared_bytes(tensor: Tensor) -> int:
    """Return the bytes of shared memory that a block may request on the tensor's device."""
    return _shared_bytes(tensor.get_device())


@functools.cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def processors(tensor: Tensor) -> int:
    """Return the number of multiprocessors; in the interpreter, of programs to start."""
    return _processors(tensor.get_device()) if tensor.is_cuda else 3


def programs_at_once(tensor: Tensor) -> int:
    """Return the number of programs to start for a kernel whose programs share all work."""
    return 4 * _processors(tensor.get_device()) if tensor.is_cuda else 3


def thread_registers(warps: int) -> int:
    """Return the number of registers per thread if `warps` warps share a multiprocessor.

    Launches pass it as `maxnreg` if the kernel would spill otherwise: without a limit ptxas may
    keep the last few values of a thread on the stack to fit one more block on a multiprocessor;
    with a limit it uses the registers that the kernel needs, up to the limit. More warps hide more
    latency, but leave each thread fewer registers. The number of registers is the same on all GPUs
    from sm_80 on.
    """
    return min(_REGISTERS // (32 * warps) // 8 * 8, 255)


def power_of_two(at_least: int) -> int:
    """Return the smallest power of two that is at least `at_least`."""
    return 1 << max(at_least - 1, 0).bit_length()
