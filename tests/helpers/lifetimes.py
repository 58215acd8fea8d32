"""What lives on after its use."""

import contextlib
import gc
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Prevent the collection of cycles, which would end or free what was forgotten."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def threads_named(name: str) -> list[threading.Thread]:
    """Return the running threads whose names begin with a name."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]
