"""Time the calls of a function while a program runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Calls(list[float]):
    """Seconds of each call of a function, and the arguments of its last call."""

    last: tuple[Any, ...] = ()


@contextmanager
def watched(module: Any, name: str, keep: bool = False) -> Iterator[Calls]:
    """Time the calls of a function inside the `with`."""
    function, calls = getattr(module, name), Calls()

    def call(*arguments: Any, **options: Any) -> Any:
        calls.last = arguments if keep else ()
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            calls.append(time.perf_counter() - start)

    setattr(module, name, call)
    try:
        yield calls
    finally:
        setattr(module, name, function)
