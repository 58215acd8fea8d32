"""A simulated CUDA device whose streams do their work as late as possible, or at any time before.

Device memory is ordinary memory that is registered as the device's. Work on it is put into the
queue of the current stream, and done when the host waits for a later event, when another stream's
work must wait for it, or when a test lets the stream continue. So a missing wait causes wrong
numbers. Memory starts as NaN.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

MAIN, COPIES = "main", "copies"


class SimulatedEvent:
    """A position in a stream's queue."""

    def __init__(self, device: "SimulatedDevice", stream: str, place: int) -> None:
        self._device, self.stream, self.place = device, stream, place

    def synchronize(self) -> None:
        self._device.reach(self)


class SimulatedDevice:
    """`saefast.ops.cuda_streams.Streams`, simulated. `main()` makes its own stream current."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._queues: dict[str, deque[Callable[[], object]]] = {MAIN: deque(), COPIES: deque()}
        self._done = dict.fromkeys(self._queues, 0)
        self._given = dict.fromkeys(self._queues, 0)
        self._current = threading.local()
        self._registered: dict[int, Tensor] = {}
        self.bus: list[tuple[torch.dtype, int]] = []
        """dtype and number of elements of every copy from pinned memory to the device"""
        self.sources: list[int] = []
        """where the memory of each begins"""
        self._pinned: dict[int, Tensor] = {}

    def _memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan")).to(dtype)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = self._memory(shape, dtype)
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def on_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.adopt(self._memory(shape, dtype))

    def adopt(self, tensor: Tensor) -> Tensor:
        """Register a tensor as device memory."""
        self._registered[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._registered

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def main(self) -> contextlib.AbstractContextManager[None]:
        return self._stream(MAIN)

    def copies(self) -> contextlib.AbstractContextManager[None]:
        return self._stream(COPIES)

    @contextlib.contextmanager
    def _stream(self, name: str) -> Iterator[None]:
        before = getattr(self._current, "name", MAIN)
        self._current.name = name
        try:
            with _Deferred(self):
                yield
        finally:
            self._current.name = before

    @property
    def current(self) -> str:
        return getattr(self._current, "name", MAIN)

    def record(self) -> SimulatedEvent:
        with self._lock:
            return SimulatedEvent(self, self.current, self._given[self.current])

    def wait(self, event: SimulatedEvent) -> None:
        self.give(lambda: self.reach(event))

    def uses(self, tensor: Tensor) -> None:
        assert self.holds(tensor)

    def give(self, work: Callable[[], object]) -> None:
        """Put work into the queue of the current stream."""
        with self._lock:
            self._queues[self.current].append(work)
            self._given[self.current] += 1

    def reach(self, event: SimulatedEvent) -> None:
        """Do the work before an event."""
        with self._lock:
            while self._done[event.stream] < event.place:
                self.go_on(event.stream)

    def go_on(self, stream: str) -> None:
        """Do one piece of work, if the stream has any."""
        with self._lock:
            if self._queues[stream]:
                work = self._queues[stream].popleft()
                with _disable_current_modes():
                    work()
                self._done[stream] += 1

    def done(self, stream: str) -> int:
        """Return the number of finished pieces of work of the stream."""
        return self._done[stream]

    def given(self, stream: str) -> int:
        """Return the number of pieces of work of the stream."""
        return self._given[stream]

    def finish(self) -> None:
        """Do all the work."""
        for stream in self._queues:
            self.reach(SimulatedEvent(self, stream, self._given[stream]))


class _Deferred(TorchDispatchMode):
    """Put operations on device memory into the queue of the current stream."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, kwargs = self._device, kwargs or {}
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if not any(map(device.holds, given)) or func.is_view:
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host waits for the device")
        if func is torch.ops.aten.copy_.default:
            assert args[2] or all(map(device.holds, args[:2])), "the host waits for a copy"
            if not device.holds(args[1]):
                assert device.is_pinned(args[1]), "a copy from pageable memory"
                device.bus.append((args[1].dtype, args[1].numel()))
                device.sources.append(args[1].data_ptr())
        if func._schema.is_mutable:
            device.give(lambda: func(*args, **kwargs))
            return (kwargs["min"], kwargs["max"]) if "min" in kwargs else args[0]
        # Run once for shape and dtype of the result, on values that may not be computed yet.
        result = device.adopt(func(*args, **kwargs))
        result.fill_(float("nan"))
        device.give(lambda: result.copy_(func(*args, **kwargs)))
        return result
