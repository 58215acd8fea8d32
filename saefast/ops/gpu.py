"""Dispatch to the Triton kernels; Triton is imported on first use."""

import contextlib
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saefast.ops.cpu import contiguous

DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes that most kernels support."""
WITH_FLOAT64 = (*DTYPES, torch.float64)
"""Dtypes that `gather_dots` and `sparse_decode` support."""
_SLICE_BYTES = 1 << 30


def why_not_live() -> str | None:
    """Return the reason why no kernel can run on this machine's GPUs, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install 'saefast[gpu]'"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, but the kernels need 8.0"
    return None


def serves(tensor: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> bool:
    """Return whether the kernels support a tensor; warn if Triton cannot run on its GPU."""
    if tensor.dtype not in dtypes:
        return False
    if runs_triton(tensor):
        return True
    warnings.warn(f"saefast uses plain torch on this GPU: {why_not_live()}", stacklevel=2)
    return False


def runs_triton(tensor: Tensor) -> bool:
    """Return whether Triton can run on the tensor's device; on a CPU it is interpreted."""
    return not tensor.is_cuda or _live()


@functools.cache
def _live() -> bool:
    """Return whether kernels can run on this machine's GPUs; asking torch takes microseconds."""
    return why_not_live() is None


@functools.cache
def kernels(name: str) -> ModuleType:
    """Import a module of saefast.kernels, such as "encode.topk_encode"."""
    return importlib.import_module(f"saefast.kernels.{name}")


def select(impl: str) -> ModuleType:
    """Return the module that maintains the lists of an encode: CUDA C++ if built, or Triton."""
    return kernels(
        "encode.select_cuda"
        if impl == "cuda" or (impl == "auto" and has_cuda())
        else "encode.select_triton"
    )


def has_cuda() -> bool:
    """Return whether the CUDA C++ kernels were built."""
    return importlib.util.find_spec("saefast._cuda") is not None


def full_precision() -> contextlib.AbstractContextManager[None]:
    """Compute float32 products in float32 inside the context, even if torch allows TF32."""
    context: contextlib.AbstractContextManager[None] = kernels("matmul").multiplying_in("float32")
    return context


def has(tensor: Tensor) -> bool:
    """Return whether a tensor is on a GPU."""
    return tensor.is_cuda


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the tensor's device the current one inside the context."""
    context: contextlib.AbstractContextManager[None]
    context = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context


def launch(name: str, *arguments: object, **options: object) -> Any:
    """Call a function of saefast.kernels on the device of its tensors, made contiguous.

    Args:
        name: the function below saefast.kernels, such as "encode.topk_encode.encode".
        arguments: its positional arguments.
        options: its keyword arguments.

    Returns:
        The function's result.
    """
    module, _, function = name.rpartition(".")
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    with device_of(tensors[0]):
        return getattr(kernels(module), function)(
            *(contiguous(a) if isinstance(a, Tensor) else a for a in arguments), **options
        )


def capturing(tensor: Tensor) -> bool:
    """Return whether a CUDA graph is being recorded, so that the host must not wait."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def in_slices(
    compute: Callable[..., tuple[Tensor, ...]], row_bytes: int, *by_row: Tensor
) -> tuple[Tensor, ...]:
    """Call the reference on slices of rows and concatenate its results.

    `row_bytes` is the memory that a row takes during the computation; a slice takes at most a
    gigabyte, but at least one row. Results are copied, since views would keep their base tensors
    alive.

    Returns:
        Results, concatenated by rows.
    """
    rows = max(1, _SLICE_BYTES // max(1, row_bytes))
    parts = zip(*(torch.split(tensor, rows) for tensor in by_row), strict=True)
    results = [[result.clone() for result in compute(*part)] for part in parts]
    return tuple(torch.cat(pieces) for pieces in zip(*results, strict=True))


def in_gathered_slices(
    compute: Callable[[Tensor, Tensor], Tensor], rows: Tensor, indices: Tensor, weight: Tensor
) -> Tensor:
    """Call a reference that gathers [n, k, d] weight rows, in float32 or wider, by slices."""
    row_bytes = 2 * indices.shape[1] * weight.shape[1] * max(4, weight.itemsize)
    (out,) = in_slices(lambda *part: (compute(*part),), row_bytes, rows, indices)
    return out
