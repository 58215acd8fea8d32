"""Values that are computed from tensors and kept until one of the tensors changes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from saefast.ops import gpu

Value = TypeVar("Value")

_SAMPLED_ROWS = 32


class Derived(Generic[Value]):
    """A value computed from tensors, kept until one of them changes.

    A change is noticed by the version counter of a tensor, by its address, and by its shape. Writes
    through `tensor.data` and torch's fused optimisers do not raise the counter, so a sample of the
    rows is compared as well, for which the host waits on a GPU. Call `forget` after a write through
    `tensor.data` that changes some rows only. A copy or a pickle of this object is empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], list[Tensor], Value] | None = None

    @staticmethod
    def tracks(*sources: Tensor | None) -> bool:
        """Return whether changes of all `sources` can be noticed.

        Tensors that were made in inference mode have no version counter; subclasses may have no
        memory; under `torch.compile` there are only traces.
        """
        return not torch.compiler.is_compiling() and all(
            source is None or (type(source) in (Tensor, nn.Parameter) and not source.is_inference())
            for source in sources
        )

    def get(self, sources: Sequence[Tensor], make: Callable[[], Value], *key: object) -> Value:
        """Return the kept value, or make it again if `sources` or `key` differ from last time."""
        state = (*key, *map(_state, sources))
        kept = self._kept
        if kept is not None and kept[0] == state:
            samples = zip(kept[1], map(_sample, sources), strict=True)
            if gpu.capturing(sources[0]) or all(torch.equal(*pair) for pair in samples):
                return kept[2]
        self._kept = None  # frees the old value before the new one takes memory
        value = make()
        self._kept = (state, [_sample(source).clone() for source in sources], value)
        return value

    def forget(self) -> None:
        """Drop the value and free its memory."""
        self._kept = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _state(source: Tensor) -> tuple[object, ...]:
    """Everything about a tensor that changes when its contents are replaced or written."""
    return (
        source.data_ptr(),
        source._version,
        source.shape,
        source.stride(),
        source.dtype,
        source.device,
    )


def _sample(source: Tensor) -> Tensor:
    """A few rows of a tensor, as a view."""
    return source.detach()[:: max(1, len(source) // _SAMPLED_ROWS)]
