"""Where tasks are done: what a driver asks of workers, and processes of this machine."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import torch

from saefast.sweep.tasks import Task


class Answer(NamedTuple):
    """The end of a task."""

    task: Task
    reason: str | None
    """why it failed, in one line; None: it did not"""
    died: bool = False
    """whether the process ended, for whatever reason, before the task did"""


class Workers(Protocol):
    """Does tasks, several at a time."""

    groups: int
    """number of trainings that keep all workers busy"""
    memory: int | None
    """bytes for the SAEs of one training; None: no bound"""

    def free(self) -> bool:
        """Return whether one more task can be started."""
        ...

    def start(self, task: Task) -> None:
        """Begin a task."""
        ...

    def wait(self) -> Answer:
        """Wait for the end of a task that was started."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *error: object) -> None: ...


class LocalWorkers:
    """Processes of this machine, which divide its threads, or have a GPU each.

    Args:
        processes: number of processes; None: one for each GPU, or for each processor core.
        tasks: the most tasks that there can be at once.
    """

    def __init__(self, processes: int | None, tasks: int) -> None:
        count, self._threads, free = local_workers(processes, tasks)
        self.groups = count
        self.memory: int | None = None if free is None else free // count
        self._gpus = torch.cuda.device_count()
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process | None] = [None] * count

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that have begun."""
        return [each.process.pid for each in self._processes if each is not None]

    def free(self) -> bool:
        """See `Workers`."""
        return any(each is None or each.task is None for each in self._processes)

    def start(self, task: Task) -> None:
        """See `Workers`."""
        place = next(i for i, each in enumerate(self._processes) if each is None or not each.task)
        worker = self._processes[place] or self._begin(place)
        worker.task = task
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(task.to_dict()) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:  # it has died, as `wait` will find
            pass

    def wait(self) -> Answer:
        """See `Workers`."""
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
        for each in running:
            if kind is not None and issubclass(kind, KeyboardInterrupt) and each.task is not None:
                each.process.send_signal(signal.SIGINT)  # a training leaves a checkpoint
                each.process.wait()
            assert each.process.stdin is not None
            each.process.stdin.close()
        for each in running:
            each.process.wait()
            assert each.process.stdout is not None
            each.process.stdout.close()
        self._selector.close()

    def _begin(self, place: int) -> "_Process":
        process = subprocess.Popen(
            # -P: what the driver imports is imported, not a checkout that is the current folder.
            [sys.executable, "-P", "-m", "saefast.sweep.worker", str(self._threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(place),
            start_new_session=True,  # Ctrl-C is for the driver, which passes it on
        )
        worker = self._processes[place] = _Process(process)
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
        """Clear up after a process that has ended, and say how it ended."""
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


class _Process:
    """A worker process and its task."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.task: Task | None = None


def local_workers(processes: int | None, tasks: int) -> tuple[int, int, int | None]:
    """Return how many processes there would be, the threads of each, and the memory for all.

    Args:
        processes: number of processes; None: one for each GPU, or for each processor core.
        tasks: the most tasks that there can be at once.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(1, min(processes or torch.cuda.device_count() or cores or 1, tasks))
    return count, max(1, (cores or 1) // count), _free_memory()


def _free_memory() -> int | None:
    """Return the bytes of memory that are free; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts: dict[str, Any] = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(facts["MemAvailable"].split()[0]) * 1024
