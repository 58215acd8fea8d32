"""A record of every kernel that a GPU would start, and of every wait of the host.

The code under test runs on a CPU, in Triton's interpreter: `tests/interpreted/conftest.py` lets the
ops take their GPU path. Operators of torch are counted as the kernels that they start on CUDA,
according to torch 2.13's sources; views and allocations start none.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

_NO_KERNEL = {
    "_local_scalar_dense",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "set_",
    "sym_size",
}
"""Operators that allocate, describe or copy to the host, beside views."""
_SEVERAL_KERNELS = {
    # Sort of keys in one row: their numbers, a histogram, its scan; and a pass for each byte of a
    # key.
    "sort": 3,
    # Scan of cub: the state of its blocks, then the sums.
    "cumsum": 2,
}
_WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique"}
"""Operators that give the host something that the device has computed."""


class Launch(NamedTuple):
    """One kernel, or the kernels of one operator."""

    name: str
    """of an operator of torch with `aten::` in front, or of a Triton kernel"""
    kernels: int
    where: tuple[str, ...]
    """functions of saefast that led to it, the outermost first"""


class Recorder(TorchDispatchMode):
    """Kernels and waits in order, and the bytes that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.waits: list[Launch] = []
        self.largest = 0
        """bytes of the largest new tensor that an operator returned"""

    @property
    def total(self) -> int:
        """Return the number of kernels."""
        return sum(launch.kernels for launch in self.launches)

    def by_section(self, section_of: Callable[[Launch], str]) -> Counter[str]:
        """Return the number of kernels of each section."""
        counts: Counter[str] = Counter()
        for launch in self.launches:
            counts[section_of(launch)] += launch.kernels
        return counts

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "saefast":
            # The mode is off here; turn it on to record calls inside the op.
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func._opname
        if name in _WAITS:
            self.waits.append(Launch(f"aten::{name}", 0, _where()))
        if not func.is_view and name not in _NO_KERNEL:
            kernels = _SEVERAL_KERNELS.get(name, 1) + (args[0].itemsize if name == "sort" else 0)
            self.launches.append(Launch(f"aten::{name}", kernels, _where()))
        if not func.is_view:
            mine = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and id(leaf) not in mine:
                    self.largest = max(self.largest, leaf.nbytes)
        return result

    def launched(self, name: str) -> None:
        """Record a Triton kernel."""
        self.launches.append(Launch(name, 1, _where()))


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record the launches of the code inside the context, which runs as usual."""
    recorder = Recorder()
    run = InterpretedFunction.run

    def recorded(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        recorder.launched(self.__name__)
        with torch._C._DisableTorchDispatch():  # the interpreter itself uses torch
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", recorded)
        with recorder:
            yield recorder


def _where() -> tuple[str, ...]:
    """Return the functions of saefast on the stack as "module.function", the outermost first."""
    names: list[str] = []
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] == "saefast":
            names.append(f"{module.removeprefix('saefast.')}.{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(names))
