"""Prefetch items in a thread, such as the next batches during a training step."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

from saefast import checks

T = TypeVar("T")

_CLOSING_SECONDS = 5.0
_CLOSED = "the Prefetcher is closed; make a new one"


class Prefetcher(Generic[T]):
    """Iterate over `iterator` in a thread, up to `depth` items ahead, in the same order.

    Exceptions of the iterator or of `transform` are raised in the consumer at the position of their
    item, with their traceback. Use the object in a `with` statement, or call `close`.

    Args:
        iterator: iterable to read.
        depth: maximum number of items ready but not yet consumed; 0: no thread is started, and each
            item is read when it is consumed.
        transform: function applied to every item in the thread; None: items as they are.
    """

    def __init__(
        self,
        iterator: Iterable[Any],
        depth: int = 4,
        transform: Callable[[Any], T] | None = None,
    ):
        checks.whole("depth", depth, 0)
        if not isinstance(iterator, Iterable):
            raise TypeError(f"iterator must be iterable, got {type(iterator).__name__}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable, got {type(transform).__name__}")
        self.wait_seconds = 0.0
        """Total seconds that the consumer has waited for items."""
        self._shelf: _Shelf[T] | _Source[T]
        self._thread = None
        if depth == 0:
            self._shelf = _Source(iterator, transform)
        else:
            self._shelf = _Shelf(depth)
            # The thread refers to the shelf only, so that an unreferenced prefetcher is collected.
            self._thread = threading.Thread(
                target=_fill, args=(self._shelf, iterator, transform), name="prefetch", daemon=True
            )
        self._finalizer = weakref.finalize(self, self._shelf.close)
        if self._thread is not None:
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        before = time.perf_counter()
        try:
            return self._shelf.take()
        finally:
            self.wait_seconds += time.perf_counter() - before

    def close(self) -> None:
        """Stop the thread; one blocked in the iterator is left behind and ends by itself."""
        self._finalizer()
        if self._thread is not None:
            self._thread.join(_CLOSING_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Shelf(Generic[T]):
    """Buffer of up to `depth` items between the thread and the consumer."""

    def __init__(self, depth: int):
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room and add the item; return False if the shelf is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None) -> None:
        """Record that no items follow, because of `error` or because the iterator ended."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ended or bool(self._items))
            if self._closed:
                raise ValueError(_CLOSED)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            error, self._error = self._error, None
        if error is None:
            raise StopIteration
        try:
            raise error
        finally:
            del error  # else it and this frame, in its traceback, would refer to each other

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _Source(Generic[T]):
    """Items that are read when they are taken."""

    def __init__(self, iterator: Iterable[Any], transform: Callable[[Any], T] | None):
        # In a generator, a StopIteration raised by `transform` becomes a RuntimeError.
        self._items = (item if transform is None else transform(item) for item in iterator)
        self._closed = False

    def take(self) -> T:
        if self._closed:
            raise ValueError(_CLOSED)
        return next(self._items)

    def close(self) -> None:
        self._closed = True
        self._items.close()


def _fill(
    shelf: _Shelf[Any], iterator: Iterable[Any], transform: Callable[[Any], Any] | None
) -> None:
    try:
        for item in iterator:
            if not shelf.put(item if transform is None else transform(item)):
                return
    except StopIteration as error:
        # Raised by `transform`: the consumer would mistake it for the end of the data.
        stop = RuntimeError("transform raised StopIteration")
        stop.__cause__ = error
        shelf.end(stop)
    except BaseException as error:
        shelf.end(error)
    else:
        shelf.end(None)
