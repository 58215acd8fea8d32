"""CUDA streams, events and pinned memory for copies that overlap with computation."""

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
    """Interface of the calls that order copies and computation; tests replace it by a simulation.

    Work is submitted to the current stream of the calling thread, and starts when all earlier work
    of that stream is done.
    """

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate page-locked host memory, which the device can copy asynchronously."""

    def on_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate device memory for the current stream."""

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device."""

    def copies(self) -> AbstractContextManager[object]:
        """Make the stream of copies the current one."""

    def record(self) -> Event:
        """Record an event after the work submitted to the current stream so far."""

    def wait(self, event: Event) -> None:
        """Make the current stream, not the host, wait for an event of another stream."""

    def uses(self, tensor: Tensor) -> None:
        """Keep a tensor of another stream allocated until this stream's work so far is done."""


class CudaStreams:
    """`Streams` of a CUDA device, with one stream for copies."""

    def __init__(self, device: torch.device) -> None:
        # New threads start with device 0 as the current one, so the index is resolved here.
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Streams`."""
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)

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
    """Return the streams of a CUDA device, or None for a CPU."""
    return CudaStreams(device) if device.type == "cuda" else None
