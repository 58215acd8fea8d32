"""Worker processes for a part of a GPU session, so that a fault ends only one item.

A lane is a list of items that one process works through. It appends a line of JSON to a file when
an item begins, for every row, and when the item ends. If the process dies, or exits because a CUDA
error has made its device unusable, a new one continues with the next item; a process that is silent
for too long is killed first. Nothing here imports torch, so that a broken torch is only a failure
of the items.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
POISONED = 86
"""Exit status of a worker whose last item left the device in an error state."""
_CHECKOUT = Path(__file__).resolve().parents[2]
_POLL = 0.05
_LINE = 300


class Lane(NamedTuple):
    """Command that works through items; `--rows FILE --skip COUNT` is appended to it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = {}
    """variables in addition to the environment of this process"""


class Limits(NamedTuple):
    """Seconds that a part may take, and number of its lanes that run side by side."""

    part: float
    silence: float
    """seconds between two lines of a lane"""
    together: int = 1


class _Running:
    """Processes of one lane, one after another."""

    def __init__(self, lane: Lane, folder: Path, limits: Limits) -> None:
        self.lane, self._limits = lane, limits
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", lane.name)
        self._file, self._log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
        self.rows: list[Row] = []
        self.facts: Row = {}
        self._item: str | None = None
        self._begun, self._read, self._done = 0, 0, False
        self._start()

    def _start(self) -> None:
        self._begun_before = self._begun
        # `timeout` ends the worker even if this process is killed meanwhile.
        guard = ["timeout", "-k", "5", str(round(self._limits.part + 5))]
        where = ["--rows", str(self._file), "--skip", str(self._begun)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *self.lane.command, *where],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=_CHECKOUT,
                env={**os.environ, **self.lane.environment},
                start_new_session=True,
            )
        self._heard = time.monotonic()

    def finished(self) -> bool:
        """Collect the worker's messages; restart it if items are left."""
        status = self._process.poll()
        self._listen()
        if status is None:
            if time.monotonic() - self._heard <= self._limits.silence:
                return False
            self._kill()
            self._fail(f"no sign of life for {self._limits.silence:.0f} s, killed")
        else:
            self._kill()  # kills children that the worker left behind
            if self._done:
                return True
            if self._item is not None or self._begun == self._begun_before:
                self._fail(f"{_ending(status)}: {self._last_line()}")
        if self._begun == self._begun_before:  # a new process would fail in the same way
            return True
        self._start()
        return False

    def stop(self, reason: str) -> None:
        """End the lane, regardless of its state."""
        self._kill()
        self._listen()
        if not self._done:
            self._fail(reason)

    def _kill(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _fail(self, reason: str) -> None:
        self.rows.append({"item": self._item or self.lane.name, "raised": reason[:_LINE]})
        self._item = None

    def _listen(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        for line in whole.splitlines():
            try:
                message = json.loads(line)
            except ValueError:  # a process was killed while it wrote this line
                continue
            self._heard = time.monotonic()
            self._take(message)

    def _take(self, message: Row) -> None:
        if "begin" in message:
            self._item = message["begin"]
            self._begun += 1
        elif "row" in message:
            self.rows.append(message["row"])
        elif "end" in message:
            self._item = None
        elif "fact" in message:
            self.facts.update(message["fact"])
        elif "done" in message:
            self._done = True

    def _last_line(self) -> str:
        """Return the last line that the worker printed: of a traceback, the error."""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _ending(status: int) -> str:
    """Return how a process ended, by the exit status that `timeout` passes on."""
    number = -status if status < 0 else status - 128
    if number in {each.value for each in signal.Signals}:
        return f"killed by {signal.Signals(number).name}"
    return f"exit status {status}"


def run_lanes(
    lanes: Sequence[Lane], folder: Path, limits: Limits, seen: Callable[[list[Row], Row], None]
) -> str:
    """Run the lanes, and return "complete" or a text that names the unfinished ones.

    Args:
        lanes: lanes to run, in the order in which they begin.
        folder: existing folder for rows and output of the workers.
        limits: seconds, and number of lanes that run side by side.
        seen: function called at every poll with the new rows and facts, often none.

    Returns:
        "complete", or a text that names the unfinished lanes.
    """
    begin = time.monotonic()
    waiting, running = list(lanes), list[_Running]()

    def collect(one: _Running) -> None:
        seen(one.rows, one.facts)
        one.rows, one.facts = [], {}

    try:
        while waiting or running:
            if time.monotonic() - begin > limits.part:
                break
            while waiting and len(running) < limits.together:
                running.append(_Running(waiting.pop(0), folder, limits))
            for one in list(running):
                if one.finished():
                    running.remove(one)
                collect(one)
            time.sleep(_POLL)
        undone = [one.lane.name for one in running] + [lane.name for lane in waiting]
    finally:
        for one in running:
            one.stop(f"not finished when the part's {limits.part:.0f} s were over")
            collect(one)
    return f"not finished: {', '.join(undone)}" if undone else "complete"
