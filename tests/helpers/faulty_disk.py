"""Processes whose changes of files are counted, logged and disturbed by faulty_disk.c."""

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import pytest

SHORT, SLOW, KILL = -1, -2, -3
"""Faults that are not the number of an error: half of a write, 30 ms late, SIGKILL"""

_LONG = 300.0  # seconds after which a process counts as hanging


class Fault(NamedTuple):
    """Disturbance of a process."""

    call: int = 0
    """number of the call that is disturbed, from 1; 0: none"""
    kind: int = 0
    """SHORT, SLOW, KILL, or the number of an error"""
    lasts: bool = False
    """whether later calls are disturbed, too"""

    def __str__(self) -> str:
        name = {SHORT: "short", SLOW: "slow", KILL: "kill"}.get(self.kind)
        lasting = " from there on" if self.lasts else ""
        return f"{name or errno.errorcode.get(self.kind, 'none')} at {self.call}{lasting}"


class Call(NamedTuple):
    """Line of the log."""

    number: int
    """number of the call; 0: a note"""
    kind: str
    """mkdir, create, open, write, flush, rename, remove or note"""
    error: int
    """number of the error, 0 for none"""
    path: str
    """path, or text of the note"""
    to: str
    """new path of a renaming, size of a flushed file"""


class Ended(NamedTuple):
    """How a process ended."""

    error: str | None
    """class of the exception; None: it ended without one"""
    message: str
    killed: bool
    log: list[Call]


class FaultyDisk:
    """Process that imports saefast once, and forks a child for each piece of work.

    Args:
        scratch: folder for the compiled library and logs.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        library = scratch / "faulty_disk.so"
        source = Path(__file__).with_suffix(".c")
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("needs Linux and a C compiler")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)
        start = f"import sys; sys.path.insert(0, {str(source.parent.parent)!r}); "
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"{start}from helpers.faulty_disk import serve; serve()"],
            cwd=scratch,
            env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        work: str,
        folder: Path,
        fault: Fault = Fault(),  # noqa: B008
        *,
        seconds: float | None = None,
        kept: Path | None = None,
    ) -> Ended:
        """Do a piece of work in a child.

        Args:
            work: name of a function of `helpers.disk_writers`, a colon, and its first argument.
            folder: the function's last argument, below which calls are logged and disturbed.
            fault: disturbance.
            seconds: time after which the child is killed; None: it is not.
            kept: folder for a link to each flushed file, by the number of the call.

        Returns:
            The way in which the child ended, and its calls.
        """
        log = self._scratch / "log"
        log.unlink(missing_ok=True)
        asked = [work, str(folder), str(log), "" if kept is None else str(kept), *fault, seconds]
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        pipes[0].write(json.dumps(asked) + "\n")
        pipes[0].flush()
        answer = json.loads(pipes[1].readline())
        assert answer["status"] in (0, -signal.SIGKILL), answer
        assert not answer["hung"], (work, fault)
        return Ended(answer["error"], answer["message"], answer["status"] != 0, read_log(log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        with self._process:
            self._process.kill()


def read_log(log: Path) -> list[Call]:
    """Read the calls that a child has logged."""
    calls = []
    for line in log.read_text().splitlines() if log.exists() else ():
        number, kind, result, path, to = line.split("\t")
        calls.append(Call(int(number), kind, -int(result), path, to))
    return calls


def note(text: str) -> None:
    """Add a line to the log of the calls of this process."""
    ctypes.CDLL(None).faulty_disk_note(text.encode())


def serve() -> None:
    """Fork a child for each line of standard input, and print how it ended."""
    from helpers import disk_writers

    with tempfile.TemporaryDirectory() as folder:
        disk_writers.warm(Path(folder))
    for line in sys.stdin:
        work, folder, log, kept, call, kind, lasts, seconds = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(2, 1)
            function, _, argument = work.partition(":")
            answer: dict[str, str | None] = {"error": None, "message": ""}
            names = (name.encode() for name in (folder, log, kept))
            ctypes.CDLL(None).faulty_disk_arm(*names, call, kind, int(lasts))
            try:
                getattr(disk_writers, function)(argument, Path(folder))
                note("returned")
            except BaseException as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            print(json.dumps(_ended(child, pipe, seconds)), flush=True)


def _ended(child: int, pipe: IO[bytes], seconds: float | None) -> dict[str, object]:
    """Wait for a child, which is killed after some time."""
    begun = time.monotonic()
    ready, _, _ = select.select([pipe], [], [], _LONG if seconds is None else seconds)
    if not ready:
        os.kill(child, signal.SIGKILL)
    answer = json.loads(pipe.read() or b'{"error": null, "message": ""}')
    _, status = os.waitpid(child, 0)
    hung = not ready and time.monotonic() - begun > _LONG - 1
    return {**answer, "status": os.waitstatus_to_exitcode(status), "hung": hung}
