"""Transfer of batches from the reader's thread to the device of training.

With either class rows arrive as float32, finite and scaled. `ahead` runs in the reader's thread and
does all that can be done early; `take` runs in the trainer's thread, for one batch after another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.activations.protocol import Batch, stored_dtype
from saefast.ops.cuda_streams import Event, Streams

_Item = TypeVar("_Item")


class TrainingRows(NamedTuple):
    """Rows of a batch in the form that training takes."""

    x: Tensor
    """[n, d] float32"""
    target: Tensor | None
    """[n, d_out] float32, if something other than x is reconstructed"""
    where: str
    """files and rows between which these rows lie, for an error message"""


class Transfer(Protocol[_Item]):
    """Interface of the classes that bring batches to the device."""

    def ahead(self, batches: Iterator[Batch], scales: tuple[float, float]) -> Iterator[_Item]:
        """Prepare items for `take`: call in the trainer's thread, iterate in the reader's.

        `scales` are the factors of x and target.
        """

    def take(self, item: _Item) -> TrainingRows:
        """Return the rows of the next item; ValueError if one of them is not finite."""


class HostTransfer:
    """Casts, checks and scales rows in the reader's thread."""

    def __init__(self, device: torch.device, locate: Callable[[int], str]) -> None:
        self._device, self._locate = device, locate

    def ahead(
        self, batches: Iterator[Batch], scales: tuple[float, float]
    ) -> Iterator[TrainingRows]:
        """See `Transfer`."""
        for batch in batches:
            moved = [
                None if rows is None else rows.to(self._device, torch.float32)
                for rows in (batch.x, batch.target)
            ]
            seen = (extremes(rows) for rows in moved if rows is not None)
            check_finite(seen, batch.rows, self._locate)
            x, target = (
                None if rows is None else rows * scale
                for rows, scale in zip(moved, scales, strict=True)
            )
            assert x is not None
            yield TrainingRows(x, target, batch.where)

    def take(self, item: TrainingRows) -> TrainingRows:
        """See `Transfer`."""
        return item


class _Slot:
    """Slot of the ring: memory for one batch, and the last use of that memory."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self.used: Event | None = None
        """recorded after the last work on the device that reads the memory"""

    def memory(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        allocate: Callable[[Sequence[int], torch.dtype], Tensor],
    ) -> Tensor:
        """Return the memory of this name, allocated at first use and when batches change."""
        tensor = self._memory.get(name)
        if tensor is None or (tensor.shape, tensor.dtype) != (shape, dtype):
            tensor = self._memory[name] = allocate(shape, dtype)
        return tensor


class _Sent(NamedTuple):
    """A batch that is being copied."""

    slot: _Slot
    columns: list[Tensor]
    """x, and target if there is one, on the device, in the dtype of the batch"""
    extremes: list[Tensor]
    """[2, n] for each column, in pinned memory"""
    ready: Event
    """recorded after the copy and the check: then `columns` and `extremes` are valid"""
    numbers: NDArray[np.int64]
    """[n] number of each row in its source"""
    where: str


class DeviceTransfer:
    """Copies rows through a ring of pinned buffers, on a copy stream, ahead of training.

    Rows cross the bus in the dtype of the batches and are cast and scaled on the device. The copy
    of a batch overlaps the steps of earlier batches: the reader's thread submits it as soon as the
    batch is read, and the device orders it after the last use of the memory. Rows that lie on the
    device already are used in place.

    A batch is checked before its step: `take` waits for the event that ends its copy and its check.
    Since these were submitted several batches earlier, on the copy stream, the host does not wait
    for the steps in between, and the device still has steps to run in the meantime.

    Args:
        streams: streams of the training device.
        locate: function that maps the number of a row to its file and row, for error messages.
        depth: maximum number of items of `ahead` that wait for `take`, as in `Prefetcher`.
    """

    def __init__(self, streams: Streams, locate: Callable[[int], str], depth: int) -> None:
        self._streams, self._locate = streams, locate
        self._scales: list[Tensor] = []
        # Besides the waiting items, one batch may be in preparation and one in `take`.
        self._free = deque(_Slot() for _ in range(depth + 2))

    def memory(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return host memory for "x" or "target" of the next batch, for a source to fill.

        After the first call of `ahead` it is the pinned memory from which the batch is copied.
        """
        if not self._scales or stored_dtype(dtype) != dtype:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return self._pinned(self._free[0], name, shape, dtype)

    def ahead(self, batches: Iterator[Batch], scales: tuple[float, float]) -> Iterator[_Sent]:
        """See `Transfer`; work of the source on the device is submitted to the copy stream."""
        for scale in scales:
            # A tensor with a dimension takes part in type promotion: the product is float32.
            self._scales.append(self._streams.on_device((1,), torch.float32).fill_(scale))
        return self._ahead(batches, self._streams.record())

    def _ahead(self, batches: Iterator[Batch], begun: Event) -> Iterator[_Sent]:
        with self._streams.copies():
            # Batches may lie on the device and have been produced by the trainer's thread.
            self._streams.wait(begun)
        while True:
            with self._streams.copies():
                batch = next(batches, None)
                if batch is None:
                    return
                sent = self._send(batch)
            yield sent

    def _send(self, batch: Batch) -> _Sent:
        slot = self._free.popleft()
        if slot.used is not None:
            self._streams.wait(slot.used)
        columns, seen = [], []
        for name, rows in (("x", batch.x), ("target", batch.target)):
            if rows is not None:
                columns.append(self._copied(slot, name, rows))
                seen.append(self._checked(slot, name, columns[-1]))
        return _Sent(slot, columns, seen, self._streams.record(), batch.rows, batch.where)

    def _copied(self, slot: _Slot, name: str, rows: Tensor) -> Tensor:
        dtype = stored_dtype(rows.dtype)
        if self._streams.holds(rows):
            return rows.to(dtype)
        pinned = self._pinned(slot, name, rows.shape, dtype)
        if rows is not pinned:
            pinned.copy_(rows)
        there = slot.memory(name, rows.shape, dtype, self._streams.on_device)
        return there.copy_(pinned, non_blocking=True)

    def _pinned(self, slot: _Slot, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return pinned memory that may be written: `take` waited for the copy from it to end."""
        return slot.memory(f"{name} pinned", shape, dtype, self._streams.pinned)

    def _checked(self, slot: _Slot, name: str, rows: Tensor) -> Tensor:
        shape = (2, len(rows))
        there = slot.memory(f"{name} extremes", shape, rows.dtype, self._streams.on_device)
        seen = slot.memory(f"{name} extremes pinned", shape, rows.dtype, self._streams.pinned)
        return seen.copy_(extremes(rows, out=there), non_blocking=True)

    def take(self, item: _Sent) -> TrainingRows:
        """See `Transfer`."""
        item.ready.synchronize()
        check_finite(item.extremes, item.numbers, self._locate)
        scaled = []
        for rows, scale in zip(item.columns, self._scales, strict=False):
            scaled.append(torch.mul(rows, scale))
            self._streams.uses(rows)
        item.slot.used = self._streams.record()
        self._free.append(item.slot)
        return TrainingRows(scaled[0], scaled[1] if len(scaled) > 1 else None, item.where)


def extremes(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return [2, n]: the minimum and maximum of each row, NaN if the row holds NaN.

    They are finite if and only if the row is, and take one pass over the row.
    """
    if out is None:
        out = rows.new_empty(2, len(rows))
    torch.aminmax(rows, dim=1, out=(out[0], out[1]))
    return out


def check_finite(
    columns: Iterable[Tensor], numbers: NDArray[np.int64], locate: Callable[[int], str]
) -> None:
    """Raise ValueError, naming the first row, unless the extremes of every column are finite.

    Args:
        columns: `extremes` of the activations, and of the targets if there are any; [2, n] each.
        numbers: [n], number of each row in its source.
        locate: function that maps the number of a row to its file and row.
    """
    for name, its_extremes in zip(("activations", "targets"), columns, strict=False):
        bad = ~its_extremes.isfinite().all(0)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"the {name} hold NaN or infinity: {locate(int(numbers[row]))}; remove such rows"
            )
