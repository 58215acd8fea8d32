"""Activations from an iterator that produces them as they are needed."""

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.activations.protocol import Batch, check_dtype, check_stream
from saefast.activations.tensors import as_rows


class IteratorActivations:
    """Activations from an iterable of tensors or arrays [n, d], cut into batches of equal size.

    Items may differ in n, and may be pairs (rows, targets), or tuples of rows alone, which a
    DataLoader yields for a `TensorDataset` of one tensor. Rows keep the order of the iterable,
    which must shuffle them itself: the seed has no effect. An object that can be iterated again (a
    list, a DataLoader) is iterated again at every epoch; an iterator can be read only once. Batches
    before `start` are produced and discarded.

    Args:
        source: iterable of rows [n, d] or of pairs of rows [n, d] and targets [n, d_out].
        d: width of a row; None reads it from the first item, which is produced twice if `source`
            can be iterated again.
        dtype: dtype of the batches.
    """

    rows = None
    fingerprint = "unknown"

    def __init__(
        self,
        source: Iterable[Any],
        *,
        d: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        check_dtype(dtype)
        if not isinstance(source, Iterable):
            raise TypeError(f"source must be iterable, got {type(source).__name__}")
        self.dtype = dtype
        self._source = source
        self._once = source if isinstance(source, Iterator) else None
        self._looked_at: list[Any] = []
        self._started = False
        if d is None:
            self._looked_at = list(islice(source, 1))
            if not self._looked_at:
                raise ValueError("source must yield tensors [n, d], but it is empty")
            d = _pair(self._looked_at[0], 0)[0].shape[1]
        self.d = d

    def locate(self, row: int) -> str:
        """See `Activations.locate`."""
        return f"the iterator, row {row}"

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """See `Activations.batches`; numbers of rows continue from epoch to epoch."""
        check_stream(batch_size, seed, start)
        if self._once is not None and self._started:
            raise ValueError(
                "source is an iterator and has been read; make a new one, or pass an object that "
                "can be iterated again"
            )
        self._started = True
        return self._batches(batch_size, start)

    def _batches(self, batch_size: int, start: int) -> Iterator[Batch]:
        skip = start * batch_size
        numbers = count(start)
        xs: list[Tensor] = []
        targets: list[Tensor] = []
        missing = batch_size
        for x, target in self._pairs(batch_size):
            taken = min(skip, len(x))
            skip -= taken
            while taken < len(x):
                now = slice(taken, taken + missing)
                # Always copy: the source may reuse the memory of an item for the next one.
                xs.append(x[now].to(self.dtype, copy=True))
                if target is not None:
                    targets.append(target[now].to(self.dtype, copy=True))
                taken += len(xs[-1])
                missing -= len(xs[-1])
                if missing == 0:
                    yield _joined(xs, targets, next(numbers) * batch_size)
                    xs, targets, missing = [], [], batch_size

    def _pairs(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield every item as rows and targets, endlessly if the source can be iterated again."""
        made = 0
        kind: tuple[int, int | None] | None = None
        while True:
            before = made
            again = self._source if self._once is None else chain(self._looked_at, self._once)
            for number, item in enumerate(again):
                x, target = _pair(item, number)
                kind = kind or (self.d, None if target is None else target.shape[1])
                if (x.shape[1], None if target is None else target.shape[1]) != kind:
                    raise ValueError(
                        f"item {number} of source must have width {kind[0]} and targets of width "
                        f"{kind[1]}, as earlier items have, got {tuple(x.shape)} and "
                        f"{None if target is None else tuple(target.shape)}"
                    )
                made += len(x)
                yield x, target
            if self._once is not None:
                raise ValueError(
                    f"source ended after {made} rows and can be iterated only once; pass an "
                    f"object that can be iterated again, or train on at most "
                    f"{made // batch_size * batch_size} tokens, the rows of whole batches"
                )
            if made == before:
                raise ValueError(
                    f"source must yield rows at every epoch, but yielded none after {made} rows"
                )


def _pair(item: object, number: int) -> tuple[Tensor, Tensor | None]:
    name = f"item {number} of source"
    if not isinstance(item, tuple | list):
        return as_rows(name, item), None
    if len(item) == 1 and isinstance(item[0], Tensor | np.ndarray):
        return as_rows(name, item[0]), None
    if len(item) != 2:
        raise ValueError(
            f"{name} must be rows [n, d] or a pair (rows, targets), got {len(item)} values; "
            f"torch.tensor converts lists of numbers"
        )
    x, target = as_rows(name, item[0]), as_rows(f"the target in {name}", item[1])
    if len(x) != len(target):
        raise ValueError(f"{name} must have as many targets as rows, {len(x)}, got {len(target)}")
    return x, target


def _joined(xs: list[Tensor], targets: list[Tensor], first: int) -> Batch:
    x = torch.cat(xs)
    return Batch(
        x=x,
        target=torch.cat(targets) if targets else None,
        where=f"the iterator, rows {first} to {first + len(x) - 1}",
        rows=np.arange(first, first + len(x)),
    )
