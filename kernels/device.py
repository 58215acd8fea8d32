"""What the host must know of a GPU to launch kernels on it."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of every launch: products are added in one rounding, whatever Triton's default is."""

LAUNCH_FAILURES = (RuntimeError, TritonError)
"""Errors that one way to compute something may raise where another works: torch's, which lack of
memory is one of, and those of a kernel that does not compile or needs more shared memory than the
device has."""

_REGISTERS = 65536
"""of a processor, of 32 bits"""


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors and in float32 only."""
    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def has_tma(tensor: Tensor) -> bool:
    """Whether tiles can be loaded by descriptor: from sm_90 on."""
    return not tensor.is_cuda or _capability(tensor.get_device()) >= (9, 0)


@functools.cache
def _shared_bytes(index: int) -> int:
    properties: Any = torch.cuda.get_device_properties(index)  # torch declares half of them
    return int(properties.shared_memory_per_block_optin)


def shared_bytes(tensor: Tensor) -> int:
    """The shared memory that a block of a kernel may ask for on the tensor's device."""
    return _shared_bytes(tensor.get_device())


@functools.cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def programs_at_once(tensor: Tensor) -> int:
    """How many programs of a kernel that shares out its work are worth starting."""
    return 4 * _processors(tensor.get_device()) if tensor.is_cuda else 3


def thread_registers(warps: int) -> int:
    """Return how many registers a thread may have where `warps` warps share a processor.

    Launches pass it as `maxnreg` where the kernel would spill otherwise. Without a limit ptxas may
    put the last few numbers of a thread on the stack, so that one block more fits a processor. With
    a limit it takes what the kernel needs up to that limit. More warps hide more latency, but each
    thread has fewer registers. All GPUs from sm_80 on have the same number of them.
    """
    return min(_REGISTERS // (32 * warps) // 8 * 8, 255)


def power_of_two(at_least: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(at_least - 1, 0).bit_length()
