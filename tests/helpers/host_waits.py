"""A record of the places where the host would wait for a GPU.

The code under test runs on CPU tensors in Triton's interpreter: `tests/interpreted/conftest.py`
lets the ops take their GPU path. On a GPU each recorded call would either return to the host a
value that the device has computed, or copy pageable memory to the device, which waits as well.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

_READS = {
    *("_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select"),
    *("nonzero", "unique_consecutive", "unique_dim"),
}
"""Operators whose result, or the size of whose result, the host learns from the device."""
_TRANSFERS = {
    **{getattr(Tensor, name): name for name in ("tolist", "numpy", "cpu", "new_tensor")},
    **{getattr(torch, name): name for name in ("tensor", "as_tensor", "from_numpy")},
}
"""Functions that copy between pageable memory and a device; on CPU tensors no operator shows it."""


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Record the waits of the code inside the context, each as "function in module.caller"."""
    waits: list[str] = []
    run = InterpretedFunction.run

    def unrecorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The interpreter itself uses torch.
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            return run(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", unrecorded)
        with _Transfers(waits), _Reads(waits):
            yield waits


class _Transfers(TorchFunctionMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _TRANSFERS.get(func)
        if func is Tensor.to and "cpu" in map(str, (*args[1:], *(kwargs or {}).values())):
            name = "to"
        if name is not None:
            self._waits.append(f"{name} in {_caller()}")
        return func(*args, **(kwargs or {}))


class _Reads(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "saefast":
            with self:  # calls inside the op are recorded as well
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        name = func._opname
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1]
        )
        sized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if by_mask and name != "index" and args[2].numel() == 1:
            by_mask = False  # a masked fill
        if name in _READS or by_mask or sized:
            self._waits.append(f"{name} in {_caller()}")
        return func(*args, **kwargs)


def _caller() -> str:
    """Return the innermost function of saefast on the stack."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] == "saefast":
            return f"{module.removeprefix('saefast.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "none of saefast"
