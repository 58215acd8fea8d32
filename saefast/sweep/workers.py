"""Interface of the workers of a sweep, and workers that are processes of this machine."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch

STOP = "stop"
"""Line that asks a worker to interrupt its task and end."""


class WorkerTask(Protocol):
    """Work as plain data, which `saefast.sweep.attempts` performs in any process.

    Its files may be written again by a second attempt, with the same bytes.
    """

    @property
    def kind(self) -> str:
        """Kind of the task, by which its data are read."""
        ...

    @property
    def label(self) -> str:
        """Name of the task for messages."""
        ...

    @property
    def memory(self) -> int:
        """Bytes of memory of the process that performs it."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the task as a dict that JSON can represent."""
        ...

    def perform(self) -> None:
        """Do the work in this process."""
        ...


AnyTask = TypeVar("AnyTask", bound=WorkerTask)


class Answer(NamedTuple, Generic[AnyTask]):
    """Outcome of a task."""

    task: AnyTask
    """the task"""
    reason: str | None
    """reason of the failure, one line; None if the task succeeded"""
    died: bool = False
    """whether the process ended before the task"""


class Workers(Protocol[AnyTask]):
    """Workers that perform several tasks concurrently."""

    groups: int
    """number of trainings that keep all workers busy"""
    memory: int | None
    """bytes for the SAEs of one training; None: no limit"""

    def free(self) -> bool:
        """Return whether another task can be started."""
        ...

    def start(self, task: AnyTask) -> None:
        """Start a task without waiting for it."""
        ...

    def wait(self) -> Answer[AnyTask]:
        """Wait until a started task ends, and return its outcome."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *error: object) -> None: ...


class LocalWorkers(Generic[AnyTask]):
    """Worker processes of this machine, which share its threads, or have one GPU each.

    Args:
        processes: number of processes; None: one for each GPU, or for each processor core if there
            is no GPU.
        tasks: maximum number of concurrent tasks.
    """

    def __init__(self, processes: int | None, tasks: int) -> None:
        count, self._threads, free = local_workers(processes, tasks)
        self.groups = count
        self.memory: int | None = None if free is None else free // count
        self._gpus = torch.cuda.device_count()
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process[AnyTask] | None] = [None] * count

    def free(self) -> bool:
        """Return whether a process is idle or not started yet; see `Workers`."""
        return any(each is None or each.task is None for each in self._processes)

    def start(self, task: AnyTask) -> None:
        """Send a task to an idle process; see `Workers`."""
        place = next(i for i, each in enumerate(self._processes) if each is None or not each.task)
        worker = self._processes[place] or self._begin(place)
        worker.task = task
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(task.to_dict()) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:  # the process has died, which `wait` will report
            pass

    def wait(self) -> Answer[AnyTask]:
        """Wait for the answer or the end of a process; see `Workers`."""
        while True:
            for key, _ in self._selector.select():
                place: int = key.data
                worker = self._processes[place]
                assert worker is not None
                assert worker.process.stdout is not None
                line = worker.process.stdout.readline()
                task, worker.task = worker.task, None
                if line:
                    assert task is not None
                    return Answer(task, json.loads(line)["reason"])
                reason = self._end(place)
                if task is not None:
                    return Answer(task, reason, died=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        running = [each for each in self._processes if each is not None]
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        for each in running:
            assert each.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                if interrupted:
                    each.process.stdin.write(f"{STOP}\n")  # a training leaves a checkpoint
                    each.process.stdin.flush()
                else:
                    each.process.stdin.close()
        for each in running:
            each.process.wait()
            for pipe in (each.process.stdin, each.process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._selector.close()

    def _begin(self, place: int) -> "_Process[AnyTask]":
        process = subprocess.Popen(
            # -P: workers import the modules of the driver, not those of the current folder.
            [sys.executable, "-P", "-m", "saefast.sweep.worker", str(self._threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(place),
            start_new_session=True,  # only the driver receives Ctrl-C, and forwards it
        )
        worker: _Process[AnyTask] = _Process(process)
        self._processes[place] = worker
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, place)
        return worker

    def _environment(self, place: int) -> Mapping[str, str]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        if self._gpus:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = seen.split(",") if seen else [str(number) for number in range(self._gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
        return environment

    def _end(self, place: int) -> str:
        """Release a process that has ended, and return how it ended."""
        worker = self._processes[place]
        assert worker is not None
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        worker.process.stdout.close()
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
        code = worker.process.wait()
        self._processes[place] = None
        if code < 0:
            return f"the worker was killed by {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"


class _Process(Generic[AnyTask]):
    """A worker process and its task."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.task: AnyTask | None = None


def reason_of(error: BaseException) -> str:
    """Return the type and message of an error in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def local_workers(processes: int | None, tasks: int) -> tuple[int, int, int | None]:
    """Return the number of processes, the threads of each, and the bytes of free memory.

    Args:
        processes: number of processes; None: one for each GPU, or for each processor core if there
            is no GPU.
        tasks: maximum number of concurrent tasks.

    Returns:
        The number of processes, threads of each, and free memory, None if it is unknown.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(1, min(processes or torch.cuda.device_count() or cores or 1, tasks))
    return count, max(1, (cores or 1) // count), _free_memory()


def _free_memory() -> int | None:
    """Return the bytes of available memory; None without /proc/meminfo."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts: dict[str, Any] = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(facts["MemAvailable"].split()[0]) * 1024
