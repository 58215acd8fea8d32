"""A stand-in for a CUDA graph on CPU tensors that replays operators and Triton launches.

As on a GPU, a replay runs no Python: numbers known to the host are constants, results are written
to the tensors of the recording, and recording leaves all tensors unchanged. Code that reads a
tensor on the host cannot be recorded.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.host_waits import host_waits
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction


class TapeGraph(TorchDispatchMode):
    """A `saefast.train.captured_step.Graph`."""

    def __init__(self, beside: object = None) -> None:
        super().__init__()
        self._tape: list[Callable[[], None]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self.replays = 0

    def record(self, phase: Callable[[], Any]) -> Any:
        """See `Graph`."""
        run = InterpretedFunction.run

        def recorded(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C._DisableTorchDispatch():
                self._remember((args, kwargs))
                self._tape.append(lambda: run(kernel, *args, **kwargs))
                return run(kernel, *args, **kwargs)

        with host_waits() as waits, pytest.MonkeyPatch.context() as patch:
            patch.setattr(InterpretedFunction, "run", recorded)
            with self:
                result = phase()
        for tensor, bytes_ in self._before.values():
            _bytes_of(tensor).copy_(bytes_)
        if waits:
            raise RuntimeError(f"operation not permitted when stream is capturing: {waits}")
        return result

    def replay(self) -> None:
        """See `Graph`."""
        self.replays += 1
        for entry in self._tape:
            entry()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "saefast":
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        self._remember((args, kwargs))
        result = func(*args, **kwargs)
        given = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
        fresh = [
            (number, leaf)
            for number, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given
        ]
        self._own.update(leaf.untyped_storage().data_ptr() for _, leaf in fresh)

        changed = tuple(_tensors((args, kwargs, result)))

        def again() -> None:
            # On a GPU, a replay does not change version counters.
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(changed):
                leaves = tree_leaves(func(*args, **kwargs))
                for number, leaf in fresh:
                    leaf.copy_(leaves[number])

        if fresh or func._schema.is_mutable:
            self._tape.append(again)
        return result

    def _remember(self, operands: Any) -> None:
        """Keep the values of an outside tensor until the end of the recording."""
        for tensor in _tensors(operands):
            where = tensor.untyped_storage().data_ptr()
            if where not in self._own and where not in self._before:
                self._before[where] = tensor, _bytes_of(tensor).clone()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return all of a tensor's memory."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
