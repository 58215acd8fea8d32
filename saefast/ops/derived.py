"""Cache of a value computed from tensors, invalidated when one of them changes."""

import functools
import weakref
from collections.abc import Callable, Sequence, Set
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from saefast.ops import gpu
from saefast.ops.immediate import observed, plain

Value = TypeVar("Value")

_SAMPLED_ROWS = 32


class Derived(Generic[Value]):
    """A value computed from tensors and cached until one of them changes.

    A change is detected by the version counter, the storage and the shape of a tensor. Torch's
    fused optimisers do not increase the counter: every step of an optimiser drops the values
    computed from its parameters. Nor do writes through `tensor.data`, so a sample of the rows is
    compared as well, for which the host waits on a GPU. Call `forget` after a write through
    `tensor.data` that changes only some rows. Copies and pickles of this object are empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], list[Tensor], Value] | None = None
        self._sources: set[int] = set()
        """identities of the tensors from which the value was computed"""
        _drop_after_steps()
        _all.add(self)

    @staticmethod
    def tracks(*sources: Tensor | None) -> bool:
        """Return whether changes of all `sources` can be detected.

        Tensors created in inference mode have no version counter; subclasses of Tensor and tensors
        on other devices than CPUs and CUDA GPUs may have no memory; where something observes ops,
        see `observed`, tensors may have no values.
        """
        return not observed() and all(
            source is None or (plain(source) and not source.is_inference()) for source in sources
        )

    def get(self, sources: Sequence[Tensor], make: Callable[[], Value]) -> Value:
        """Return the cached value, or recompute it if `sources` have changed."""
        state = tuple(map(_state, sources))
        kept = self._kept
        if kept is not None and kept[0] == state:
            samples = zip(kept[1], map(_sample, sources), strict=True)
            if gpu.capturing(sources[0]) or all(torch.equal(*pair) for pair in samples):
                return kept[2]
        self._kept = None  # frees the old value before the new one is allocated
        value = make()
        self._kept = (state, [_sample(source).clone() for source in sources], value)
        self._sources = set(map(id, sources))
        return value

    def forget_if_of(self, changed: Set[int]) -> None:
        """Drop the value if it was computed from a tensor with one of these identities."""
        if not self._sources.isdisjoint(changed):
            self.forget()

    def forget(self) -> None:
        """Drop the value and free its memory."""
        self._kept = None
        self._sources = set()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


_all: "weakref.WeakSet[Derived[Any]]" = weakref.WeakSet()


@functools.cache
def _drop_after_steps() -> None:
    """Register `_after_step` with all optimisers, once per process."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, *_: object) -> None:
    """Drop the values computed from the parameters of an optimiser that took a step."""
    changed = {id(source) for group in optimizer.param_groups for source in group["params"]}
    for each in list(_all):
        each.forget_if_of(changed)


def _state(source: Tensor) -> tuple[object, ...]:
    """Return the properties of a tensor that change when its contents are replaced or written.

    Memory that is freed may be allocated again at the same address. A weak reference to a storage
    prevents that a later one equals it, and does not keep its memory.
    """
    return (
        StorageWeakRef(source.untyped_storage()),  # type: ignore[no-untyped-call]
        source.data_ptr(),
        source._version,
        source.shape,
        source.stride(),
        source.dtype,
        source.device,
    )


def _sample(source: Tensor) -> Tensor:
    """Return a sample of a tensor's rows, as a view."""
    return source.detach()[:: max(1, len(source) // _SAMPLED_ROWS)]
