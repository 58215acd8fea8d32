"""Cache of a value computed from tensors, invalidated when one of them changes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from saefast.ops import gpu

Value = TypeVar("Value")

_SAMPLED_ROWS = 32


class Derived(Generic[Value]):
    """A value computed from tensors and cached until one of them changes.

    A change is detected by the version counter, the address and the shape of a tensor. Writes
    through `tensor.data` and torch's fused optimisers do not increase the counter, so a sample of
    the rows is compared as well, for which the host waits on a GPU. Call `forget` after a write
    through `tensor.data` that changes only some rows. Copies and pickles of this object are empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], list[Tensor], Value] | None = None

    @staticmethod
    def tracks(*sources: Tensor | None) -> bool:
        """Return whether changes of all `sources` can be detected.

        Tensors created in inference mode have no version counter; subclasses of Tensor may have no
        memory; under `torch.compile` tensors have no values.
        """
        return not torch.compiler.is_compiling() and all(
            source is None or (type(source) in (Tensor, nn.Parameter) and not source.is_inference())
            for source in sources
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
        return value

    def forget(self) -> None:
        """Drop the value and free its memory."""
        self._kept = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _state(source: Tensor) -> tuple[object, ...]:
    """Return the properties of a tensor that change when its contents are replaced or written."""
    return (
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
