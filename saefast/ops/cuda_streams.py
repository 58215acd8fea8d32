"""What copies beside a computation need of a CUDA device: a stream, events, pinned memory."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Make the host wait until the device has reached the point."""


class Streams(Protocol):
    """The calls that order copies and computation; tests put a simulation in their place.

    Work goes to the stream that is current in the calling thread, and starts when the host has
    submitted it and all work before it in the same stream is done.
    """

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate host memory that copies reach without the host."""

    def on_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate device memory for the current stream."""

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor lies on the device."""

    def copies(self) -> AbstractContextManager[object]:
        """Make the stream of copies the current one."""

    def record(self) -> Event:
        """Mark the end of the work that the current stream has been given so far."""

    def wait(self, event: Event) -> None:
        """Let the current stream, not the host, wait for an event of another one."""

    def uses(self, tensor: Tensor) -> None:
        """Keep the memory of another stream's tensor until the work so far of this one is done."""


class CudaStreams:
    """`Streams` of a CUDA device, with one stream for copies."""

    def __init__(self, device: torch.device) -> None:
        # A thread begins with device 0 as the current one, so the number is settled here.
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Streams`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def on_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Streams`."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def holds(self, tensor: Tensor) -> bool:
        """See `Streams`."""
        return tensor.device == self._device

    def copies(self) -> AbstractContextManager[object]:
        """See `Streams`."""
        return torch.cuda.stream(self._copies)

    def record(self) -> torch.cuda.Event:
        """See `Streams`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, event: Event) -> None:
        """See `Streams`."""
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(event)

    def uses(self, tensor: Tensor) -> None:
        """See `Streams`."""
        tensor.record_stream(torch.cuda.current_stream(self._device))


def streams_of(device: torch.device) -> Streams | None:
    """Return the streams of a CUDA device; None on a CPU, which has none."""
    return CudaStreams(device) if device.type == "cuda" else None
