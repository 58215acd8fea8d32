"""Write checkpoints, concurrently with the training if the state is on a GPU."""

import threading
from collections.abc import Mapping
from typing import Self

from torch import Tensor

from saefast.ops.cuda_streams import Event, Streams
from saefast.train.checkpoint import RunFile

States = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each SAE's state, by the SAE's label and the tensor's name."""


class CheckpointWriter:
    """Writer of the checkpoints of a run, one at a time.

    It is a context manager, which waits for the last checkpoint at the end.

    On a GPU, `save` copies the state to pinned memory and returns; a thread writes the files. The
    copies are submitted to the stream of the steps, so that they hold the state of one step for all
    SAEs; the next step waits for the copies but not for the disk. An error of the thread is raised
    by the next call of any method. If the host has no memory for the copies, and on a CPU, where
    the next step would change the state during the write, `save` returns after the files are
    written.

    Args:
        run: file of the run, which no other thread may change between `save` and `wait`.
        streams: streams of the device of the state; None for a CPU.
    """

    def __init__(self, run: RunFile, streams: Streams | None) -> None:
        self._run, self._streams = run, streams
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._pinned: dict[tuple[str, str], Tensor] = {}

    def save(self, step: int, states: States) -> None:
        """Write the state after `step` steps, after the previous checkpoint has been written."""
        self.wait()
        kept = None if self._streams is None else self._copied(self._streams, states)
        if kept is None:
            self._write(step, states)
            return
        self._thread = threading.Thread(
            target=self._write_beside, args=(step, *kept), name="checkpoint"
        )
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a failed checkpoint, without waiting for one that is being written."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the current checkpoint is written, and raise its error."""
        self._join()
        error, self._error = self._error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error  # else it and this frame, in its traceback, would refer to each other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # In any case no thread may write to the folder after the run has ended.
        self._join()
        if error is None:
            self.wait()
        elif self._error is not None:
            error.add_note(f"besides, {self._error}")

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copied(self, streams: Streams, states: States) -> tuple[States, Event] | None:
        """Copy the states to pinned memory; return the copies and an event, None without memory."""
        try:
            kept = {
                label: {
                    name: self._memory(streams, (label, name), tensor)
                    for name, tensor in state.items()
                }
                for label, state in states.items()
            }
        except RuntimeError:
            self._pinned.clear()
            return None
        for label, state in states.items():
            for name, tensor in state.items():
                kept[label][name].copy_(tensor, non_blocking=True)
        return kept, streams.record()

    def _memory(self, streams: Streams, key: tuple[str, str], like: Tensor) -> Tensor:
        memory = self._pinned.get(key)
        if memory is None:
            memory = self._pinned[key] = streams.pinned(like.shape, like.dtype)
        return memory

    def _write_beside(self, step: int, states: States, copied: Event) -> None:
        try:
            copied.synchronize()
            self._write(step, states)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, states: States) -> None:
        try:
            self._run.save(step, states)
        except ConnectionError:  # another rank failed, whose reason the error has
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} {error.strerror}; the checkpoint of step "
                f"{self._run.step} is intact; resume it with resume=True",
                error.filename,
            ) from error
